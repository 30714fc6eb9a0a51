import { h, unique } from "../dom.js";
import { verdict } from "./match.js";
import { snippet, unitsOf } from "./spans.js";

export const SPANS = 5;

// One model's answer to one question: its generated text, and its likeliest spans as a list in which the arrow keys move.
// Room for all of it is there from the start. `onSpan(index, stays)` is called as a span is pointed at or chosen.
export function answerCard(app, answer, onSpan) {
  const { t, numbers } = app;
  const text = h("p", { class: "generated" });
  const judged = h("span", { class: "tag none" });
  const judgedSpan = h("span", { class: "tag none" });
  const figures = h("p", { class: "figures" });
  const around = h("p", { class: "around" });
  const labelled = unique("spans");
  const list = h("ol", { class: "spans", role: "listbox", "aria-labelledby": labelled, on: { keydown } });
  const node = h("article", { class: "card answer-card", "aria-label": answer.model },
    h("div", { class: "card-head" }, h("h4", { class: "model" }, answer.model), judged),
    text, figures,
    h("div", { class: "span-head" }, h("h5", { id: labelled, class: "label" }, t("ask.spans")), judgedSpan),
    list, around);
  let rows = [];
  let chosen = 0;

  function tag(element, value) {
    element.className = value ? `tag ${value.kind}` : "tag none";
    element.textContent = !value ? "" : value.kind === "part" ? t("ask.part", { f1: Math.round(100 * value.f1) }) : t(`ask.${value.kind}`);
  }

  function drawText() {
    const shown = answer.text.trimStart();
    text.classList.toggle("empty", !shown && answer.ended);
    text.classList.toggle("streaming", !answer.ended);
    text.textContent = shown || (answer.ended ? t(answer.stopped ? "stopped" : "ask.empty") : "");
    if (answer.ended && text.scrollHeight > text.clientHeight + 1) text.tabIndex = 0; // so that keys can scroll it
    tag(judged, answer.ended && !answer.stopped ? verdict(answer.text, answer.references) : null);
    const parts = [];
    if (answer.reason === "length") parts.push(t("ask.cut"));
    if (answer.tokens) {
      parts.push(t("ask.tokens", { n: answer.tokens }));
      const took = (answer.last - answer.first) / 1000;
      if (answer.tokens > 1 && took > 0) parts.push(t("ask.rate", { rate: numbers.rate((answer.tokens - 1) / took) }));
    }
    if (answer.first) parts.push(t("ask.first", { seconds: numbers.two((answer.first - answer.asked) / 1000) }));
    figures.textContent = figures.title = parts.join(" · ");
  }

  function drawSpans() {
    if (!answer.spans) return;
    rows = answer.spans.map((span, index) => {
      const part = h("i");
      part.style.width = `${100 * span.probability}%`; // by CSSOM, which the policy allows
      return h("li", {
        role: "option", tabindex: index === chosen ? "0" : "-1", "aria-selected": "false",
        on: {
          mouseenter: () => onSpan(index, false), mouseleave: () => onSpan(null, false),
          focus: () => move(index, false), click: () => move(index, false),
        },
      }, h("span", { class: "span-text" }, span.text), h("span", { class: "bar" }, part),
      h("span", { class: "probability" }, numbers.percent(span.probability)));
    });
    list.replaceChildren(...rows);
    tag(judgedSpan, answer.spans.length ? verdict(answer.spans[0].text, answer.references) : null);
    drawAround();
  }

  function drawAround() {
    const span = answer.spans && answer.spans[chosen];
    if (!span) return;
    const units = unitsOf(answer.context);
    const [before, inside, after] = snippet(answer.context, units(span.start), units(span.end));
    around.replaceChildren(before, h("mark", {}, inside), after);
  }

  function move(index, focus = true) {
    chosen = index;
    rows.forEach((row, at) => { row.tabIndex = at === chosen ? 0 : -1; });
    drawAround();
    if (focus) rows[chosen].focus();
    else onSpan(index, true);
  }

  function keydown(event) {
    const to = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows.length) return;
    event.preventDefault();
    move(Math.min(rows.length - 1, Math.max(0, to)));
  }

  drawText();
  drawSpans();
  return {
    node, drawText, drawSpans,
    select: (index) => rows.forEach((row, at) => row.setAttribute("aria-selected", String(at === index))),
  };
}
