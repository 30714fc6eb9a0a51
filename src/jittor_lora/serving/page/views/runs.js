import { h } from "../dom.js";

export function mount(root, app) {
  root.append(h("p", { class: "note" }, app.t("soon")));
  return () => {};
}
