import { h } from "../dom.js";
import { nameOf } from "./scores.js";

const FEW = 5;

// The latest answers to validation questions: reference, base, adapter. `kept.all` remembers that all are shown.
export function answersCard(app, store, kept, redraw) {
  const { t } = app;
  const answers = store.results ? store.results.answers : [];
  if (!answers.length) return null;
  const shown = kept.all ? answers : answers.slice(0, FEW);

  function line(name, text, tag) {
    return h("div", {}, h("dt", {}, name), h("dd", {}, text ? h("bdi", {}, text) : h("em", { class: "note" }, t(text === null ? "runs.unanswered" : "runs.empty")), " ", tag || null));
  }

  function verdict(f1) {
    if (f1 === undefined) return null;
    const kind = f1 >= 1 ? "right" : f1 > 0 ? "part" : "wrong";
    return h("span", { class: `tag ${kind}` }, t(`runs.${kind}`, { f1: Math.round(100 * f1) }));
  }

  return h("section", { class: "card" },
    h("div", { class: "card-head" }, h("h3", {}, t("runs.answers")), h("span", { class: "note" }, t("runs.answers.note", { n: shown.length, total: Math.max(answers.length, ...store.results.scores.map(({ count }) => count)) }))),
    h("ol", { class: "run-answers" }, shown.map((answer) => h("li", {},
      answer.question ? h("p", { class: "asked" }, answer.question) : h("p", { class: "asked mono" }, answer.id),
      h("dl", { class: "given" }, line(t("runs.reference"), answer.references.join(" | ")),
        Object.entries(answer.answers).map(([name, text]) => line(nameOf(app, name), text, verdict(answer.f1[name]))))))),
    answers.length > FEW ? h("button", { type: "button", class: "quiet more", on: { click: () => { kept.all = !kept.all; redraw(); } } },
      kept.all ? t("runs.fewer") : t("runs.all", { n: answers.length })) : null);
}
