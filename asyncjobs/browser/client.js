// Submits jobs and follows them to their end by the best transport that works.
// Times are milliseconds; those of the server are seconds.

const DAY = 86_400_000;
const MINUTE = 60_000;
const TIMER_MOST = 2 ** 31 - 1; // a longer timer fires at once
const HOLD = 25; // seconds for which the server may hold a read
const SLACK = 15_000; // how much longer its answer may take
const LEAST = 250; // between two held reads, however fast a job changes
const PACE_LEAST = 1_000; // between two others, whatever a server says
const FIRST_WORD = 5_000; // a stream that is silent for so long at first is held back on its way
const QUIET = 45_000; // one that is silent for so long may be dead: a read tells
const OFFLINE = 10_000; // browsers are not always right about being offline
const SHED = 30_000; // before the next WebSocket, where there are too many
const LIST_PACE = 5_000; // between two reads of a list
const LIST_LAG = 3_000; // how long a change of a list may take to reach its stream
const TOKEN_LIFE = 300_000; // of a token whose times cannot be read
const KEPT = "asyncjobs:";
const TYPES = { json: "application/json", text: "text/plain", bytes: "application/octet-stream" };
const WAITING = 100; // portions of output that the loop over them has not taken yet

const WAYS = ["socket", "events", "wait", "poll"];
const STATUSES = ["accepted", "pending", "processing", "completed", "failed", "cancelled"];

export class JobError extends Error {
  constructor(code, message, about = {}) {
    super(message);
    const unknown = { url: "", status: 0, received: "", document: null };
    Object.assign(this, unknown, about, { name: "JobError", code });
  }
}

// A newer server may end a job with a status that is not in the list.
const rank = ({ status, completedAt }) =>
  completedAt == null || STATUSES.includes(status) ? STATUSES.indexOf(status) : 9;

export const isTerminal = (document) => rank(document) > 2;

const now = () => performance.now();
const offline = () => globalThis.navigator?.onLine === false;

const within = (signal, ms) => {
  const late = AbortSignal.timeout(Math.min(ms, TIMER_MOST));
  return signal ? AbortSignal.any([signal, late]) : late;
};

const pause = (ms, signal) =>
  new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(Math.max(ms, 0), TIMER_MOST));
    signal.addEventListener("abort", done);
  });

const absolute = (url) => {
  const base = globalThis.document?.baseURI ?? globalThis.location?.href;
  const found = url != null && URL.canParse(url, base) ? new URL(url, base) : null;
  if (/^https?:$/.test(found?.protocol)) return found.href;
  throw new JobError("invalid_url", `Not the URL of a job: ${url}`, { url: String(url) });
};

const below = (url, suffix) => {
  const made = new URL(url);
  made.pathname += suffix;
  return made.href;
};

// From one to the other time of the token, on whatever clock.
const lifeOf = (token) => {
  try {
    const { iat, exp } = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return (exp - iat) * 1000 || TOKEN_LIFE;
  } catch {
    return TOKEN_LIFE;
  }
};

// Milliseconds to half its life. A token that was handed on may be old: where this clock and that of
// the server differ too much, it is renewed at once.
const halfOf = (token, expiresAt) => {
  const life = lifeOf(token);
  const age = expiresAt ? life - (Date.parse(expiresAt) - Date.now()) : 0;
  return Math.abs(age - life / 4) <= life * 0.75 ? life / 2 - Math.max(age, 0) : 0;
};

// Headers of the application that name a caller take precedence.
const bearing = (token, headers = {}) => {
  const named = Object.keys(headers).some((name) => name.toLowerCase() === "authorization");
  return token && !named ? { Authorization: `Bearer ${token}`, ...headers } : headers;
};

// EventSource and WebSocket send no headers of ours.
const linked = (url, token) => {
  const made = new URL(url);
  if (token) made.searchParams.set("token", token);
  return made.href;
};

