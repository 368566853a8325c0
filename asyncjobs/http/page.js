// Keeps the page up to date: follows the job by its events, else by polling.
const root = document.querySelector("main");
const { eventsUrl, now, outputUrl, retryAfter, statusUrl, tokenUrl } = root.dataset;
const parts = { root };
for (const node of document.querySelectorAll("[part]")) parts[node.getAttribute("part")] = node;
// How far this machine's clock is behind the server's.
const behind = Date.parse(now) - Date.now() || 0;
const headers = { Accept: "application/json" };
let token = null;
let job = JSON.parse(root.dataset.job);
let pause = Number(retryAfter) || 2;
let over = false;
let announced = spoken(job);

const setTime = (name, iso) => {
  if (!iso) return;
  parts[name].dateTime = iso;
  put(parts[name], new Date(iso).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" }));
};

const name = (state) => { document.title = `${state} · ${parts.title.textContent}`; };
const tick = () => { if (!over || job.completedAt) put(parts.elapsed, timed(job, Date.now() + behind)); };
const finish = () => { over = true; clearInterval(ticking); };

// A row for each member of the metadata, as the server writes it; all of it is text.
let known = "";
const showMetadata = (metadata = {}) => {
  if (known === (known = JSON.stringify(metadata))) return;
  const cell = (kind, part, text) => {
    const node = document.createElement(kind);
    node.setAttribute("part", part);
    return Object.assign(node, { dir: "auto", textContent: text });
  };
  parts.metadata.replaceChildren(...Object.entries(metadata).map(([name, value]) => {
    const row = document.createElement("div");
    const text = typeof value === "string" ? value : JSON.stringify(value);
    row.append(cell("dt", "name", name), cell("dd", "value", text));
    return row;
  }));
};

// A link to each file that the job has saved, as the server writes it.
let listed = "";
const showFiles = (files = []) => {
  if (listed === (listed = JSON.stringify(files))) return;
  parts.files.replaceChildren(...files.map(({ name, size, url }) => {
    const link = Object.assign(document.createElement("a"), { href: url, download: name, dir: "auto", textContent: name });
    const told = Object.assign(document.createElement("span"), { textContent: bytes(size) });
    told.setAttribute("part", "size");
    const item = document.createElement("li");
    item.append(link, told);
    return item;
  }));
};
const bytes = (size) => {
  for (const unit of ["B", "kB", "MB"]) {
    if (size < 1000) return `${size} ${unit}`;
    size = Math.floor(size / 1000);
  }
  return `${size.toLocaleString("en")} GB`;
};

// The jobs of a batch by status, and the first that failed.
const showBatch = ({ jobId, batch }) => {
  if (!batch) return;
  for (const [status, number] of Object.entries(batch)) {
    put(parts[`jobs-${status}`], number ? number.toLocaleString("en") : "");
  }
  for (const failure of batch.failures.slice(parts.failures.children.length)) {
    const link = document.createElement("a");
    link.href = statusUrl.replace(jobId, failure.jobId);
    link.dir = "auto";
    link.textContent = failure.error;
    const item = document.createElement("li");
    item.append(link);
    parts.failures.append(item);
  }
};

// What the job emits as text, the latest part of it; each attempt begins anew.
let text = "";
let offset = "-1";
let epoch = 0;
let errors = 0;
const followOutput = () => {
  const source = new EventSource(`${outputUrl}?offset=${offset}&live=sse${token ? `&token=${token}` : ""}`);
  let added = "";
  source.addEventListener("data", ({ data }) => { added += data; });
  source.addEventListener("control", ({ data }) => {
    const control = JSON.parse(data);
    errors = 0;
    offset = control.streamNextOffset;
    if (added) {
      const node = parts.output;
      const below = node.scrollHeight - node.scrollTop - node.clientHeight < 30;
      text = ((epoch === (epoch = control.streamEpoch) ? text : "") + added).slice(-100_000);
      node.textContent = text;
      added = "";
      if (below) node.scrollTop = node.scrollHeight;
    }
    if (control.streamClosed) source.close();
  });
  // The browser itself would ask again for what it already has.
  source.onerror = () => {
    source.close();
    if (++errors < 10) setTimeout(followOutput, 1000 * errors);
  };
};

// Until it is known whether there is any, and of which kind.
const awaitOutput = async () => {
  if (!outputUrl || !window.EventSource) return;
  const ended = over;
  const answer = await fetch(outputUrl, { method: "HEAD", headers }).catch(() => null);
  const kind = answer?.headers.get("stream-kind");
  if (kind === "text") followOutput();
  else if (!kind && !ended) setTimeout(awaitOutput, 5000);
};

const show = (found) => {
  if (over) return;
  job = found;
  const state = paint(parts, job);
  name(state === "processing" && job.progress ? `${job.progress}%` : parts.status.textContent);
  for (const moment of ["started", "completed"]) setTime(moment, job[`${moment}At`]);
  put(parts.code, job.errorCode);
  showMetadata(job.metadata);
  showBatch(job);
  showFiles(job.files);
  put(parts.attempt, job.attempt > 1 ? `${job.attempt}` : "");
  if (announced !== (announced = spoken(job))) put(parts.announced, announced);
  tick();
  if (job.completedAt) finish();
};

const abandon = (state) => {
  leave(parts, state);
  name(WORDS[state]);
  finish();
};

// A page opened by a link with a token sends it along, and renews it before it ends.
const withToken = (url) => (token ? `${url}?token=${token}` : url);

const keep = (given) => {
  token = given;
  headers.Authorization = `Bearer ${token}`;
  const { exp, iat } = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  const life = (exp - iat) * 1000;
  // Less than its life, if the link is older than the page.
  const left = exp * 1000 - Date.now() - behind;
  setTimeout(renew, Math.max((left > 0 && left < life ? left : life) / 2, 1000));
};

const renew = async () => {
  const answer = await fetch(tokenUrl, { method: "POST", headers }).catch(() => null);
  if (answer?.ok) return keep((await answer.json()).token);
  if (!answer || answer.status > 404) setTimeout(renew, 10_000);
};

const takeToken = () => {
  const here = new URL(location.href);
  const given = here.searchParams.get("token");
  if (!tokenUrl || !given) return;
  // Neither history nor a copied address shows it.
  here.searchParams.delete("token");
  history.replaceState(history.state, "", here);
  keep(given);
  // A link gets it when it is about to be used.
  for (const kind of ["pointerdown", "click"]) {
    root.addEventListener(kind, ({ target }) => {
      const link = target.closest?.("a");
      if (link?.pathname.startsWith(`${new URL(statusUrl, here).pathname}/`)) link.search = withToken("");
    });
  }
};

const read = async (answer) => {
  const why = whyNone(answer.status);
  if (why) return abandon(why);
  if (!answer.ok) return null;
  // A login page, by a redirect.
  if (!/json/.test(answer.headers.get("content-type"))) return abandon("refused");
  const found = await answer.json();
  show(found);
  return found;
};

const poll = async () => {
  if (document.hidden) return addEventListener("visibilitychange", poll, { once: true });
  let wait;
  try {
    const answer = await fetch(statusUrl, { headers });
    wait = (await read(answer))?.retryAfter || Number(answer.headers.get("retry-after"));
  } catch {
    put(parts.note, WORDS.unreachable);
  }
  pause = wait || Math.min(pause * 2, 30);
  if (!over) setTimeout(poll, pause * 1000);
};

const follow = () => {
  const source = new EventSource(withToken(eventsUrl));
  let failures = 2;
  const giveUp = () => {
    clearTimeout(patience);
    source.close();
    if (!over) poll();
  };
  // The first event comes at once, unless a proxy holds it back.
  const patience = setTimeout(giveUp, 5000);
  source.onopen = () => { failures = 0; };
  source.onmessage = ({ data }) => {
    clearTimeout(patience);
    show(JSON.parse(data));
    if (over) source.close();
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED || ++failures > 2) giveUp();
  };
};

parts.cancel?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = parts.cancel.querySelector("button");
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true"; // a disabled button would lose the focus
  const asked = fetch(parts.cancel.action, { method: "POST", headers });
  // 403 is a refusal of this request, and not of the caller.
  const done = await asked.then((answer) => answer.status !== 403 && read(answer)).catch(() => null);
  if (!done && !over) put(parts.note, WORDS.uncancelled);
  button.ariaDisabled = null;
});

for (const moment of ["created", "started", "completed"]) setTime(moment, parts[moment].dateTime);
takeToken();
if (token && parts.cancel && !job.completedAt && !job.cancelRequestedAt) parts.cancel.hidden = false;
const ticking = setInterval(tick, 1000);
if (job.completedAt) finish();
else if (window.EventSource) follow();
else poll();
awaitOutput();
