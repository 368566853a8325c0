// Jobs that outlive their page.
import assert from "node:assert/strict";
import { test } from "node:test";
import { followJob, resumeJobs } from "./client/client.js";
import { job, json, redirect, serving, text } from "./serving.mjs";

const PATH = "/api/jobs/job_1";

class Shelf {
  setItem(name, value) {
    this[name] = String(value);
  }
  removeItem(name) {
    delete this[name];
  }
}

test("an unfinished job is kept until its end", async (context) => {
  globalThis.localStorage = new Shelf();
  context.after(() => delete globalThis.localStorage);
  localStorage.setItem("another's", "{}");
  const { origin } = await serving(context, json(job("processing", 1)), json(job("completed", 2)));
  const url = origin + PATH;
  const left = new AbortController();
  const onUpdate = () => left.abort();
  const options = { keep: true, transport: "poll", signal: left.signal, onUpdate };
  await assert.rejects(followJob(url, options), { name: "AbortError" });
  const resumed = resumeJobs({ transport: "poll" });
  assert.deepEqual([...resumed.keys()], [url]);
  assert.equal((await resumed.get(url)).status, "completed");
  assert.equal(resumeJobs().size, 0);
  assert.deepEqual(Object.keys(localStorage), ["another's"]);
});

test("a kept job that was deleted is forgotten", async (context) => {
  globalThis.localStorage = new Shelf();
  context.after(() => delete globalThis.localStorage);
  const { origin } = await serving(context, json({ code: "job_not_found" }, 404));
  const gone = followJob(origin + PATH, { keep: true, transport: "poll" });
  await assert.rejects(gone, { code: "job_not_found" });
  assert.equal(resumeJobs().size, 0);
});

for (const answer of [json({ error: "Log in." }, 401), text("<title>Log in"), redirect(PATH)]) {
  test("a kept job survives an expired login", async (context) => {
    globalThis.localStorage = new Shelf();
    context.after(() => delete globalThis.localStorage);
    const { origin } = await serving(context, answer);
    await assert.rejects(followJob(origin + PATH, { keep: true, transport: "poll" }), { name: "JobError" });
    assert.deepEqual(Object.keys(localStorage), [`asyncjobs:${origin}${PATH}`]);
  });
}

test("without storage jobs are followed and not kept", async (context) => {
  Object.defineProperty(globalThis, "localStorage", {
    configurable: true,
    get() {
      throw new DOMException("The page may not.", "SecurityError");
    },
  });
  context.after(() => delete globalThis.localStorage);
  const { origin } = await serving(context, json(job("completed", 1)));
  await followJob(origin + PATH, { keep: true, transport: "poll" });
  assert.equal(resumeJobs().size, 0);
});
