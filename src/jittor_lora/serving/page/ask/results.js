import { h } from "../dom.js";
import { answerCard } from "./answer_card.js";
import { unitsOf } from "./spans.js";

// What was asked, with one answer per question and model, empty at first.
export function blank(context, questions, models, asked) {
  return {
    context, asked, running: true, error: null, usage: null, seconds: null,
    questions: questions.map(({ text, references }) => ({
      text, references,
      answers: models.map((model) => ({
        model, references, context, asked, text: "", spans: null, tokens: 0, reason: null, ended: false, stopped: false, first: 0, last: 0,
      })),
    })),
  };
}

// Take a chunk of the stream: the answer it belongs to and what of it changed.
export function take(results, chunk, now) {
  if (chunk.usage) {
    Object.assign(results, { usage: chunk.usage, seconds: chunk.seconds });
    return null;
  }
  const question = results.questions[chunk.question];
  const answer = question && question.answers.find((one) => one.model === chunk.model);
  if (!answer) return null;
  if (chunk.spans) {
    answer.spans = chunk.spans;
    return { answer, part: "spans" };
  }
  if (chunk.delta) {
    answer.text += chunk.delta;
    answer.first = answer.first || now;
    answer.last = now;
  }
  if (chunk.finish_reason) Object.assign(answer, { ended: true, reason: chunk.finish_reason, tokens: chunk.tokens || 0 });
  return { answer, part: "text" };
}

// The stream is over: what has not ended was stopped.
export function finish(results) {
  results.running = false;
  for (const answer of results.questions.flatMap((question) => question.answers)) {
    if (!answer.ended) Object.assign(answer, { ended: true, stopped: !answer.text });
  }
}

// The cards of all answers. `mark(spans)` marks the context: { start, end, kind } in UTF-16 units.
export function showResults(app, results, mark) {
  const { t, numbers } = app;
  const units = unitsOf(results.context);
  const cards = new Map();
  const totals = h("dl", { class: "numbers totals" });
  const all = results.questions.flatMap((question) => question.answers);
  let kept = null; // the chosen span
  const dirty = new Map();
  let frame = 0;

  function point(answer, index, stays) {
    if (stays) kept = { answer, index };
    const at = index === null ? kept : { answer, index };
    for (const [other, card] of cards) card.select(at && other === at.answer ? at.index : -1);
    if (!at || !at.answer.spans) {
      mark([]);
      return;
    }
    const chosen = at.answer.spans[at.index];
    const spans = [chosen, ...at.answer.spans.filter((span) => span !== chosen)].filter(Boolean);
    mark(spans.map((span) => ({ start: units(span.start), end: units(span.end), kind: span === chosen ? "chosen" : "other" })));
  }

  const blocks = results.questions.map((question, index) => h("section", { class: "question-block" },
    h("div", { class: "question-head" },
      h("h3", {}, h("span", { class: "swatch question", "aria-hidden": "true" }), question.text),
      question.references ? h("p", { class: "reference" }, h("span", { class: "label" }, `${t("ask.reference")} `), question.references.join(" | ")) : null),
    h("div", { class: "answers" }, question.answers.map((answer) => {
      const card = answerCard(app, answer, (span, stays) => point(answer, span, stays));
      cards.set(answer, card);
      return card.node;
    }))));

  function row(name, value) {
    return h("div", {}, h("dt", {}, name), h("dd", {}, value));
  }

  // All of its rows from the start, so that nothing moves when they are filled in.
  function drawTotals() {
    const { usage, seconds } = results;
    const cached = usage ? (usage.prompt_tokens_details || {}).cached_tokens || 0 : 0;
    totals.replaceChildren(
      row(t("ask.time"), usage ? t("ask.seconds", { seconds: numbers.seconds(seconds) }) : "–"),
      row(t("ask.read"), usage ? t("ask.read.tokens", { n: usage.prompt_tokens, cached }) : "–"),
      row(t("ask.written"), usage ? t("ask.tokens", { n: usage.completion_tokens }) : "–"),
      row(t("ask.together"), usage && seconds > 0 ? t("ask.rate", { rate: numbers.rate(usage.completion_tokens / seconds) }) : "–"));
  }

  // The first span there is is marked until another is chosen; of several models the last's, an adapter's.
  function markFirst() {
    if (kept || !results.questions.length) return;
    const answers = results.questions[0].answers;
    const last = answers[answers.length - 1];
    if (last.spans && last.spans.length) point(last, 0, true);
  }

  function flush() {
    frame = 0;
    for (const [answer, parts] of dirty) {
      const card = cards.get(answer);
      if (parts.has("text")) card.drawText();
      if (parts.has("spans")) card.drawSpans();
    }
    dirty.clear();
    markFirst();
  }

  drawTotals();
  markFirst();
  return {
    node: h("div", { class: "results" }, totals, blocks),
    // Drawn once per frame, however fast chunks come.
    changed({ answer, part }) {
      if (!dirty.has(answer)) dirty.set(answer, new Set());
      dirty.get(answer).add(part);
      if (!frame) frame = requestAnimationFrame(flush);
    },
    ended() {
      cancelAnimationFrame(frame);
      for (const answer of all) dirty.set(answer, new Set(["text"]).add(answer.spans ? "spans" : "text"));
      flush();
      drawTotals();
    },
    remark: () => point(null, null, false),
  };
}
