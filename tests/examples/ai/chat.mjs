// Drives the example with the AI SDK, unmodified: node chat.mjs <origin> <cookie>
import assert from "node:assert/strict";
import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport, readUIMessageStream } from "ai";

const [, , origin, cookie] = process.argv;
const headers = { cookie };
const transport = new DefaultChatTransport({ api: `${origin}/api/chat`, headers });

const textOf = (message) => message.parts.map(({ type, text }) => (type === "text" ? text : "")).join("");
const said = (text) => ({ id: "m1", role: "user", parts: [{ type: "text", text }] });
const once = (text) => {
  assert.match(text, /“why\?”/);
  assert.equal(text.match(/\d+/g).slice(1).join(), Array.from({ length: 100 }, (_, at) => at + 1).join());
  assert.ok(text.endsWith("That is all. "));
};
const until = async (fits) => {
  while (!fits()) await new Promise((done) => setTimeout(done, 5));
};

const read = async (stream) => {
  let last;
  for await (const message of readUIMessageStream({ stream })) last = message;
  return last;
};

// The transport alone: a stream, given up in the middle, and resumed from the beginning.
assert.equal(await transport.reconnectToStream({ chatId: "one" }), null);
const leaving = new AbortController();
const begun = await transport.sendMessages({
  chatId: "one",
  messages: [said("why?")],
  trigger: "submit-message",
  abortSignal: leaving.signal,
});
const reader = begun.getReader();
for (let chunks = 0; chunks < 12; chunks++) await reader.read();
leaving.abort();
const resumed = await read(await transport.reconnectToStream({ chatId: "one" }));
once(textOf(resumed));

// `Chat` is what `useChat` has inside. Another page of the same chat resumes it.
const errors = [];
const onError = (error) => errors.push(error);
const first = new Chat({ id: "two", transport, onError });
const sending = first.sendMessage({ text: "why?" });
await until(() => first.messages.length === 2 && textOf(first.messages[1]).length > 80);
const stored = await (await fetch(`${origin}/api/chat/two`, { headers })).json();
assert.deepEqual(stored.map(({ role }) => role), ["user"]);
const second = new Chat({ id: "two", transport, messages: stored, onError });
await second.resumeStream();
await sending;
for (const chat of [first, second]) {
  assert.equal(chat.status, "ready");
  assert.equal(chat.messages.length, 2);
  once(textOf(chat.messages[1]));
}
assert.equal(first.messages[1].id, second.messages[1].id);
const after = await (await fetch(`${origin}/api/chat/two`, { headers })).json();
assert.equal(textOf(after[1]), textOf(first.messages[1]));

// A later question has the earlier messages; stopping ends it, with what there is.
const more = first.sendMessage({ text: "and?" });
await until(() => first.messages.length === 4 && textOf(first.messages[3]).length > 80);
await fetch(`${origin}/api/chat/two/stop`, { method: "POST", headers });
await more;
const stopped = await (await fetch(`${origin}/api/chat/two`, { headers })).json();
assert.deepEqual(stopped.map(({ role }) => role), ["user", "assistant", "user", "assistant"]);
assert.ok(textOf(stopped[3]).length < textOf(stopped[1]).length);
assert.equal(textOf(first.messages[3]), textOf(stopped[3]));
assert.deepEqual(errors, []);
console.log("done");
