const FEWEST = 80; // points from which a curve is smoothed
const SHARE = 40; // a mean over a 40th of them

// An SVG path through points [x, y]; y null is a gap.
export function pathOf(points) {
  let path = "";
  let drawing = false;
  for (const [a, b] of points) {
    if (b !== null) path += `${drawing ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`;
    drawing = b !== null;
  }
  return path;
}

// Means over the last values, as the progress bar of a run shows them; null for few values.
export function smoothed(values) {
  if (values.length < FEWEST) return null;
  const width = Math.round(values.length / SHARE);
  const found = [];
  let [sum, count] = [0, 0];
  values.forEach((value, i) => {
    if (value !== null) [sum, count] = [sum + value, count + 1];
    const old = i >= width ? values[i - width] : null;
    if (old !== null) [sum, count] = [sum - old, count - 1];
    found.push(count && value !== null ? sum / count : null);
  });
  return found;
}

// The index of the last step that is not after `step`; -1 for none.
export function within(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
