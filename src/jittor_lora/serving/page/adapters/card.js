import { figure } from "../chart/figure.js";
import { h } from "../dom.js";
import { byLayer, layerBars } from "./bars.js";
import { bytes, targets } from "./words.js";

// One loaded adapter. `unload(button)` is called once the reader has confirmed.
export function adapterCard(app, adapter, unload) {
  const { t, numbers } = app;
  const rows = [
    ["adapters.rank", numbers.whole(adapter.rank)], ["adapters.alpha", numbers.significant(adapter.alpha)],
    ["adapters.dropout", numbers.significant(adapter.dropout)],
    ["adapters.parameters", numbers.whole(adapter.parameters)], ["adapters.bytes", bytes(app, adapter.bytes)],
    ["adapters.norm.update", figure(app, adapter.update)], ["adapters.norm.a", figure(app, adapter.a)], ["adapters.norm.b", figure(app, adapter.b)],
  ];
  const ask = h("button", { type: "button", on: { click: () => confirm(true) } }, t("adapters.unload"));
  const yes = h("button", { type: "button", class: "primary", on: { click: () => unload(yes) } }, t("adapters.unload.yes"));
  const no = h("button", { type: "button", on: { click: () => confirm(false) } }, t("adapters.unload.no"));
  const sure = h("div", { class: "sure", role: "group", "aria-label": t("adapters.unload.sure", { name: adapter.name }), hidden: true,
    on: { keydown: (event) => { if (event.key === "Escape") confirm(false); } } },
  h("p", {}, t("adapters.unload.sure", { name: adapter.name })), h("p", { class: "note" }, t("adapters.unload.note")), h("div", { class: "actions" }, yes, no));

  function confirm(open) {
    sure.hidden = !open;
    ask.hidden = open;
    (open ? no : ask).focus();
  }

  return h("article", { class: "card adapter-card", "aria-label": adapter.name },
    h("div", { class: "card-head" }, h("h3", {}, h("bdi", {}, adapter.name)), h("span", { class: "tag" }, adapter.variant)),
    h("p", { class: "note mono adapter-folder" }, h("bdi", {}, adapter.folder)),
    h("dl", { class: "numbers" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, t(name)), h("dd", {}, value)))),
    h("p", { class: "adapter-targets" }, h("span", { class: "label" }, t("adapters.targets")), " ", h("span", { class: "mono" }, targets(app, adapter.targets))),
    adapter.whole.length ? h("p", { class: "note" }, t("adapters.whole", { names: adapter.whole.join(", ") })) : null,
    adapter.modules.length ? layerBars(app, t("adapters.by.layer"), [{ name: adapter.name, look: "first", values: byLayer(adapter.modules, "update") }]) : null,
    adapter.modules.length ? h("details", {}, h("summary", {}, t("adapters.modules", { n: adapter.modules.length })), moduleTable(app, adapter.modules)) : null,
    h("div", { class: "card-foot" }, ask, sure));
}

function moduleTable(app, modules) {
  const { t } = app;
  const columns = [["adapters.norm.a", "a"], ["adapters.norm.b", "b"], ["adapters.norm.update", "update"], ["adapters.effective", "effective_rank"]];
  return h("div", { class: "scroll tall", tabindex: "0", role: "group", "aria-label": t("adapters.modules", { n: modules.length }) }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("adapters.module")), h("th", { scope: "col", class: "number" }, t("adapters.rank")), columns.map(([name]) => h("th", { scope: "col", class: "number" }, t(name))))),
    h("tbody", {}, modules.map((row) => h("tr", {}, h("th", { scope: "row", class: "mono" }, row.module), h("td", { class: "number" }, String(row.rank)),
      columns.map(([, part]) => h("td", { class: "number" }, figure(app, row[part]))))))));
}
