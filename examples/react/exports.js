// The visitor's exports: those listed by the server, and those submitted on this page.
import { useCallback, useEffect, useRef, useState } from "react";
import { submitJob } from "asyncjobs-browser";

const LIST = "/api/jobs?type=export&limit=10";

const absolute = (job) => ({ ...job, statusUrl: new URL(job.statusUrl, location.href).href });

export const useExports = () => {
  const [listed, setListed] = useState(null);
  const [begun, setBegun] = useState([]);
  const [fault, setFault] = useState(false);
  const [round, setRound] = useState(0);
  const key = useRef(null);

  useEffect(() => {
    const leaving = new AbortController();
    setFault(false);
    const load = async () => {
      const answer = await fetch(LIST, { signal: leaving.signal });
      if (!answer.ok) throw new Error(`The list answered ${answer.status}.`);
      setListed((await answer.json()).jobs.map(absolute));
    };
    load().catch(() => leaving.signal.aborted || setFault(true));
    return () => leaving.abort();
  }, [round]);

  /** Submit an export; rejects if the server does not accept it. */
  const begin = useCallback(async (request) => {
    // The key stays the same until there is a response: pressing the button again after a lost
    // response does not start a second export.
    key.current ??= `${Date.now()}-${Math.random()}`;
    const { statusUrl } = await submitJob("/api/exports", request, { idempotencyKey: key.current });
    key.current = null;
    setBegun((before) => [{ statusUrl, request, createdAt: new Date().toISOString() }, ...before]);
  }, []);

  const reload = useCallback(() => setRound((before) => before + 1), []);
  const here = new Set(begun.map(({ statusUrl }) => statusUrl));
  const others = listed?.filter(({ statusUrl }) => !here.has(statusUrl));
  const exports = others || begun.length ? [...begun, ...(others ?? [])] : null;
  return { exports, fault, begin, reload };
};
