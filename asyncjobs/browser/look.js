// What the status page and <async-job> have in common: their words, their style, and how they show
// a job. The server reads this file, too: WORDS is JSON, and STYLE stands between two backticks.

export const WORDS = {
  "connecting": "Connecting",
  "pending": "Waiting",
  "processing": "In progress",
  "stopping": "Stopping",
  "completed": "Completed",
  "failed": "Failed",
  "cancelled": "Cancelled",
  "gone": "Not found",
  "refused": "Not signed in",
  "lost": "Not available",
  "progress": "Progress",
  "cancel": "Cancel",
  "result": "Download result",
  "of": "of",
  "about": "of about",
  "took": "Took",
  "overrun": "longer than usual",
  "whenGone": "This job no longer exists, or it belongs to another account.",
  "whenRefused": "Sign in, then load this page again.",
  "whenLost": "The job cannot be shown. Load this page again to retry.",
  "unreachable": "The server cannot be reached. Trying again.",
  "uncancelled": "The job could not be cancelled. Please try again."
};

export const STYLE = `
.job {
  --accent: var(--async-job-accent, light-dark(#0b5fce, #6cb0ff));
  --on-accent: var(--async-job-on-accent, light-dark(#fff, #0e1116));
  --track: var(--async-job-track, light-dark(#e3e7ec, #2b323c));
  --line: var(--async-job-line, light-dark(#c3cad2, #454e5a));
  --faint: var(--async-job-faint, light-dark(#57606a, #a3adb8));
  --good: var(--async-job-good, light-dark(#1a7f37, #4cc26b));
  --bad: var(--async-job-bad, light-dark(#c4222f, #ff7b72));
  --tone: var(--faint);
  line-height: 1.5;
  overflow-wrap: anywhere;
}
.job[data-state="processing"] { --tone: var(--accent); }
.job[data-state="completed"] { --tone: var(--good); }
.job[data-state="failed"] { --tone: var(--bad); }
[hidden] { display: none !important; }
.job p { margin: 0; }
.row { display: flex; flex-wrap: wrap; gap: 0 1rem; justify-content: space-between; }
[part="status"] { color: var(--tone); font-weight: 600; }
[part="status"]::before {
  background: currentcolor;
  border-radius: 50%;
  content: "";
  display: inline-block;
  height: 0.55em;
  margin-inline-end: 0.5em;
  width: 0.55em;
}
[part="percent"], [part="count"], [part="elapsed"] { font-variant-numeric: tabular-nums; }
[part="count"], [part="elapsed"] { color: var(--faint); }
[part="message"], [part="count"], [part="elapsed"] { font-size: 0.875em; }
[part="percent"], .job p[part="title"] { font-weight: 600; }
[part="bar"] { display: block; height: 0.5rem; margin: 0.5rem 0; width: 100%; }
@media (forced-colors: none) {
  [part="bar"] {
    appearance: none;
    background: var(--track);
    border: 0;
    border-radius: 1rem;
    color: var(--tone);
    overflow: hidden;
  }
  [part="bar"]::-webkit-progress-bar { background: none; }
  [part="bar"]::-webkit-progress-value { background: var(--tone); border-radius: 1rem; }
  [part="bar"]::-moz-progress-bar { background: var(--tone); border-radius: 1rem; }
  [part="bar"]:indeterminate {
    background: linear-gradient(90deg, var(--track) 35%, var(--tone), var(--track) 65%) 50% / 300%;
  }
  [part="bar"]:indeterminate::-moz-progress-bar { background: none; }
}
.job [part="error"] { border-inline-start: 0.25rem solid var(--bad); margin-top: 0.75rem; padding-inline-start: 0.75rem; }
.job [part="note"] { color: var(--bad); margin-top: 0.75rem; }
:is([data-state="gone"], [data-state="refused"], [data-state="lost"]) [part="note"] { color: inherit; }
[part="title"]:empty, [part="message"]:empty, [part="error"]:empty, [part="note"]:empty { display: none; }
.row:not(:has(> :not(:empty))), [part="actions"]:not(:has(> :not([hidden]))) { display: none; }
.job [part="announced"] { clip-path: inset(50%); height: 1px; overflow: hidden; position: absolute; width: 1px; }
[part="actions"] { display: flex; flex-wrap: wrap; gap: 0.75rem; margin-top: 1rem; }
.button {
  align-items: center;
  background: none;
  border: 1px solid var(--line);
  border-radius: 0.5rem;
  box-sizing: border-box;
  color: inherit;
  cursor: pointer;
  display: inline-flex;
  font: inherit;
  font-weight: 600;
  min-height: 2.5rem;
  padding: 0.25rem 1rem;
  text-decoration: none;
}
.button:hover { border-color: currentcolor; }
.button.main { background: var(--accent); border-color: var(--accent); color: var(--on-accent); }
.button.main:hover { filter: brightness(1.08); }
.button[aria-disabled="true"] { cursor: default; opacity: 0.6; }
.job :focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; }
@media (prefers-reduced-motion: no-preference) {
  [data-state="processing"] [part="status"]::before { animation: pulse 1.6s ease-in-out infinite; }
  [part="bar"]::-webkit-progress-value { transition: width 0.3s; }
  [part="bar"]:indeterminate { animation: slide 1.8s linear infinite; }
}
@keyframes pulse { 50% { opacity: 0.35; } }
@keyframes slide { from { background-position: 100%; } to { background-position: 0; } }
`;

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/** Write a duration in its two largest units. */
export const spelt = (seconds) => {
  const first = UNITS.findIndex(([size]) => seconds >= size);
  if (first < 0) return "under 1 s";
  return UNITS.slice(first, first + 2).map(([size, unit]) => {
    const count = Math.floor(seconds / size);
    seconds %= size;
    return count ? `${count} ${unit}` : "";
  }).join(" ").trim();
};

