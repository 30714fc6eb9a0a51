import { figure } from "../chart/figure.js";
import { h } from "../dom.js";
import { ago, duration } from "./time.js";

// A row of figures of a run.
export function figures(app, store) {
  const { t, numbers } = app;
  const { run, summary, now, curves } = store;
  const best = bestOf(curves);
  const rows = [
    ["runs.train.loss", run.train_loss === null ? "–" : figure(app, run.train_loss)],
    ["runs.val.loss", run.val_loss === null ? "–" : figure(app, run.val_loss)],
    best && [t("runs.best.at", { n: best.step }), figure(app, best.loss)],
    run.tokens_per_second !== null && ["runs.speed", t("runs.rate", { rate: numbers.rate(run.tokens_per_second) })],
    run.state === "training" && ["runs.remaining", run.seconds_left === null ? "–" : duration(app, run.seconds_left)],
    run.state === "finished" && isNumber(summary.seconds) && ["runs.took", duration(app, summary.seconds)],
    isNumber(summary.trainable_parameters) && ["runs.trained", numbers.whole(summary.trainable_parameters)],
    isNumber(summary.peak_memory_mib) && ["runs.memory", `${numbers.significant(summary.peak_memory_mib / 1024)} GiB`],
    run.base && ["runs.base", h("bdi", {}, run.base)],
    run.changed !== null && ["runs.changed", ago(app, run.changed, now)],
  ].filter(Boolean);
  return h("dl", { class: "numbers" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name.startsWith("runs.") ? t(name) : name), h("dd", {}, value))));
}

const isNumber = (value) => typeof value === "number";

function bestOf(curves) {
  if (!curves) return null;
  const { step, loss } = curves.validation;
  let best = null;
  loss.forEach((value, i) => { if (value !== null && (!best || value < best.loss)) best = { loss: value, step: step[i] }; });
  return best;
}
