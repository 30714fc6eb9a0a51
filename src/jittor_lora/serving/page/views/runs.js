import { h, unique } from "../dom.js";
import { answersCard } from "../runs/answers.js";
import { curvesCard } from "../runs/curves.js";
import { figures } from "../runs/figures.js";
import { runList } from "../runs/list.js";
import { notesOf } from "../runs/notes.js";
import { polled } from "../runs/poll.js";
import { scoresCard } from "../runs/scores.js";
import { settingsCard } from "../runs/settings.js";
import { progress, stateTag } from "../runs/state.js";
import { RunStore } from "../runs/store.js";

const LIST_PAUSE = 5000;
const TRAINING_PAUSE = 2000;
const STEADY_PAUSE = 10_000;

// What was read and chosen outlives the view.
const kept = { list: null, stores: new Map(), quantity: "loss", log: false, all: false, settings: false };

export function mount(root, app) {
  const { t } = app;
  let [chosen = null, other = null] = app.path;
  let stop = () => {};
  const trouble = h("div", { class: "trouble" });
  const list = runList(app, (id) => choose(id));
  const aside = h("section", { class: "run-aside", "aria-label": t("nav.runs") });
  const detail = h("section", { class: "run-detail", "aria-label": t("runs.detail"), tabindex: "-1" });
  root.append(aside, detail);

  const storeOf = (id) => {
    if (!kept.stores.has(id)) kept.stores.set(id, new RunStore(id));
    return kept.stores.get(id);
  };
  const shown = () => [chosen, other].filter((id) => id !== null).map(storeOf);

  // --- the list ---

  async function readList(signal) {
    kept.list = await app.api.get("ui/runs", { signal });
    trouble.replaceChildren();
    drawList();
  }

  function drawList() {
    const { data, folder, notes } = kept.list;
    if (!data.length) {
      root.classList.add("empty");
      aside.replaceChildren(trouble, h("div", { class: "invite" }, h("h2", {}, t(folder === null ? "runs.no.folder" : "runs.none")),
        h("p", { class: "note" }, folder === null ? t("runs.no.folder.do") : t("runs.none.do", { folder })),
        h("pre", { class: "mono command" }, folder === null ? "jittor-lora serve … --runs runs" : `jittor-lora train … --output ${folder}/first`)), notesOf(app, notes) ?? "");
      detail.replaceChildren();
      return;
    }
    root.classList.remove("empty");
    list.draw(kept.list, chosen);
    if (!list.node.isConnected) aside.replaceChildren(trouble, h("h2", { class: "unseen" }, t("nav.runs")), list.node, notesOf(app, notes) ?? "");
    if (chosen === null && matchMedia("(min-width: 62rem)").matches) choose(data[0].id, { replace: true, focus: false });
    if (comparing) drawChoices();
  }

  function choose(id, { replace = false, focus = true } = {}) {
    [chosen, other] = [id, null];
    address(replace);
    show();
    list.draw(kept.list, chosen);
    if (focus) detail.focus({ preventScroll: !narrow() });
    if (focus && narrow()) scrollTo(0, 0);
  }

  function address(replace) {
    const hash = `#/runs${shown().map(({ id }) => `/${encodeURIComponent(id)}`).join("")}`;
    history[replace ? "replaceState" : "pushState"](null, "", hash);
  }

  const narrow = () => !matchMedia("(min-width: 62rem)").matches;

  // --- one run ---

  let comparing = null; // the select
  let curves = null;
  let parts = {};

  function show() {
    stop();
    root.classList.toggle("chosen", chosen !== null);
    if (chosen === null) {
      detail.replaceChildren();
      return;
    }
    curves = curvesCard(app, kept);
    comparing = h("select", { id: unique("compare"), on: { change: () => { other = comparing.value || null; address(true); follow(); } } });
    parts = Object.fromEntries(["head", "figures", "notes", "scores", "answers", "settings", "problem"].map((name) => [name, h("div", { class: `run-${name}` })]));
    detail.replaceChildren(
      h("a", { class: "back", href: "#/runs", on: { click: back } }, t("runs.back")),
      parts.problem, parts.head, parts.figures, parts.notes,
      h("div", { class: "compare-row" }, h("label", { for: comparing.id }, t("runs.compare")), comparing),
      curves.node, parts.scores, parts.answers, parts.settings);
    drawChoices();
    follow();
  }

  function back(event) {
    event.preventDefault();
    [chosen, other] = [null, null];
    address(false);
    show();
    list.node.querySelector("a")?.focus();
  }

  function drawChoices() {
    const ids = (kept.list ? kept.list.data.map(({ id }) => id) : []).filter((id) => id !== chosen);
    const options = ["", ...new Set(other ? [...ids, other] : ids)];
    if (options.join("\n") !== [...comparing.options].map(({ value }) => value).join("\n")) {
      comparing.replaceChildren(...options.map((id) => h("option", { value: id }, id || t("runs.compare.none"))));
    }
    comparing.value = other || "";
  }

  function follow() {
    stop();
    if (shown().every(({ run }) => run)) draw();
    stop = polled(async (signal) => {
      for (const store of shown()) await store.refresh(app.api, signal);
      parts.problem.replaceChildren();
      draw();
    }, () => (shown().some(({ curves: found }) => found && found.bytes_left) ? 50 : shown().some((store) => store.changed) ? TRAINING_PAUSE : STEADY_PAUSE), (error) => {
      if (error.status === 404) parts.problem.replaceChildren(h("p", { class: "notice", role: "alert" }, t("runs.gone")));
      else if (shown().some(({ run }) => !run)) parts.problem.replaceChildren(app.problem(error, follow));
    });
  }

  const drawn = new Map(); // what a part was drawn from: it is drawn again only if that changed, and keeps the focus

  function part(name, from, made) {
    const text = JSON.stringify(from);
    if (drawn.get(name) === text && parts[name].childNodes.length) return;
    drawn.set(name, text);
    parts[name].replaceChildren(...[made()].filter(Boolean));
  }

  function draw() {
    const stores = shown().filter(({ run }) => run);
    if (!stores.length) return;
    const [first] = stores;
    part("head", [first.id, first.run], () => {
      const { bar, said } = progress(app, first.run);
      return h("div", { class: "run-title" }, h("h2", {}, h("bdi", {}, first.id)), stateTag(app, first.run), h("span", { class: "note run-said" }, said), bar);
    });
    part("figures", [first.id, first.run, first.now], () => figures(app, first));
    part("notes", stores.map((store) => store.allNotes), () => notesOf(app, stores.flatMap((store) => store.allNotes)));
    curves.draw(stores);
    part("scores", stores.map(({ id, results }) => [id, results && results.scores]), () => scoresCard(app, stores));
    part("answers", [first.id, first.results && first.results.answers, kept.all], () => answersCard(app, first, kept, () => {
      draw();
      parts.answers.querySelector("button").focus();
    }));
    part("settings", stores.map(({ id, settings }) => [id, settings]), () => settingsCard(app, stores, kept));
  }

  if (kept.list) drawList();
  const stopList = polled(readList, () => LIST_PAUSE, (error) => { if (!kept.list) aside.replaceChildren(app.problem(error, () => location.reload())); });
  if (chosen !== null) show();
  return () => {
    stop();
    stopList();
  };
}
