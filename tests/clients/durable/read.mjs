// Prints each batch that npm's client reads from a stream, to its end.
import { stream } from "@durable-streams/client";

const [url, live] = process.argv.slice(2);
const found = await stream({ url, live: live === "auto" ? true : live });
found.subscribeJson(({ items, offset }) => {
  console.log(JSON.stringify({ items, offset }));
});
await found.closed;
