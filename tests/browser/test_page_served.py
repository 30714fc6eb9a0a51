"""The page over a real server: a tiny base with adapters."""

from __future__ import annotations

import pytest

from jittor_lora.serving.api.app import create_app
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.process.health import Health, router
from jittor_lora.serving.settings import ServeSettings
from needs import needs_browser
from serving import served

pytestmark = needs_browser
SETTINGS = ServeSettings(max_tokens=512)


def whole(service):
    app, health = create_app(service), Health()
    app.include_router(router(health, service.models.base))
    return guarded(app, service.settings, health)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    files = served.make_files(tmp_path_factory.mktemp("served"), 2)
    with served.running(files, SETTINGS, adapters=("one", "two"), app_of=whole) as running:
        yield running


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_questions(opened, server, locale):
    page = opened(server.url, locale)
    page.fill(".paper textarea", served.CONTEXT)
    page.fill(".questions", "\n".join(served.QUESTIONS))
    page.locator(".models input").nth(2).check()
    page.evaluate("document.querySelector('.output').removeAttribute('aria-busy')")
    page.locator(".questions").press("Control+Enter")
    page.wait_for_selector(".output[aria-busy=false]")
    assert page.locator(".problem").count() == 0
    wanted = server.answer("/v1/answers", context=served.CONTEXT, questions=served.QUESTIONS,
                           models=["tiny", "one", "two"], methods=["generation", "span"], spans=5, max_tokens=64)
    cards = page.locator(".answer-card")
    assert cards.count() == 9
    for number, answer in enumerate(one for one in wanted["answers"] if one["method"] == "generation"):
        shown = cards.nth(number).locator(".generated").text_content()
        assert shown == (answer["text"].lstrip() or shown) and "token" in cards.nth(number).inner_text()
    for number, answer in enumerate(one for one in wanted["answers"] if one["method"] == "span"):
        rows = cards.nth(number).locator("[role=option]")
        assert rows.locator(".span-text").all_text_contents() == [span["text"] for span in answer["spans"]]
    rows.nth(1).hover()
    assert page.locator(".mirror mark.chosen").all_text_contents() == [answer["spans"][1]["text"]]


def test_texts(opened, server):
    page = opened(f"{server.url}/#/write")
    page.wait_for_selector(".view-write:not(.settling)")
    page.get_by_label("Max new tokens").fill("24")
    page.get_by_label("Texts at once").fill("2")
    page.fill(".prompt", "The town has")
    page.locator(".prompt").press("Control+Enter")
    page.wait_for_selector(".texts[aria-busy=false]")
    wanted = server.answer("/v1/completions", model="tiny", prompt="The town has", n=2, max_tokens=24, seed=0,
                           temperature=0.7)
    assert page.locator(".texts .token-text").all_text_contents() == [one["text"] for one in wanted["choices"]]
    page.get_by_role("tab", name="Chat").click()
    page.fill(".message", "Hello")
    page.locator(".message").press("Control+Enter")
    page.wait_for_selector(".chat-log[aria-busy=false]")
    assert page.locator(".problem").count() == 0 and page.locator(".turn.assistant .text-card").count() == 2


def test_a_refusal_of_the_server(opened, server):
    page = opened(server.url)
    page.fill(".paper textarea", "word " * 2000)
    page.fill(".questions", "What?")
    page.locator(".questions").press("Control+Enter")
    page.wait_for_selector(".output .problem")
    assert "context: expected at most" in page.inner_text(".problem")
    page.complaints.clear()  # the browser's own line
