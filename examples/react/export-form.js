import { createElement as h, useId, useState } from "react";

const FORMATS = { csv: "CSV", jsonl: "JSON Lines" };
const CATEGORIES = { "": "All characters", Lu: "Uppercase letters", Ll: "Lowercase letters", Nd: "Digits", So: "Symbols" };

export function ExportForm({ begin }) {
  const [format, setFormat] = useState("csv");
  const [category, setCategory] = useState("");
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState(false);

  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setFault(false);
    await begin({ format, ...(category && { category }) }).catch(() => setFault(true));
    setBusy(false);
  };

  return h(
    "form",
    { className: "card form", onSubmit: submit },
    h(Choice, { label: "Characters", options: CATEGORIES, value: category, choose: setCategory }),
    h(Choice, { label: "Format", options: FORMATS, value: format, choose: setFormat }),
    // Not `disabled`: a disabled button loses the focus.
    h("button", { className: "button main", "aria-disabled": busy }, busy ? "Starting…" : "Export"),
    fault && h("p", { role: "alert" }, "The export could not be started. Please try again."),
  );
}

function Choice({ label, options, value, choose }) {
  const id = useId();
  return h(
    "div",
    { className: "choice" },
    h("label", { htmlFor: id }, label),
    h(
      "select",
      { id, value, onChange: ({ target }) => choose(target.value) },
      Object.entries(options).map(([key, name]) => h("option", { key, value: key }, name)),
    ),
  );
}
