// Under any network faults, versions increase, the end is seen once, and no request is too early.
import assert from "node:assert/strict";
import { test } from "node:test";
import { followJob } from "./client/client.js";
import { Clock, isTerminal, randomFrom, World } from "./world.mjs";

const URL_ = "https://api.test/api/jobs/job_1";
const FAULTS = ["drop", "hang", 429, 503, 500, "stale"];
const ENDS = ["completed", "failed", "cancelled"];

const storyOf = (random) => {
  const states = [];
  let at = -1;
  let version = 1;
  const length = 1 + Math.floor(random() * 8);
  for (let place = 0; place < length; place++) {
    const last = place === length - 1;
    const status = last ? ENDS[Math.floor(random() * 3)] : ["pending", "processing"][Math.min(place, 1)];
    states.push({ at, document: { jobId: "job_1", status, progress: place, version } });
    version += 1 + Math.floor(random() * 3);
    at = Math.max(at, 0) + random() * 30_000;
  }
  return states;
};

/** Correct and faulty streams. */
const streamOf = (random) => async (source, world) => {
  const kind = Math.floor(random() * 6);
  await world.clock.wait(5);
  if (kind === 0) return source.fail(true); // not there
  if (kind === 1) return; // silent for ever
  if (kind === 2) return source.say({ version: 1 }); // no job at all
  source.say(world.present);
  while (world.next()) {
    await world.clock.wait(world.next().at - world.clock.at);
    if (kind === 3) return; // it ends without an error
    if (kind === 4) source.fail(random() < 0.3);
    for (let copies = random() * 3; copies > 0; copies--) source.say(world.present);
    if (random() < 0.3) source.say(world.states[0].document); // out of order
  }
};

const check = (world, clock, updates, end) => {
  const versions = updates.map(({ version }) => version);
  assert.deepEqual(versions, [...new Set(versions)].sort((one, other) => one - other));
  assert.equal(updates.filter(isTerminal).length, 1);
  assert.equal(updates.at(-1), end);
  assert.equal(end.version, world.states.at(-1).document.version);
  assert.equal(world.sources.size, 0, "a stream is left open");
  for (const [place, { at }] of world.requests.entries()) {
    const before = world.requests[place - 1];
    if (!before || before.held || before.done === undefined || before.status === 304) continue;
    const told = before.status === 200 && world.requests[place].held ? 0 : before.told * 1000;
    assert.ok(at >= before.done + told - 1, `asked ${at - before.done} ms after being told ${told}`);
  }
};

const play = async (seed, transport) => {
  const random = randomFrom(seed);
  const clock = new Clock();
  clock.install(randomFrom(seed + 1));
  let faults = Math.floor(random() * 12);
  const world = new World({
    states: storyOf(random),
    clock,
    streams: streamOf(random),
    fault: () => (random() < 0.5 && faults-- > 0 ? FAULTS[Math.floor(random() * FAULTS.length)] : null),
    holds: random() < 0.7,
    told: 1 + Math.floor(random() * 4),
    readable: random() < 0.5,
  });
  world.install();
  const updates = [];
  const end = await clock.until(followJob(URL_, { transport, onUpdate: (job) => updates.push(job) }));
  const asked = world.requests.length;
  check(world, clock, updates, end);
  await clock.until(clock.wait(600_000));
  assert.equal(world.requests.length, asked, "it asks on after the end");
};

for (const transport of ["events", "wait", "poll"]) {
  test(`by ${transport}`, async () => {
    for (let seed = 0; seed < 150; seed++) {
      await play(seed, transport).catch((error) => {
        error.message = `seed ${seed}: ${error.message}`;
        throw error;
      });
    }
  });
}

test("polls respect Retry-After, and held reads cost one request in 25 seconds", async () => {
  const states = [
    { at: -1, document: { jobId: "job_1", status: "processing", progress: 1, version: 1 } },
    { at: 74_000, document: { jobId: "job_1", status: "completed", progress: 100, version: 2 } },
  ];
  const costs = {};
  for (const transport of ["wait", "poll"]) {
    const clock = new Clock();
    clock.install(Math.random);
    const world = new World({ states, clock, fault: () => null, told: 2 });
    world.install();
    await clock.until(followJob(URL_, { transport }));
    costs[transport] = [world.requests.length, Math.round(clock.at)];
  }
  assert.equal(costs.wait[0], 1 + Math.ceil(74 / 25));
  assert.ok(costs.wait[1] < 74_050);
  assert.ok(costs.poll[0] <= 38 && costs.poll[1] < 76_050);
});

test("a held read returns each change at once", async () => {
  const at = [-1, 100, 1_000, 5_000, 5_400, 30_000];
  const states = at.map((at, place) => {
    const status = place === 5 ? "completed" : "processing";
    return { at, document: { jobId: "job_1", status, progress: place, version: place + 1 } };
  });
  const clock = new Clock();
  clock.install(Math.random);
  new World({ states, clock, fault: () => null, told: 2 }).install();
  const told = [];
  await clock.until(followJob(URL_, { transport: "wait", onUpdate: () => told.push(clock.at) }));
  told.forEach((when, place) => assert.ok(when - at[place] < 50, `change ${place} is told at ${when}`));
  assert.equal(told.length, at.length);
});

test("a Retry-After until the year 9999 is capped at one day", async () => {
  const document = { jobId: "job_1", status: "processing", progress: 1, version: 4, retryAfter: 2.5e11 };
  const clock = new Clock();
  clock.install(Math.random);
  const world = new World({ states: [{ at: -1, document }], clock, fault: () => null, told: 2.5e11 });
  world.install();
  const day = 86_400_000;
  await assert.rejects(clock.until(followJob(URL_, { transport: "poll", timeout: 1.5 * day })), { code: "timeout" });
  assert.equal(world.requests.length, 2);
});

test("a job that never ends is followed until the timeout", async () => {
  const document = { jobId: "job_1", status: "processing", progress: 1, version: 4 };
  const clock = new Clock();
  clock.install(Math.random);
  const world = new World({ states: [{ at: -1, document }], clock, fault: () => null });
  world.install();
  const following = followJob(URL_, { transport: "poll", timeout: 30_000 });
  await assert.rejects(clock.until(following), { name: "JobError", code: "timeout", url: URL_ });
  await following.catch((error) => assert.equal(error.document.version, 4));
  assert.equal(Math.round(clock.at), 30_000);
});
