// Figures of four digits, in which what changes keeps its width; very small and very large ones as powers of ten.

const made = new Map();

function formatter(tag, options) {
  const key = tag + JSON.stringify(options);
  if (!made.has(key)) made.set(key, new Intl.NumberFormat(tag, options));
  return made.get(key);
}

export function figure(app, value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  if (size >= 1000) return formatter(app.tag, { maximumFractionDigits: 0 }).format(value);
  const digits = size < 10 ? 4 : size < 100 ? 3 : 2;
  return formatter(app.tag, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

// For the lines of an axis, without digits that say nothing.
export function tick(app, value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(3)).toExponential();
  return formatter(app.tag, { maximumSignificantDigits: 4 }).format(value);
}
