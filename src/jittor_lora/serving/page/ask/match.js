// Exact match and F1 as SQuAD v1.1 defines them (Rajpurkar et al. 2016, section 6.1).

const PUNCTUATION = /[!-/:-@[-`{-~]/g;
const ARTICLES = /(?<![\p{L}\p{N}_])(?:a|an|the)(?![\p{L}\p{N}_])/gu; // \b knows ASCII letters alone

function words(text) {
  return text.toLowerCase().replace(PUNCTUATION, "").replace(ARTICLES, " ").split(/\s+/).filter(Boolean);
}

function f1(answer, reference) {
  const left = new Map();
  for (const word of reference) left.set(word, (left.get(word) || 0) + 1);
  let common = 0;
  for (const word of answer) {
    if (!left.get(word)) continue;
    left.set(word, left.get(word) - 1);
    common += 1;
  }
  return common ? (2 * common) / (answer.length + reference.length) : 0;
}

// The best match with any reference: { kind: "right", "part" or "wrong", f1 }; null without references.
export function verdict(text, references) {
  if (!references || !references.length) return null;
  const answer = words(text);
  let best = 0;
  for (const reference of references.map(words)) {
    if (answer.join(" ") === reference.join(" ")) return { kind: "right", f1: 1 };
    best = Math.max(best, f1(answer, reference));
  }
  return { kind: best > 0 ? "part" : "wrong", f1: best };
}
