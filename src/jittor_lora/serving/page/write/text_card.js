import { copy, h } from "../dom.js";
import { figuresOf } from "./text.js";
import { tokenText } from "./token_text.js";

// A text with its figures and a button to copy it; `extra` are more controls for its head.
export function textCard(app, text, popover, label, extra = []) {
  const { t } = app;
  const figures = h("p", { class: "figures" });
  const body = tokenText(app, text, popover, label);
  const copies = h("button", { type: "button", class: "quiet", disabled: true, on: { click: toClipboard } }, t("copy"));

  async function toClipboard() {
    const said = await copy(text.text).then(() => "copied", () => "copy.failed");
    copies.textContent = t(said);
    app.announce(t(said));
    setTimeout(() => { copies.textContent = t("copy"); }, 1600);
  }

  function draw() {
    body.draw();
    figures.textContent = figuresOf(app, text);
    copies.disabled = !text.ended || !text.text;
    for (const button of extra) button.disabled = !text.ended || !text.text;
  }

  draw();
  return {
    draw,
    node: h("article", { class: "text-card", "aria-label": label },
      h("div", { class: "text-head" }, h("h3", {}, label), h("div", { class: "text-tools" }, extra, copies)), body.node, figures),
  };
}

// Draws cards once per frame, however fast chunks come.
export function drawer() {
  const dirty = new Set();
  let frame = 0;
  const flush = () => {
    frame = 0;
    for (const card of dirty) card.draw();
    dirty.clear();
  };
  return {
    changed(card) {
      dirty.add(card);
      if (!frame) frame = requestAnimationFrame(flush);
    },
    flush() {
      cancelAnimationFrame(frame);
      flush();
    },
  };
}
