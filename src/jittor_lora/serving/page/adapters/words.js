// What adapters are described with.

const STEPS = [["gigabyte", 1e9], ["megabyte", 1e6], ["kilobyte", 1e3], ["byte", 1]];

export function bytes(app, value) {
  const [unit, size] = STEPS.find(([, least]) => value >= least) || STEPS[3];
  return new Intl.NumberFormat(app.tag, { style: "unit", unit, maximumSignificantDigits: 3 }).format(value / size);
}

export function targets(app, value) {
  if (value === null || value === undefined) return "–";
  return Array.isArray(value) ? value.join(app.locale === "zh" ? "、" : ", ") : String(value);
}

// The name to load an adapter under: its folder's, or that of its run.
export function suggested(folder, taken) {
  const parts = folder.split("/").filter((part) => part !== "adapter" && part !== "best");
  const stem = parts.pop() || "adapter";
  let name = stem;
  for (let n = 2; taken.includes(name); n += 1) name = `${stem}-${n}`;
  return name;
}
