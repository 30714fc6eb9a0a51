// Elements are made here and nowhere from HTML text: whatever a server or a user wrote stays text.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (name === "data") {
      Object.assign(node.dataset, value);
    } else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") {
      node[name] = value;
    } else {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// h("button", { class: "primary", type: "button", on: { click } }, "Ask"): children are nodes, texts, or lists of them.
export function h(name, properties, ...children) {
  return fill(document.createElement(name), properties, children);
}

// The same for SVG. Colours by class: the content security policy refuses style attributes.
export function svg(name, properties, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

let count = 0;

// An id that no other element has.
export function unique(stem) {
  count += 1;
  return `${stem}-${count}`;
}

// Storage may be refused: private windows, policies.
export function remembered(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

export function remember(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem(name);
    else window[storage].setItem(name, value);
  } catch {
    // Then it holds until the page is closed.
  }
}

export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const field = h("textarea", { class: "unseen", value: text }); // plain HTTP from another host has no clipboard
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("copy");
}
