// Prints each batch that npm's client reads from a stream, to its end.
import { stream } from "@durable-streams/client";

const [url, live] = process.argv.slice(2);
let offset = "-1";
let ended = false;
while (!ended) {
  try {
    const found = await stream({ url, offset, live: live === "auto" ? true : live });
    found.subscribeJson((batch) => {
      offset = batch.offset;
      console.log(JSON.stringify({ items: batch.items, offset }));
    });
    await found.closed;
    ended = true;
  } catch (error) {
    // The client does not connect again by itself with an explicit `sse`, nor if an answer breaks
    // off after its headers, which fetch reports as a `TypeError`.
    if (live !== "sse" && !(error instanceof TypeError)) throw error;
  }
}
