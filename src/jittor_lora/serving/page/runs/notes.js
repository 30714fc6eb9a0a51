import { h } from "../dom.js";

const KNOWN = ["lines", "backward", "not_finite", "links", "unreadable", "folders", "runs"];

// What was left out in reading; what the page has no words for is shown as the server said it.
export function notesOf(app, notes) {
  if (!notes.length) return null;
  return h("ul", { class: "notice left-out" }, notes.map((note) => (KNOWN.includes(note.code)
    ? h("li", {}, app.t(`note.${note.code}`, { file: note.file, n: note.count }))
    : h("li", { lang: "en" }, note.text))));
}
