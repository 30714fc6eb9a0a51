import { h } from "../dom.js";
import { field } from "../parts.js";
import { requestOf } from "./settings.js";
import { newText, readTexts } from "./text.js";
import { drawer, textCard } from "./text_card.js";

// A chat: kept.turns is [{ user, texts, chosen }], texts being the answers that were drawn, one of which goes on.
export function chatPanel(app, kept, desk) {
  const { t } = app;
  const system = h("textarea", { rows: "2", class: "system", value: kept.system, placeholder: t("write.system.hint"), on: { input: () => { kept.system = system.value; } } });
  const log = h("div", { class: "chat-log", role: "group", "aria-label": t("write.chat"), tabindex: "0" });
  const message = h("textarea", { rows: "2", class: "message", value: kept.message, placeholder: t("write.message.hint"), on: { input: () => { kept.message = message.value; } } });
  const go = h("button", { type: "submit", class: "primary" }, t("write.send"));
  const stop = h("button", { type: "button", disabled: true, on: { click: () => desk.stop() } }, t("stop"));
  const edit = h("button", { type: "button", class: "quiet", on: { click: editLast } }, t("write.edit"));
  const retry = h("button", { type: "button", class: "quiet", on: { click: retryLast } }, t("write.retry"));
  const clear = h("button", { type: "button", class: "quiet", on: { click: clearAll } }, t("write.clear"));
  const missing = h("p", { class: "missing", role: "alert" });
  const trouble = h("div", { class: "trouble" });
  const form = h("form", { class: "chat-form", on: { submit: (event) => { event.preventDefault(); send(); } } },
    field([h("span", { class: "swatch question", "aria-hidden": "true" }), t("write.message")], message),
    h("div", { class: "actions" }, go, stop, h("span", { class: "note keys" }, t("ask.keys")), h("div", { class: "later" }, edit, retry, clear)), missing);
  let cards = new Map();

  function show() {
    cards = new Map();
    log.replaceChildren(...kept.turns.flatMap((turn, index) => [
      h("div", { class: "turn user" }, h("h3", {}, t("write.you")), h("p", {}, turn.user)), answers(turn, index),
    ]));
    if (!kept.turns.length) log.replaceChildren(h("p", { class: "note" }, t("write.chat.invite")));
    buttons();
    log.scrollTop = log.scrollHeight;
  }

  function answers(turn, index) {
    return h("div", { class: `turn assistant${turn.texts.length > 1 ? " many" : ""}${index < kept.turns.length - 1 ? " old" : ""}` }, turn.texts.map((text, at) => {
      const label = turn.texts.length > 1 ? t("write.answer.n", { n: at + 1 }) : t("write.answer");
      const card = textCard(app, text, desk.popover, label);
      cards.set(text, card);
      if (turn.texts.length === 1) return card.node;
      const radio = h("input", { type: "radio", name: `turn-${index}`, checked: turn.chosen === at, on: { change: () => { turn.chosen = at; } } });
      return h("div", { class: "variant" }, card.node, h("label", { class: "choice" }, radio, h("span", {}, t("write.go.on"))));
    }));
  }

  function buttons(running = false) {
    for (const button of [edit, retry, clear]) button.disabled = running || !kept.turns.length;
  }

  function messages() {
    const before = kept.turns.slice(0, -1).filter((turn) => turn.texts[turn.chosen].text); // an answer was stopped before it began
    const said = [...before.flatMap((turn) => [{ role: "user", content: turn.user }, { role: "assistant", content: turn.texts[turn.chosen].text }]),
      { role: "user", content: kept.turns[kept.turns.length - 1].user }];
    return [...(kept.system.trim() ? [{ role: "system", content: kept.system }] : []), ...said];
  }

  function send() {
    if (desk.running()) return;
    missing.textContent = message.value.trim() ? "" : t("write.no.message");
    if (!message.value.trim()) message.focus();
    if (!message.value.trim() || !desk.ready()) return;
    const user = message.value;
    kept.message = message.value = "";
    answer(user);
  }

  async function answer(user) {
    const asked = performance.now();
    const turn = { user, texts: Array.from({ length: Number(kept.settings.n) }, () => newText(asked)), chosen: 0 };
    kept.turns.push(turn);
    trouble.replaceChildren();
    show();
    buttons(true);
    const frames = drawer();
    const body = { model: desk.model(), messages: messages(), ...requestOf(kept.settings), logprobs: true, top_logprobs: 5 };
    const follow = () => { log.scrollTop = log.scrollHeight; };
    const error = await desk.run(async (signal) => {
      await readTexts(app.api.stream("v1/chat/completions", body, { signal }), turn.texts, (text) => cards.has(text) && frames.changed(cards.get(text)));
    }, [go, stop], log);
    for (const text of turn.texts) text.ended = true;
    frames.flush();
    for (const card of cards.values()) card.draw();
    follow();
    buttons();
    if (error) trouble.replaceChildren(app.problem(error, retryLast));
    else app.announce(turn.texts.length === 1 ? turn.texts[0].text : t("write.done", { n: turn.texts.length }));
  }

  function editLast() {
    const turn = kept.turns.pop();
    kept.message = message.value = turn.user;
    trouble.replaceChildren();
    show();
    message.focus();
  }

  function retryLast() {
    if (desk.running() || !desk.ready()) return;
    const turn = kept.turns.pop();
    if (turn.texts.some((text) => text.text) && Number(kept.settings.temperature) > 0) desk.settings.nextSeed();
    answer(turn.user);
  }

  function clearAll() {
    kept.turns = [];
    trouble.replaceChildren();
    show();
    message.focus();
  }

  for (const text of kept.turns.flatMap((turn) => turn.texts)) text.ended = true;
  show();
  return { node: h("div", { class: "panel" }, h("div", { class: "card" }, field(t("write.system"), system), log, trouble, form)), run: send };
}