// The server's rule: `/ws` takes the place of `/api`, or comes first.
const socketUrl = (url) => {
  const made = new URL(url);
  const path = made.pathname;
  made.protocol = made.protocol.replace("http", "ws");
  made.pathname = path.includes("/api/") ? path.replace(/(.*)\/api\//, "$1/ws/") : `/ws${path}`;
  return made.href;
};

// RFC 9110, section 10.2.3, where CORS lets a page see the header.
const toldBy = ({ headers }) => {
  const said = headers.get("retry-after") ?? "";
  return Math.max(/^\d+$/.test(said) ? said * 1000 : Date.parse(said) - Date.now(), 0) || 0;
};

// Grows with the failures, and spreads the clients.
const backoff = (failures) => Math.min(1000 * 2 ** failures, 30_000) * (0.5 + Math.random() / 2);

// The pause after an answer of a server that is not available.
const respite = (answer, failures) => {
  answer.body?.cancel();
  return Math.max(toldBy(answer), backoff(failures));
};

const passes = ({ status }) => status >= 500 || status === 429 || status === 408;

const parsed = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
};

const isJob = (found) => typeof found?.jobId === "string" && typeof found.status === "string";
const isDocument = (found) => isJob(found) && rank(found) >= 0;
const isList = (found) => Array.isArray(found?.jobs) && found.jobs.every(isJob);

/** Return the document in an answer, or throw its error. */
const documentIn = async (answer, url, isRight = isDocument) => {
  const text = await answer.text();
  const found = parsed(text);
  if (answer.ok && isRight(found)) return found;
  const received = `${answer.headers.get("content-type") ?? "no type"}: ${text.trim().slice(0, 80)}`;
  const about = { url, status: answer.status, received };
  if (answer.ok) {
    if (isJob(found) && isRight === isDocument) {
      throw new JobError("unknown_status", `${url} has the unknown status ${found.status}`, about);
    }
    const moved = answer.redirected ? `, redirected to ${answer.url},` : "";
    const what = isRight === isList ? "list of jobs" : "job";
    throw new JobError("not_a_job", `${url}${moved} is not a ${what}. It answered ${received}`, about);
  }
  const code = found?.code ?? (answer.status === 404 ? "job_not_found" : "refused");
  const words = found?.error ?? (answer.statusText || "Refused");
  throw new JobError(String(code), `${words} (${answer.status}, ${url})`, about);
};

/** Throw if a request failed because of its redirects. */
const checkRedirects = async (url, init) => {
  const asked = { ...init, redirect: "manual", signal: within(init.signal, SLACK) };
  const answer = await fetch(url, asked).catch(() => null);
  const { type, status } = answer ?? {};
  if (type === "opaqueredirect" || (status > 300 && status < 309 && status !== 304)) {
    throw new JobError("redirect_loop", `${url} has a redirect loop.`, { url, status });
  }
};

/** Send an idempotent request until it is answered or refused, or the timeout is over. */
const send = async (url, init, { signal, timeout = MINUTE }) => {
  const life = within(signal, timeout);
  for (let failures = 0; ; failures++) {
    let rest = backoff(failures);
    try {
      const answer = await fetch(url, { ...init, signal: life });
      if (!passes(answer)) return [await documentIn(answer, url), answer];
      rest = respite(answer, failures);
    } catch (error) {
      if (error instanceof JobError) throw error;
      if (failures) await checkRedirects(url, { ...init, signal: life });
    }
    await pause(rest, life);
    if (signal?.aborted) throw signal.reason;
    if (life.aborted) throw new JobError("timeout", `No answer within ${timeout} ms: ${url}`, { url });
  }
};

// Not `randomUUID`, which pages without TLS do not have.
const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Submit a job by POST, as JSON. It is one job even if it was sent several times. */
export async function submitJob(url, body, options = {}) {
  const { idempotencyKey = newKey(), headers, credentials } = options;
  const target = absolute(url);
  const [document, answer] = await send(
    target,
    {
      method: "POST",
      credentials,
      headers: {
        Accept: "application/json",
        "Content-Type": "application/json",
        "Idempotency-Key": idempotencyKey,
        ...headers,
      },
      body: JSON.stringify(body ?? null),
    },
    options,
  );
  const monitor = /<([^<>]*)>; rel="monitor"/.exec(answer.headers.get("link") ?? "");
  const based = (url) => (url == null ? null : new URL(url, answer.url || target).href);
  return {
    jobId: document.jobId,
    statusUrl: based(document.statusUrl ?? monitor?.[1]),
    token: document.token ?? null,
    tokenUrl: based(document.tokenUrl),
    tokenExpiresAt: document.tokenExpiresAt ?? null,
    retryAfter: toldBy(answer) / 1000,
    // A server that waited may answer with the end.
    document: isTerminal(document) ? document : null,
  };
}

