// Hooks that follow one job, by the best way there is or by a WebSocket, its output, and lists of jobs.
import { useCallback, useEffect, useRef, useState } from "react";
import { followJob, followJobs, followJobWs, followOutput, isTerminal } from "./client.js";

const NOTHING = { url: null, document: null, fault: null };

const urlOf = (job, prefix = "/api/jobs") => {
  const found = job?.statusUrl ?? job?.jobId ?? job ?? null;
  if (found === null || found === "") return null;
  return /[/:]/.test(found) ? String(found) : `${prefix}/${found}`;
};

const useJob = (job, options, follow) => {
  const url = urlOf(job, options.prefix);
  const [seen, setSeen] = useState(NOTHING);
  const latest = useRef({ job, options });
  const following = useRef(null);

  useEffect(() => {
    latest.current = { job, options };
  });

  useEffect(() => {
    if (url === null) return undefined;
    const leaving = new AbortController();
    const put = (change) => {
      if (leaving.signal.aborted) return;
      setSeen((before) => ({ ...(before.url === url ? before : NOTHING), url, ...change }));
    };
    const { prefix, onUpdate, ...rest } = latest.current.options;
    // What was accepted may have ended by then, and needs no request.
    const { job } = latest.current;
    const { token, tokenUrl, tokenExpiresAt } = job;
    const held = { token, tokenUrl, tokenExpiresAt };
    following.current = follow(job.document ? job : { statusUrl: url, ...held }, {
      ...rest,
      signal: leaving.signal,
      onUpdate: (document) => {
        put({ document });
        latest.current.options.onUpdate?.(document);
      },
    });
    following.current.catch((fault) => put({ fault }));
    return () => {
      leaving.abort();
      following.current = null;
    };
  }, [url, follow]);

  const cancel = useCallback(async () => {
    await following.current?.cancel();
  }, []);

  // The state of the job before is not that of this one.
  const { document, fault } = seen.url === url ? seen : NOTHING;
  const status = document?.status;
  const ended = document !== null && isTerminal(document);
  const isComplete = status === "completed";
  const isCancelled = status === "cancelled";
  // A newer server may end a job with a status that is not known here.
  const isFailed = ended ? !isComplete && !isCancelled : fault !== null;
  return {
    job: document,
    isLoading: url !== null && !ended && fault === null,
    isComplete,
    isFailed,
    isCancelled,
    progress: document?.progress ?? 0,
    message: document?.detail?.message ?? undefined,
    result: isComplete ? document.result : undefined,
    error: document?.error ?? fault?.message ?? (isFailed ? `The job ended with the status ${status}.` : undefined),
    cancel,
  };
};

/** Follow a job by its id or status URL, from the first render with one to its end. */
export const useAsyncJob = (job, options = {}) => useJob(job, options, followJob);

/** The same by a WebSocket, and by the other ways where there is none. */
export const useAsyncJobWs = (job, options = {}) => useJob(job, options, followJobWs);

const NO_JOBS = { key: null, jobs: null, fault: null };

/** Follow a list of the caller's own jobs, such as those with a tag; `null` follows none. */
export const useJobs = (selection = {}, options = {}) => {
  const { tag, batch, members, type, status, limit } = selection ?? {};
  const { prefix = "/api/jobs" } = options;
  const key = selection && JSON.stringify([String(prefix), tag, batch, members, type, status, limit]);
  const [seen, setSeen] = useState(NO_JOBS);
  const latest = useRef(options);

  useEffect(() => {
    latest.current = options;
  });

  useEffect(() => {
    if (key === null) return undefined;
    const leaving = new AbortController();
    const put = (change) => {
      if (leaving.signal.aborted) return;
      setSeen((before) => ({ ...(before.key === key ? before : NO_JOBS), key, ...change }));
    };
    followJobs({
      ...latest.current,
      prefix,
      tag,
      batch,
      members,
      type,
      status,
      limit,
      signal: leaving.signal,
      onUpdate: (jobs) => {
        put({ jobs });
        latest.current.onUpdate?.(jobs);
      },
    }).catch((fault) => put({ fault }));
    return () => leaving.abort();
    // The key stands for prefix and selection.
  }, [key]);

  // The list of another selection is not that of this one.
  const { jobs, fault } = seen.key === key ? seen : NO_JOBS;
  return {
    jobs: jobs ?? [],
    isLoading: key !== null && jobs === null && fault === null,
    error: fault?.message,
  };
};

