import { h } from "../dom.js";

// Settings of a run, or of two side by side, of which those that differ come first.
export function settingsCard(app, stores, kept) {
  const { t } = app;
  const known = stores.filter((store) => store.settings);
  const names = [...new Set(known.flatMap((store) => Object.keys(store.settings)))];
  const used = names.filter((name) => known.some((store) => store.settings[name] !== null && store.settings[name] !== undefined));
  if (!used.length) return null;
  const differing = known.length > 1 ? used.filter((name) => new Set(known.map((store) => shown(store.settings[name]))).size > 1) : [];
  const same = used.filter((name) => !differing.includes(name));

  const table = (rows, label) => h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, h("table", { class: "plain settings-table" },
    known.length > 1 ? h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("runs.setting")), known.map(({ id }) => h("th", { scope: "col" }, h("bdi", {}, id))))) : null,
    h("tbody", {}, rows.map((name) => h("tr", {}, h("th", { scope: "row", class: "mono" }, name),
      known.map((store) => h("td", { class: "mono" }, shown(store.settings[name]))))))));

  const open = h("details", { open: kept.settings, on: { toggle: () => { kept.settings = open.open; } } },
    h("summary", {}, t(differing.length ? "runs.settings.same" : "runs.settings.all", { n: same.length })), table(same, t("runs.settings")));
  return h("section", { class: "card" }, h("div", { class: "card-head" }, h("h3", {}, t("runs.settings"))),
    known.length > 1 ? (differing.length ? table(differing, t("runs.settings.differ")) : h("p", { class: "note" }, t("runs.settings.equal"))) : null,
    same.length ? open : null);
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
