import { h } from "../dom.js";
import { field } from "../parts.js";
import { requestOf } from "./settings.js";
import { newText, readTexts } from "./text.js";
import { drawer, textCard } from "./text_card.js";

// A prompt and the texts that continue it. `desk` is what both panels of the view share, see views/write.js.
export function promptPanel(app, kept, desk) {
  const { t } = app;
  const prompt = h("textarea", { rows: "6", class: "prompt", placeholder: t("write.prompt.hint"), value: kept.prompt, on: { input: () => { kept.prompt = prompt.value; } } });
  const go = h("button", { type: "submit", class: "primary" }, t("write.go"));
  const stop = h("button", { type: "button", disabled: true, on: { click: () => desk.stop() } }, t("stop"));
  const missing = h("p", { class: "missing", role: "alert" });
  const trouble = h("div", { class: "trouble" });
  const output = h("div", { class: "texts" });
  const form = h("form", { class: "card prompt-form", on: { submit: (event) => { event.preventDefault(); run(); } } },
    field([h("span", { class: "swatch context", "aria-hidden": "true" }), t("write.prompt")], prompt),
    h("div", { class: "actions" }, go, stop, h("span", { class: "note keys" }, t("ask.keys"))), missing);
  let cards = new Map();

  function show() {
    const many = kept.texts.length > 1;
    output.classList.toggle("many", many);
    cards = new Map(kept.texts.map((text, index) => [text, textCard(app, text, desk.popover, t("write.text", { n: index + 1 }), [
      h("button", { type: "button", class: "quiet", on: { click: () => extend(text) } }, t("write.extend")),
    ])]));
    output.replaceChildren(...[...cards.values()].map((card) => h("div", { class: "card" }, card.node)));
    if (!kept.texts.length) output.replaceChildren(h("p", { class: "empty-texts note" }, t("write.invite")));
  }

  function extend(text) {
    kept.prompt = prompt.value += text.text;
    prompt.focus();
    prompt.scrollTop = prompt.scrollHeight;
  }

  async function run() {
    if (desk.running()) return;
    missing.textContent = prompt.value ? "" : t("write.no.prompt");
    if (!prompt.value) prompt.focus();
    if (!prompt.value || !desk.ready()) return;
    const asked = performance.now();
    kept.texts = Array.from({ length: Number(kept.settings.n) }, () => newText(asked));
    trouble.replaceChildren();
    show();
    const frames = drawer();
    const body = { model: desk.model(), prompt: prompt.value, ...requestOf(kept.settings), logprobs: 5 };
    const error = await desk.run(async (signal) => {
      await readTexts(app.api.stream("v1/completions", body, { signal }), kept.texts, (text) => cards.has(text) && frames.changed(cards.get(text)));
    }, [go, stop], output);
    for (const text of kept.texts) text.ended = true;
    frames.flush();
    for (const card of cards.values()) card.draw();
    if (error) trouble.replaceChildren(app.problem(error, run));
    else app.announce(kept.texts.length === 1 ? kept.texts[0].text : t("write.done", { n: kept.texts.length }));
  }

  for (const text of kept.texts) text.ended = true;
  show();
  return { node: h("div", { class: "panel" }, form, trouble, output), run };
}
