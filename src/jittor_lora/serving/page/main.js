import { Api } from "./api.js";
import { Connection } from "./connection.js";
import { h, remember } from "./dom.js";
import { LOCALES, chosenLocale, rememberLocale, translator } from "./i18n.js";
import { numbers } from "./numbers.js";
import { problem } from "./problem.js";

const VIEWS = ["ask", "write", "runs", "adapters"];
const byId = (id) => document.getElementById(id);

// What a view gets: `mount(root, app)` fills root and returns a function that ends whatever it started. It is mounted
// again when the language, the key or the path changes.
const app = {
  locale: chosenLocale(), // "en" or "zh"
  tag: null, // the same for Intl
  t: null, // t(key, values), see i18n.js
  numbers: null, // see numbers.js
  path: [], // what follows the view in the hash: #/runs/first -> ["first"]
  api: null,
  models, // the list of /v1/models, read once for a view; models({ again: true }) reads it again
  announce, // say a text to screen readers, politely
  problem: (error, retry) => problem(app, error, retry), // an element, see problem.js
  go: (...parts) => { location.hash = `#/${parts.map(encodeURIComponent).join("/")}`; },
};

const connection = new Connection(app, byId("state"), byId("state-text"));
app.api = new Api((error) => {
  connection.saw(error);
  if (error && error.kind === "key") askForKey();
});

let known = null;
async function models({ again = false } = {}) {
  if (again || !known) known = app.api.get("v1/models").then((list) => list.data);
  const reading = known;
  try {
    return await reading;
  } catch (error) {
    if (known === reading) known = null;
    throw error;
  }
}

let saying;
function announce(text) {
  clearTimeout(saying);
  byId("live").textContent = "";
  saying = setTimeout(() => { byId("live").textContent = text; }, 150); // an unchanged text would not be said again
}

function speak(locale) {
  Object.assign(app, { locale, tag: LOCALES[locale], t: translator(locale), numbers: numbers(LOCALES[locale]) });
  document.documentElement.lang = app.tag;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = app.t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", app.t(node.dataset.tLabel));
  const other = locale === "en" ? "zh" : "en";
  const button = byId("language");
  button.textContent = other === "zh" ? "中文" : "EN";
  button.lang = LOCALES[other];
  button.setAttribute("aria-label", other === "zh" ? "切换为中文" : "Switch to English");
  byId("theme").setAttribute("aria-label", app.t("theme"));
  byId("theme").title = app.t("theme");
  connection.show();
}

function route() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const decoded = rest.map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return VIEWS.includes(view) ? [view, decoded] : ["ask", []];
}

let unmount = () => {};
let shown = null;
let mounting = 0;

async function show({ focus = false } = {}) {
  const [view, path] = route();
  const turn = ++mounting;
  unmount();
  unmount = () => {};
  known = null; // adapters come and go
  app.path = path;
  document.title = `${app.t(`nav.${view}`)} · jittor-lora`;
  byId("title").textContent = app.t(`nav.${view}`);
  byId("lead").textContent = app.t(`lead.${view}`);
  for (const link of byId("nav").children) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = h("div", { class: `view view-${view}` });
  try {
    const module = await import(`./views/${view}.js`);
    if (turn !== mounting) return;
    byId("view").replaceChildren(root);
    unmount = module.mount(root, app) || (() => {});
  } catch (error) {
    if (turn !== mounting) return;
    byId("view").replaceChildren(app.problem(error, () => location.reload()));
  }
  if (shown !== view) scrollTo(0, 0);
  shown = view;
  if (focus) byId("title").focus({ preventScroll: true });
}

function askForKey() {
  const form = byId("key");
  byId("key-note").textContent = app.t(app.api.key ? "key.wrong" : "key.note");
  if (!form.hidden) return;
  form.hidden = false;
  byId("key-field").value = "";
  byId("key-field").focus();
}

byId("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  app.api.useKey(byId("key-field").value.trim());
  try {
    await models({ again: true });
  } catch (error) {
    if (error.kind === "key") {
      byId("key-field").select();
      return;
    }
  }
  byId("key").hidden = true;
  show({ focus: true });
});

byId("language").addEventListener("click", () => {
  const locale = app.locale === "en" ? "zh" : "en";
  rememberLocale(locale);
  speak(locale);
  show();
});

byId("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  remember("localStorage", "theme", theme);
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash is the route
  byId("main").focus();
});

addEventListener("hashchange", () => show({ focus: true }));
speak(app.locale);
show();
