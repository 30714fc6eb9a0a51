import { h, svg } from "../dom.js";

const WIDTH = 120;

// EM and F1 of the base and the adapter, of one run or two, with their intervals as figures and drawn on one line of 0 to 100.
export function scoresCard(app, stores) {
  const { t, numbers } = app;
  const several = stores.length > 1;
  const rows = stores.flatMap((store, i) => (store.results ? store.results.scores : []).map((score) => ({ store, score, look: i ? "second" : "first" })));
  if (!rows.length) return null;
  const others = [...new Set(rows.flatMap(({ score }) => Object.keys(score.others)))];

  function cells(value, interval, look) {
    return h("td", {}, h("div", { class: "score" }, h("span", {}, numbers.one(value)),
      interval ? h("span", { class: "note" }, `[${numbers.one(interval[0])}, ${numbers.one(interval[1])}]`) : null), interval ? whisker(value, interval, look) : null);
  }

  return h("section", { class: "card" }, h("div", { class: "card-head" }, h("h3", {}, t("runs.scores"))),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("runs.scores") }, h("table", { class: "plain score-table" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("runs.system")), h("th", { scope: "col" }, t("runs.em")), h("th", { scope: "col" }, t("runs.f1")),
        others.map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col", class: "number" }, t("runs.questions")))),
      h("tbody", {}, rows.map(({ store, score, look }) => h("tr", {},
        h("th", { scope: "row" }, several ? h("bdi", { class: "block" }, store.id) : null, nameOf(app, score.name)),
        cells(score.exact_match, score.exact_match_interval, look), cells(score.f1, score.f1_interval, look),
        others.map((name) => (score.others[name] ? cells(score.others[name].value, score.others[name].interval, look) : h("td", {}, "–"))),
        h("td", { class: "number" }, numbers.whole(score.count))))))),
    h("p", { class: "note" }, t("runs.intervals", { unit: t(`runs.unit.${rows[0].score.unit}`) })));
}

export function nameOf(app, name) {
  return ["base", "adapter", "evaluation"].includes(name) ? app.t(`runs.name.${name}`) : name;
}

function whisker(value, [low, high], look) {
  const x = (percent) => 2 + (Math.min(100, Math.max(0, percent)) / 100) * (WIDTH - 4);
  return svg("svg", { class: `whisker ${look}`, width: WIDTH, height: 14, "aria-hidden": "true" },
    svg("line", { class: "chart-axis", x1: 2, x2: WIDTH - 2, y1: 11.5, y2: 11.5 }),
    svg("path", { class: "curve", d: `M${x(low)} 3V9M${x(low)} 6H${x(high)}M${x(high)} 3V9` }),
    svg("circle", { class: "dot", cx: x(value), cy: 6, r: 4 }));
}