/** Ask a job to stop; return its document. */
export async function cancelJob(statusUrl, options = {}) {
  const { token, headers, credentials } = options;
  const asked = (held) => {
    const given = { Accept: "application/json", ...bearing(held, headers) };
    return send(below(absolute(statusUrl), "/cancel"), { method: "POST", credentials, headers: given }, options);
  };
  const [document] = await asked(token).catch((error) => {
    // The token may only read: the caller may have other credentials.
    if (token && (error.status === 401 || error.status === 403)) return asked(null);
    throw error;
  });
  return document;
}

// Not every page may use it, and it may be full.
const storage = (use) => {
  try {
    return use(globalThis.localStorage);
  } catch {
    return null;
  }
};

/** Follows one job. */
class Follower {
  ways = WAYS;
  kinds = [];
  document = null;
  version = -1;
  told = 2000;
  notBefore = 0;
  failures = 0;
  worked = false;
  ended = false;
  token = null;
  fetches = false;
  #life = new AbortController();
  #stay = new AbortController();
  #wake = () => {};
  #hear = () => {};
  #news = null;

  constructor(options) {
    this.options = options;
    this.settled = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }

  begin(job) {
    const { signal, keep, timeout = DAY, transport = "events", headers } = this.options;
    if (signal?.aborted) throw signal.reason;
    if (job?.document) return void this.show(job.document, Infinity);
    const url = (this.url = absolute(job?.statusUrl ?? job));
    const { token, tokenUrl, tokenExpiresAt } = this.options;
    this.#hold(token ? { token, tokenExpiresAt } : (job ?? {}), tokenUrl ?? job?.tokenUrl);
    if (keep) this.#keep();
    this.way = Math.max(this.ways.indexOf(transport), 0);
    // EventSource sends no headers of ours.
    const sourceless = (headers && !this.token) || !globalThis.EventSource;
    if (transport === "events" && sourceless && !this.fetches) this.way++;
    if (transport === "poll") this.rest(job.retryAfter * 1000 || 0);
    signal?.addEventListener("abort", () => this.fail(signal.reason), { signal: this.#life.signal });
    const late = () => this.fail(new JobError("timeout", `${url} did not end within ${timeout} ms.`, { url }));
    if (timeout < Infinity) this.timer = setTimeout(late, Math.min(timeout, TIMER_MOST));
    this.#watchPage();
    return this.#run();
  }

  get eventsUrl() {
    return below(this.url, "/events");
  }

  /** Store a document that is newer than all before; return whether it is. */
  show(document, hint) {
    const version = Number(document.version ?? hint);
    if (this.ended || !(version > this.version || isTerminal(document))) return false;
    this.version = version;
    this.document = document;
    this.ended = isTerminal(document);
    if (this.ended) this.#forget();
    try {
      this.options.onUpdate?.(document);
    } catch (error) {
      this.fail(error);
    }
    if (this.ended) this.end(document);
    this.tell();
    return true;
  }

  end(value) {
    this.ended = true;
    this.#close(() => this.resolve(value));
    this.tell();
  }

  /** Take in what a connection sent; return false if it is no document. */
  hear(text, hint) {
    const document = parsed(text);
    if (!isDocument(document)) return false;
    this.show(document, hint);
    return true;
  }

  /** Read it once. */
  ask(signal) {
    return ask(this, signal);
  }

  take(signal) {
    return TAKE[this.ways[this.way]](this, signal);
  }

  fail(error) {
    if (this.#life.signal.aborted) return;
    this.ended = true;
    this.error = error;
    if (error instanceof JobError) {
      if (isJob(this.document)) error.document ??= this.document;
      if (error.status === 404 || error.status === 410) this.#forget();
    }
    this.#close(() => this.reject(error));
    this.tell();
  }

  /** Yield the newest document each time there is a newer one. Leaving the loop ends the following. */
  async *updates() {
    let seen = null;
    try {
      while (true) {
        if (this.document !== seen) yield (seen = this.document);
        else if (this.error) throw this.error;
        else if (this.ended) return;
        else await this.news();
      }
    } finally {
      this.fail(new DOMException("The job is not followed any more.", "AbortError"));
    }
  }

  news() {
    return (this.#news ??= new Promise((resolve) => (this.#hear = resolve)));
  }

  rest(ms) {
    this.notBefore = now() + Math.min(ms, DAY);
  }

  init(more) {
    const { headers, credentials } = this.options;
    return { credentials, headers: { Accept: "application/json", ...bearing(this.token, headers), ...more } };
  }

  /** Send a read; return null if its token was refused, and it has to be sent again. */
  async read(init, url = this.url) {
    const { token } = this;
    const answer = await fetch(url, init);
    if (!token || answer.status !== 401) return answer;
    answer.body?.cancel();
    // Without a token, other credentials may still open the job.
    if (this.token === token) await this.#renew();
    if (this.token === token) this.token = null;
    this.rest(PACE_LEAST);
    return null;
  }

  #hold({ token, tokenExpiresAt, kept }, tokenUrl) {
    if (!token) return;
    const own = below(this.url, "/token");
    const found = new URL(tokenUrl ?? own, this.url);
    // No other server gets it.
    this.tokenUrl = found.origin === new URL(this.url).origin ? found.href : own;
    this.#bear(token, kept ? 0 : halfOf(token, tokenExpiresAt));
  }

  #bear(token, renewIn) {
    this.token = token;
    if (this.options.keep) this.#keep();
    this.#renewIn(renewIn);
  }

  #renewIn(ms) {
    clearTimeout(this.renewing);
    if (!this.ended) this.renewing = setTimeout(() => this.#renew(), Math.min(Math.max(ms, 0), TIMER_MOST));
  }

  async #renew() {
    const used = this.token;
    if (!used) return;
    let refused = false;
    try {
      const signal = within(this.#life.signal, SLACK);
      const answer = await fetch(this.tokenUrl, { ...this.init(), method: "POST", signal });
      const { token } = answer.ok ? await answer.json() : {};
      if (typeof token === "string") return this.#bear(token, Math.max(lifeOf(token) / 2, PACE_LEAST));
      refused = !passes(answer);
    } catch {
      // The server is away: the token may last until it is back.
    }
    if (refused && this.token === used) this.token = null;
    else this.#renewIn(OFFLINE);
  }

  #keep() {
    const { token, tokenUrl } = this;
    const text = JSON.stringify({ at: new Date().toISOString(), token, tokenUrl });
    storage((kept) => kept.setItem(KEPT + this.url, text));
  }

  tell() {
    this.#news = null;
    this.#hear();
  }

  #close(settle) {
    clearTimeout(this.timer);
    clearTimeout(this.renewing);
    this.#life.abort();
    this.#stay.abort();
    this.#wake();
    settle();
  }

