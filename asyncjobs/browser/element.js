// <async-job status-url="…">: shows a job to its end, with a button to cancel and a link to the result.
import { followJob, isTerminal } from "./client.js";
import { leave, paint, spoken, STYLE, timed, whyNone, WORDS } from "./look.js";

// On a server, where pages are made, there is no such class.
const Base = globalThis.HTMLElement ?? class {};

const made = (tag, part, attributes = {}) => {
  const node = document.createElement(tag);
  if (part) node.setAttribute("part", part);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

const slotted = (node, name, text) => {
  const slot = made("slot", "", { name });
  slot.textContent = text;
  node.append(slot);
  return node;
};

/** A member of a result is data: only a link to the web becomes a link. */
const linkIn = (result, name, base) => {
  const link = result?.[name];
  const found = typeof link === "string" && URL.canParse(link, base) ? new URL(link, base) : null;
  return /^https?:$/.test(found?.protocol) ? found.href : null;
};

export class AsyncJobElement extends Base {
  static observedAttributes = ["status-url"];
  static words = WORDS;

  /** What is shown for each state and on buttons; change it before a job is followed. */
  words = { ...this.constructor.words };
  /** Options of `followJob` that are no attributes, such as `headers`. */
  options = {};
  job = null;
  #parts = null;
  #leaving = null;
  #following = null;
  #ticking = null;
  #announced = "";
  #behind = 0;

  connectedCallback() {
    this.#parts ??= this.#build();
    this.#follow();
  }

  disconnectedCallback() {
    this.#stop();
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
    const { cancel, note } = this.#parts;
    if (cancel.ariaDisabled) return;
    cancel.ariaDisabled = "true"; // a disabled button would lose the focus
    try {
      await this.#following?.cancel();
    } catch {
      note.textContent = this.words.uncancelled;
    }
    cancel.ariaDisabled = null;
  }

  #build() {
    const { words } = this;
    const parts = {
      root: made("div", "job", { class: "job" }),
      title: made("p", "title", { dir: "auto" }),
      status: made("span", "status", { tabindex: -1 }),
      percent: made("span", "percent"),
      bar: made("progress", "bar", { max: 100, "aria-label": words.progress }),
      message: made("p", "message", { dir: "auto" }),
      count: made("span", "count", { dir: "auto" }),
      elapsed: made("span", "elapsed"),
      announced: made("p", "announced", { role: "status", "aria-live": "polite" }),
      error: made("p", "error", { dir: "auto" }),
      note: made("p", "note", { role: "alert" }),
      result: slotted(made("a", "result", { class: "button main" }), "result", words.result),
      cancel: slotted(made("button", "cancel", { class: "button", type: "button" }), "cancel", words.cancel),
    };
    parts.cancel.addEventListener("click", () => this.cancel());
    // With the token that is valid now.
    for (const kind of ["pointerdown", "click"]) {
      parts.result.addEventListener(kind, () => (parts.result.href = this.#resultOf(this.job)));
    }
    const head = made("p", "head", { class: "row" });
    const detail = made("p", "detail", { class: "row" });
    const actions = made("div", "actions");
    head.append(parts.status, parts.percent);
    detail.append(parts.elapsed, parts.count);
    actions.append(parts.result, parts.cancel);
    const { root, title, bar, message, announced, error, note } = parts;
    root.append(title, head, bar, message, detail, announced, error, note, actions);
    const shadow = this.attachShadow({ mode: "open" });
    // A sheet of its own is no inline style, which a page's policy may forbid.
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(`:host { display: block; } :host([hidden]) { display: none; } ${STYLE}`);
    shadow.adoptedStyleSheets = [sheet];
    shadow.append(root);
    return parts;
  }

  #follow() {
    this.#stop();
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
    this.#ticking = setInterval(() => this.#tick(), 1000);
    following.then(
      (job) => this.#say("job-end", job),
      (error) => signal.aborted || this.#fail(error),
    );
  }

  #stop() {
    this.#leaving?.abort();
    clearInterval(this.#ticking);
  }

  #reset() {
    const { bar, cancel, result, root, status } = this.#parts;
    for (const name of ["title", "percent", "message", "count", "elapsed", "error", "note"]) this.#parts[name].textContent = "";
    bar.removeAttribute("value");
    bar.hidden = false;
    cancel.hidden = result.hidden = true;
    status.textContent = this.words.connecting;
    root.dataset.state = "connecting";
    this.setAttribute("state", "connecting");
  }

  #show(job) {
    this.job = job;
    this.setAttribute("state", paint(this.#parts, job, this.words));
    if (job.status === "completed") this.#parts.result.href = this.#resultOf(job);
    // A clock that is behind the server's would count from less than nothing.
    this.#behind = Math.max(this.#behind, Date.parse(job.startedAt ?? job.createdAt) - Date.now() || 0);
    this.#tick();
    const words = spoken(job, this.words);
    if (words !== this.#announced) this.#parts.announced.textContent = this.#announced = words;
    if (isTerminal(job)) clearInterval(this.#ticking);
    this.#say("job-update", job);
  }

  #tick() {
    if (this.job) this.#parts.elapsed.textContent = timed(this.job, Date.now() + this.#behind, this.words);
  }

  #resultOf(job) {
    const own = new URL(this.statusUrl, document.baseURI);
    const named = this.getAttribute("result-link");
    const found = named && linkIn(job.result, named, own);
    own.pathname += "/result";
    const token = this.#following?.token;
    if (token) own.searchParams.set("token", token);
    return found || own.href;
  }

  #fail(error) {
    const state = whyNone(error.status) ?? "lost";
    this.#stop();
    leave(this.#parts, state, this.words);
    this.setAttribute("state", state);
    this.#say("job-error", error);
  }

  #say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }
}

globalThis.customElements?.get("async-job") ?? globalThis.customElements?.define("async-job", AsyncJobElement);
