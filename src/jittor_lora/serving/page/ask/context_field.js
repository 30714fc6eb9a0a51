import { h } from "../dom.js";
import { cut } from "./spans.js";

// A field whose text can be marked: the same text lies behind it, in the same type, invisible but for its marks. It also
// gives the field its height.
export function contextField(properties, onInput) {
  const mirror = h("div", { class: "mirror", "aria-hidden": "true" });
  const field = h("textarea", { ...properties, spellcheck: "false", on: { input: () => { draw(); onInput(); } } });
  const node = h("div", { class: "paper" }, h("div", { class: "paper-in" }, mirror, field));
  let spans = [];

  function draw() {
    const parts = cut(field.value, spans).map(([text, kind]) => (kind ? h("mark", { class: kind }, text) : text));
    mirror.replaceChildren(...parts, "\u200b"); // the last line may be empty
  }

  return {
    node,
    field,
    get text() { return field.value; },
    set text(value) {
      field.value = value;
      spans = [];
      draw();
    },
    // { start, end, kind } in UTF-16 units; the first is scrolled to.
    mark(marks) {
      spans = marks;
      draw();
      const first = mirror.querySelector(`mark.${marks.length ? marks[0].kind : "none"}`);
      if (!first) return;
      const above = first.offsetTop - node.scrollTop;
      if (above < 0 || above + first.offsetHeight > node.clientHeight) node.scrollTop = first.offsetTop - node.clientHeight / 3;
    },
  };
}
