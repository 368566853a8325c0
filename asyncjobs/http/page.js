// Keeps the page up to date: follows the job by its events, else by polling.
const page = document.querySelector("main").dataset;
const parts = {};
for (const node of document.querySelectorAll("[data-is]")) parts[node.dataset.is] = node;
// How far this machine's clock is behind the server's.
const behind = Date.parse(page.now) - Date.now() || 0;
const headers = { Accept: "application/json" };
let pause = Number(page.retryAfter) || 2;

const ended = () => parts.completed.dateTime;
const put = (name, text) => { parts[name].textContent = text ?? ""; };

const spelt = (seconds) => {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  if (first < 0) return "under 1 s";
  return units.slice(first, first + 2).map(([size, unit]) => {
    const count = Math.floor(seconds / size);
    seconds %= size;
    return count ? `${count} ${unit}` : "";
  }).join(" ").trim();
};

const counted = ({ current, total, unit }) => {
  if (current == null) return "";
  const of = total == null ? "" : ` of ${total.toLocaleString("en")}`;
  return `${current.toLocaleString("en")}${of} ${unit ?? ""}`.trim();
};

const setTime = (name, iso) => {
  if (!iso) return;
  parts[name].dateTime = iso;
  put(name, new Date(iso).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" }));
};

const tick = () => {
  const from = parts.started.dateTime;
  const to = ended() ? Date.parse(parts.completed.dateTime) : Date.now() + behind;
  const begun = from && page.state !== "pending";
  put("elapsed", begun ? spelt((to - Date.parse(from)) / 1000) : "");
};

// Who listens hears of changes and of quarters, not of each percent.
const spoken = (error) => {
  const words = page[page.state];
  if (page.state !== "processing") return error ? `${words}. ${error}` : words;
  return `${words}, ${Math.floor(parts.progress.value / 25) * 25}%`;
};
let announced = spoken();

const offer = (state) => {
  parts.result.hidden = state !== "completed";
  if (!parts.cancel || state === "pending" || state === "processing") return;
  if (parts.cancel.contains(document.activeElement)) parts.status.focus();
  parts.cancel.hidden = true;
};

const show = (job) => {
  if (ended()) return;
  const state = job.cancelRequestedAt && !job.completedAt ? "stopping" : job.status;
  page.state = state;
  parts.progress.value = job.progress;
  setTime("started", job.startedAt);
  setTime("completed", job.completedAt);
  const percent = `${job.progress}%`;
  const texts = {
    status: page[state],
    percent,
    message: job.detail?.message,
    count: counted(job.detail ?? {}),
    error: job.error,
    code: job.errorCode,
    attempt: job.attempt > 1 ? job.attempt : "",
    note: "",
  };
  for (const name in texts) put(name, texts[name]);
  const title = state === "processing" ? percent : page[state];
  document.title = `${title} · ${parts.type.textContent}`;
  if (announced !== (announced = spoken(job.error))) put("announced", announced);
  offer(state);
  tick();
};

const poll = async () => {
  if (document.hidden) return addEventListener("visibilitychange", poll, { once: true });
  let told;
  try {
    const answer = await fetch(page.statusUrl, { headers });
    if (/^4(?!29)/.test(answer.status)) return put("note", page.gone);
    const job = answer.ok ? await answer.json() : null;
    told = job?.retryAfter || Number(answer.headers.get("retry-after"));
    if (job) show(job);
  } catch {
    put("note", page.lost);
  }
  pause = told || Math.min(pause * 2, 30);
  if (!ended()) setTimeout(poll, pause * 1000);
};

const follow = () => {
  const source = new EventSource(page.eventsUrl);
  let failures = 2;
  const giveUp = () => {
    clearTimeout(patience);
    source.close();
    if (!ended()) poll();
  };
  // The first event comes at once, unless a proxy holds it back.
  const patience = setTimeout(giveUp, 5000);
  source.onopen = () => { failures = 0; };
  source.onmessage = ({ data }) => {
    clearTimeout(patience);
    show(JSON.parse(data));
    if (ended()) source.close();
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED || ++failures > 2) giveUp();
  };
};

parts.cancel?.addEventListener("submit", async (event) => {
  event.preventDefault();
  parts.cancel.ariaBusy = "true";
  try {
    const answer = await fetch(parts.cancel.action, { method: "POST", headers });
    if (!answer.ok) throw answer;
    show(await answer.json());
  } catch {
    put("note", page.uncancelled);
  }
  parts.cancel.ariaBusy = null;
});

for (const name of ["created", "started", "completed"]) setTime(name, parts[name].dateTime);
if (!ended()) {
  tick();
  const ticking = setInterval(() => ended() ? clearInterval(ticking) : tick(), 1000);
  if (window.EventSource) follow(); else poll();
}
