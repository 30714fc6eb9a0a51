import { h } from "../dom.js";
import { ago, duration } from "./time.js";

const SHAPES = { training: "●", interrupted: "◐", finished: "✓", unknown: "?" };

export function stateTag(app, run) {
  const text = run.evaluating ? "evaluating" : run.ended === "early stop" ? "early" : run.state;
  return h("span", { class: `run-state ${run.state}` },
    h("span", { class: "run-shape", "aria-hidden": "true" }, SHAPES[run.state]), app.t(`runs.${text}`));
}

// Steps done of all, as a bar and in words.
export function progress(app, run) {
  const { t } = app;
  const share = run.total_steps ? Math.min(1, (run.steps || 0) / run.total_steps) : 0;
  const part = h("i");
  part.style.width = `${100 * share}%`; // by CSSOM, which the policy allows
  const said = run.steps === null ? t("runs.no.steps") : run.total_steps ? t("runs.steps.of", { n: run.steps, total: run.total_steps }) : t("runs.steps.only", { n: run.steps });
  return { bar: h("span", { class: "bar run-bar", "aria-hidden": "true" }, part), said };
}

// "12 min left", else when its files last changed.
export function when(app, run, now) {
  if (run.state === "training" && run.seconds_left !== null) return app.t("runs.left", { time: duration(app, run.seconds_left) });
  return run.changed === null ? "" : ago(app, run.changed, now);
}
