// Prints each event of an EventSource until it is closed.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
// Node would exit in the pause before a reconnection.
const alive = setInterval(() => {}, 60_000);

source.onmessage = ({ lastEventId, data }) =>
  console.log(JSON.stringify({ id: lastEventId, ...JSON.parse(data) }));
source.onerror = ({ code }) => {
  if (source.readyState !== EventSource.CLOSED) return;
  console.log(JSON.stringify({ closed: code }));
  clearInterval(alive);
};
