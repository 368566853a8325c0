// One export: a progress bar, then a download link or an error.
import { createElement as h, useRef, useState } from "react";
import { useAsyncJob } from "asyncjobs-browser/react.js";

// Over HTTP/1.1, a browser opens six connections to a server: leave some for other requests.
const STREAMS = 3;

const WORDS = { pending: "Waiting", processing: "In progress", completed: "Completed", failed: "Failed", cancelled: "Cancelled" };
const moment = (iso) => new Date(iso).toLocaleString([], { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
const number = (value) => value.toLocaleString();
const megabytes = (bytes) => (bytes / 1e6).toLocaleString([], { maximumFractionDigits: 1, minimumFractionDigits: 1 });

export function ExportRow({ statusUrl, createdAt, completedAt, request, place, begin }) {
  const transport = completedAt || place >= STREAMS ? "poll" : "events";
  const { job, isLoading, isComplete, isFailed, progress, message, result, error, cancel } = useAsyncJob(statusUrl, { transport });
  const [notice, setNotice] = useState(null);
  const [asked, setAsked] = useState(false);
  const row = useRef(null);

  const stops = isLoading && (asked || Boolean(job?.cancelRequestedAt));
  const state = stops ? "stopping" : (job?.status ?? (isFailed ? "failed" : "pending"));

  const stop = async () => {
    setNotice(null);
    setAsked(true);
    await cancel().then(
      () => row.current?.focus(), // the button that had the focus is gone
      () => setNotice("The export could not be cancelled. Please try again."),
    );
    setAsked(false);
  };

  const again = () => begin(request).catch(() => setNotice("The export could not be started. Please try again."));

  const words = stops ? "Stopping" : WORDS[state];
  return h(
    "li",
    { className: "row", "data-state": state, ref: row, tabIndex: -1 },
    h(
      "div",
      { className: "about" },
      h("p", { className: "title" }, moment(createdAt)),
      h(
        "p",
        { className: "faint" },
        // Screen readers announce each change of the state, but not each percent.
        h("span", { className: "state", role: "status" }, words),
        state === "processing" && progress > 0 && ` · ${progress}%`,
        isComplete && details(result),
      ),
    ),
    h(
      "div",
      { className: "actions" },
      isComplete && h("a", { className: "button", href: result.download_url, download: "" }, "Download"),
      isFailed && request && h("button", { className: "button", onClick: again }, "Try again"),
      isLoading && h("button", { className: "button", "aria-disabled": stops, onClick: () => stops || stop() }, "Cancel"),
    ),
    isLoading && h(Progress, { job, progress, message }),
    isFailed && h("p", { className: "error" }, error),
    notice && h("p", { className: "error", role: "alert" }, notice),
  );
}

const details = ({ download_url, rows, size }) =>
  ` · ${number(rows)} rows · ${megabytes(size)} MB · ${download_url.split(".").pop().toUpperCase()}`;

function Progress({ job, progress, message }) {
  const { current, total, unit } = job?.detail ?? {};
  return h(
    "div",
    { className: "progress" },
    // Without a value the bar is indeterminate until the first progress report.
    h("progress", { max: 100, value: job?.status === "processing" && !progress ? undefined : progress, "aria-label": "Progress" }),
    h(
      "p",
      { className: "faint figures" },
      h("span", null, message ?? ""),
      h("span", null, total ? `${number(current)} of ${number(total)} ${unit ?? ""}` : ""),
    ),
  );
}
