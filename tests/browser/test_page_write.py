"""The view Write, used as a person would."""

from __future__ import annotations

import pytest

from browser.measure import assert_legible, assert_still, shift
from browser.scripted import CONTINUATION, Script, scripted
from needs import needs_browser

pytestmark = needs_browser


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def address(script):
    with scripted(script) as address:
        yield address


def write(page, prompt=None):
    """Continue a prompt to the end."""
    if prompt is not None:
        page.fill(".prompt", prompt)
    page.evaluate("document.querySelector('.texts').removeAttribute('aria-busy')")
    page.locator(".prompt").press("Control+Enter")
    page.wait_for_selector(".texts[aria-busy=false]")


def say(page, message):
    """Send a message and wait for the answer."""
    page.fill(".message", message)
    page.evaluate("document.querySelector('.chat-log').removeAttribute('aria-busy')")
    page.locator(".message").press("Control+Enter")
    page.wait_for_selector(".chat-log[aria-busy=false]")


def open_write(opened, address, *args, **named):
    page = opened(f"{address}/#/write", *args, **named)
    page.wait_for_selector(".view-write:not(.settling)")
    return page


def setting(page, name, value):
    page.get_by_label(name, exact=True).fill(str(value))


@pytest.mark.parametrize("locale, texts, temperature, more", [
    ("en-US", "Texts at once", "Temperature", "Add to prompt"), ("zh-CN", "同时生成几个", "温度", "接到提示词后")])
def test_a_prompt_is_continued(opened, address, script, locale, texts, temperature, more):
    page = open_write(opened, address, locale)
    page.select_option(".model-select", "style")
    setting(page, texts, 2)
    setting(page, temperature, 0.5)
    page.locator(".stop").fill("\\n\\n\nThe end")
    write(page, "Once upon a time,")
    assert script.asked[-1] == {
        "model": "style", "prompt": "Once upon a time,", "n": 2, "temperature": 0.5, "max_tokens": 128, "seed": 0,
        "stop": ["\n\n", "The end"], "logprobs": 5, "stream": True, "stream_options": {"include_usage": True}}
    assert page.locator(".texts .token-text").all_text_contents() == [CONTINUATION] * 2
    figures = page.locator(".texts .figures").first.inner_text()
    assert "token" in figures and ("perplexity" in figures or "困惑度" in figures)
    page.get_by_role("button", name=more).first.click()
    assert page.input_value(".prompt") == "Once upon a time," + CONTINUATION


def test_probabilities_of_tokens(opened, address):
    page = open_write(opened, address)
    write(page, "Once")
    tokens = page.locator(".token-text .token")
    assert tokens.first.text_content() == " The"
    assert [tokens.nth(i).get_attribute("class") for i in range(5)] == [f"token step-{i}" for i in range(5)]
    tokens.nth(1).hover()
    rows = page.locator(".token-popover tr")
    assert [row.split() for row in rows.all_inner_texts()] == [
        ["␣keeper", "60.0%"], ["␣sea", "40.0%"], ["↵", "2.0%"], ["␣<i>old</i>", "0.1%"]]
    assert page.locator(".token-popover tr.chosen").inner_text().split()[0] == "␣keeper"
    page.mouse.move(0, 0)
    assert not page.locator(".token-popover").is_visible()
    tokens.filter(has_text="😀").hover()  # one character, two tokens
    assert page.locator(".token-popover tr").count() == 2
    page.mouse.move(0, 0)
    page.get_by_label("Show probabilities").uncheck()
    assert tokens.nth(4).evaluate("(node) => getComputedStyle(node).backgroundColor") == "rgba(0, 0, 0, 0)"
    assert page.locator("main b, main i i, main .token-popover b").count() == 0


def test_the_keyboard_walks_over_tokens(opened, address):
    page = open_write(opened, address)
    write(page, "Once")
    page.locator(".token-text").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator(".token-text .pointed").text_content() == " counted"
    assert page.locator(".token-popover tr.chosen").inner_text().startswith("␣counted")
    page.locator("#live", has_text="counted 30.0%").wait_for(state="attached")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".token-text .pointed").text_content() == " keeper"
    page.keyboard.press("Escape")
    assert not page.locator(".token-popover").is_visible()


def test_a_finger_shows_alternatives(opened, address):
    page = open_write(opened, address, width=360, has_touch=True)
    write(page, "Once")
    page.locator(".token-text .token").nth(2).tap()
    box = page.locator(".token-popover").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


@pytest.mark.parametrize("locale, tab, edit, retry, clear", [
    ("en-US", "Chat", "Edit last message", "Retry", "New chat"),
    ("zh-CN", "对话", "修改上一条消息", "重新生成", "新对话")])
