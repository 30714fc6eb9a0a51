import { h } from "../dom.js";

// Which models are asked: the base and its adapters as boxes; at first the base and the first adapter. `chosen` is a set
// of names that is kept between views, or null.
export function modelChoice(app, kept) {
  const choices = h("div", { class: "choices" });
  const node = h("fieldset", { class: "field models" }, h("legend", {}, app.t("ask.models")), choices);

  function show(models) {
    const names = models.map(({ id }) => id);
    if (!kept.models || !names.some((name) => kept.models.has(name))) kept.models = new Set(names.slice(0, 2));
    for (const name of [...kept.models]) if (!names.includes(name)) kept.models.delete(name);
    choices.replaceChildren(...models.map(({ id, parent }) => h("label", { class: "choice" },
      h("input", {
        type: "checkbox", value: id, checked: kept.models.has(id),
        on: { change: (event) => { if (event.target.checked) kept.models.add(id); else kept.models.delete(id); } },
      }), h("span", {}, id), parent ? null : h("span", { class: "tag" }, app.t("ask.base")))));
    kept.order = names;
  }

  async function load(again) {
    try {
      show(await app.models({ again }));
    } catch (error) {
      choices.replaceChildren(app.problem(error, () => load(true)));
    }
  }

  const loaded = load(false);
  return { node, loaded, chosen: () => (kept.order || []).filter((name) => kept.models && kept.models.has(name)) };
}