const NO_OUTPUT = { key: null, items: [], text: "", epoch: 0, ended: false, fault: null };
const KEPT_MOST = 512 * 1024; // characters of one stream in sessionStorage

// Not every page may use it.
const session = (use) => {
  try {
    return use(globalThis.sessionStorage);
  } catch {
    return null;
  }
};

const stringsIn = (items) => items.filter((item) => typeof item === "string").join("");

/** What was received of a stream: items, and the offset after exactly these. */
class Received {
  items = [];
  text = "";
  offset = "-1";
  epoch = 0;
  #keeps;

  constructor(key, { keep, attempts }) {
    Object.assign(this, { key, attempts });
    this.#keeps = keep;
    const kept = keep ? session((storage) => JSON.parse(storage.getItem(key))) : null;
    if (kept) Object.assign(this, kept, { text: stringsIn(kept.items) });
  }

  add(items, { offset, epoch }) {
    if (epoch > this.epoch && this.attempts === "last") {
      this.items = [];
      this.text = "";
    }
    Object.assign(this, { offset, epoch });
    for (const item of items) this.items.push(item);
    this.text += stringsIn(items);
    // Bytes are not kept: they are no JSON.
    if (items.some((item) => item instanceof Uint8Array)) this.forget();
  }

  /** Keep it for a reload. What is too large is read again from the start. */
  keep() {
    if (!this.#keeps || this.offset === "-1") return;
    const { items, offset, epoch } = this;
    const text = JSON.stringify({ items, offset, epoch });
    const isKept = text.length <= KEPT_MOST && session((storage) => storage.setItem(this.key, text) ?? true);
    if (!isKept) this.forget();
  }

  forget() {
    this.#keeps = false;
    session((storage) => storage.removeItem(this.key));
  }

  get shown() {
    return { key: this.key, items: [...this.items], text: this.text, epoch: this.epoch };
  }
}

/** Follow a stream of a job's output: all that is received so far, also after a reload. */
export const useJobOutput = (job, options = {}) => {
  const url = urlOf(job, options.prefix);
  const { stream = "output", attempts = "last" } = options;
  const key = url && `asyncjobs:output:${JSON.stringify([url, stream, attempts])}`;
  const [seen, setSeen] = useState(NO_OUTPUT);
  const latest = useRef({ job, options });

  useEffect(() => {
    latest.current = { job, options };
  });

  useEffect(() => {
    if (key === null) return undefined;
    const { throttle = 50, keep = true, prefix, onItems, ...rest } = latest.current.options;
    const { token, tokenUrl, tokenExpiresAt } = latest.current.job;
    const leaving = new AbortController();
    const received = new Received(key, { keep, attempts });
    let timer = null;
    const put = (change = {}) => {
      clearTimeout(timer);
      timer = null;
      if (!leaving.signal.aborted) setSeen({ ...NO_OUTPUT, ...received.shown, ...change });
    };
    const save = () => received.keep();
    const later = () => {
      if (timer === null) timer = setTimeout(put, throttle);
    };
    globalThis.addEventListener?.("pagehide", save);
    put();
    followOutput(
      { statusUrl: url, token, tokenUrl, tokenExpiresAt },
      {
        ...rest,
        stream,
        offset: received.offset,
        signal: leaving.signal,
        onItems: (items, portion) => {
          received.add(items, portion);
          later();
          latest.current.options.onItems?.(items, portion);
        },
      },
    ).then(
      () => {
        received.forget();
        put({ ended: true });
      },
      (fault) => {
        // An offset that is refused, or a job that is gone: a reload begins anew.
        if (fault.status >= 400) received.forget();
        put({ fault });
      },
    );
    return () => {
      save();
      leaving.abort();
      clearTimeout(timer);
      globalThis.removeEventListener?.("pagehide", save);
    };
  }, [key, url, stream, attempts]);

  // The output of the job before is not that of this one.
  const { items, text, epoch, ended, fault } = seen.key === key ? seen : NO_OUTPUT;
  return {
    items,
    text,
    epoch,
    isLoading: key !== null && !ended && fault === null,
    isComplete: ended,
    error: fault?.message,
  };
};
