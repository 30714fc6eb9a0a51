// In the head, not a module: the theme is set before the first paint.
"use strict";
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };
  const set = () => { document.documentElement.dataset.theme = chosen() || (system.matches ? "dark" : "light"); };
  set();
  system.addEventListener("change", set);
})();
