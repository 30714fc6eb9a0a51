// The server counts code points, the browser UTF-16 units: a function from the one to the other for a text.
export function unitsOf(text) {
  if (!/[\ud800-\udfff]/.test(text)) return (point) => point;
  const units = [0];
  for (const character of text) units.push(units[units.length - 1] + character.length);
  return (point) => units[Math.min(point, units.length - 1)];
}

// Cut a text at the ends of the spans: [[part, kind]], kind of the first span in `spans` that covers the part, or "".
// Spans are { start, end, kind } in UTF-16 units and may overlap.
export function cut(text, spans) {
  const inside = spans.filter((span) => span.start < span.end && span.end <= text.length);
  const ends = [...new Set([0, text.length, ...inside.flatMap((span) => [span.start, span.end])])].sort((a, b) => a - b);
  return ends.slice(1).map((end, index) => {
    const start = ends[index];
    const cover = inside.find((span) => span.start <= start && end <= span.end);
    return [text.slice(start, end), cover ? cover.kind : ""];
  });
}

// About `reach` units before a span and after it, cut at spaces where there are any: [before, span, after].
export function snippet(text, start, end, reach = 60) {
  let from = Math.max(0, start - reach);
  let to = Math.min(text.length, end + reach);
  if (from > 0) {
    const space = text.slice(from, start).search(/\s/);
    from += space >= 0 ? space + 1 : 0;
    if (/[\udc00-\udfff]/.test(text[from] || "")) from += 1;
  }
  if (to < text.length) {
    const after = text.slice(end, to).replace(/\s\S*$/, "");
    to = end + after.length;
    if (/[\ud800-\udbff]/.test(text[to - 1] || "") && to > end) to -= 1;
  }
  return [(from > 0 ? "…" : "") + text.slice(from, start), text.slice(start, end), text.slice(end, to) + (to < text.length ? "…" : "")];
}
