// Prints each event that an EventSource gets, until it is closed for good.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
// A pause before it connects again is no reason for Node to go on.
const alive = setInterval(() => {}, 60_000);

source.onmessage = ({ lastEventId, data }) =>
  console.log(JSON.stringify({ id: lastEventId, ...JSON.parse(data) }));
source.onerror = ({ code }) => {
  if (source.readyState !== EventSource.CLOSED) return;
  console.log(JSON.stringify({ closed: code }));
  clearInterval(alive);
};
