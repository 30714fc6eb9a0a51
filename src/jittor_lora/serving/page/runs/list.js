import { figure } from "../chart/figure.js";
import { h } from "../dom.js";
import { progress, stateTag, when } from "./state.js";

// The runs as links; the row of the one with the focus keeps it as they are drawn anew.
export function runList(app, onChoose) {
  const node = h("ul", { class: "run-list" });

  function draw(list, chosen) {
    const focused = document.activeElement && node.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    node.replaceChildren(...list.data.map((run) => row(run, list.now, run.id === chosen)));
    if (focused !== null) [...node.querySelectorAll("a")].find((link) => link.dataset.id === focused)?.focus({ preventScroll: true });
  }

  function row(run, now, current) {
    const { bar, said } = progress(app, run);
    const loss = run.val_loss !== null ? run.val_loss : run.train_loss;
    return h("li", {}, h("a", {
      href: `#/runs/${encodeURIComponent(run.id)}`, data: { id: run.id }, "aria-current": current ? "true" : null,
      on: { click: (event) => choose(event, run.id) },
    },
    h("span", { class: "run-row" }, h("bdi", { class: "run-name" }, run.id), stateTag(app, run)), bar,
    h("span", { class: "run-row note" }, h("span", {}, said), h("span", {}, when(app, run, now))),
    h("span", { class: "run-row note" },
      h("span", {}, loss === null ? " " : app.t(run.val_loss !== null ? "runs.val.short" : "runs.train.short", { loss: figure(app, loss) })),
      h("bdi", { class: "run-base" }, run.base || ""))));
  }

  function choose(event, id) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    onChoose(id);
  }

  return { node, draw };
}
