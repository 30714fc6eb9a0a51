import { h, unique } from "../dom.js";
import { probabilityOf, stepOf, visible } from "./tokens.js";

// A text whose tokens are tinted by their probability; pointing at one, tapping it or walking with the arrow keys shows
// the alternatives in `popover`. Only what is new is added as the text grows.
export function tokenText(app, text, popover, label) {
  const { t, numbers } = app;
  const hint = h("span", { class: "unseen", id: unique("hint") }, t("write.tokens.hint"));
  const body = h("div", { class: "token-text", tabindex: "0", role: "group", "aria-label": label, "aria-describedby": hint.id, on: { keydown, blur: leave } });
  let drawn = 0;
  let at = -1;
  let follows = true;
  body.addEventListener("scroll", () => {
    follows = body.scrollHeight - body.scrollTop - body.clientHeight < 24;
    const under = [...body.children].indexOf(body.querySelector(".token:hover"));
    const now = under >= 0 ? under : at;
    if (now >= 0) popover.show(body.children[now], text.units[now]);
    else popover.hide();
  }, { passive: true });

  function unitNode(unit, index) {
    const known = unit.tokens.length > 0;
    const classes = `token step-${stepOf(probabilityOf(unit))}${unit.text.includes("\n") ? " breaks" : ""}`;
    if (!known) return h("span", { class: "token unknown" }, unit.text);
    return h("span", {
      class: classes,
      on: { mouseenter: (event) => popover.show(event.currentTarget, unit), mouseleave: () => leave(), click: () => point(index, false) },
    }, unit.text);
  }

  function draw() {
    for (; drawn < text.units.length; drawn += 1) body.append(unitNode(text.units[drawn], drawn));
    body.classList.toggle("streaming", !text.ended);
    if (text.ended && !text.units.length) body.replaceChildren(h("span", { class: "nothing" }, t(text.reason ? "ask.empty" : "stopped")));
    if (follows && !text.ended) body.scrollTop = body.scrollHeight;
  }

  function leave() {
    if (at < 0 || document.activeElement !== body) {
      at = -1;
      mark();
      popover.hide();
    } else {
      popover.show(body.children[at], text.units[at]);
    }
  }

  function mark() {
    for (const node of body.querySelectorAll(".pointed")) node.classList.remove("pointed");
    if (at >= 0) body.children[at].classList.add("pointed");
  }

  function point(index, say) {
    at = index;
    mark();
    const node = body.children[index];
    if (node.offsetTop < body.scrollTop || node.offsetTop + node.offsetHeight > body.scrollTop + body.clientHeight) {
      body.scrollTop = node.offsetTop - body.clientHeight / 3;
    }
    body.focus({ preventScroll: true });
    popover.show(node, text.units[index]);
    if (!say) return;
    const probability = probabilityOf(text.units[index]);
    app.announce(probability === null ? visible(text.units[index].text) : `${visible(text.units[index].text)} ${numbers.percent(probability)}`);
  }

  function keydown(event) {
    if (event.key === "Escape") {
      at = -1;
      leave();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !text.units.length || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    point(Math.max(0, Math.min(text.units.length - 1, at + step)), true);
  }

  draw();
  return { node: h("div", { class: "token-frame" }, hint, body), draw };
}

// What a token's place might have held instead. It lies over the page and moves nothing.
export function tokenPopover(app, root) {
  const { t, numbers } = app;
  const node = h("div", { class: "token-popover", hidden: true, "aria-hidden": "true" });
  root.append(node);

  function row(text, probability, chosen) {
    const bar = h("i");
    bar.style.width = `${100 * (probability || 0)}%`;
    return h("tr", { class: chosen ? "chosen" : null }, h("td", { class: "mono" }, visible(text)), h("td", {}, h("span", { class: "bar" }, bar)),
      h("td", { class: "number" }, probability === null ? "–" : numbers.percent(probability)));
  }

  function rows({ tokens }) {
    if (tokens.length > 1) return tokens.map((one) => row(one.text, one.probability, false));
    const [one] = tokens;
    const among = one.likeliest.some((other) => other.text === one.text);
    return [...(among ? [] : [row(one.text, one.probability, true)]), ...one.likeliest.map((other) => row(other.text, other.probability, other.text === one.text))];
  }

  return {
    show(anchor, unit) {
      if (!unit || !unit.tokens.length) return;
      node.replaceChildren(
        h("p", { class: "label" }, unit.tokens.length > 1 ? t("write.parts", { n: unit.tokens.length }) : t("write.alternatives")),
        h("table", {}, h("tbody", {}, rows(unit))));
      node.hidden = false;
      const frame = root.getBoundingClientRect();
      const box = anchor.getClientRects()[0];
      if (!box) return;
      const left = Math.max(0, Math.min(box.left - frame.left - 12, frame.width - node.offsetWidth));
      const below = box.bottom + node.offsetHeight + 8 < innerHeight || box.top < node.offsetHeight + 8;
      node.style.left = `${left}px`;
      node.style.top = `${below ? box.bottom - frame.top + 6 : box.top - frame.top - node.offsetHeight - 6}px`;
    },
    hide() { node.hidden = true; },
  };
}
