import { contextField } from "../ask/context_field.js";
import { modelChoice } from "../ask/models.js";
import { blank, finish, showResults, take } from "../ask/results.js";
import { questionSwitches, samplePicker } from "../ask/samples.js";
import { SPANS } from "../ask/answer_card.js";
import { h, unique } from "../dom.js";
import { field, onCtrlEnter, settle } from "../parts.js";

// What was typed, chosen and answered outlives the view.
const kept = { context: "", questions: "", models: null, order: null, sample: null, samples: null, results: null };

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

export function mount(root, app) {
  const { t } = app;
  let running = null; // an AbortController
  let shown = null; // the results, see showResults

  const label = unique("context");
  const context = contextField({ id: label, placeholder: t("ask.context.hint"), "aria-describedby": "context-source" }, () => {
    kept.context = context.text;
    if (kept.sample && kept.sample.context !== kept.context) drop();
    if (shown) shown.remark();
  });
  const source = h("p", { class: "note source", id: "context-source" });
  const questions = h("textarea", {
    rows: "3", class: "questions", placeholder: t("ask.questions.hint"), value: kept.questions,
    on: { input: () => { kept.questions = questions.value; drawSwitches(); } },
  });
  const switches = h("div", { class: "trouble" });
  const models = modelChoice(app, kept);
  const picker = samplePicker(app, kept, pick);
  const go = h("button", { type: "submit", class: "primary" }, t("ask.go"));
  const stop = h("button", { type: "button", disabled: true, on: { click: () => running && running.abort() } }, t("stop"));
  const missing = h("p", { class: "missing", role: "alert" });
  const trouble = h("div", { class: "trouble" });
  const output = h("section", { class: "output", "aria-label": t("ask.answers"), tabindex: "-1" });
  const text = h("section", { class: "card context-card" },
    h("div", { class: "card-head" },
      h("h2", {}, h("label", { for: label }, h("span", { class: "swatch context", "aria-hidden": "true" }), t("ask.context"))), picker.select),
    context.node, source);
  const form = h("form", { class: "card ask-form", on: { submit: (event) => { event.preventDefault(); ask(); } } },
    field([h("span", { class: "swatch question", "aria-hidden": "true" }), t("ask.questions")], questions), switches, models.node,
    h("div", { class: "actions" }, go, stop, h("span", { class: "note keys" }, t("ask.keys"))), missing);
  root.append(text, h("div", { class: "ask-side" }, form, output));
  onCtrlEnter(root, ask);

  function drop() {
    kept.sample = null;
    picker.clear();
    drawSample();
  }

  function pick(sample) {
    kept.sample = sample;
    kept.context = context.text = sample.context;
    kept.questions = questions.value = sample.questions[0].text;
    drawSample();
    if (shown) shown.remark();
  }

  function drawSample() {
    source.textContent = kept.sample ? `${kept.samples.source}, ${kept.samples.licence}` : t("ask.context.note");
    drawSwitches();
  }

  function drawSwitches() {
    questions.rows = Math.min(6, Math.max(3, lines(questions.value).length));
    if (!kept.sample) {
      switches.replaceChildren();
      return;
    }
    const focused = [...switches.querySelectorAll("button")].indexOf(document.activeElement);
    switches.replaceChildren(questionSwitches(app, kept.sample, (text) => lines(questions.value).includes(text), (text) => {
      const now = lines(questions.value);
      kept.questions = questions.value = (now.includes(text) ? now.filter((line) => line !== text) : [...now, text]).join("\n");
      drawSwitches();
    }));
    if (focused >= 0) switches.querySelectorAll("button")[focused].focus();
  }

  function referencesOf(text) {
    const found = kept.sample && kept.sample.questions.find((question) => question.text === text);
    return found ? found.answers : null;
  }

  function lacks() {
    if (!context.text.trim()) return [t("ask.no.context"), context.field];
    if (!lines(questions.value).length) return [t("ask.no.question"), questions];
    if (!models.chosen().length) return [t("ask.no.model"), models.node.querySelector("input")];
    return null;
  }

  async function ask() {
    if (running) return;
    const lacking = lacks();
    missing.textContent = lacking ? lacking[0] : "";
    if (lacking) {
      if (lacking[1]) lacking[1].focus();
      return;
    }
    const mine = running = new AbortController();
    const asked = performance.now();
    const results = kept.results = blank(context.text, lines(questions.value).map((text) => ({ text, references: referencesOf(text) })), models.chosen(), asked);
    show(results);
    busy(true);
    if (!matchMedia("(min-width: 68rem)").matches) output.scrollIntoView({ block: "start", behavior: "smooth" }); // else beside the form
    const body = {
      context: results.context, questions: results.questions.map(({ text }) => text), models: models.chosen(),
      methods: ["generation", "span"], spans: SPANS, max_tokens: 64,
    };
    try {
      for await (const chunk of app.api.stream("v1/answers", body, { signal: mine.signal })) {
        const change = take(results, chunk, performance.now());
        if (change && shown) shown.changed(change);
      }
    } catch (error) {
      if (error.name !== "AbortError") results.error = error;
    }
    running = null;
    finish(results);
    if (!root.isConnected) return;
    busy(false);
    shown.ended();
    drawTrouble(results);
    if (!results.error) app.announce(summary(results));
  }

  // One answer's question is read out with the answers, of several only that they are there.
  function summary(results) {
    if (results.questions.length > 1) return t("ask.done", { n: results.questions.length });
    return results.questions[0].answers.map(({ model, text }) => `${model}: ${text.trim() || t("ask.empty")}`).join(". ");
  }

  function busy(now) {
    go.disabled = now;
    stop.disabled = !now;
    output.setAttribute("aria-busy", String(now));
  }

  function drawTrouble(results) {
    trouble.replaceChildren(...(results.error ? [app.problem(results.error, ask)] : []));
  }

  function show(results) {
    shown = showResults(app, results, (spans) => context.mark(context.text === results.context ? spans : []));
    drawTrouble(results);
    output.replaceChildren(
      h("h2", { class: "output-head" }, h("span", { class: "swatch answer", "aria-hidden": "true" }), t("ask.answers")), trouble, shown.node);
  }

  function invite(hasSamples) {
    output.replaceChildren(h("div", { class: "invite" },
      h("h2", {}, h("span", { class: "swatch answer", "aria-hidden": "true" }), t("ask.answers")),
      h("p", { class: "note" }, t("ask.invite")),
      hasSamples ? h("button", { type: "button", on: { click: () => { picker.pick(0); ask(); } } }, t("ask.try")) : null));
  }

  context.text = kept.context;
  drawSample();
  if (kept.results) {
    finish(kept.results);
    show(kept.results);
  } else {
    invite(false);
  }
  const loaded = picker.load().then((some) => { if (root.isConnected && !kept.results) invite(some); }, () => {});
  settle(root, [loaded, models.loaded]);
  return () => { if (running) running.abort(); };
}
