import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { followJobs, JobError } from "./client/client.js";
import { drop, json, serving, text } from "./serving.mjs";

const listed = (id, more = {}) => ({
  jobId: id,
  status: "pending",
  progress: 0,
  title: null,
  createdAt: `2026-01-0${id.length}T00:00:00Z`,
  ...more,
});

const list = (...jobs) => json({ jobs, next: null });

/** Answer a stream of these events, then leave it open, or end it. */
const stream = (events, { ends = false } = {}) => (_, answer) => {
  answer.writeHead(200, { "content-type": "text/event-stream" });
  answer.write("retry: 10\n\n");
  for (const [kind, document] of events) {
    answer.write(`${kind === "message" ? "" : `event: ${kind}\n`}data: ${JSON.stringify(document)}\n\n`);
  }
  if (ends) answer.end();
};

const ids = (jobs) => jobs.map(({ jobId }) => jobId);

const failing = async (promise) => {
  const error = await promise.then((value) => assert.fail(JSON.stringify(value)), (error) => error);
  assert.ok(error instanceof JobError, String(error?.stack));
  return error;
};

/** Return the lists that a follower shows until one fits. */
const until = async (fits, origin, options = {}) => {
  const seen = [];
  for await (const jobs of followJobs({ prefix: `${origin}/api/jobs`, ...options })) {
    seen.push(jobs);
    if (fits(jobs)) return seen;
  }
  return seen;
};

describe("a followed list", { concurrency: true }, () => {
  test("asks for the events of the selection", async (context) => {
    const { origin, requests } = await serving(context, stream([["list", { jobs: [], next: null }]]));
    const chosen = { tag: "customer:42 & more", batch: "job_1", members: true, type: "export", status: "failed", limit: 5 };
    await until(() => true, origin, chosen);
    const url = new URL(requests[0].url, origin);
    assert.equal(url.pathname, "/api/jobs");
    assert.deepEqual(Object.fromEntries(url.searchParams), { ...chosen, members: "true", limit: "5" });
    assert.match(requests[0].headers.accept, /text\/event-stream/);
  });

  test("new jobs come first, changed ones stay in place, and gone ones are removed", async (context) => {
    const { origin } = await serving(
      context,
      stream([
        ["list", { jobs: [listed("bb"), listed("a")], next: null }],
        ["message", listed("a", { progress: 50 })],
        ["message", listed("ccc")],
        ["removed", { jobId: "bb" }],
        ["message", listed("last")],
      ]),
    );
    const seen = await until((jobs) => jobs.some(({ jobId }) => jobId === "last"), origin);
    assert.deepEqual(ids(seen.at(-1)), ["last", "ccc", "a"]);
    assert.equal(seen.at(-1)[2].progress, 50);
  });

  test("a new job comes first; the server sends the list again if it does not", async (context) => {
    const { origin } = await serving(
      context,
      stream([["list", { jobs: [listed("dddd"), listed("a")], next: null }], ["message", listed("bb")]]),
    );
    const seen = await until((jobs) => jobs.length === 3, origin);
    assert.deepEqual(ids(seen.at(-1)), ["bb", "dddd", "a"]);
  });

  test("a new connection brings a new list", async (context) => {
    const { origin } = await serving(
      context,
      stream([["list", { jobs: [listed("a")], next: null }]], { ends: true }),
      stream([["list", { jobs: [listed("bb")], next: null }]]),
    );
    const seen = await until((jobs) => ids(jobs)[0] === "bb", origin);
    assert.deepEqual(seen.map(ids), [["a"], ["bb"]]);
  });

  for (const options of [{ transport: "poll" }, { headers: { Authorization: "Bearer t" } }]) {
    test(`it is polled with ${JSON.stringify(options)}`, async (context) => {
      const { origin, requests } = await serving(context, list(listed("a")), list(listed("a")), list(listed("bb")));
      const seen = await until((jobs) => ids(jobs)[0] === "bb", origin, options);
      // The same list is no update.
      assert.deepEqual(seen.map(ids), [["a"], ["bb"]]);
      assert.equal(requests[0].headers.accept, "application/json");
      assert.equal(requests[0].headers.authorization, options.headers?.Authorization);
    });
  }

  test("a server whose streams are held back is polled", async (context) => {
    const silent = (_, answer) => answer.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
    const { origin, requests } = await serving(context, silent, list(listed("a")));
    assert.deepEqual((await until(() => true, origin)).map(ids), [["a"]]);
    assert.deepEqual(requests.map(({ headers }) => headers.accept), ["text/event-stream", "application/json"]);
  });

  test("a lost connection is tried again", async (context) => {
    const { origin } = await serving(context, drop, list(listed("a")));
    assert.deepEqual((await until(() => true, origin, { transport: "poll" })).map(ids), [["a"]]);
  });

  test("a refusal has the server's message and code", async (context) => {
    const { origin } = await serving(context, json({ error: "A tag must not be empty.", code: "invalid_query" }, 400));
    const error = await failing(followJobs({ prefix: `${origin}/api/jobs`, tag: "" }));
    assert.deepEqual([error.code, error.status, error.document], ["invalid_query", 400, null]);
    assert.match(error.message, /A tag must not be empty/);
  });

  for (const answer of [text("<title>Log in"), json({ jobs: 7 }), json([]), json({ jobs: [{ jobId: 1 }] })]) {
    test(`an answer that is no list is an error: ${answer}`, async (context) => {
      const { origin } = await serving(context, answer);
      const error = await failing(followJobs({ prefix: `${origin}/api/jobs`, transport: "poll" }));
      assert.equal(error.code, "not_a_job");
      assert.match(error.message, /is not a list of jobs/);
    });
  }

  test("an aborted signal rejects with its reason", async (context) => {
    const { origin } = await serving(context, stream([["list", { jobs: [], next: null }]]));
    const leaving = new AbortController();
    const options = { prefix: `${origin}/api/jobs`, signal: leaving.signal, onUpdate: () => leaving.abort("enough") };
    assert.equal(await followJobs(options).catch((reason) => reason), "enough");
  });

  test("an error of a listener ends the following", async (context) => {
    const { origin } = await serving(context, stream([["list", { jobs: [], next: null }]]));
    const onUpdate = () => { throw new RangeError("mine"); };
    const error = await followJobs({ prefix: `${origin}/api/jobs`, onUpdate }).catch((fault) => fault);
    assert.equal(error.message, "mine");
  });

  test("a prefix that is no URL is an error", async () => {
    assert.equal((await failing(followJobs({ prefix: "no url" }))).code, "invalid_url");
  });
});
