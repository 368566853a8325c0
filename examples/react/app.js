// No JSX, so no build step is needed: `h` is `createElement`.
import { createElement as h, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { ExportForm } from "./export-form.js";
import { ExportList } from "./export-list.js";
import { useExports } from "./exports.js";

function App() {
  const { exports, fault, begin, reload } = useExports();
  return h(
    "div",
    { className: "page" },
    h("h1", null, "Exports"),
    h("p", { className: "faint" }, "The characters of Unicode, with names and properties."),
    h(ExportForm, { begin }),
    h(ExportList, { exports, fault, begin, reload }),
  );
}

createRoot(document.getElementById("root")).render(h(StrictMode, null, h(App)));