  #forget() {
    if (this.options.keep) storage((kept) => kept.removeItem(KEPT + this.url));
  }

  #hidden() {
    return !this.options.background && globalThis.document?.visibilityState === "hidden";
  }

  #watchPage() {
    const look = () => (this.#hidden() || offline() ? this.#stay.abort() : this.#wake());
    for (const name of ["visibilitychange", "focus", "pageshow", "online", "offline"]) {
      const target = name === "visibilitychange" ? globalThis.document : globalThis;
      target?.addEventListener?.(name, look, { signal: this.#life.signal });
    }
  }

  async #asleep(ms) {
    const waking = new AbortController();
    this.#wake = () => waking.abort();
    await pause(ms, waking.signal);
  }

  async #run() {
    while (!this.ended) {
      if (this.#hidden()) await this.#asleep(TIMER_MOST);
      else if (offline()) await this.#asleep(OFFLINE);
      if (!this.ended && !this.#hidden()) await this.#attempt();
    }
  }

  async #attempt() {
    const { signal } = (this.#stay = new AbortController());
    await pause(this.notBefore - now(), signal);
    if (signal.aborted) return;
    let how = "broken";
    try {
      how = await this.take(signal);
    } catch (error) {
      if (error instanceof JobError) throw error;
    }
    if (signal.aborted) return;
    if (how === "next") this.#descend();
    if (how === "broken") await this.#stumble(signal);
  }

  #descend() {
    this.way++;
    this.worked = false;
    this.failures = 0;
  }

  async #stumble(signal) {
    this.rest(Math.max(this.notBefore - now(), backoff(this.failures++)));
    if (this.failures === 2 && !this.document) await checkRedirects(this.url, { ...this.init(), signal });
    if (this.failures > (this.worked ? 4 : 1) && this.way < this.ways.length - 1) this.#descend();
  }
}

