"use strict";
// Runs before the body is drawn, so that the page never shows the other language first.
(() => {
  const root = document.documentElement;
  const KEY = "jittor-lora-language";
  function remembered() {
    try { return localStorage.getItem(KEY); } catch { return null; } // a browser may forbid storage to local files
  }
  function show(language) {
    root.lang = language === "zh" ? "zh-CN" : "en";
    document.title = document.querySelector("title").dataset[language];
  }
  root.classList.add("scripted", "arriving"); // shows the button, which does nothing without this script
  const known = remembered();
  const preferred = (navigator.languages || [navigator.language]).find((tag) => /^(en|zh)\b/i.test(tag)) || "en";
  show(known === "en" || known === "zh" ? known : preferred.slice(0, 2).toLowerCase());
  document.addEventListener("DOMContentLoaded", () => {
    root.classList.remove("arriving");
    document.getElementById("language").addEventListener("click", () => {
      const next = root.lang === "en" ? "zh" : "en";
      show(next);
      try { localStorage.setItem(KEY, next); } catch { /* forgotten at the next visit */ }
    });
  });
})();
