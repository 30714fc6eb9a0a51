"""The view Ask, used as a person would."""

from __future__ import annotations

import pytest

from browser.measure import assert_legible, assert_still, shift, switch_language
from browser.scripted import Script, scripted
from needs import needs_browser

pytestmark = needs_browser
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
TRY = {"en-US": "Try it with a sample", "zh-CN": "用示例试一试"}


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def address(script):
    with scripted(script) as address:
        yield address


def ask(page, context=None, questions=None):
    """Fill in, press Ctrl+Enter, and wait for the end."""
    if context is not None:
        page.fill(".paper textarea", context)
    if questions is not None:
        page.fill(".questions", "\n".join(questions))
    page.evaluate("document.querySelector('.output').removeAttribute('aria-busy')")
    page.locator(".questions").press("Control+Enter")
    page.wait_for_selector(".output[aria-busy=false]")


def marked(page, kind="chosen"):
    return "".join(page.locator(f".mirror mark.{kind}").all_text_contents())


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_sample_is_asked(opened, address, script, locale):
    page = opened(address, locale)
    page.get_by_role("button", name=TRY[locale]).click()
    page.wait_for_selector(".output[aria-busy=false]")
    asked = script.asked[-1]
    assert asked["models"] == ["smollm2-135m", "quickstart"] and len(asked["questions"]) == 1
    assert asked["methods"] == ["generation", "span"] and asked["spans"] == 5 and asked["stream"] is True
    cards = page.locator(".answer-card")
    assert cards.locator(".model").all_inner_texts() == ["smollm2-135m", "quickstart"]
    assert cards.nth(1).locator(".generated").inner_text() == "One"
    assert cards.first.locator("[role=option]").count() == 5
    assert cards.first.locator(".probability").all_inner_texts()[:2] == ["80.0%", "16.0%"]
    assert page.locator(".reference").inner_text().endswith("chao | the chao")
    assert page.locator(".answer-card .tag.wrong").count() >= 2
    assert "1.50" in page.inner_text(".totals") and "640" in page.inner_text(".totals")
    assert page.evaluate("document.documentElement.lang") == locale[:2] + ("-CN" if locale == "zh-CN" else "")
    page.locator(".switch").nth(1).click()
    page.locator(".switch").nth(2).click()
    ask(page)
    assert len(script.asked[-1]["questions"]) == 3
    assert page.locator(".question-block").count() == 3
    page.locator(".switch").nth(1).click()
    assert len(page.input_value(".questions").splitlines()) == 2


def test_spans_are_marked_where_they_are(opened, address):
    page = opened(address)
    context = "😀 one 𝒜lpha, two 😀😀 three βeta four 𝒞𝒟 five six seven eight nine 灯塔 end."
    ask(page, context, ["What?"])
    rows = page.locator(".answer-card").first.locator("[role=option]")
    for number in range(5):
        rows.nth(number).hover()
        assert marked(page) == rows.nth(number).locator(".span-text").inner_text()
    assert rows.nth(4).get_attribute("aria-selected") == "true"
    page.mouse.move(0, 0)
    last = page.locator(".answer-card").nth(1).locator("[role=option] .span-text")
    assert marked(page) == last.first.inner_text()  # as chosen at first: the adapter's likeliest
    others = page.locator(".mirror mark.other").all_text_contents()
    assert sorted(others) == sorted(last.all_inner_texts()[1:])
    page.fill(".paper textarea", context + " More.")
    assert page.locator(".mirror mark").count() == 0  # the offsets are of another text


def test_marks_lie_on_their_words(opened, address):
    page = opened(address, width=420)
    words = ["fi", "AV", "To", "office", "fluff", "wave", "—", "e\u0301", "𝒜", "中文", "no-break\u00a0space", "x" * 70]
    context = " ".join(words[i * 7 % len(words)] for i in range(150))
    ask(page, context, ["What?"])
    rows = page.locator(".answer-card").first.locator("[role=option]")
    heights = "[...document.querySelectorAll('.mirror, .paper textarea')].map((node) => node.scrollHeight)"
    for number in range(5):
        rows.nth(number).hover()
        assert len(set(page.evaluate(heights))) == 1


