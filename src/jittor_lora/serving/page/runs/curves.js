import { lineChart } from "../chart/line_chart.js";
import { roundUp } from "../chart/ticks.js";
import { h, unique } from "../dom.js";

// What can be drawn: [series of the training log or null, of the validation log].
const QUANTITIES = {
  loss: [["training", "loss"], ["validation", "loss"]],
  scores: [["validation", "f1"], ["validation", "exact_match"]],
  learning_rate: [["training", "learning_rate"]],
  tokens_per_second: [["training", "tokens_per_second"]],
  grad_norm: [["training", "grad_norm"]],
};

// The card with the curves of one run, or of two over each other. `kept` remembers what is drawn: { quantity, log }.
export function curvesCard(app, kept) {
  const { t } = app;
  const chart = lineChart(app, { title: t("runs.curves") });
  const select = h("select", { id: unique("quantity"), on: { change: () => { kept.quantity = select.value; draw(stores); } } });
  const log = h("input", { type: "checkbox", checked: kept.log, on: { change: () => { kept.log = log.checked; draw(stores); } } });
  const about = h("p", { class: "note chart-about" });
  const node = h("section", { class: "card", "aria-label": t("runs.curves") },
    h("div", { class: "card-head" }, h("h3", {}, h("label", { for: select.id }, t("runs.curves"))),
      h("div", { class: "chart-controls" }, select, h("label", { class: "choice" }, log, t("runs.log")))),
    chart.node, about);
  let stores = [];

  function draw(given) {
    stores = given.filter((store) => store.curves);
    const there = Object.keys(QUANTITIES).filter((name) => name === "loss" || stores.some((store) => has(store, name)));
    if (select.children.length !== there.length) {
      select.replaceChildren(...there.map((name) => h("option", { value: name }, t(`runs.quantity.${name}`))));
    }
    const shown = there.includes(kept.quantity) ? kept.quantity : "loss";
    select.value = shown;
    const several = stores.length > 1;
    const curves = stores.flatMap((store, i) => QUANTITIES[shown].map(([part, name]) => ({
      name: (several ? `${store.id} · ` : "") + t(`runs.curve.${part}.${name}`), look: `${i ? "second" : "first"} ${look(part, name)}`,
      steps: store.curves[part].step, values: store.curves[part][name],
    }))).filter((curve) => curve.values.some((value) => value !== null) || curve.look.includes("training"));
    chart.draw({ curves, end: Math.max(1, ...stores.map(endOf)), log: kept.log, label: stores.every(({ curves: { unit } }) => unit === "optimizer step") ? "chart.step" : "chart.place" });
    about.textContent = stores.flatMap((store) => said(store, shown)).join(" ") || " ";
  }

  function said({ id, settings, curves: { stride, bytes_left: left } }, quantity) {
    if (left) return [t("runs.reading", { id })];
    const share = Number(settings && settings.label_smoothing);
    return [stride > 1 && t("runs.thinned", { id, n: stride }),
      quantity === "loss" && share > 0 && t("runs.smoothed", { id, share: app.numbers.significant(share) })].filter(Boolean);
  }

  return { node, draw };
}

function has({ curves }, name) {
  return QUANTITIES[name].some(([part, values]) => curves[part][values].some((value) => value !== null));
}

function look(part, name) {
  return name === "exact_match" ? "validation other" : part;
}

// The axis of a run that trains ends at a round number, so that it does not move with each step.
function endOf({ run, curves }) {
  const last = Math.max(0, ...curves.training.step.slice(-1), ...curves.validation.step.slice(-1));
  if (run.state !== "training") return last;
  return Math.min(roundUp(last), run.total_steps || Infinity);
}
