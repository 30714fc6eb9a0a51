import { figure } from "../chart/figure.js";
import { h } from "../dom.js";
import { field } from "../parts.js";
import { byLayer, layerBars } from "./bars.js";
import { bytes, targets } from "./words.js";

// Two loaded adapters side by side: settings, norms by block, and how far apart their updates are. `kept` remembers the pair.
export function compareCard(app, loaded, kept) {
  const { t, numbers } = app;
  const names = loaded.map(({ name }) => name);
  if (!names.includes(kept.first)) kept.first = names[0];
  if (!names.includes(kept.second) || kept.second === kept.first) kept.second = names.find((name) => name !== kept.first);
  const body = h("div", { class: "compare-body" });
  let turn = 0;

  const choice = (part, label) => {
    const select = h("select", { on: { change: () => { kept[part] = select.value; draw(); } } }, names.map((name) => h("option", { value: name, selected: name === kept[part] }, name)));
    return field(label, select);
  };

  async function draw() {
    const mine = ++turn;
    const [first, second] = [kept.first, kept.second].map((name) => loaded.find((adapter) => adapter.name === name));
    const apart = h("div", { class: "compare-apart" }, h("p", { class: "note" }, t("adapters.comparing")));
    body.replaceChildren(settings(first, second), layerBars(app, t("adapters.by.layer"), [
      { name: first.name, look: "first", values: byLayer(first.modules, "update") }, { name: second.name, look: "second", values: byLayer(second.modules, "update") }]), apart);
    try {
      const found = await app.api.get(`ui/adapters/difference?first=${encodeURIComponent(first.name)}&second=${encodeURIComponent(second.name)}`);
      if (mine === turn) apart.replaceChildren(...difference(found.modules, first.name));
    } catch (error) {
      if (mine === turn) apart.replaceChildren(app.problem(error, draw));
    }
  }

  function settings(first, second) {
    const rows = [
      ["adapters.variant", ({ variant }) => variant], ["adapters.rank", ({ rank }) => numbers.whole(rank)],
      ["adapters.alpha", ({ alpha }) => numbers.significant(alpha)], ["adapters.dropout", ({ dropout }) => numbers.significant(dropout)],
      ["adapters.targets", (one) => targets(app, one.targets)], ["adapters.parameters", ({ parameters }) => numbers.whole(parameters)],
      ["adapters.bytes", (one) => bytes(app, one.bytes)], ["adapters.norm.update", ({ update }) => figure(app, update)],
      ["adapters.norm.a", ({ a }) => figure(app, a)], ["adapters.norm.b", ({ b }) => figure(app, b)],
      ...others(first, second),
    ];
    return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("adapters.compare") }, h("table", { class: "plain compare-table" },
      h("thead", {}, h("tr", {}, h("td", {}), [[first, "first"], [second, "second"]].map(([{ name }, look]) => h("th", { scope: "col" }, h("span", { class: `swatch own ${look}`, "aria-hidden": "true" }), h("bdi", {}, name))))),
      h("tbody", {}, rows.map(([name, of]) => {
        const values = [of(first), of(second)];
        return h("tr", { class: values[0] === values[1] ? "same" : "differs" }, h("th", { scope: "row" }, name.startsWith("adapters.") ? t(name) : h("span", { class: "mono" }, name)), values.map((value) => h("td", {}, value)));
      }))));
  }

  function difference(modules, name) {
    if (!modules.length) return [h("p", { class: "note" }, t("adapters.no.common"))];
    const known = modules.filter(({ cosine }) => cosine !== null);
    const mean = known.length ? known.reduce((sum, { cosine }) => sum + cosine, 0) / known.length : null;
    return [h("p", {}, mean === null ? t("adapters.common", { n: modules.length }) : t("adapters.cosine.mean", { n: modules.length, cosine: numbers.two(unsigned(mean)) })),
      h("details", {}, h("summary", {}, t("adapters.apart", { n: modules.length })),
        h("div", { class: "scroll tall", tabindex: "0", role: "group", "aria-label": t("adapters.apart", { n: modules.length }) }, h("table", { class: "plain" },
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("adapters.module")), h("th", { scope: "col", class: "number" }, t("adapters.relative", { name })), h("th", { scope: "col", class: "number" }, t("adapters.cosine")))),
          h("tbody", {}, modules.map(({ module, relative, cosine }) => h("tr", {}, h("th", { scope: "row", class: "mono" }, module),
            [relative, cosine].map((value) => h("td", { class: "number" }, value === null ? "–" : numbers.two(unsigned(value))))))))))];
  }

  draw();
  return h("section", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, t("adapters.compare"))),
    h("div", { class: "compare-choice" }, choice("first", t("adapters.first")), choice("second", t("adapters.second"))), body);
}

// -0.00 would be said of what is zero to two digits.
const unsigned = (value) => Math.round(value * 100) / 100 || 0;

const SHOWN = ["r", "lora_alpha", "lora_dropout", "target_modules", "task_type", "fan_in_fan_out", "use_dora", "use_rslora"];

// Settings that the table has no row for, where the two differ.
function others(first, second) {
  const names = [...new Set([...Object.keys(first.settings), ...Object.keys(second.settings)])].filter((name) => !SHOWN.includes(name));
  const of = (name) => ({ settings }) => (name in settings ? (typeof settings[name] === "object" ? JSON.stringify(settings[name]) : String(settings[name])) : "–");
  return names.filter((name) => of(name)(first) !== of(name)(second)).map((name) => [name, of(name)]);
}