def test_the_keyboard_is_enough(opened, address, script):
    page = opened(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "sample"
    page.keyboard.press("Tab")
    page.keyboard.type("Blue is the river and green the hill.")
    page.keyboard.press("Tab")
    page.keyboard.type("Which river?")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # not the base
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "submit"
    page.keyboard.press("Enter")
    page.wait_for_selector(".output[aria-busy=false]")
    assert script.asked[-1]["models"] == ["quickstart"]
    row = page.locator("[role=option]").first
    for _ in range(4):
        page.keyboard.press("Tab")
        if row.evaluate("(node) => node === document.activeElement"):
            break
    for number in range(1, 5):
        page.keyboard.press("ArrowDown")
        focused = page.locator("[role=option]").nth(number)
        assert focused.evaluate("(node) => node === document.activeElement && node.matches(':focus-visible')")
        assert marked(page) == focused.locator(".span-text").inner_text()
    page.keyboard.press("Home")
    assert row.get_attribute("aria-selected") == "true"


@pytest.mark.parametrize("width", [360, 800, 1440])
def test_nothing_moves_while_answers_stream(opened, address, script, width):
    script.seconds = 0.05  # the stream is longer than the time below
    page = opened(address, width=width)
    page.wait_for_selector(".models input")
    assert shift(page) < 0.05
    page.get_by_role("button", name="Try it").click()
    page.wait_for_selector(".output[aria-busy=true]")
    page.wait_for_timeout(600)  # what moves within half a second of a click is its doing
    places = "() => [...document.querySelectorAll('.totals, .answer-card')].map((n) => [n.offsetTop, n.offsetHeight])"
    before = page.evaluate(places)
    shift(page)
    page.wait_for_selector(".output[aria-busy=false]")
    assert_still(page)
    assert page.evaluate(places) == before


def test_stop(opened, address, script):
    script.seconds = 0.1
    page = opened(address)
    page.get_by_role("button", name="Try it").click()
    page.locator(".generated", has_text="The answer").wait_for()
    assert script.running == 1
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".output[aria-busy=false]")
    page.wait_for_timeout(500)
    assert script.running == 0
    assert page.locator(".answer-card .generated").first.inner_text().startswith("The answer")
    assert page.locator(".answer-card .generated").nth(1).inner_text() == "Stopped"
    assert page.locator(".problem").count() == 0


def test_what_lacks_is_said(opened, address, script):
    page = opened(address)
    page.wait_for_selector(".models input")
    page.get_by_role("button", name="Ask", exact=True).click()
    assert "no context" in page.inner_text(".missing")
    assert page.evaluate("document.activeElement === document.querySelector('.paper textarea')")
    page.fill(".paper textarea", "A text.")
    page.get_by_role("button", name="Ask", exact=True).click()
    assert "no question" in page.inner_text(".missing")
    page.fill(".questions", "What?")
    for box in page.locator(".models input").all():
        box.uncheck()
    page.get_by_role("button", name="Ask", exact=True).click()
    assert "at least one model" in page.inner_text(".missing")
    assert script.asked == []


@pytest.mark.parametrize("fault, title, advice", [
    ((400, f"context: expected at most 512 tokens; found 9,000. {HOSTILE}", 0), "refused", "Change what"),
    ((429, "Too many requests wait.", 7), "busy", "in 7 seconds"),
    ((500, "The server failed; its log says how.", 0), "failed", "log"),
])
def test_errors_are_shown_where_they_arise(opened, address, script, fault, title, advice):
    page = opened(address)
    script.fault = fault
    ask(page, "A text.", ["What?"])
    problem = page.locator(".output .problem")
    assert title in problem.inner_text() and fault[1] in problem.inner_text() and advice in problem.inner_text()
    script.fault = None
    problem.get_by_role("button").click()
    page.wait_for_selector(".generated:not(.streaming)")
    assert page.locator(".problem").count() == 0
    assert page.complaints.pop().startswith("Failed to load resource")  # the browser's own line on a refused request


def test_a_stream_that_breaks_off_is_told(opened, address, script):
    script.breaks = True
    page = opened(address)
    ask(page, "A text.", ["What?"])
    assert "broke off" in page.inner_text(".problem")
    assert page.locator(".generated").nth(1).inner_text() == "A"


def test_hostile_texts_stay_texts(opened, script):
    script.names = (HOSTILE, "<b>x</b>")
    with scripted(script) as address:
        page = opened(address)
        ask(page, f"{HOSTILE} and {HOSTILE}", [HOSTILE])
        assert page.locator(".question-head h3").inner_text() == HOSTILE
        assert page.locator(".model").all_inner_texts() == [HOSTILE, "<b>x</b>"]
        assert page.locator(".generated").nth(1).inner_text() == "<img"
        assert page.locator("main img, main script, main b").count() == 0
        assert page.evaluate("refused") == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1440])
def test_it_is_legible(opened, address, locale, scheme, width):
    page = opened(address, locale, scheme, width)
    page.wait_for_selector(".models input")
    assert_legible(page, width)
    page.get_by_role("button", name=TRY[locale]).click()
    page.wait_for_selector(".output[aria-busy=false]")
    page.locator("[role=option]").nth(1).click()
    assert_legible(page, width)


def test_answers_outlive_the_view(opened, address):
    page = opened(address)
    ask(page, "A text.", ["What?"])
    before = page.locator(".generated").all_inner_texts()
    page.click("#nav a[data-view=write]")
    page.wait_for_selector(".view-write")
    page.go_back()
    page.wait_for_selector(".view-ask .answer-card")
    assert page.locator(".generated").all_inner_texts() == before
    switch_language(page)
    assert page.locator(".generated").all_inner_texts() == before
    assert "回答" in page.inner_text(".output-head")
