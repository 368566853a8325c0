// A world in simulated time, with a server whose faults are scripted. It replaces globals of the
// browser; the client itself is unchanged.

const real = { setImmediate, setTimeout: globalThis.setTimeout };
const STATUSES = ["pending", "processing", "completed", "failed", "cancelled"];
export const isTerminal = ({ status }) => STATUSES.indexOf(status) > 1;

/** Seeded (mulberry32): failures are reproducible. */
export const randomFrom = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
};

export class Clock {
  at = 0;
  #timers = new Map();
  #last = 0;

  install(random) {
    globalThis.setTimeout = (work, ms = 0) => {
      this.#timers.set(++this.#last, { at: this.at + Math.max(ms, 0), work });
      return this.#last;
    };
    globalThis.clearTimeout = (id) => this.#timers.delete(id);
    performance.now = () => this.at;
    AbortSignal.timeout = (ms) => {
      const late = new AbortController();
      setTimeout(() => late.abort(new DOMException("late", "TimeoutError")), ms);
      return late.signal;
    };
    Math.random = random;
  }

  /** Let time pass until a promise is settled. */
  async until(promise) {
    let settled = false;
    promise.then(() => (settled = true), () => (settled = true));
    for (let steps = 0; ; steps++) {
      if (steps > 50_000) throw new Error("It goes on and on.");
      for (let turn = 0; turn < 4; turn++) await new Promise((done) => real.setImmediate(done));
      if (settled) return promise;
      const [id, next] = [...this.#timers].reduce((one, other) => (other[1].at < one[1].at ? other : one), [
        0,
        { at: Infinity },
      ]);
      if (!id) throw new Error("Nothing will ever happen again.");
      this.#timers.delete(id);
      this.at = next.at;
      next.work();
    }
  }

  wait(ms, signal) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, ms);
      signal?.addEventListener("abort", () => {
        clearTimeout(timer);
        reject(signal.reason);
      });
      if (signal?.aborted) reject(signal.reason);
    });
  }
}

/** A server of one job with timed states, behind a network with given faults. */
export class World {
  requests = [];
  sources = new Set();

  constructor({ states, clock, fault, streams, holds = true, told = 2, readable = true }) {
    Object.assign(this, { states, clock, fault, streams, holds, told, readable });
  }

  install() {
    globalThis.fetch = (url, init) => this.#fetch(String(url), init);
    const world = this;
    globalThis.EventSource = class {
      static CLOSED = 2;
      readyState = 0;
      constructor(url) {
        this.url = url;
        world.sources.add(this);
        world.streams(this, world).catch(() => {});
      }
      say(state) {
        if (this.readyState < 2) this.onmessage?.({ data: JSON.stringify(state), lastEventId: String(state.version) });
      }
      fail(closed) {
        if (this.readyState === 2) return;
        this.readyState = closed ? 2 : 0;
        this.onerror?.();
      }
      close() {
        this.readyState = 2;
        world.sources.delete(this);
      }
    };
  }

  get present() {
    return this.states.findLast(({ at }) => at <= this.clock.at).document;
  }

  next() {
    return this.states.find(({ at }) => at > this.clock.at);
  }

  async #fetch(url, { signal, redirect, headers = {} }) {
    const asked = { at: this.clock.at, held: "Prefer" in headers, told: 0 };
    // The request that looks for redirects after two failures does not count.
    if (redirect !== "manual") this.requests.push(asked);
    const fault = this.fault();
    await this.clock.wait(5, signal);
    if (fault === "drop") throw new TypeError("fetch failed");
    if (fault === "hang") await this.clock.wait(1e9, signal);
    if (fault === 429 || fault === 503) return this.#answer(fault, null, asked, { "retry-after": "7" });
    if (fault === 500) return this.#answer(500, null, asked, {});
    if (fault === "stale") return this.#answer(200, this.states[0].document, asked, {});
    const known = headers["If-None-Match"];
    const same = () => known === `"${this.present.version}"`;
    const held = asked.held && this.holds;
    if (held && (!known || same()) && !isTerminal(this.present)) {
      const change = (this.next()?.at ?? Infinity) - this.clock.at;
      const most = Number(headers.Prefer.replace("wait=", "")) * 1000;
      await this.clock.wait(Math.min(change, most), signal);
    }
    const more = held ? { "preference-applied": headers.Prefer } : {};
    if (known && same()) return this.#answer(304, null, asked, { ...more, "retry-after": String(this.told) });
    return this.#answer(200, this.present, asked, more);
  }

  #answer(status, document, asked, headers) {
    const retryAfter = document && !isTerminal(document) ? this.told : null;
    asked.told = Number(headers["retry-after"] ?? 0) || retryAfter || 0;
    asked.status = status;
    asked.done = this.clock.at;
    const text = document ? JSON.stringify({ ...document, retryAfter }) : null;
    const seen = this.readable ? headers : {};
    if (!this.readable) asked.told = retryAfter ?? 0;
    const answer = new Response(text, { status, headers: { "content-type": "application/json", ...seen } });
    Object.defineProperty(answer, "type", { value: this.readable ? "basic" : "cors" });
    return answer;
  }
}
