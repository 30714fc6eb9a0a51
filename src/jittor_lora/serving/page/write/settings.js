import { h } from "../dom.js";
import { field } from "../parts.js";
import { STEPS } from "./tokens.js";

export const DEFAULTS = { temperature: "0.7", top_p: "1", top_k: "0", min_p: "0", max_tokens: "128", seed: "0", n: "1", stop: "", tints: true };
const FIELDS = [
  ["temperature", { min: 0, max: 2, step: "any" }], ["max_tokens", { min: 1, max: 100000, step: 1 }],
  ["top_p", { min: 0.001, max: 1, step: "any" }], ["top_k", { min: 0, max: 1000000, step: 1 }],
  ["min_p", { min: 0, max: 1, step: "any" }], ["seed", { min: 0, max: 4294967295, step: 1 }], ["n", { min: 1, max: 8, step: 1 }],
];

// The settings of sampling; what is typed is kept in `kept`, a copy of DEFAULTS. `onTints` as tints are switched.
export function settingsForm(app, kept, onTints) {
  const { t } = app;
  const inputs = {};
  const fields = FIELDS.map(([name, limits]) => {
    inputs[name] = h("input", {
      type: "number", inputmode: limits.step === 1 ? "numeric" : "decimal", required: true, ...limits, value: kept[name],
      on: { input: (event) => { kept[name] = event.target.value; } },
    });
    return field(t(`write.${name}`), inputs[name]);
  });
  const stop = h("textarea", { rows: "2", class: "stop mono", value: kept.stop, spellcheck: "false", on: { input: () => { kept.stop = stop.value; } } });
  const tints = h("input", { type: "checkbox", checked: kept.tints, on: { change: () => { kept.tints = tints.checked; onTints(); } } });
  const form = h("form", { class: "settings-fields", on: { submit: (event) => event.preventDefault() } }, fields, field(t("write.stop"), stop, t("write.stop.note")));
  const details = h("details", { class: "card settings" }, h("summary", {}, h("h2", {}, t("write.settings"))), form);
  details.open = matchMedia("(min-width: 62rem)").matches;
  return {
    node: details,
    tints: h("label", { class: "choice" }, tints, h("span", {}, t("write.tints"))),
    // Whether all are within their limits; if not, the browser says which.
    valid() {
      if (form.checkValidity()) return true;
      details.open = true;
      form.reportValidity();
      return false;
    },
    // Another draw with the same settings needs another seed.
    nextSeed() {
      kept.seed = inputs.seed.value = String((Number(inputs.seed.value) + 1) % 4294967296);
    },
  };
}

// The fields of a request; those that are off are left out.
export function requestOf(kept) {
  const number = (name) => Number(kept[name]);
  const stop = kept.stop.split("\n").filter(Boolean).map((line) => line.replace(/\\n/g, "\n").replace(/\\t/g, "\t"));
  return {
    temperature: number("temperature"), max_tokens: number("max_tokens"), seed: number("seed"), n: number("n"),
    ...(number("top_p") < 1 ? { top_p: number("top_p") } : {}),
    ...(number("top_k") > 0 ? { top_k: number("top_k") } : {}),
    ...(number("min_p") > 0 ? { min_p: number("min_p") } : {}),
    ...(stop.length ? { stop } : {}),
    stream_options: { include_usage: true },
  };
}

export function legend(app) {
  const { t, numbers } = app;
  const percent = (value) => numbers.whole(100 * value);
  const labels = [`≥ ${percent(STEPS[0])}`, ...STEPS.slice(1).map((least, index) => `${percent(least)}–${percent(STEPS[index])}`), `< ${percent(STEPS[STEPS.length - 1])}`];
  return h("p", { class: "legend" }, h("span", { class: "label" }, t("write.legend")), labels.map((label, index) => h("span", { class: `token step-${index}` }, `${label}%`)));
}
