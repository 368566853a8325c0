// Tokens in the client: sent with each request, renewed before they end, and given up when refused.
import assert from "node:assert/strict";
import { test } from "node:test";
import { cancelJob, followJob, resumeJobs, submitJob } from "./client/client.js";
import { job, json, serving } from "./serving.mjs";

const PATH = "/api/jobs/job_1";
const UNFINISHED = json(job("processing", 1));

const part = (claims) => Buffer.from(JSON.stringify(claims)).toString("base64url");

/** A token of that many seconds, which no server has to verify here. */
const token = (name, seconds = 900) => `${part({ name })}.${part({ iat: 1_000_000, exp: 1_000_000 + seconds })}.x`;

/** Answer by a function of the request's method and URL. */
const serve = (context, answer) => serving(context, (request, response) => answer(request)(request, response));

const until = async (condition) => {
  while (!condition()) await new Promise((done) => setTimeout(done, 5));
};

test("a submission returns the token and where it is renewed", async (context) => {
  const tokenExpiresAt = "2026-06-01T12:00:00Z";
  const held = { token: "a.b.c", tokenUrl: `${PATH}/token`, tokenExpiresAt };
  const accepted = { status: "accepted", jobId: "job_1", statusUrl: PATH, ...held };
  const { origin } = await serving(context, json(accepted, 202));
  const submitted = await submitJob(origin, 1);
  assert.deepEqual([submitted.token, submitted.tokenUrl], ["a.b.c", `${origin}${PATH}/token`]);
  assert.equal(submitted.tokenExpiresAt, tokenExpiresAt);
});

for (const own of ["Authorization", "authorization"]) {
  test(`a token is sent unless the caller has its own credentials: ${own}`, async (context) => {
    const { origin, requests } = await serving(context, json(job("completed", 1)));
    const target = { statusUrl: origin + PATH, token: token("a") };
    await followJob(target, { transport: "poll" });
    await followJob(target, { transport: "poll", headers: { [own]: "Basic x" } });
    const sent = requests.map(({ headers }) => headers.authorization);
    assert.deepEqual(sent, [`Bearer ${token("a")}`, "Basic x"]);
    assert.ok(requests.every(({ url }) => url === PATH));
  });
}

test("a token is renewed before it ends, as often as it takes", async (context) => {
  let given = 0;
  const { origin, requests } = await serve(context, ({ method, headers }) => {
    if (method === "POST") return json({ token: token(`renewed-${++given}`, 2) });
    const early = [token("first", 2), token("renewed-1", 2)].map((one) => `Bearer ${one}`);
    return early.includes(headers.authorization) ? UNFINISHED : json(job("completed", 2));
  });
  await followJob({ statusUrl: origin + PATH, token: token("first", 2) }, { transport: "poll" });
  const renewals = requests.filter(({ method }) => method === "POST");
  assert.ok(renewals.every(({ url }) => url === `${PATH}/token`));
  const used = renewals.map(({ headers }) => headers.authorization);
  assert.deepEqual(used.slice(0, 2), [`Bearer ${token("first", 2)}`, `Bearer ${token("renewed-1", 2)}`]);
});

const inSeconds = (seconds) => new Date(Date.now() + seconds * 1000).toISOString();

for (const [how, expiresAt] of [
  ["past half its life", inSeconds(400)],
  ["at its end", inSeconds(-1)],
  ["by a clock that cannot be right", inSeconds(100_000)],
  ["in no known form", "soon"],
]) {
  test(`a token that was handed on is renewed at once ${how}`, async (context) => {
    const { origin, requests } = await serve(context, ({ method, headers }) => {
      if (method === "POST") return json({ token: token("new") });
      return headers.authorization === `Bearer ${token("new")}` ? json(job("completed", 2)) : UNFINISHED;
    });
    const held = { token: token("old"), tokenExpiresAt: expiresAt };
    await followJob({ statusUrl: origin + PATH, ...held }, { transport: "poll" });
    await followJob(origin + PATH, { transport: "poll", ...held });
    assert.deepEqual(requests.filter(({ method }) => method === "POST").length, 2);
  });
}

test("a new token is renewed later, also if the clocks differ a little", async (context) => {
  for (const seconds of [890, 910]) {
    const { origin, requests } = await serving(context, UNFINISHED, UNFINISHED, json(job("completed", 2)));
    const held = { token: token("new"), tokenExpiresAt: inSeconds(seconds) };
    await followJob({ statusUrl: origin + PATH, ...held }, { transport: "poll" });
    assert.deepEqual(requests.map(({ method }) => method), ["GET", "GET", "GET"]);
  }
});

test("a token that was refused is renewed, and then given up", async (context) => {
  const { origin, requests } = await serve(context, ({ method, headers }) => {
    if (method === "POST") return json({ code: "invalid_token" }, 401);
    return headers.authorization ? json({ code: "invalid_token" }, 401) : json(job("completed", 1));
  });
  await followJob({ statusUrl: origin + PATH, token: token("old") }, { transport: "poll" });
  assert.deepEqual(requests.map(({ method }) => method), ["GET", "POST", "GET"]);
});

test("a refusal without a token is an error", async (context) => {
  const { origin, requests } = await serving(context, json({ code: "invalid_token", error: "No." }, 401));
  const followed = followJob({ statusUrl: origin + PATH, token: token("old") }, { transport: "poll" });
  await assert.rejects(followed, { code: "invalid_token" });
  assert.deepEqual(requests.map(({ method }) => method), ["GET", "POST", "GET"]);
});

test("a token is never sent to another server", async (context) => {
  const other = await serving(context, json({ token: token("b") }));
  const { origin, requests } = await serve(context, ({ method }) =>
    method === "POST" ? json({ token: token("c") }) : json(job("completed", 1)),
  );
  const target = { statusUrl: origin + PATH, token: token("a", 0.01), tokenUrl: `${other.origin}/token` };
  await followJob(target, { transport: "poll" });
  assert.deepEqual(other.requests, []);
  assert.ok(requests.length > 0);
});

test("a job is cancelled by its token, or else by other credentials", async (context) => {
  const { origin, requests } = await serve(context, ({ headers }) =>
    headers.authorization ? json({ code: "insufficient_scope" }, 403) : json(job("cancelled", 2)),
  );
  assert.equal((await cancelJob(origin + PATH, { token: token("a") })).status, "cancelled");
  assert.deepEqual(requests.map(({ headers }) => headers.authorization), [`Bearer ${token("a")}`, undefined]);
});

test("a kept job keeps its token, and renews it when it is resumed", async (context) => {
  const shelf = {
    setItem(name, value) {
      this[name] = String(value);
    },
    removeItem(name) {
      delete this[name];
    },
  };
  for (const name of ["setItem", "removeItem"]) Object.defineProperty(shelf, name, { enumerable: false });
  globalThis.localStorage = shelf;
  context.after(() => delete globalThis.localStorage);
  let ended = false;
  const { origin, requests } = await serve(context, ({ method }) => {
    if (method === "POST") return json({ token: token("new") });
    return ended ? json(job("completed", 2)) : UNFINISHED;
  });
  const left = new AbortController();
  const options = { keep: true, transport: "poll", signal: left.signal, onUpdate: () => left.abort() };
  await assert.rejects(followJob({ statusUrl: origin + PATH, token: token("old") }, options));
  const resumed = resumeJobs({ transport: "poll" }).get(origin + PATH);
  await until(() => requests.some(({ method }) => method === "POST"));
  await until(() => resumed.token === token("new"));
  ended = true;
  assert.equal((await resumed).status, "completed");
  assert.deepEqual(Object.keys(shelf), []);
});
