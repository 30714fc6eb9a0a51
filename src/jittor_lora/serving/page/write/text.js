import { tokensOf, unitsOf } from "./tokens.js";

// A text that is being written.
export function newText(asked) {
  return { text: "", units: [], waiting: [], tokens: 0, reason: null, ended: false, asked, first: 0, last: 0, logs: 0, known: 0 };
}

// Take a choice of a chunk of either API.
export function takeChoice(text, choice, now) {
  const delta = choice.delta ? choice.delta.content || "" : choice.text || "";
  const tokens = tokensOf(choice.logprobs);
  for (const one of tokens) {
    text.tokens += 1;
    if (one.probability) {
      text.logs += Math.log(one.probability);
      text.known += 1;
    }
  }
  text.waiting.push(...tokens);
  if (delta) {
    text.text += delta;
    text.units.push(...unitsOf(delta, text.waiting));
    text.waiting = [];
    text.first = text.first || now;
    text.last = now;
  }
  if (choice.finish_reason) Object.assign(text, { ended: true, reason: choice.finish_reason });
}

// Read a stream into texts; `onChange(text)` after each change. Returns the usage, or null.
export async function readTexts(chunks, texts, onChange) {
  let usage = null;
  for await (const chunk of chunks) {
    if (chunk.usage) usage = chunk.usage;
    for (const choice of chunk.choices || []) {
      const text = texts[choice.index];
      if (!text) continue;
      takeChoice(text, choice, performance.now());
      onChange(text);
    }
  }
  return usage;
}

// "ended · 12 tokens · 34 tokens/s · first after 0.21 s · perplexity 2.1"
export function figuresOf(app, text) {
  const { t, numbers } = app;
  const parts = [];
  if (text.ended && text.reason) parts.push(["stop", "length"].includes(text.reason) ? t(`write.reason.${text.reason}`) : text.reason);
  if (text.tokens) {
    parts.push(t("ask.tokens", { n: text.tokens }));
    const took = (text.last - text.first) / 1000;
    if (text.tokens > 1 && took > 0) parts.push(t("ask.rate", { rate: numbers.rate((text.tokens - 1) / took) }));
  }
  if (text.first) parts.push(t("ask.first", { seconds: numbers.two((text.first - text.asked) / 1000) }));
  if (text.ended && text.known) parts.push(t("write.perplexity", { value: numbers.two(Math.exp(-text.logs / text.known)) }));
  return parts.join(" · ");
}