/** Ask for the status once. With `hold`, the server may answer when it changes. */
const ask = async (job, signal, hold) => {
  const begun = now();
  const held = hold && job.version >= 0;
  const more = held ? { Prefer: `wait=${HOLD}`, "If-None-Match": `"${job.version}"` } : {};
  const init = {
    ...job.init(more),
    cache: held ? "no-store" : "no-cache",
    signal: within(signal, HOLD * 1000 + SLACK),
  };
  const answer = await job.read(init);
  if (!answer) return "again";
  if (passes(answer)) {
    job.rest(respite(answer, job.failures++));
    return "again";
  }
  const document = answer.status === 304 ? null : await documentIn(answer, job.url);
  const version = document?.version ?? answer.headers.get("etag")?.replace(/\D/g, "");
  if (document && !(version >= 0)) {
    throw new JobError("not_a_job", `${job.url} has no version.`, { url: job.url });
  }
  const news = document !== null && job.show(document, version);
  job.told = Math.max(document?.retryAfter * 1000 || toldBy(answer) || job.told, PACE_LEAST);
  job.failures = 0;
  job.worked ||= held;
  const took = now() - begun;
  if (hold && (news || took >= job.told)) job.rest(held ? LEAST - took : 0);
  else job.rest(job.told);
  // Visible at the same origin: this server holds no requests.
  if (held && answer.type === "basic" && !answer.headers.has("preference-applied")) return "next";
  return news ? "news" : "again";
};

/** Read a connection to its end; ask for the status if it is silent. */
const listen = (job, signal, connect) =>
  new Promise((resolve, reject) => {
    let timer;
    let heard = false;
    const leave = (how) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", leave);
      disconnect();
      resolve(how);
    };
    const check = async () => {
      if (!heard) return leave("next");
      try {
        // The connection has missed a change: it is dead.
        if ((await job.ask(signal)) === "news") leave("next");
        else wait(QUIET);
      } catch (error) {
        if (error instanceof JobError) reject(error);
        leave("broken");
      }
    };
    const hear = (text, hint) => {
      heard = job.worked = true;
      job.failures = 0;
      if (job.hear(text, hint)) wait(QUIET);
      else leave("next");
    };
    const wait = (ms) => {
      clearTimeout(timer);
      if (!signal.aborted) timer = setTimeout(check, ms);
    };
    const disconnect = connect(hear, leave);
    signal.addEventListener("abort", leave);
    wait(FIRST_WORD);
  });

