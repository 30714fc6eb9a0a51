import { h } from "./dom.js";

// An error where it arose: what happened, what the server said, what to do, and a button to try again if `retry` is
// given. Its role makes screen readers say it.
export function problem(app, error, retry) {
  const { t } = app;
  const kind = error && error.kind ? error.kind : "page";
  if (kind === "page") console.error(error);
  const advice = kind === "busy" && error.retryAfter !== null ? t("problem.busy.wait", { n: error.retryAfter }) : t(`problem.${kind}.do`);
  return h("div", { class: "notice problem", role: "alert" },
    h("p", {}, h("strong", {}, t(`problem.${kind}`)), error && error.message && kind !== "key" ? h("span", { class: "said" }, error.message) : null),
    h("p", { class: "note" }, advice),
    retry ? h("button", { type: "button", on: { click: retry } }, t("problem.retry")) : null);
}
