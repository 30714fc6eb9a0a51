import { h } from "../dom.js";
import { field, onCtrlEnter, settle, tabs } from "../parts.js";
import { chatPanel } from "../write/chat.js";
import { promptPanel } from "../write/prompt.js";
import { DEFAULTS, legend, settingsForm } from "../write/settings.js";
import { tokenPopover } from "../write/token_text.js";

// What was typed, set and written outlives the view.
const kept = { tab: "prompt", model: null, models: [], prompt: "", texts: [], system: "", message: "", turns: [], settings: { ...DEFAULTS } };

export function mount(root, app) {
  const { t } = app;
  let running = null; // an AbortController
  const trouble = h("div", { class: "trouble" });
  const select = h("select", { class: "model-select", on: { change: () => { kept.model = select.value; } } });
  const settings = settingsForm(app, kept.settings, tint);
  const head = h("div", { class: "write-head" });
  const main = h("div", { class: "write-main" });
  const wide = matchMedia("(min-width: 62rem)");
  root.append(main);

  // What both panels share.
  const desk = {
    settings,
    popover: tokenPopover(app, root),
    model: () => select.value,
    running: () => Boolean(running),
    stop: () => running && running.abort(),
    ready: () => Boolean(select.value) && settings.valid(),
    // Run `work(signal)` with its buttons set; the error, or null if it ended well or was stopped.
    async run(work, [go, stop], region) {
      running = new AbortController();
      go.disabled = true;
      stop.disabled = false;
      region.setAttribute("aria-busy", "true");
      let error = null;
      try {
        await work(running.signal);
      } catch (problem) {
        if (problem.name !== "AbortError") error = problem;
      }
      running = null;
      go.disabled = false;
      stop.disabled = true;
      region.setAttribute("aria-busy", "false");
      return error;
    },
  };
  const panels = { prompt: promptPanel(app, kept, desk), chat: chatPanel(app, kept, desk) };
  const strip = h("div", { class: "strip" }, settings.tints, legend(app));

  function tint() {
    root.classList.toggle("plain-tokens", !kept.settings.tints);
  }

  function drawModels() {
    const fit = kept.tab === "chat" ? kept.models.filter(({ chat }) => chat) : kept.models;
    select.replaceChildren(...fit.map(({ id }) => h("option", { value: id }, id)));
    if (fit.some(({ id }) => id === kept.model)) select.value = kept.model;
  }

  function draw() {
    const chats = !kept.models.length || kept.models.some(({ chat }) => chat);
    if (!chats) kept.tab = "prompt";
    const bar = tabs(t("write.tabs"), [
      { key: "prompt", label: t("write.tab.prompt"), panel: panels.prompt.node },
      { key: "chat", label: t("write.tab.chat"), panel: panels.chat.node, disabled: !chats },
    ], kept.tab, (key) => {
      kept.tab = key;
      drawModels();
    });
    head.replaceChildren(bar, chats ? "" : h("p", { class: "note" }, t("write.no.chat")), field(t("write.model"), select));
    drawModels();
  }

  async function load(again = false) {
    try {
      kept.models = await app.models({ again });
      trouble.replaceChildren();
      if (root.isConnected) draw();
    } catch (error) {
      trouble.replaceChildren(app.problem(error, () => load(true)));
    }
  }

  // Beside all else where there is room, else where it stands in the order of reading.
  function place() {
    if (wide.matches) root.append(settings.node);
    else strip.before(settings.node);
  }

  main.append(head, trouble, strip, panels.prompt.node, panels.chat.node);
  place();
  wide.addEventListener("change", place);
  draw();
  tint();
  onCtrlEnter(main, () => panels[kept.tab].run());
  settle(root, [load()]);
  return () => {
    wide.removeEventListener("change", place);
    if (running) running.abort();
  };
}