const TAKE = {
  socket: (job, signal) =>
    listen(job, signal, (hear, leave) => {
      const socket = new WebSocket(linked(job.options.socketUrl ?? socketUrl(job.url), job.token));
      socket.onmessage = ({ data }) => hear(data);
      socket.onclose = ({ code }) => {
        if (code === 1013) job.rest(SHED);
        // 1008: no such job; the next transport gets the error.
        leave(code === 1008 ? "next" : "broken");
      };
      return () => {
        socket.onclose = null;
        socket.close();
      };
    }),

  events: (job, signal) =>
    listen(job, signal, (hear, leave) => {
      const withCredentials = job.options.credentials === "include";
      const { token } = job;
      const source = new EventSource(linked(job.eventsUrl, token), { withCredentials });
      let failures = 3;
      const take = (kind) => ({ data, lastEventId }) => {
        failures = 0;
        hear(data, kind ?? lastEventId);
      };
      source.onmessage = take();
      for (const kind of job.kinds) source.addEventListener(kind, take(kind));
      source.onerror = () => {
        // It would connect again with the token that it began with.
        if (token !== job.token) return leave("again");
        // It reconnects by itself, unless the server has refused it.
        if (source.readyState === EventSource.CLOSED || ++failures > 3) leave("next");
      };
      return () => source.close();
    }),

  wait: (job, signal) => ask(job, signal, true),
  poll: (job, signal) => job.ask(signal),
};

/** Follows a list of jobs. */
class ListFollower extends Follower {
  ways = ["events", "poll"];
  kinds = ["list", "removed"];
  heard = 0;

  begin() {
    const { prefix = "/api/jobs", tag, batch, members, type, status, limit } = this.options;
    const url = new URL(absolute(prefix));
    const filters = Object.entries({ tag, batch, members, type, status, limit });
    for (const [name, value] of filters) if (value != null) url.searchParams.set(name, value);
    return super.begin(url);
  }

  get eventsUrl() {
    return this.url;
  }

  show(jobs) {
    if (this.ended || JSON.stringify(jobs) === JSON.stringify(this.document)) return false;
    this.document = jobs;
    try {
      this.options.onUpdate?.(jobs);
    } catch (error) {
      this.fail(error);
    }
    this.tell();
    return true;
  }

  hear(text, kind) {
    const found = parsed(text);
    this.heard++;
    if (kind === "list" ? !isList(found) : typeof found?.jobId !== "string") return false;
    const jobs = this.document ?? [];
    const others = jobs.filter(({ jobId }) => jobId !== found.jobId);
    if (kind === "list") this.show(found.jobs);
    else if (kind === "removed") this.show(others);
    else if (others.length < jobs.length) this.show(jobs.map((job) => (job.jobId === found.jobId ? found : job)));
    else this.show([found, ...jobs]); // the whole list comes if that is not its place
    return true;
  }

  async ask(signal) {
    const { heard } = this;
    const life = within(signal, HOLD * 1000 + SLACK);
    const answer = await this.read({ ...this.init(), cache: "no-cache", signal: life });
    if (!answer) return "again";
    if (passes(answer)) {
      this.rest(respite(answer, this.failures++));
      return "again";
    }
    const { jobs } = await documentIn(answer, this.url, isList);
    this.failures = 0;
    this.rest(LIST_PACE);
    if (!this.show(jobs)) return "again";
    // Beside a stream, the same change may be on its way there.
    if (this.ways[this.way] === "events") await pause(LIST_LAG, signal);
    return this.heard === heard ? "news" : "again";
  }
}

/** Read the events of a stream until `hear` returns true, or to their end. */
const readEvents = async (body, hear, ready) => {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let [rest, kind, data] = ["", "", []];
  while (true) {
    await ready();
    const { done, value } = await reader.read();
    if (done) return;
    // A CR at the end may be half of a CRLF.
    const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length && hear(kind, data.join("\n"))) return;
        [kind, data] = ["", []];
      }
      const [, name, text] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (name === "data") data.push(text);
      if (name === "event") kind = text;
    }
  }
};

const bytesIn = (base64) => Uint8Array.from(atob(base64.replace(/\s/g, "")), (char) => char.charCodeAt(0));

/** Follows a stream of output: Durable Streams, the half that reads. */
class OutputFollower extends Follower {
  ways = ["events", "wait"];
  fetches = true; // so tokens and headers are sent along with streams, too
  portions = [];
  epoch = 0;
  type = null;
  untyped = false;