def test_a_chat(opened, address, script, locale, tab, edit, retry, clear):
    page = open_write(opened, address, locale)
    page.get_by_role("tab", name=tab).click()
    page.locator(".system").fill("Be brief.")
    say(page, "Hello <b>you</b>")
    assert script.asked[-1]["messages"] == [{"role": "system", "content": "Be brief."},
                                            {"role": "user", "content": "Hello <b>you</b>"}]
    assert script.asked[-1]["logprobs"] is True and script.asked[-1]["top_logprobs"] == 5
    assert page.locator(".turn.assistant .token-text").text_content() == CONTINUATION
    say(page, "And then?")
    assert [one["role"] for one in script.asked[-1]["messages"]] == ["system", "user", "assistant", "user"]
    assert script.asked[-1]["messages"][2]["content"] == CONTINUATION
    before = len(script.asked)
    page.get_by_role("button", name=retry).click()
    page.wait_for_timeout(50)
    page.wait_for_selector(".chat-log[aria-busy=false]")
    assert len(script.asked) == before + 1
    assert script.asked[-1]["messages"] == script.asked[-2]["messages"] and script.asked[-1]["seed"] == 1
    page.get_by_role("button", name=edit).click()
    assert page.input_value(".message") == "And then?" and page.locator(".turn.user").count() == 1
    say(page, "What next?")
    assert script.asked[-1]["messages"][-1]["content"] == "What next?"
    page.get_by_role("button", name=clear).click()
    assert page.locator(".turn").count() == 0


def test_one_of_several_answers_goes_on(opened, address, script):
    page = open_write(opened, address)
    page.get_by_role("tab", name="Chat").click()
    setting(page, "Texts at once", 2)
    say(page, "Hello")
    assert page.locator(".variant").count() == 2
    page.locator(".variant input").nth(1).check()
    setting(page, "Texts at once", 1)
    say(page, "And?")
    assert len(script.asked[-1]["messages"]) == 3


def test_tabs_by_keyboard_and_without_a_chat_template(opened, script):
    with scripted(script) as address:
        page = open_write(opened, address)
        page.get_by_role("tab", name="Prompt").focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("tab", name="Chat").get_attribute("aria-selected") == "true"
        assert page.locator(".message").is_visible() and not page.locator(".prompt").is_visible()
    script.chat = False
    with scripted(script) as address:
        page = open_write(opened, address)
        page.wait_for_selector(".write-head .note")
        assert page.get_by_role("tab", name="Chat").is_disabled()
        assert "chat template" in page.inner_text(".write-head .note")


@pytest.mark.parametrize("width", [360, 800, 1440])
def test_nothing_moves_while_texts_stream(opened, address, width):
    page = open_write(opened, address, width=width)
    assert shift(page) < 0.05
    page.evaluate("document.querySelector('.settings').open = true")
    setting(page, "Texts at once", 3)
    page.fill(".prompt", "Once")
    page.locator(".prompt").press("Control+Enter")
    page.wait_for_timeout(550)  # what moves within half a second of a key is its doing
    shift(page)
    page.wait_for_selector(".texts[aria-busy=false]")
    assert_still(page)


def test_wrong_settings_are_not_sent(opened, address, script):
    page = open_write(opened, address)
    setting(page, "Top p", 3)
    page.fill(".prompt", "Once")
    page.locator(".prompt").press("Control+Enter")
    page.wait_for_timeout(200)
    assert script.asked == []
    assert page.evaluate("document.activeElement.matches(':invalid')")


def test_errors_and_stop(opened, address, script):
    page = open_write(opened, address)
    script.fault = (400, "max_tokens: expected at most 64; found 128.", 0)
    write(page, "Once")
    assert "max_tokens: expected at most 64" in page.inner_text(".problem")
    assert page.complaints.pop().startswith("Failed to load resource")
    script.fault, script.seconds = None, 0.1
    page.locator(".problem button").click()
    page.locator(".token-text", has_text="The").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".texts[aria-busy=false]")
    page.wait_for_timeout(300)
    assert script.running == 0 and page.locator(".problem").count() == 0
    assert CONTINUATION.startswith(page.locator(".token-text").text_content())


def test_copy(opened, address):
    page = open_write(opened, address, permissions=["clipboard-read", "clipboard-write"])
    write(page, "Once")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == CONTINUATION


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1440])
def test_it_is_legible(opened, address, locale, scheme, width):
    page = open_write(opened, address, locale, scheme, width)
    page.evaluate("document.querySelector('.settings').open = true")
    write(page, "Once")
    page.locator(".token-text .token").nth(4).hover()
    assert_legible(page, width)
    page.get_by_role("tab").nth(1).click()
    say(page, "Hello")
    assert_legible(page, width)
