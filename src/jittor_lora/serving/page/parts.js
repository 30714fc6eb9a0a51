import { h, unique } from "./dom.js";

// A field with its label above; `control` gets an id.
export function field(label, control, note) {
  control.id = control.id || unique("field");
  const about = note ? h("p", { class: "note", id: unique("note") }, note) : null;
  if (about) control.setAttribute("aria-describedby", about.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, about);
}

// Tabs over panels, [{ key, label, panel, disabled }]: one stop of the Tab key, arrows move, as the ARIA guide has it.
export function tabs(label, items, current, onChange) {
  const buttons = items.map(({ key, label: text, panel, disabled }, index) => {
    panel.id = panel.id || unique("panel");
    panel.setAttribute("role", "tabpanel");
    const button = h("button", {
      type: "button", role: "tab", id: unique("tab"), "aria-controls": panel.id, disabled: Boolean(disabled),
      on: { click: () => choose(index), keydown: (event) => move(event, index) },
    }, text);
    panel.setAttribute("aria-labelledby", button.id);
    button.dataset.key = key;
    return button;
  });

  function show(index) {
    buttons.forEach((button, at) => {
      button.setAttribute("aria-selected", String(at === index));
      button.tabIndex = at === index ? 0 : -1;
      items[at].panel.hidden = at !== index;
    });
  }

  function choose(index) {
    show(index);
    onChange(items[index].key);
  }

  function move(event, index) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -index, End: items.length - 1 - index }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const to = (index + step + items.length) % items.length;
    if (buttons[to].disabled) return;
    buttons[to].focus();
    choose(to);
  }

  show(Math.max(0, items.findIndex(({ key }) => key === current)));
  return h("div", { class: "tabs", role: "tablist", "aria-label": label }, buttons);
}

// Ctrl+Enter (on a Mac Command+Enter) in `root` runs `action`.
export function onCtrlEnter(root, action) {
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    event.preventDefault();
    action();
  });
}

// Keep a view unseen until what it needs at first is there, for half a second at most: parts that come in one by one
// would push each other about.
export function settle(root, needed) {
  root.classList.add("settling");
  const late = new Promise((resolve) => { setTimeout(resolve, 500); });
  Promise.race([Promise.allSettled(needed), late]).then(() => root.classList.remove("settling"));
}
