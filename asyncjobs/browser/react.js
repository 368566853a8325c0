// Hooks that follow one job, by the best way there is or by a WebSocket, and lists of jobs.
import { useCallback, useEffect, useRef, useState } from "react";
import { followJob, followJobs, followJobWs, isTerminal } from "./client.js";

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
    const { token, tokenUrl } = job;
    following.current = follow(job.document ? job : { statusUrl: url, token, tokenUrl }, {
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
  const { tag, type, status, limit } = selection ?? {};
  const { prefix = "/api/jobs" } = options;
  const key = selection && JSON.stringify([String(prefix), tag, type, status, limit]);
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
