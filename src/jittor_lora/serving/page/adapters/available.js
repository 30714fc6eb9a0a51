import { h } from "../dom.js";
import { field } from "../parts.js";
import { bytes, suggested, targets } from "./words.js";

// The adapters that can be loaded. `load(name, path, button)` is called with the name that the reader gave.
export function availableList(app, list, load) {
  const { t, numbers } = app;
  const taken = [list.base, ...list.loaded.map(({ name }) => name)];

  function row(found) {
    const facts = found.problem ? h("p", { class: "note refused", lang: "en" }, found.problem) : h("p", { class: "note" }, [
      t("adapters.facts", { rank: found.rank ?? "–", alpha: found.alpha ?? "–", targets: targets(app, found.targets) }),
      numbers.whole(found.parameters) + t("adapters.parameters.unit"), bytes(app, found.bytes),
    ].join(" · "));
    const box = h("div", { class: "load-box" });
    const button = h("button", { type: "button", disabled: Boolean(found.problem), on: { click: () => open() } }, t("adapters.load"));
    button.setAttribute("aria-label", `${t("adapters.load")} ${found.folder}`);

    function open() {
      const name = h("input", { type: "text", value: suggested(found.folder, taken), maxlength: "200", required: true, spellcheck: "false", autocomplete: "off" });
      const go = h("button", { type: "submit", class: "primary" }, t("adapters.load"));
      const close = () => { box.replaceChildren(); button.hidden = false; button.focus(); };
      button.hidden = true;
      box.replaceChildren(h("form", { class: "load-form", on: { submit: (event) => { event.preventDefault(); load(name.value.trim(), found.path, go, box); }, keydown: (event) => { if (event.key === "Escape") close(); } } },
        field(t("adapters.name"), name), h("div", { class: "actions" }, go, h("button", { type: "button", on: { click: close } }, t("adapters.cancel")))));
      name.focus();
      name.select();
    }

    return h("li", { class: "available" },
      h("div", { class: "available-text" }, h("p", { class: "available-head" }, h("bdi", { class: "mono" }, found.folder), " ",
        found.loaded.length ? h("span", { class: "tag right" }, t("adapters.loaded.as", { names: found.loaded.join(", ") })) : null,
        found.of_this_base === false ? h("span", { class: "tag part" }, t("adapters.other.base")) : null), facts,
      found.base ? h("p", { class: "note" }, t("adapters.base"), " ", h("bdi", {}, found.base)) : null), button, box);
  }

  if (!list.available.length) return h("div", { class: "invite" }, h("p", { class: "note" }, t("adapters.none.available")));
  return [h("ul", { class: "available-list card" }, list.available.map(row)), list.more ? h("p", { class: "note" }, t("adapters.more", { n: list.more })) : null];
}