  begin(job) {
    const { stream = "output", offset = "-1" } = this.options;
    const statusUrl = absolute(job?.statusUrl ?? job);
    this.offset = offset;
    this.output = below(statusUrl, stream === "output" ? "/output" : `/output/${encodeURIComponent(stream)}`);
    return super.begin({ ...job, statusUrl, document: null });
  }

  async *updates() {
    this.iterated = true;
    try {
      while (true) {
        if (this.portions.length) yield this.portions.shift();
        else if (this.error) throw this.error;
        else if (this.ended) return;
        else await this.news();
        this.drained?.();
      }
    } finally {
      this.fail(new DOMException("The output is not followed any more.", "AbortError"));
    }
  }

  async take(signal) {
    await this.#room(signal);
    if (signal.aborted) return "again";
    return this.ways[this.way] === "events" && !this.untyped ? this.#stream(signal) : this.#hold(signal);
  }

  async #room(signal) {
    while (this.iterated && this.portions.length >= WAITING && !signal.aborted) {
      await new Promise((drained) => {
        this.drained = drained;
        signal.addEventListener("abort", drained, { once: true });
      });
    }
  }

  /** Move to an offset; what came before it are these items. */
  #advance(items, offset, epoch, closed) {
    if (this.ended) return;
    this.worked = true;
    this.failures = 0;
    this.offset = offset;
    this.epoch = Number(epoch ?? this.epoch);
    const portion = { items, offset, epoch: this.epoch };
    if (items.length) {
      if (!this.options.onItems) this.portions.push(portion);
      try {
        this.options.onItems?.(items, portion);
      } catch (error) {
        this.fail(error);
      }
    }
    if (closed && !this.error) this.end({ offset, epoch: this.epoch });
    this.tell();
  }

  async #ask(live, accept, signal) {
    const url = new URL(this.output);
    url.searchParams.set("offset", this.offset);
    url.searchParams.set("live", live);
    const answer = await this.read({ ...this.init({ Accept: accept }), cache: "no-store", signal }, url.href);
    if (!answer) return null;
    if (passes(answer)) return void this.rest(respite(answer, this.failures++));
    if (!answer.ok) await documentIn(answer, this.output);
    return answer;
  }

  async #stream(signal) {
    const silence = new AbortController();
    const begun = now();
    let timer;
    const wait = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), ms);
    };
    let heard = false;
    let how = "again";
    let items = [];
    const hear = (kind, data) => {
      heard = true;
      if (kind === "data") {
        // The server of another library, or CORS hides the header: the answer to a read has the type.
        this.untyped = !this.type;
        if (this.untyped) return true;
        items.push(...this.#itemsOf(this.#isText() ? data : bytesIn(data)));
      }
      if (kind !== "control") return false;
      const { streamNextOffset, streamEpoch, streamClosed, streamText } = parsed(data) ?? {};
      if (typeof streamNextOffset !== "string") throw this.#notAStream("a control event without an offset");
      if (streamText != null) items = [streamText]; // events lose carriage returns
      this.#advance(items, streamNextOffset, streamEpoch, streamClosed);
      items = [];
      return this.ended;
    };
    try {
      wait(HOLD * 1000 + SLACK);
      const answer = await this.#ask("sse", "text/event-stream", AbortSignal.any([signal, silence.signal]));
      if (!answer) return "again";
      if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) return "next";
      this.type = TYPES[answer.headers.get("stream-kind")] ?? this.type;
      how = "next"; // unless there is a first word
      const ready = async () => {
        clearTimeout(timer);
        await this.#room(signal);
        wait(heard ? QUIET : FIRST_WORD);
      };
      await readEvents(answer.body, hear, ready);
      how = heard ? "again" : "next";
      // Servers end each stream after about a minute.
      if (!this.untyped && !this.ended && now() - begun < PACE_LEAST) this.rest(Math.max(toldBy(answer), PACE_LEAST));
    } catch (error) {
      if (error instanceof JobError) throw error;
      if (heard || how !== "next") how = "broken";
    } finally {
      clearTimeout(timer);
      silence.abort();
    }
    return how;
  }

  async #hold(signal) {
    const begun = now();
    const answer = await this.#ask("long-poll", "*/*", within(signal, HOLD * 1000 + SLACK));
    if (!answer) return "again";
    const header = (name) => answer.headers.get(`stream-${name}`);
    const type = answer.headers.get("content-type")?.split(";")[0];
    const bytes = answer.status === 200 ? new Uint8Array(await answer.arrayBuffer()) : [];
    const before = this.type;
    this.type = type;
    const items = bytes.length ? this.#itemsOf(this.#isText() ? new TextDecoder().decode(bytes) : bytes) : [];
    if (items.length) this.untyped = false;
    else this.type = before;
    const offset = header("next-offset");
    if (offset !== null) this.#advance(items, offset, header("epoch"), header("closed") === "true");
    else if (this.ways[this.way] !== "events") throw this.#notAStream(`${type}, without a visible Stream-Next-Offset`);
    const took = now() - begun;
    this.rest(items.length ? LEAST - took : took < PACE_LEAST ? this.told : 0);
    return "again";
  }

  #isText() {
    return this.type === TYPES.json || this.type.startsWith("text/");
  }

  #itemsOf(data) {
    if (this.type !== TYPES.json) return data.length ? [data] : [];
    const found = parsed(data);
    if (Array.isArray(found)) return found;
    throw this.#notAStream(`data that are not JSON: ${data.slice(0, 80)}`);
  }

  #notAStream(received) {
    return new JobError("not_a_stream", `${this.output} is not a stream of output. It answered ${received}.`, {
      url: this.output,
      received,
    });
  }
}

