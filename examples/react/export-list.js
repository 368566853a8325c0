import { createElement as h } from "react";
import { ExportRow } from "./export-row.js";

export function ExportList({ exports, fault, begin, reload }) {
  return h(
    "section",
    { "aria-labelledby": "list" },
    h("h2", { id: "list" }, "Your exports"),
    fault && h(Unreachable, { reload }),
    exports === null && !fault && h("p", { className: "faint" }, "Loading…"),
    exports?.length === 0 && h("p", { className: "card empty" }, "Nothing yet. Start your first export above."),
    exports?.length > 0 &&
      h(
        "ul",
        { className: "card rows" },
        exports.map((one, place) => h(ExportRow, { key: one.statusUrl, ...one, place, begin })),
      ),
  );
}

function Unreachable({ reload }) {
  return h(
    "div",
    { className: "card empty", role: "alert" },
    h("p", null, "Your exports cannot be loaded at the moment."),
    h("button", { className: "button", onClick: reload }, "Try again"),
  );
}
