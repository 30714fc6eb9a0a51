import { h, svg } from "../dom.js";
import { figure, tick } from "./figure.js";
import { pathOf, smoothed, within } from "./paths.js";
import { range, scale } from "./scale.js";

const MARGIN = { top: 12, right: 14, bottom: 30, left: 58 };
const NEAR = 1e-9;
const MARKERS = 40; // most of them on a curve

// Curves over steps, drawn in the pixels that there are. The readout below is the legend too: what each curve is at the step
// that the pointer or the arrow keys chose, else at the last. Room for it is there from the start.
//
// draw({ curves, end, log, label }): curves are { name, look, steps, values, line }: `look` is a class ("first training"), a
// null is a gap, and `line` false draws only a marker for each value; `end` is the last step of the axis.
export function lineChart(app, { title }) {
  const { t } = app;
  const picture = svg("svg", { class: "chart-picture", "aria-hidden": "true", focusable: "false" });
  const frame = h("div", {
    class: "chart-frame", role: "slider", tabindex: "0", "aria-label": title, "aria-valuemin": "0",
    on: { pointermove: point, pointerdown: point, pointerleave: leave, keydown, blur: leave },
  }, picture);
  const heading = h("p", { class: "chart-step" });
  const legend = h("ul", { class: "chart-legend" });
  const node = h("div", { class: "chart" }, frame, h("div", { class: "chart-readout" }, heading, legend));
  const guide = svg("line", { class: "chart-guide" });
  const dots = svg("g", { class: "chart-dots" });
  let now = { curves: [], end: 1, log: false, label: "" };
  let steps = []; // those that any curve has
  let at = null; // the chosen step
  let x;
  let y;
  let items = [];

  new ResizeObserver(() => redraw()).observe(frame);

  function draw(next) {
    now = next;
    steps = [...new Set(now.curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
    if (items.length !== now.curves.length) at = null;
    items = now.curves.map((curve) => {
      const value = h("span", { class: "chart-value" });
      return { curve, value, row: h("li", {}, key(curve), h("span", { class: "chart-name" }, curve.name), value) };
    });
    legend.replaceChildren(...items.map(({ row }) => row));
    redraw();
  }

  function key({ look, line }) {
    return svg("svg", { class: `chart-key ${look}`, width: 26, height: 12, "aria-hidden": "true" },
      line === false ? null : svg("path", { class: "curve", d: "M1 6 H25" }), marker(look, 13, 6));
  }

  function marker(look, cx, cy) {
    if (!look.includes("validation")) return null;
    return look.includes("second") ? svg("rect", { class: "mark", x: cx - 3.5, y: cy - 3.5, width: 7, height: 7 })
      : svg("circle", { class: "mark", cx, cy, r: 3.5 });
  }

  function redraw() {
    const [width, height] = [frame.clientWidth, frame.clientHeight];
    if (!width || !height) return;
    const [low, high] = range(now.curves.flatMap((curve) => curve.values), now.log);
    x = scale(0, Math.max(now.end, 1), MARGIN.left, width - MARGIN.right, Math.max(2, Math.floor(width / 110)));
    y = scale(low, high, height - MARGIN.bottom, MARGIN.top, Math.max(2, Math.floor(height / 55)), now.log);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const bottom = height - MARGIN.bottom;
    picture.replaceChildren(
      svg("g", { class: "chart-grid" }, y.ticks.map((value) => svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.of(value), y2: y.of(value) }))),
      svg("g", { class: "chart-ticks" },
        y.ticks.map((value) => svg("text", { x: MARGIN.left - 8, y: y.of(value) + 4, "text-anchor": "end" }, tick(app, value))),
        x.ticks.filter(Number.isInteger).map((value) => svg("text", { x: x.of(value), y: bottom + 20, "text-anchor": x.of(value) > width - 40 ? "end" : "middle" }, app.numbers.whole(value)))),
      svg("line", { class: "chart-axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      ...now.curves.map(drawn), guide, dots);
    read();
  }

  function drawn(curve) {
    const points = curve.steps.map((step, i) => [x.of(step), y.of(curve.values[i])]);
    const parts = [];
    if (curve.line !== false) {
      const even = curve.look.includes("training") ? smoothed(curve.values) : null;
      if (even) {
        parts.push(svg("path", { class: "curve raw", d: pathOf(points) }));
        parts.push(svg("path", { class: "curve", d: pathOf(curve.steps.map((step, i) => [x.of(step), y.of(even[i])])) }));
      } else {
        parts.push(svg("path", { class: "curve", d: pathOf(points) }));
      }
    }
    const every = Math.ceil(points.length / MARKERS);
    parts.push(...points.filter(([, b], i) => b !== null && (points.length - 1 - i) % every === 0).map(([a, b]) => marker(curve.look, a, b)).filter(Boolean));
    if (points.length === 1 && points[0][1] !== null) parts.push(svg("circle", { class: "mark", cx: points[0][0], cy: points[0][1], r: 2.5 }));
    return svg("g", { class: curve.look }, parts);
  }

  // The values at the chosen step: of a curve without one there, the last before it.
  function read() {
    const last = steps.length ? steps[steps.length - 1] : null;
    const step = at === null ? last : at;
    heading.textContent = step === null ? t("chart.none") : t(now.label || "chart.step", { n: step });
    dots.replaceChildren();
    const said = [];
    for (const { curve, value, row } of items) {
      const index = step === null ? -1 : within(curve.steps, step);
      const found = index < 0 ? null : curve.values[index];
      value.textContent = found === null || found === undefined ? "–" : figure(app, found);
      row.classList.toggle("before", index >= 0 && curve.steps[index] < step - NEAR);
      if (found !== null && found !== undefined) {
        said.push(`${curve.name} ${figure(app, found)}`);
        if (at !== null && y.of(found) !== null) {
          dots.append(svg("g", { class: curve.look }, svg("circle", { class: "dot", cx: x.of(curve.steps[index]), cy: y.of(found), r: 4.5 })));
        }
      }
    }
    if (at !== null || document.activeElement !== frame) { // else each new point would be read out
      frame.setAttribute("aria-valuemax", String(last || 0));
      frame.setAttribute("aria-valuenow", String(step || 0));
      frame.setAttribute("aria-valuetext", [heading.textContent, ...said].join("; "));
    }
    guide.classList.toggle("shown", at !== null);
    if (at !== null) {
      for (const [name, value] of Object.entries({ x1: x.of(at), x2: x.of(at), y1: MARGIN.top, y2: frame.clientHeight - MARGIN.bottom })) guide.setAttribute(name, value);
    }
  }

  function point(event) {
    if (!steps.length) return;
    const place = event.clientX - frame.getBoundingClientRect().left;
    let nearest = steps[0];
    for (const step of steps) if (Math.abs(x.of(step) - place) < Math.abs(x.of(nearest) - place)) nearest = step;
    choose(nearest);
  }

  function keydown(event) {
    if (!steps.length) return;
    const index = at === null ? steps.length - 1 : Math.max(0, within(steps, at));
    const far = Math.max(1, Math.round(steps.length / 10));
    const to = {
      ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1, PageDown: index - far,
      PageUp: index + far, Home: 0, End: steps.length - 1,
    }[event.key];
    if (event.key === "Escape") leave();
    if (to === undefined) return;
    event.preventDefault();
    choose(steps[Math.min(steps.length - 1, Math.max(0, to))]);
  }

  function choose(step) {
    at = step;
    read();
  }

  function leave() {
    if (!x || at === null) return;
    at = null;
    read();
  }

  return { node, draw };
}