/**
 * Follow the output of a job: an iterable of its portions, and a promise of its end.
 * With `onItems`, portions are passed to it instead.
 */
export function followOutput(job, options = {}) {
  const follower = new OutputFollower(options);
  const { settled } = follower;
  Promise.resolve()
    .then(() => follower.begin(job))
    .catch((error) => follower.fail(error));
  Object.defineProperty(settled, "token", { get: () => follower.token });
  return Object.assign(settled, {
    [Symbol.asyncIterator]: () => {
      settled.catch(() => {}); // the iteration raises it
      return follower.updates();
    },
  });
}

/** Follow a job: a promise of the final document, and an iterable of each newer one. */
export function followJob(job, options = {}) {
  const follower = new Follower(options);
  const { settled } = follower;
  Promise.resolve()
    .then(() => follower.begin(job))
    .catch((error) => follower.fail(error));
  Object.defineProperty(settled, "token", { get: () => follower.token });
  return Object.assign(settled, {
    cancel: async () => {
      const { token } = follower;
      const document = await cancelJob(job?.statusUrl ?? job, { ...options, token, timeout: MINUTE });
      follower.show(document);
      return document;
    },
    [Symbol.asyncIterator]: () => {
      settled.catch(() => {}); // the iteration raises it
      return follower.updates();
    },
  });
}

/** The same, beginning with a WebSocket. */
export const followJobWs = (job, options = {}) => followJob(job, { ...options, transport: "socket" });

/** Follow the caller's own jobs, such as those with a tag: an iterable of each newer list. */
export function followJobs(options = {}) {
  const follower = new ListFollower({ timeout: Infinity, ...options });
  const { settled } = follower;
  Promise.resolve()
    .then(() => follower.begin())
    .catch((error) => follower.fail(error));
  return Object.assign(settled, {
    [Symbol.asyncIterator]: () => {
      settled.catch(() => {}); // the iteration raises it
      return follower.updates();
    },
  });
}

/** Follow the jobs that were followed with `keep` and whose end was not seen. */
export function resumeJobs(options = {}) {
  const entries = storage((kept) => Object.entries(kept)) ?? [];
  const found = entries.filter(([name]) => name.startsWith(KEPT));
  return new Map(
    found.map(([name, text]) => {
      const { token, tokenUrl } = parsed(text) ?? {};
      const statusUrl = name.slice(KEPT.length);
      // Its token is renewed at once: how old it is cannot be known.
      return [statusUrl, followJob({ statusUrl, token, tokenUrl, kept: true }, { ...options, keep: true })];
    }),
  );
}
