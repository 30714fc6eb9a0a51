import { figure, tick } from "../chart/figure.js";
import { ticks } from "../chart/ticks.js";
import { h, svg } from "../dom.js";

const MARGIN = { top: 8, right: 4, bottom: 20, left: 44 };
const WIDEST = 40;

// One value per block as columns, of one adapter or two side by side. The line below says what the column is that the pointer
// or the arrow keys chose. `series` are { name, look, values: Map of block (null outside the blocks) to value }.
export function layerBars(app, title, series) {
  const { t } = app;
  const layers = [...new Set(series.flatMap(({ values }) => [...values.keys()]))].sort((a, b) => (a === null) - (b === null) || a - b);
  const picture = svg("svg", { class: "chart-picture", "aria-hidden": "true", focusable: "false" });
  const frame = h("div", {
    class: "bars", role: "slider", tabindex: "0", "aria-label": title, "aria-valuemin": "0", "aria-valuemax": String(layers.length - 1),
    on: { pointermove: point, pointerdown: point, pointerleave: () => choose(null), blur: () => choose(null), keydown },
  }, picture);
  const said = h("p", { class: "bars-said note" });
  let chosen = null;
  let step = 1;

  new ResizeObserver(redraw).observe(frame);

  function redraw() {
    const [width, height] = [frame.clientWidth, frame.clientHeight];
    if (!width || !height) return;
    const most = Math.max(...series.flatMap(({ values }) => [...values.values()])) || 1;
    const bottom = height - MARGIN.bottom;
    const y = (value) => bottom - (value / most) * (bottom - MARGIN.top);
    step = (width - MARGIN.left - MARGIN.right) / layers.length;
    const own = Math.min(WIDEST, Math.max(1, (step * 0.8) / series.length));
    const start = (step - own * series.length) / 2;
    const every = Math.ceil(28 / step);
    const lines = ticks(0, most, 3);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren(
      chosen === null ? "" : svg("rect", { class: "chosen", x: MARGIN.left + chosen * step, y: MARGIN.top, width: step, height: bottom - MARGIN.top }),
      svg("g", { class: "chart-grid" }, lines.map((value) => svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }))),
      svg("g", { class: "chart-ticks" }, lines.map((value) => svg("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, tick(app, value))),
        layers.map((layer, i) => (i % every ? null : svg("text", { x: MARGIN.left + (i + 0.5) * step, y: height - 5, "text-anchor": "middle" }, layer === null ? t("adapters.outside.short") : String(layer))))),
      ...series.map(({ look, values }, k) => svg("g", { class: look }, layers.map((layer, i) => {
        const value = values.get(layer) || 0;
        return svg("rect", { class: "column", x: MARGIN.left + i * step + start + k * own, y: y(value), width: Math.max(1, own - 1), height: Math.max(0, bottom - y(value)) });
      }))),
      svg("line", { class: "chart-axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
    say();
  }

  function say() {
    const text = chosen === null ? title : [layers[chosen] === null ? t("adapters.outside") : t("adapters.block", { n: layers[chosen] }),
      ...series.map(({ name, values }) => `${series.length > 1 ? `${name} ` : ""}${values.has(layers[chosen]) ? figure(app, values.get(layers[chosen])) : "–"}`)].join(" · ");
    said.textContent = text;
    frame.setAttribute("aria-valuenow", String(chosen === null ? 0 : chosen));
    frame.setAttribute("aria-valuetext", text);
  }

  function choose(index) {
    if (index === chosen) return;
    chosen = index === null ? null : Math.min(layers.length - 1, Math.max(0, index));
    redraw();
  }

  function point(event) {
    const index = Math.floor((event.clientX - frame.getBoundingClientRect().left - MARGIN.left) / step);
    choose(index >= 0 && index < layers.length ? index : null);
  }

  function keydown(event) {
    const at = chosen === null ? -1 : chosen;
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: layers.length - 1 }[event.key];
    if (event.key === "Escape") choose(null);
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.max(0, to));
  }

  say();
  return h("div", { class: "bars-box" }, frame, said);
}

// The norm over all modules of each block: the root of the sum of squares.
export function byLayer(modules, part) {
  const sums = new Map();
  for (const row of modules) sums.set(row.layer, (sums.get(row.layer) || 0) + row[part] ** 2);
  return new Map([...sums].map(([layer, sum]) => [layer, Math.sqrt(sum)]));
}
