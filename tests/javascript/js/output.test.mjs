import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { followOutput, JobError } from "./client/client.js";
import { drop, json, serving } from "./serving.mjs";

const JOB = "/api/jobs/job_1";
const end = (offset, more = {}) => ({ streamNextOffset: offset, streamEpoch: 1, ...more });
const closed = (offset, more = {}) => end(offset, { upToDate: true, streamClosed: true, ...more });

/** Answer a stream of `[data, control]` events, then end it, or leave it open or cut it. */
const stream = (events, { kind = "json", then = "end", headers = {} } = {}) => (_, answer) => {
  const named = kind ? { "stream-kind": kind } : {};
  answer.writeHead(200, { "content-type": "text/event-stream", ...named, ...headers });
  for (const [data, control] of events) {
    if (data !== null) answer.write(`event: data\n${data.split("\n").map((line) => `data: ${line}\n`).join("")}\n`);
    if (control) answer.write(`event: control\ndata:${JSON.stringify(control)}\n\n`);
  }
  if (then === "end") answer.end();
  if (then === "cut") setTimeout(() => answer.destroy(), 50);
};

/** Answer one read. */
const part = (body, offset, { type = "application/json", isClosed = false, status = 200 } = {}) => (_, answer) => {
  const headers = { "content-type": type, "stream-next-offset": offset, "stream-epoch": "1" };
  answer.writeHead(status, { ...headers, ...(isClosed ? { "stream-closed": "true" } : {}) });
  answer.end(body);
};

const query = ({ url }) => Object.fromEntries(new URL(url, "http://localhost").searchParams);

const items = async (origin, options) => {
  const found = [];
  for await (const portion of followOutput(origin + JOB, options)) found.push(...portion.items);
  return found;
};

const failing = async (promise) => {
  const error = await promise.then((value) => assert.fail(JSON.stringify(value)), (error) => error);
  assert.ok(error instanceof JobError, String(error?.stack));
  return error;
};

