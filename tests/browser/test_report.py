"""The comparison report as its reader sees it: in Chromium, without a network."""

from __future__ import annotations

import pytest

from needs import needs_browser
from report_pages import HOSTILE, make_report

pytestmark = needs_browser
PAGE = 25


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture
def seen(chrome, address):
    """A page with the report; fails if it logs an error or requests anything but itself."""
    complaints = []
    context = chrome.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    page.goto(address)
    page.wait_for_selector("#list > li")
    yield page
    context.close()
    assert complaints == []


def filtered(page, **fields):
    """Set these fields of the form: the number of questions found, and the ids shown first."""
    page.click("button[type=reset]")
    for name, value in fields.items():
        if name == "text":
            page.fill("[name=text]", value)
        else:
            page.select_option(f"[name={name}]", value)
    page.wait_for_timeout(400)
    return int(page.inner_text("#found").split()[0]), page.locator("#list .id").all_inner_texts()


def test_hostile_texts_are_shown_and_not_run(seen):
    assert seen.title() == f"Title {HOSTILE}"
    assert seen.locator("#list img, #list script").count() == 0
    assert seen.locator("#list li").nth(1).locator("dd.answer").first.inner_text() == HOSTILE
    assert seen.locator("#list li").nth(2).locator("dd.answer").first.inner_text() == "(empty)"
    assert seen.locator("#list li").nth(3).locator("dd.answer").first.inner_text() == "(no prediction)"


def test_filters(seen):
    assert filtered(seen) == (60, [f"q{number}" for number in range(PAGE)])
    assert filtered(seen, system="0", result="right") == (6, ["q0", "q10", "q20", "q30", "q40", "q50"])
    assert filtered(seen, system="1", result="right")[0] == 30
    assert filtered(seen, system="1", result="better")[0] == 25  # of the odd ones q1, where base is hostile
    assert filtered(seen, system="2", result="worse") == (6, ["q0", "q10", "q20", "q30", "q40", "q50"])
    assert filtered(seen, word="who", system="1", result="right") == (
        10, [f"q{number}" for number in range(60) if number % 3 == 1 and number % 2 == 0])
    assert filtered(seen, text="NUMBER 42") == (1, ["q42"])
    assert filtered(seen, text="answer 57,") == (5, [f"q{number}" for number in range(55, 60)])  # in their context
    assert filtered(seen, text="<script>document") == (60, [f"q{number}" for number in range(PAGE)])
    assert filtered(seen, text="nowhere to be found") == (0, [])
    assert seen.inner_text("#found") == "0 of 60 questions"


def test_order(seen):
    gains = filtered(seen, order="gain", system="1")[1]
    assert gains[:2] == ["q2", "q6"]  # from F1 0 to right
    assert filtered(seen, order="best", system="0")[1][:6] == ["q0", "q10", "q20", "q30", "q40", "q50"]


def test_pages_are_turned_and_the_answer_is_marked(seen):
    assert seen.locator(".pager span").first.inner_text() == "Page 1 of 3"
    assert seen.locator(".pager button").first.is_disabled()
    for _ in range(2):
        seen.locator(".pager").last.locator("button").last.click()
    assert seen.locator("#list .id").all_inner_texts() == [f"q{number}" for number in range(50, 60)]
    assert seen.locator(".pager").last.locator("button").last.is_disabled()
    seen.locator("#list details summary").nth(2).click()
    seen.wait_for_selector("#list mark")
    assert seen.inner_text("#list mark") == "answer 52"


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_is_legible(chrome, address, width, scheme, tmp_path):
    context = chrome.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#list > li")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    widths = page.evaluate("[...document.querySelectorAll('img')].map(i => i.naturalWidth ? i.width : 0)")
    assert min(widths) >= 300
    assert page.evaluate(CONTRAST) >= 4.5  # WCAG 2, level AA
    sizes = page.evaluate("[...document.querySelectorAll('button, select, input')].map(e => e.offsetHeight)")
    assert min(size for size in sizes if size) >= 44
    assert len(page.screenshot(full_page=True, path=tmp_path / "page.png")) > 20_000
    context.close()


# The lowest contrast of the texts with their background.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let least = 21;
  const texts = "h1, h2, p, th, td, .range, label, dt, dd, summary, a, button:enabled, select";
  for (const element of document.querySelectorAll(texts)) {
    const [a, b] = [light(parts(getComputedStyle(element).color).slice(0, 3)), light(behind(element))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""


def test_thousands_of_questions_are_filtered_at_once(chrome, tmp_path):
    context = chrome.new_context(offline=True)
    page = context.new_page()
    page.goto(make_report(tmp_path, 4000).as_uri())
    page.wait_for_selector("#list > li")
    took = page.evaluate("""() => {
      const form = document.getElementById("filter");
      form.elements.text.value = "answer 3999";
      form.elements.order.value = "gain";
      const start = performance.now();
      form.dispatchEvent(new Event("input"));
      return new Promise((done) => new MutationObserver(() => done(performance.now() - start))
        .observe(document.getElementById("found"), { childList: true, characterData: true, subtree: true }));
    }""")
    assert took < 2000  # 120 of them wait for more keys
    assert page.inner_text("#found") == "5 of 4,000 questions"
    context.close()
