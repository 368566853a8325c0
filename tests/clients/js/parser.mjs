// Prints each event that eventsource-parser finds in the body of a fetch.
import { EventSourceParserStream } from "eventsource-parser/stream";

const response = await fetch(process.argv[2]);
const events = response.body
  .pipeThrough(new TextDecoderStream())
  .pipeThrough(new EventSourceParserStream({ onError: "terminate" }));
for await (const { id, data } of events) {
  console.log(JSON.stringify({ id, ...JSON.parse(data) }));
}