describe("followed output", { concurrency: true }, () => {
  test("has each item once, with the offset after it", async (context) => {
    const { origin, requests } = await serving(
      context,
      stream([
        ['[1,{"a":2}]', end("b")],
        ["[3]", closed("c")],
      ]),
    );
    const portions = [];
    for await (const portion of followOutput({ statusUrl: origin + JOB })) portions.push(portion);
    assert.deepEqual(portions, [
      { items: [1, { a: 2 }], offset: "b", epoch: 1 },
      { items: [3], offset: "c", epoch: 1 },
    ]);
    assert.equal(requests.length, 1);
    assert.equal(new URL(requests[0].url, origin).pathname, `${JOB}/output`);
    assert.deepEqual(query(requests[0]), { offset: "-1", live: "sse" });
  });

  test("is passed to onItems, and the promise has the end", async (context) => {
    const { origin } = await serving(context, stream([["[1,2]", end("b")], ["[3]", closed("c", { streamEpoch: 2 })]]));
    const seen = [];
    const onItems = (items, { offset, epoch }) => seen.push([items, offset, epoch]);
    const found = await followOutput(origin + JOB, { onItems });
    assert.deepEqual(found, { offset: "c", epoch: 2 });
    assert.deepEqual(seen, [[[1, 2], "b", 1], [[3], "c", 2]]);
  });

  test("of another stream begins at an offset", async (context) => {
    const { origin, requests } = await serving(context, stream([[null, closed("d")]]));
    assert.deepEqual(await items(origin, { stream: "log", offset: "c" }), []);
    assert.equal(new URL(requests[0].url, origin).pathname, `${JOB}/output/log`);
    assert.equal(query(requests[0]).offset, "c");
  });

  test("goes on after a stream that ended", async (context) => {
    const { origin, requests } = await serving(context, stream([["[1]", end("b")]]), stream([["[2]", closed("c")]]));
    assert.deepEqual(await items(origin), [1, 2]);
    assert.deepEqual(requests.map((one) => query(one).offset), ["-1", "b"]);
  });

  test("is not repeated if the connection is cut before the offset", async (context) => {
    const { origin, requests } = await serving(
      context,
      stream([["[1]", end("b")], ["[2]", null]], { then: "cut" }),
      stream([["[2,3]", closed("d")]]),
    );
    assert.deepEqual(await items(origin), [1, 2, 3]);
    assert.deepEqual(requests.map((one) => query(one).offset), ["-1", "b"]);
  });

  test("of text keeps its lines", async (context) => {
    const { origin } = await serving(context, stream([["one\n\n two", closed("b")]], { kind: "text" }));
    assert.deepEqual(await items(origin), ["one\n\n two"]);
  });

  test("of text keeps its carriage returns", async (context) => {
    const { origin } = await serving(context, stream([["a\nb", closed("b", { streamText: "a\r\nb" })]], { kind: "text" }));
    assert.deepEqual(await items(origin), ["a\r\nb"]);
  });

  test("of bytes is decoded", async (context) => {
    const headers = { "stream-sse-data-encoding": "base64" };
    const { origin } = await serving(context, stream([["AAH/", closed("b")]], { kind: "bytes", headers }));
    assert.deepEqual(await items(origin), [new Uint8Array([0, 1, 255])]);
  });

  test("without a kind gets the type from a read", async (context) => {
    const { origin, requests } = await serving(
      context,
      stream([["[1]", end("b")]], { kind: null }),
      part("[1]", "b"),
      stream([["[2]", closed("c")]], { kind: null }),
    );
    assert.deepEqual(await items(origin), [1, 2]);
    assert.deepEqual(requests.map((one) => query(one).live), ["sse", "long-poll", "sse"]);
  });

  test("is read by held requests if streams are held back", async (context) => {
    const silent = (_, answer) => answer.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
    const { origin, requests } = await serving(
      context,
      silent,
      part("one ", "b", { type: "text/plain; charset=utf-8" }),
      part("", "b", { status: 204 }),
      part("two", "c", { type: "text/plain; charset=utf-8", isClosed: true }),
    );
    assert.deepEqual(await items(origin), ["one ", "two"]);
    assert.deepEqual(requests.map((one) => query(one).live), ["sse", "long-poll", "long-poll", "long-poll"]);
  });

  test("ends with a 204 of a closed stream", async (context) => {
    const { origin } = await serving(context, json({}), part("", "b", { status: 204, isClosed: true }));
    assert.deepEqual(await items(origin), []);
  });

  for (const [name, fault] of [
    ["a lost connection", drop],
    ["an answer of a busy server", json({ error: "Busy", code: "too_many_held" }, 503, { "retry-after": "1" })],
  ]) {
    test(`goes on after ${name}`, async (context) => {
      const { origin } = await serving(context, fault, stream([["[1]", closed("b")]]));
      assert.deepEqual(await items(origin), [1]);
    });
  }

  test("sends headers and the token along with streams", async (context) => {
    const { origin, requests } = await serving(context, stream([[null, closed("b")]]));
    await items(origin, { headers: { Authorization: "Basic eA==" } });
    await items(origin, { token: "t.t.t" });
    assert.deepEqual(requests.map(({ headers }) => headers.authorization), ["Basic eA==", "Bearer t.t.t"]);
    assert.ok(requests.every(({ headers }) => headers.accept === "text/event-stream"));
  });

  test("renews a token that is refused", async (context) => {
    const refused = json({ error: "Expired", code: "invalid_token" }, 401);
    const { origin, requests } = await serving(
      context,
      refused,
      json({ token: "new", tokenUrl: `${JOB}/token` }),
      stream([["[1]", closed("b")]]),
    );
    const job = { statusUrl: origin + JOB, token: "old", tokenUrl: `${origin}${JOB}/token` };
    await followOutput(job, { onItems: () => {} });
    const sent = requests.map(({ method, headers }) => [method, headers.authorization]);
    assert.deepEqual(sent, [["GET", "Bearer old"], ["POST", "Bearer old"], ["GET", "Bearer new"]]);
  });

  test("is refused with the server's code for a bad offset", async (context) => {
    const { origin } = await serving(context, json({ error: "The offset is bad.", code: "invalid_query" }, 400));
    const error = await failing(items(origin, { offset: "x" }));
    assert.deepEqual([error.code, error.status], ["invalid_query", 400]);
  });

  test("of an unknown job is an error", async (context) => {
    const { origin } = await serving(context, json({ error: "No such job.", code: "job_not_found" }, 404));
    assert.equal((await failing(followOutput(origin + JOB))).code, "job_not_found");
  });

  test("of another server's pages is an error", async (context) => {
    const { origin } = await serving(context, json({}), json({}));
    assert.equal((await failing(followOutput(origin + JOB))).code, "not_a_stream");
  });

  test("stops if the loop is left, and waits for a slow loop", async (context) => {
    const many = Array.from({ length: 500 }, (_, at) => [`[${at}]`, end(`o${at}`)]);
    const { origin, requests } = await serving(context, stream([...many, [null, closed("z")]]));
    const found = [];
    for await (const { items } of followOutput(origin + JOB)) {
      found.push(...items);
      if (found.length < 5) await new Promise((done) => setTimeout(done, 20));
      if (found.length === 120) break;
    }
    assert.deepEqual(found, Array.from({ length: 120 }, (_, at) => at));
    assert.equal(requests.length, 1);
  });

  test("ends with the error of onItems, of its signal and of its timeout", async (context) => {
    const { origin } = await serving(context, stream([["[1]", end("b")]], { then: "wait" }));
    const failed = followOutput(origin + JOB, { onItems: () => { throw new RangeError("no"); } });
    await assert.rejects(failed, RangeError);
    const leaving = new AbortController();
    const left = followOutput(origin + JOB, { signal: leaving.signal, onItems: () => leaving.abort() });
    await assert.rejects(left, { name: "AbortError" });
    assert.equal((await failing(followOutput(origin + JOB, { timeout: 50 }))).code, "timeout");
  });
});
