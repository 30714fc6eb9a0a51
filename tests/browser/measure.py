"""What is measured in a page: contrast, sizes, shifts."""

from __future__ import annotations

# [ratio, text] of the visible text with the lowest contrast with what is behind it (WCAG 2).
CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
      if (colour[3] > 0) {
        const below = behind(at.parentElement);
        return colour.slice(0, 3).map((v, i) => v * colour[3] + below[i] * (1 - colour[3]));
      }
    }
    return [255, 255, 255];
  };
  let least = [21, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const seen = element.checkVisibility({ visibilityProperty: true })
      && !element.closest(".unseen, .skip, .mirror, :disabled, option, noscript");
    if (!seen || !(own || element.matches("input, textarea, select"))) continue;
    const colour = parts(getComputedStyle(element).color);
    const [a, b] = [light(colour.slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, `${element.tagName}.${element.className}: ${element.textContent}`];
  }
  return least;
}"""

# The controls that are too small for a finger: [name, width, height].
CONTROLS = ("button, select, textarea, nav a, summary, label.choice, [role=option], "
            "input:not([type=checkbox], [type=radio])")
SMALL = f"""(least) => [...document.querySelectorAll("{CONTROLS}")]
  .filter((node) => node.checkVisibility({{ visibilityProperty: true }}) && !node.closest(".unseen"))
  .map((node) => [node, node.getBoundingClientRect()])
  .map(([node, box]) => [node.textContent.slice(0, 30) || node.className || node.id, box.width, box.height])
  .filter(([, width, height]) => width < least || height < least)"""

# Texts that are wider than what holds them and cannot be scrolled to.
WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def assert_legible(page, width=None):
    """The page is legible, fits the screen, and on a telephone its controls fit a finger."""
    assert page.evaluate(CONTRAST)[0] >= 4.5, page.evaluate(CONTRAST)  # WCAG 2, level AA
    assert page.evaluate(WIDE) <= 0
    if width is not None and width <= 400:
        assert page.evaluate(SMALL, 44) == []


def switch_language(page):
    """Press the button and wait until the view has been drawn anew."""
    view = page.query_selector("#view > .view")
    page.click("#language")
    page.wait_for_function("""(old) => {
      const now = document.querySelector("#view > .view");
      return now && now !== old && !now.classList.contains("settling");
    }""", arg=view)


def shift(page) -> float:
    """How far things have moved since the last call."""
    page.wait_for_timeout(100)
    moved = page.evaluate("() => shifts.splice(0)")
    return sum(value for value, *_ in moved)


def assert_still(page):
    """Nothing has moved since the last call of `shift`, but for a word that went to the next line as it grew."""
    page.wait_for_timeout(100)
    moved = page.evaluate("() => shifts.splice(0)")
    assert sum(value for value, *_ in moved) < 0.01, moved
