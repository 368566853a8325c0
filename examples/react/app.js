import { createElement as h, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { ExportButton } from "./export-button.js";

createRoot(document.getElementById("root")).render(
  h(StrictMode, null, h("h1", null, "Exports"), h(ExportButton)),
);
