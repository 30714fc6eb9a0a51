import { availableList } from "../adapters/available.js";
import { adapterCard } from "../adapters/card.js";
import { compareCard } from "../adapters/compare.js";
import { h } from "../dom.js";

// What was read and chosen outlives the view.
const kept = { list: null, first: null, second: null };

export function mount(root, app) {
  const { t } = app;
  const ending = new AbortController();
  let drawn = ""; // a second drawing of the same would take the focus away
  const trouble = h("div", { class: "trouble" });
  const loaded = h("section", { class: "adapter-part", "aria-label": t("adapters.loaded") });
  const compared = h("div", { class: "adapter-part" });
  const available = h("section", { class: "adapter-part", "aria-label": t("adapters.available") });
  root.append(trouble, loaded, compared, available);

  async function read() {
    try {
      kept.list = await app.api.get("ui/adapters", { signal: ending.signal });
      trouble.replaceChildren();
      draw();
    } catch (error) {
      if (error.name !== "AbortError") trouble.replaceChildren(app.problem(error, read));
    }
  }

  function draw() {
    const { list } = kept;
    const text = JSON.stringify(list);
    if (text === drawn) return;
    drawn = text;
    loaded.replaceChildren(h("h2", {}, t("adapters.loaded")), list.loaded.length
      ? h("div", { class: "adapter-cards" }, list.loaded.map((adapter) => adapterCard(app, adapter, (button) => unload(adapter.name, button))))
      : h("div", { class: "invite" }, h("p", { class: "note" }, t("adapters.none.loaded", { base: list.base }))));
    compared.replaceChildren(...(list.loaded.length > 1 ? [compareCard(app, list.loaded, kept)] : []));
    available.replaceChildren(h("h2", {}, t("adapters.available")), ...[availableList(app, list, load)].flat().filter(Boolean));
  }

  // Loading and unloading change what the other views offer, too.
  async function change(path, body, button, done, where) {
    button.disabled = true;
    try {
      await app.api.post(path, body, { signal: ending.signal });
      await Promise.all([app.models({ again: true }), read()]);
      app.announce(done);
      return true;
    } catch (error) {
      if (error.name !== "AbortError") where.append(app.problem(error));
      return false;
    } finally {
      button.disabled = false;
    }
  }

  async function load(name, path, button, box) {
    box.querySelector(".problem")?.remove();
    if (await change("v1/load_lora_adapter", { lora_name: name, lora_path: path }, button, t("adapters.did.load", { name }), box)) {
      [...loaded.querySelectorAll("article")].find((card) => card.getAttribute("aria-label") === name)?.querySelector("button")?.focus();
    }
  }

  async function unload(name, button) {
    const where = button.closest("article");
    where.querySelector(".problem")?.remove();
    if (await change("v1/unload_lora_adapter", { lora_name: name }, button, t("adapters.did.unload", { name }), where)) {
      document.getElementById("title").focus({ preventScroll: true });
    }
  }

  if (kept.list) draw();
  else loaded.append(h("p", { class: "note" }, t("adapters.reading")));
  read();
  return () => ending.abort();
}
