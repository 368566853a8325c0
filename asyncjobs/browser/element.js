// <async-job status-url="…">: shows a job to its end, with a button to cancel and a link to the result.
import { followJob, isTerminal } from "./client.js";

const STYLE = `
  :host { --async-job-accent: light-dark(#0b5fce, #6cb0ff); --async-job-track: light-dark(#d8dde3, #323943);
    --async-job-faint: light-dark(#57606a, #a3adb8); --async-job-bad: light-dark(#c4222f, #ff7b72);
    --async-job-good: light-dark(#1a7f37, #4cc26b); display: block; }
  :host([hidden]), [hidden] { display: none !important; }
  div { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; justify-content: space-between; }
  [part="status"] { font-weight: 600; }
  [part="message"], [part="percent"] { color: var(--async-job-faint); }
  [part="percent"] { font-variant-numeric: tabular-nums; }
  [part="error"] { color: var(--async-job-bad); margin: 0.25rem 0; overflow-wrap: anywhere; }
  progress { display: block; height: 0.5rem; margin: 0.375rem 0; width: 100%; }
  @media (forced-colors: none) {
    progress { appearance: none; background: var(--async-job-track); border: 0; border-radius: 1rem;
      color: var(--async-job-accent); overflow: hidden; }
    progress::-webkit-progress-bar { background: var(--async-job-track); }
    progress::-webkit-progress-value { background: var(--async-job-accent); }
    progress::-moz-progress-bar { background: var(--async-job-accent); }
  }
  :host([state="completed"]) { --async-job-accent: var(--async-job-good); }
  :host([state="failed"]) { --async-job-accent: var(--async-job-bad); }
  [part="actions"] { align-items: center; justify-content: start; margin-top: 0.375rem; }
  [part="announced"] { clip-path: inset(50%); height: 1px; overflow: hidden; position: absolute; width: 1px; }
  button, a { font: inherit; color: var(--async-job-accent); }
  button { background: none; border: 1px solid currentcolor; border-radius: 0.375rem; cursor: pointer;
    padding: 0.25rem 0.75rem; }
  [aria-disabled] { opacity: 0.6; }
`;

const WORDS = {
  connecting: "Connecting",
  pending: "Waiting",
  processing: "In progress",
  stopping: "Stopping",
  completed: "Completed",
  failed: "Failed",
  cancelled: "Cancelled",
  progress: "Progress",
  cancel: "Cancel",
  result: "Result",
  uncancelled: "The job could not be cancelled. Please try again.",
};

// On a server, where pages are made, there is no such class.
const Base = globalThis.HTMLElement ?? class {};

