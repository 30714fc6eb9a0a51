"use strict";
(() => {
  // items: [id, question, question word, index of the context or -1, start of the answer in it or -1, its length,
  //         references, [prediction or null, exact match, F1] per system]
  const { systems, contexts, items } = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 25;
  const form = document.getElementById("filter");
  const list = document.getElementById("list");
  const pagers = [...document.querySelectorAll(".pager")];
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const haystacks = items.map((item) => plain([item[0], item[1], ...item[6], ...item[7].map((one) => one[0] || "")].join("\n")));
  const plainContexts = contexts.map(plain);
  let shown = [];
  let page = 0;

  function element(name, text, className) {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  }

  function option(select, value, text) {
    const node = element("option", text);
    node.value = value;
    select.append(node);
  }

  option(form.elements.system, "", systems.length > 1 ? "any" : systems[0]);
  if (systems.length > 1) systems.forEach((name, index) => option(form.elements.system, String(index), name));
  option(form.elements.word, "", "any");
  const words = new Map();
  items.forEach((item) => item[2] && words.set(item[2], (words.get(item[2]) || 0) + 1));
  [...words].sort((a, b) => b[1] - a[1]).forEach(([word, count]) => option(form.elements.word, word, `${word} (${count.toLocaleString("en")})`));
  form.elements.word.parentElement.hidden = words.size === 0;
  if (systems.length === 1) {
    form.elements.system.parentElement.hidden = true;
    for (const node of form.querySelectorAll('[value="better"], [value="worse"], [value="gain"], [value="loss"]')) node.remove();
  }

  for (const node of form.querySelectorAll("option[data-first]")) node.textContent = node.dataset.first + systems[0];

  const RESULTS = {
    right: (one) => one[1] === 1,
    part: (one) => one[1] < 1 && one[2] > 0,
    wrong: (one) => one[1] < 1 && one[2] === 0,
    better: (one, first) => one[2] > first[2],
    worse: (one, first) => one[2] < first[2],
  };

  // Sorts by the chosen system, else by the last (the others are compared with the first).
  function orders(system) {
    const at = system === "" ? systems.length - 1 : Number(system);
    const f1 = (index) => items[index][7][at][2];
    const gain = (index) => f1(index) - items[index][7][0][2];
    return {
      worst: (a, b) => f1(a) - f1(b), best: (a, b) => f1(b) - f1(a),
      gain: (a, b) => gain(b) - gain(a), loss: (a, b) => gain(a) - gain(b),
    };
  }

  function apply() {
    const { text, system, result, word, order } = Object.fromEntries(new FormData(form));
    const wanted = plain(text.trim());
    const test = RESULTS[result];
    shown = [];
    items.forEach((item, index) => {
      if (word && item[2] !== word) return;
      if (wanted && !haystacks[index].includes(wanted) && !(item[3] >= 0 && plainContexts[item[3]].includes(wanted))) return;
      const judged = system === "" ? item[7] : [item[7][Number(system)]];
      if (test && !judged.some((one) => test(one, item[7][0]))) return;
      shown.push(index);
    });
    if (order) shown.sort((a, b) => orders(system)[order](a, b) || a - b);
    page = 0;
    render();
  }

  function verdict([, exact, f1]) {
    if (exact === 1) return ["right", "right"];
    return f1 > 0 ? ["part", `F1 ${(100 * f1).toFixed(0)}`] : ["wrong", "wrong"];
  }

  function context(item) {
    const details = element("details");
    details.append(element("summary", "Context"));
    details.addEventListener("toggle", () => {
      if (!details.open || details.childElementCount > 1) return;
      const paragraph = element("p");
      const text = contexts[item[3]];
      if (item[4] >= 0) {
        paragraph.append(text.slice(0, item[4]), element("mark", text.slice(item[4], item[4] + item[5])), text.slice(item[4] + item[5]));
      } else {
        paragraph.append(text);
      }
      details.append(paragraph);
    });
    return details;
  }

  function card(item) {
    const node = element("li");
    node.append(element("p", item[1], "question"));
    node.append(element("p", `Expected: ${[...new Set(item[6])].join(" | ") || "(no answer)"}`, "truth"));
    const answers = element("dl");
    item[7].forEach((one, index) => {
      const [kind, label] = verdict(one);
      const missing = one[0] === null ? "(no prediction)" : one[0] === "" ? "(empty)" : null;
      answers.append(element("dt", systems[index]));
      answers.append(element("dd", missing || one[0], missing ? "answer nothing" : "answer"));
      answers.append(element("dd", label, `verdict ${kind}`));
    });
    node.append(answers);
    if (item[3] >= 0) node.append(context(item));
    node.append(element("p", item[0], "id"));
    return node;
  }

  function render() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    list.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((index) => card(items[index])));
    document.getElementById("found").textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} questions`;
    for (const pager of pagers) {
      pager.hidden = pages === 1;
      const [previous, label, next] = pager.children;
      label.textContent = `Page ${page + 1} of ${pages}`;
      previous.disabled = page === 0;
      next.disabled = page === pages - 1;
    }
  }

  function turn(by) {
    page += by;
    render();
    list.scrollIntoView();
    list.focus({ preventScroll: true });
  }

  for (const pager of pagers) {
    const previous = element("button", "Previous");
    const next = element("button", "Next");
    previous.type = next.type = "button";
    previous.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    pager.append(previous, element("span"), next);
  }
  let timer;
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 120); });
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
