import { h } from "../dom.js";

// The list of sample texts. `onPick(sample)` gets { title, context, questions: [{ text, answers }] }.
export function samplePicker(app, kept, onPick) {
  const { t } = app;
  const first = h("option", { value: "" }, t("ask.sample"));
  const select = h("select", {
    class: "sample", "aria-label": t("ask.sample"), disabled: true,
    on: { change: () => { if (select.value !== "") pick(Number(select.value)); } },
  }, first);

  function pick(index) {
    select.value = String(index);
    onPick(kept.samples.contexts[index]);
  }

  function show() {
    const { contexts } = kept.samples;
    select.replaceChildren(first, ...contexts.map(({ title }, index) => h("option", { value: String(index) }, title)));
    select.disabled = contexts.length === 0;
    const at = contexts.findIndex((sample) => kept.sample && sample.title === kept.sample.title);
    select.value = at < 0 ? "" : String(at);
  }

  async function load() {
    if (!kept.samples) kept.samples = await app.api.get("ui/samples");
    show();
    return kept.samples.contexts.length > 0;
  }

  return { select, load, pick, clear: () => { select.value = ""; } };
}

// The questions of a sample as switches, each with its reference answers in its title.
export function questionSwitches(app, sample, isIn, onSwitch) {
  return h("div", { class: "switch-list", role: "group", "aria-label": app.t("ask.sample.questions") },
    sample.questions.map(({ text, answers }) => h("button", {
      type: "button", class: "switch", "aria-pressed": String(isIn(text)),
      title: `${app.t("ask.reference")} ${answers.join(" | ")}`,
      on: { click: () => onSwitch(text) },
    }, text)));
}