const made = (tag, part, attributes = {}) => {
  const node = document.createElement(tag);
  if (part) node.part = part;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

const slotted = (node, name, text) => {
  const slot = made("slot", "", { name });
  slot.textContent = text;
  node.append(slot);
  return node;
};

const stateOf = (job) => (job.cancelRequestedAt && !isTerminal(job) ? "stopping" : job.status);

/** What a member of a result says is data: only a link to the web becomes one. */
const linkIn = (result, name, base) => {
  const link = result?.[name];
  const found = typeof link === "string" && URL.canParse(link, base) ? new URL(link, base) : null;
  return /^https?:$/.test(found?.protocol) ? found.href : null;
};

export class AsyncJobElement extends Base {
  static observedAttributes = ["status-url"];
  static words = WORDS;

  /** What is shown in place of statuses and on buttons; change it before a job is followed. */
  words = { ...this.constructor.words };
  /** Options of `followJob` that are no attributes, such as `headers`. */
  options = {};
  job = null;
  #parts = null;
  #leaving = null;
  #following = null;
  #announced = "";

  connectedCallback() {
    this.#parts ??= this.#build();
    this.#follow();
  }

  disconnectedCallback() {
    this.#leaving?.abort();
  }

  attributeChangedCallback(_, before, after) {
    if (this.isConnected && this.#parts && before !== after) this.#follow();
  }

  get statusUrl() {
    return this.getAttribute("status-url");
  }

  set statusUrl(url) {
    if (url == null) this.removeAttribute("status-url");
    else this.setAttribute("status-url", url);
  }

  /** Ask the job to stop; the job's document is shown at once. */
  async cancel() {
    const { cancel, error } = this.#parts;
    if (cancel.ariaDisabled) return;
    cancel.ariaDisabled = "true"; // one that is disabled in earnest loses the focus
    try {
      await this.#following?.cancel();
    } catch {
      error.textContent = this.words.uncancelled;
      error.hidden = false;
    }
    cancel.ariaDisabled = null;
  }

  #build() {
    const { words } = this;
    const parts = {
      status: made("span", "status", { tabindex: -1 }),
      percent: made("span", "percent"),
      bar: made("progress", "bar", { max: 100, "aria-label": words.progress }),
      message: made("span", "message", { dir: "auto" }),
      announced: made("p", "announced", { role: "status", "aria-live": "polite" }),
      error: made("p", "error", { role: "alert", dir: "auto" }),
      result: slotted(made("a", "result"), "result", words.result),
      cancel: slotted(made("button", "cancel", { type: "button" }), "cancel", words.cancel),
    };
    parts.cancel.addEventListener("click", () => this.cancel());
    const [head, actions] = [made("div", "head"), made("div", "actions")];
    head.append(parts.status, parts.percent);
    actions.append(parts.result, parts.cancel);
    const root = this.attachShadow({ mode: "open" });
    // A sheet of its own is no inline style, which a page's policy may forbid.
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    root.append(head, parts.bar, parts.message, parts.announced, parts.error, actions);
    return parts;
  }

  #follow() {
    this.#leaving?.abort();
    this.job = null;
    this.#reset();
    if (!this.statusUrl) return;
    const { signal } = (this.#leaving = new AbortController());
    const following = followJob(this.statusUrl, {
      credentials: this.getAttribute("credentials") ?? undefined,
      transport: this.getAttribute("transport") ?? undefined,
      keep: this.hasAttribute("keep"),
      ...this.options,
      signal,
      onUpdate: (job) => this.#show(job),
    });
    this.#following = following;
    following.then(
      (job) => this.#say("job-end", job),
      (error) => signal.aborted || this.#fail(error),
    );
  }

  #reset() {
    const { bar, result, error, percent, message } = this.#parts;
    bar.removeAttribute("value");
    result.hidden = error.hidden = true;
    this.#offerCancel(false);
    error.textContent = percent.textContent = message.textContent = "";
    this.#enter("connecting");
  }

  #enter(state) {
    this.setAttribute("state", state);
    this.#parts.status.textContent = this.words[state];
  }

  #show(job) {
    this.job = job;
    const { bar, percent, message, error, result } = this.#parts;
    const state = stateOf(job);
    this.#enter(state);
    bar.value = job.progress;
    percent.textContent = `${job.progress}%`;
    message.textContent = job.detail?.message ?? "";
    error.textContent = job.error ?? "";
    error.hidden = !job.error;
    this.#offerCancel(!isTerminal(job) && state !== "stopping");
    result.hidden = state !== "completed";
    if (state === "completed") result.href = this.#resultOf(job);
    this.#announce(job, state);
    this.#say("job-update", job);
  }

  // Whoever pressed it by the keyboard is not thrown back to the page's beginning.
  #offerCancel(offered) {
    const { cancel, status } = this.#parts;
    if (!offered && this.shadowRoot.activeElement === cancel) status.focus();
    cancel.hidden = !offered;
  }

  // Who listens hears of changes and of quarters, not of each percent.
  #announce(job, state) {
    const quarter = state === "processing" ? `, ${Math.floor(job.progress / 25) * 25}%` : "";
    const words = `${this.words[state]}${quarter}`;
    if (words !== this.#announced) this.#parts.announced.textContent = this.#announced = words;
  }

  #resultOf(job) {
    const own = new URL(this.statusUrl, document.baseURI);
    const named = this.getAttribute("result-link");
    const found = named && linkIn(job.result, named, own);
    own.pathname += "/result";
    return found || own.href;
  }

  #fail(error) {
    this.#enter("failed");
    this.#offerCancel(false);
    this.#parts.error.textContent = error.message;
    this.#parts.error.hidden = false;
    this.#say("job-error", error);
  }

  #say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }
}

globalThis.customElements?.get("async-job") ?? globalThis.customElements?.define("async-job", AsyncJobElement);
