// Replays the vectors that the clients in every language share: answers and expected updates.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { describe, test } from "node:test";
import { setTimeout as after } from "node:timers/promises";
import { followJob } from "./client/client.js";

const FOLDER = new URL("vectors/", import.meta.url);
const CODES = { NotJson: "not_a_job", NotAJob: "not_a_job", JobNotFound: "job_not_found", UnknownStatus: "unknown_status" };

const say = async (said, request, answer) => {
  if (said.drop) return request.socket.destroy();
  answer.writeHead(said.status, said.headers);
  if (said.body !== undefined) return answer.end(said.body);
  for (const chunk of said.chunks ?? []) {
    answer.write(chunk);
    await after(20); // each chunk separately
  }
  if (said.end === "cut") request.socket.destroy();
  else answer.end();
};

const replay = async (vector, context) => {
  const queues = new Map(Object.entries(vector.server).map(([path, answers]) => [path, [...answers]]));
  const faults = [];
  const server = createServer((request, answer) => {
    const queue = queues.get(request.url.split("?")[0]);
    if (!queue) return answer.writeHead(404).end();
    const said = queue.length > 1 ? queue.shift() : queue[0];
    for (const [name, value] of Object.entries(said.expect ?? {})) {
      if (request.headers[name] !== value) faults.push(`${request.url}: ${name}: ${request.headers[name]}`);
    }
    say(said, request, answer);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  context.after(() => {
    server.close();
    server.closeAllConnections();
  });
  const updates = [];
  const url = `http://127.0.0.1:${server.address().port}${vector.statusUrl}`;
  const end = await followJob(url, { onUpdate: (job) => updates.push(job) }).catch((error) => error);
  return { updates, end, faults };
};

const vectors = readdirSync(FOLDER)
  .filter((name) => name !== "format.json")
  .map((name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")));

describe("the vectors", { concurrency: true }, () => {
  for (const vector of vectors) {
    test(vector.rule, async (context) => {
      const { updates, end, faults } = await replay(vector, context);
      assert.deepEqual(faults, []);
      const wanted = vector.updates.map(({ version, ...shown }) => shown);
      const told = updates.map((job, place) => Object.fromEntries(Object.keys(wanted[place] ?? job).map((name) => [name, job[name]])));
      assert.deepEqual(told, wanted);
      if (vector.end.error) assert.equal(end.code, CODES[vector.end.error], end.message);
      else for (const [name, value] of Object.entries(vector.end)) assert.deepEqual(end[name], value);
    });
  }
});

test("there are vectors", () => assert.ok(vectors.length > 10));
