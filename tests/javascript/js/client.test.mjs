import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { cancelJob, followJob, isTerminal, JobError, submitJob } from "./client/client.js";
import { drop, job, json, never, redirect, serving, text } from "./serving.mjs";

const PATH = "/api/jobs/job_1";

const failing = async (promise) => {
  const error = await promise.then((value) => assert.fail(JSON.stringify(value)), (error) => error);
  assert.ok(error instanceof JobError, String(error?.stack));
  return error;
};

const following = async (context, ...answers) => {
  const server = await serving(context, ...answers);
  return { ...server, job: followJob(server.origin + PATH, { transport: "poll" }) };
};

// Most tests wait for the polling interval of a server.
describe("the client", { concurrency: true }, () => {
  test("an HTML page in place of a job is named in the error", async (context) => {
    const { job, origin } = await following(context, text("<!doctype html><title>Log in"));
    const error = await failing(job);
    assert.equal(error.code, "not_a_job");
    assert.equal(error.url, origin + PATH);
    assert.equal(error.received, "text/html: <!doctype html><title>Log in");
    assert.match(error.message, /is not a job\. It answered text\/html/);
  });

  test("a redirect to another page is named in the error", async (context) => {
    const { job, origin } = await following(context, redirect("/login"), text("<title>Log in"));
    assert.ok((await failing(job)).message.includes(`redirected to ${origin}/login`));
  });

  for (const document of [{}, [], null, 7, { jobId: "job_1" }, { jobId: 1, status: "completed" }, { jobId: "job_1", status: 7 }]) {
    test(`JSON that is not a job document: ${JSON.stringify(document)}`, async (context) => {
      assert.equal((await failing((await following(context, json(document))).job)).code, "not_a_job");
    });
  }

  test("an unknown status is an error that names it", async (context) => {
    const { job: followed } = await following(context, json(job("processing", 1)), json(job("paused", 2)));
    const error = await failing(followed);
    assert.deepEqual([error.code, error.document.version], ["unknown_status", 1]);
    assert.match(error.message, /the unknown status paused$/);
  });

  test("an unknown status ends a job that is complete", async (context) => {
    const completedAt = "2026-01-01T00:00:00Z";
    const { job: followed } = await following(context, json(job("skipped", 2, { completedAt })));
    const document = await followed;
    assert.equal(document.status, "skipped");
    assert.ok(isTerminal(document));
    assert.ok(!isTerminal(job("skipped", 2)));
  });

  for (const body of ["[".repeat(200_000), '{"jobId":"job_1","status":"completed","version":NaN}']) {
    test(`invalid JSON: ${body.slice(0, 9)}`, async (context) => {
      assert.equal((await failing((await following(context, text(body, "application/json"))).job)).code, "not_a_job");
    });
  }

  test("a document without a version cannot be followed", async (context) => {
    const { job: followed } = await following(context, json(job("processing", undefined)));
    assert.equal((await failing(followed)).code, "not_a_job");
  });

  test("the version may come from the ETag alone", async (context) => {
    const { job: followed } = await following(context, json(job("completed", undefined), 200, { etag: '"7"' }));
    assert.equal((await followed).status, "completed");
  });

  test("a redirect loop of a job is an error", async (context) => {
    const { job, requests } = await following(context, redirect(PATH));
    assert.equal((await failing(job)).code, "redirect_loop");
    assert.ok(requests.length < 100);
  });

  test("a redirect loop of a submission is an error", async (context) => {
    const { origin } = await serving(context, redirect("/here"));
    assert.equal((await failing(submitJob(`${origin}/here`, {}))).code, "redirect_loop");
  });

  test("a refusal has the server's message and code", async (context) => {
    const { job } = await following(context, json({ error: "Job not found", code: "job_not_found" }, 404));
    const error = await failing(job);
    assert.deepEqual([error.code, error.status], ["job_not_found", 404]);
    assert.match(error.message, /^Job not found \(404/);
  });

  for (const [status, code] of [[404, "job_not_found"], [401, "refused"], [410, "refused"]]) {
    test(`a refusal without a message: ${status}`, async (context) => {
      const { job } = await following(context, text("", "text/plain", status));
      assert.equal((await failing(job)).code, code);
    });
  }

  test("a server that never answers times out", async (context) => {
    const { origin } = await serving(context, never);
    const begun = { transport: "poll", timeout: 100 };
    assert.equal((await failing(followJob(origin + PATH, begun))).code, "timeout");
    assert.equal((await failing(submitJob(origin, {}, { timeout: 100 }))).code, "timeout");
  });

  for (const url of ["", "job_1", "javascript:alert(1)", "file:///etc/passwd", null, undefined, {}]) {
    test(`an invalid job URL: ${String(url)}`, async () => {
      assert.equal((await failing(followJob(url))).code, "invalid_url");
      assert.equal((await failing(cancelJob(url))).code, "invalid_url");
      assert.equal((await failing(submitJob(url))).code, "invalid_url");
    });
  }

  test("a submission is repeated under one key until it is answered", async (context) => {
    const accepted = { status: "accepted", jobId: "job_1", statusUrl: PATH };
    const { origin, requests } = await serving(context, drop, json({}, 503), json(accepted, 202));
    const submitted = await submitJob(`${origin}/api/exports`, { format: "csv" });
    const { jobId, statusUrl, ...others } = submitted;
    assert.deepEqual([jobId, statusUrl], ["job_1", origin + PATH]);
    assert.deepEqual(others, { token: null, tokenUrl: null, tokenExpiresAt: null, retryAfter: 0, document: null });
    assert.equal(requests.length, 3);
    assert.equal(new Set(requests.map(({ headers }) => headers["idempotency-key"])).size, 1);
    assert.match(requests[0].headers["idempotency-key"], /^\d+-\d+-\d+-\d+$/);
    assert.equal(requests[2].body, '{"format":"csv"}');
    assert.equal(requests[2].headers["content-type"], "application/json");
  });

  test("each submission has a new key unless one is given", async (context) => {
    const { origin, requests } = await serving(context, json({ status: "accepted", jobId: "job_1" }, 202));
    await submitJob(origin, 1);
    await submitJob(origin, 1);
    await submitJob(origin, 1, { idempotencyKey: "mine", headers: { Authorization: "Bearer x" } });
    const keys = requests.map(({ headers }) => headers["idempotency-key"]);
    assert.equal(new Set(keys).size, 3);
    assert.equal(keys[2], "mine");
    assert.equal(requests[2].headers.authorization, "Bearer x");
  });

  test("the first poll waits for the Retry-After of the 202", async (context) => {
    const accepted = json({ status: "accepted", jobId: "job_1", statusUrl: PATH }, 202, { "retry-after": "1" });
    const { origin, requests } = await serving(context, accepted, json(job("completed", 2)));
    const submitted = await submitJob(origin, {});
    assert.equal(submitted.retryAfter, 1);
    const begun = performance.now();
    await followJob(submitted, { transport: "poll" });
    assert.ok(performance.now() - begun >= 990);
    assert.equal(requests.length, 2);
  });

  test("a refused submission is not repeated", async (context) => {
    const { origin, requests } = await serving(context, json({ error: "No.", code: "invalid_payload" }, 422));
    assert.equal((await failing(submitJob(origin, {}))).code, "invalid_payload");
    assert.equal(requests.length, 1);
  });

  test("a submission answered with the end needs no further request", async (context) => {
    const link = { link: `<${PATH}>; rel="monitor"` };
    const { origin, requests } = await serving(context, json(job("completed", 3), 200, link));
    const submitted = await submitJob(origin, {});
    assert.equal(submitted.statusUrl, origin + PATH);
    assert.equal(submitted.document.version, 3);
    const updates = await Array.fromAsync(followJob(submitted));
    assert.deepEqual(updates, [submitted.document]);
    assert.equal(requests.length, 1);
  });

  test("a job is cancelled by POST", async (context) => {
    const { origin, requests } = await serving(context, json(job("cancelled", 4)));
    assert.equal((await cancelJob(origin + PATH)).status, "cancelled");
    assert.deepEqual([requests[0].method, requests[0].url], ["POST", `${PATH}/cancel`]);
  });

  test("the answer to a cancel is an update, and may be the end", async (context) => {
    const { job: followed } = await following(context, json(job("processing", 1)), json(job("cancelled", 4)));
    const updates = [];
    for await (const { status } of followed) {
      updates.push(status);
      if (updates.length === 1) await followed.cancel();
    }
    assert.deepEqual(updates, ["processing", "cancelled"]);
    assert.equal((await followed).version, 4);
  });

  test("an iteration yields each newer document, and ends with the final one", async (context) => {
    const answers = [1, 1, 2].map((version) => json(job("processing", version)));
    const { job: followed } = await following(context, ...answers, json(job("completed", 5)));
    const seen = await Array.fromAsync(followed, ({ version }) => version);
    assert.deepEqual(seen, [1, 2, 5]);
  });

  test("two iterations yield the same documents", async (context) => {
    const { job: followed } = await following(context, json(job("processing", 1)), json(job("completed", 5)));
    const both = await Promise.all([Array.fromAsync(followed), Array.fromAsync(followed)]);
    assert.deepEqual(both[0].map(isTerminal), [false, true]);
    assert.deepEqual(both[0], both[1]);
  });

  test("leaving an iteration stops the follower", async (context) => {
    const { job: followed, requests } = await following(context, json(job("processing", 1)));
    for await (const _ of followed) break;
    await assert.rejects(followed, { name: "AbortError" });
    assert.equal(requests.length, 1);
  });

  test("an iteration raises the error of the follower", async (context) => {
    const { job: followed } = await following(context, json(job("processing", 1)), json({}, 404));
    const seen = [];
    const error = await failing((async () => {
      for await (const one of followed) seen.push(one.version);
    })());
    assert.deepEqual([seen, error.code, error.document.version], [[1], "job_not_found", 1]);
  });

  test("an aborted signal rejects with its reason", async (context) => {
    const { origin, requests } = await serving(context, json(job("processing", 1)));
    const leaving = new AbortController();
    const reason = new Error("enough");
    const onUpdate = () => leaving.abort(reason);
    const followed = followJob(origin + PATH, { transport: "poll", signal: leaving.signal, onUpdate });
    await assert.rejects(followed, reason);
    await assert.rejects(followJob(origin + PATH, { signal: leaving.signal }), reason);
    assert.equal(requests.length, 1);
  });

  test("an error thrown by a listener is not retried as a network error", async (context) => {
    const { origin } = await serving(context, json(job("processing", 1)));
    const thrown = new TypeError("mine");
    const onUpdate = () => {
      throw thrown;
    };
    await assert.rejects(followJob(origin + PATH, { transport: "poll", onUpdate }), thrown);
  });

  test("an invalid retryAfter does not shorten the polling interval", async (context) => {
    for (const retryAfter of [0, -5, "soon", {}]) {
      const { job: followed, requests } = await following(context, json(job("processing", 1, { retryAfter })));
      for await (const _ of followed) break;
      assert.equal(requests.length, 1, JSON.stringify(retryAfter));
    }
  });
});
