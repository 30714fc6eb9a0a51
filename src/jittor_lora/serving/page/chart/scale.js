import { logTicks, ticks } from "./ticks.js";

// From values to pixels: of(value); null is none. Its `ticks` lie within it.
export function scale(low, high, from, to, count, log = false) {
  const form = log ? Math.log10 : (value) => value;
  const [a, b] = [form(low), form(high)];
  return {
    of: (value) => (value === null || (log && value <= 0) ? null : from + ((form(value) - a) / (b - a)) * (to - from)),
    ticks: log ? logTicks(low, high, count) : ticks(low, high, count),
  };
}

// [low, high] with room around all values, or a default where there are none.
export function range(values, log = false) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || (log && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return log ? [0.1, 10] : [0, 1];
  if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
  const room = high > low ? 0.05 * (high - low) : Math.abs(high) * 0.1 || 1;
  const rounded = (value) => Number(value.toPrecision(12));
  return [low >= 0 && low - room < 0 ? 0 : rounded(low - room), rounded(high + room)];
}
