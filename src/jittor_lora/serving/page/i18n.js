import { remember, remembered } from "./dom.js";
import adapters from "./text/adapters.js";
import ask from "./text/ask.js";
import runs from "./text/runs.js";
import shell from "./text/shell.js";
import write from "./text/write.js";

export const LOCALES = { en: "en", zh: "zh-CN" };

// The strings of a locale, from text/*.js, each { en: { key: string }, zh: { the same keys } }.
export const STRINGS = Object.fromEntries(Object.keys(LOCALES).map((locale) => [
  locale, Object.assign({}, ...[shell, ask, write, runs, adapters].map((table) => table[locale])),
]));

export function chosenLocale() {
  const known = remembered("localStorage", "locale");
  if (known in LOCALES) return known;
  const first = (navigator.languages || [navigator.language]).find((tag) => /^(en|zh)\b/i.test(tag)) || "en";
  return first.slice(0, 2).toLowerCase();
}

export function rememberLocale(locale) {
  remember("localStorage", "locale", locale);
}

// t("ask.tokens", { n: 3 }): {n} is replaced, numbers in the locale's form. A string that is { one, other } is chosen by
// the value n.
export function translator(locale) {
  const plural = new Intl.PluralRules(LOCALES[locale]);
  const number = new Intl.NumberFormat(LOCALES[locale]);
  return (key, values = {}) => {
    let text = STRINGS[locale][key];
    if (text === undefined) return key;
    if (typeof text === "object") text = text[plural.select(values.n) === "one" ? "one" : "other"];
    return text.replace(/\{(\w+)\}/g, (whole, name) => {
      if (!(name in values)) return whole;
      return typeof values[name] === "number" ? number.format(values[name]) : values[name];
    });
  };
}
