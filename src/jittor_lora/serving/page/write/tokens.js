// Tokens with their probabilities, from either form of the API, and the parts of a text that they make.

const token = (text, logProbability, likeliest) => ({
  text,
  probability: logProbability === null || logProbability === undefined ? null : Math.exp(logProbability),
  likeliest: likeliest.map(([other, value]) => ({ text: other, probability: Math.exp(value) })),
});

// `logprobs` of /v1/completions, or of /v1/chat/completions: [{ text, probability or null, likeliest }].
export function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content.map((one) => token(one.token, one.logprob, (one.top_logprobs || []).map((other) => [other.token, other.logprob])));
  return (logprobs.tokens || []).map((text, index) => {
    const likeliest = (logprobs.top_logprobs || [])[index] || {};
    return token(text, (logprobs.token_logprobs || [])[index], Object.entries(likeliest).sort((a, b) => b[1] - a[1]));
  });
}

// Units { text, tokens } that together are exactly `text`. Most have one token; those that are parts of a character, whose
// own text is not in the text, share a unit. Tokens after the text's end (a stop text) have none.
export function unitsOf(text, tokens) {
  const units = [];
  let rest = text;
  let group = [];
  const push = (length, members) => {
    if (length) units.push({ text: rest.slice(0, length), tokens: members });
    rest = rest.slice(length);
  };
  for (const one of tokens) {
    const at = one.text ? rest.indexOf(one.text) : -1;
    if (at === 0 && !group.length) {
      push(one.text.length, [one]);
    } else if (at > 0 && at <= 4 * group.length) {
      push(at, group);
      group = [];
      push(one.text.length, [one]);
    } else {
      group.push(one);
    }
  }
  push(rest.length, group);
  return units;
}

// The probability of a unit; null where it is not known.
export function probabilityOf({ tokens }) {
  if (!tokens.length || tokens.some((one) => one.probability === null)) return null;
  return tokens.reduce((product, one) => product * one.probability, 1);
}

// Steps of the scale, likeliest first; a probability below all has the last.
export const STEPS = [0.9, 0.5, 0.2, 0.05];

export function stepOf(probability) {
  if (probability === null) return 0;
  const step = STEPS.findIndex((least) => probability >= least);
  return step < 0 ? STEPS.length : step;
}

// Spaces and line breaks made visible.
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";
}