/** Write how many things are done: "1 of 2 rows", and "2 rows" for all of them. */
export const counted = (detail, words = WORDS) => {
  const { current, total, unit } = detail ?? {};
  if (current == null) return "";
  const whole = total == null || total === current ? "" : ` ${words.of} ${total.toLocaleString("en")}`;
  return `${current.toLocaleString("en")}${whole} ${unit ?? ""}`.trim();
};

/** Write how long a job has run, and how long it may take. */
export const timed = (job, now, words = WORDS) => {
  if (!job.startedAt || job.status === "pending") return "";
  const until = job.completedAt ? Date.parse(job.completedAt) : now;
  const seconds = (until - Date.parse(job.startedAt)) / 1000;
  const usual = job.estimatedDuration;
  if (job.completedAt) return `${words.took} ${spelt(seconds)}`;
  if (usual == null) return spelt(seconds);
  if (seconds > usual) return `${spelt(seconds)}, ${words.overrun}`;
  return `${spelt(seconds)} ${words.about} ${spelt(Math.ceil(usual))}`;
};

/** A job's status, or "stopping" for a job that was asked to stop. */
export const stateOf = (job) => (job.cancelRequestedAt && !job.completedAt ? "stopping" : job.status);

/** What a screen reader reads out: each change of state, and each quarter instead of each percent. */
export const spoken = (job, words = WORDS) => {
  const state = stateOf(job);
  const word = words[state] ?? state;
  const quarter = Math.floor(job.progress / 25) * 25;
  if (state === "processing") return quarter ? `${word}, ${quarter}%` : word;
  return job.error ? `${word}. ${job.error}` : word;
};

const put = (node, text) => {
  if (node && node.textContent !== (text ?? "")) node.textContent = text ?? "";
};

// The button is about to vanish: the focus of the keyboard goes on to the status.
const offer = (parts, offered) => {
  const { cancel, status } = parts;
  if (!cancel) return;
  if (!offered && cancel.contains(cancel.getRootNode().activeElement)) status.focus();
  cancel.hidden = !offered;
};

/** Show a job in the parts of the page or of the element. */
export const paint = (parts, job, words = WORDS) => {
  const state = stateOf(job);
  const works = state === "processing" || state === "stopping";
  // Figures of an attempt that has failed say nothing of the next one.
  const waits = state === "pending";
  // Some handlers report no progress: 0 % all the time would look like a job that is stuck.
  const silent = works && !job.progress;
  const percent = silent || waits ? "" : `${job.progress}%`;
  parts.root.dataset.state = state;
  parts.bar.hidden = false;
  if (silent) parts.bar.removeAttribute("value");
  else parts.bar.value = waits ? 0 : job.progress;
  // A page has the type in words for a job without a title.
  if (job.title) put(parts.title, job.title);
  put(parts.status, words[state] ?? state);
  put(parts.percent, percent);
  put(parts.message, works ? job.detail?.message : "");
  put(parts.count, waits ? "" : counted(job.detail, words));
  put(parts.error, job.error);
  put(parts.note, "");
  offer(parts, state === "pending" || state === "processing");
  if (parts.result) parts.result.hidden = state !== "completed";
  return state;
};

/** Show that a job is no more to be seen: "gone", "refused" or "lost". */
export const leave = (parts, state, words = WORDS) => {
  parts.root.dataset.state = state;
  parts.bar.hidden = true;
  for (const name of ["percent", "message", "count", "elapsed", "error"]) put(parts[name], "");
  put(parts.status, words[state]);
  put(parts.note, words[`when${state[0].toUpperCase()}${state.slice(1)}`]);
  offer(parts, false);
  if (parts.result) parts.result.hidden = true;
};

/** Why an answer has no job: it is gone, or a login has expired; else null. */
export const whyNone = (status) => {
  if (status === 404 || status === 410) return "gone";
  return status === 401 || status === 403 ? "refused" : null;
};
