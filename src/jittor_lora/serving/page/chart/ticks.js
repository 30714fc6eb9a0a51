// Where the lines of an axis are.

// Up to about `count` multiples of 1, 2 or 5 times a power of ten in [low, high].
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9) + 0; k * step <= high + step * 1e-9; k += 1) found.push(k * step);
  return found;
}

// The same for a logarithmic axis: powers of ten, of a short one also 2 and 5 times these, or of a very short one those of
// a linear axis.
export function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, count).filter((value) => value > 0);
  const every = Math.max(1, Math.ceil(decades / Math.max(1, count)));
  const factors = decades < count / 3 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    if (power % every) continue;
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) found.push(value);
    }
  }
  return found.length > 1 ? found : [low, high];
}

// The smallest 1, 2, 3, 5 or 8 times a power of ten that is not below `value`, so that an axis grows now and then and not
// with each step.
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 3, 5, 8, 10].find((factor) => factor * power >= value * (1 - 1e-9));
}
