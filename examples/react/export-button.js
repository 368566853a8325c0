// A button that becomes a progress bar, and then a link: no JSX, so that nothing has to be built.
import { createElement as h, useRef, useState } from "react";
import { submitJob } from "asyncjobs-browser";
import { useAsyncJob } from "asyncjobs-browser/react.js";

export function ExportButton({ format = "csv" }) {
  const [job, setJob] = useState(null);
  const [refusal, setRefusal] = useState(null);
  const key = useRef(null);
  const { isLoading, isComplete, progress, message, result, error, cancel } = useAsyncJob(job);

  const begin = async () => {
    setRefusal(null);
    // Until there is an answer, pressing the button again is no wish for another job.
    key.current ??= crypto.randomUUID();
    try {
      setJob(await submitJob("/api/exports", { format }, { idempotencyKey: key.current }));
      key.current = null;
    } catch (refused) {
      setRefusal(refused.message);
    }
  };

  if (isLoading) {
    return h(
      "div",
      null,
      h("progress", { max: 100, value: progress, "aria-label": "Export" }),
      h("p", null, `${message ?? "waiting"}, ${progress}%`),
      h("button", { onClick: () => cancel().catch((fault) => setRefusal(fault.message)) }, "Cancel"),
    );
  }
  if (isComplete) return h("a", { href: result.download_url }, `Download ${result.rows} rows`);
  const wrong = error ?? refusal;
  return h(
    "div",
    null,
    h("button", { onClick: begin }, "Export"),
    wrong && h("p", { role: "alert" }, wrong),
  );
}
