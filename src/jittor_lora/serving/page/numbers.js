// Numbers in the reader's form, always of the same number of digits: what changes must not jump.
export function numbers(tag) {
  const of = (options) => new Intl.NumberFormat(tag, options);
  const whole = of({ maximumFractionDigits: 0 });
  const one = of({ minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const two = of({ minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const percent = of({ style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const significant = of({ maximumSignificantDigits: 3 });
  return {
    whole: (value) => whole.format(value),
    one: (value) => one.format(value),
    two: (value) => two.format(value),
    significant: (value) => significant.format(value),
    percent: (value) => (value > 0 && value < 0.001 ? `< ${percent.format(0.001)}` : percent.format(value)),
    seconds: (value) => (value < 10 ? two.format(value) : one.format(value)),
    rate: (value) => (value < 10 ? one.format(value) : whole.format(value)),
  };
}
