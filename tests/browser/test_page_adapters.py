"""The view Adapters over a real server, used as a person would."""

from __future__ import annotations

import shutil

import pytest

from browser.measure import assert_legible
from jittor_lora.serving.api.app import create_app
from jittor_lora.serving.process import health
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.settings import ServeSettings
from needs import needs_browser
from serving import served

pytestmark = needs_browser
WORDS = {"en-US": ("Load", "Unload", "Yes, unload", "Keep it"), "zh-CN": ("加载", "卸载", "确定卸载", "保留")}


def whole(service):
    app = create_app(service)
    app.include_router(health.router(health.Health(), None))
    return guarded(app, service.settings, health.Health())


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    files = served.make_files(tmp_path_factory.mktemp("adapters"), adapters=4)
    settings = ServeSettings(adapter_folders=(files / "adapters",))
    with served.running(files, settings, adapters=("one", "two"), app_of=whole) as running:
        running.folder = files / "adapters"
        yield running


def open_adapters(opened, running, **how):
    page = opened(running.url, **how)
    page.evaluate("location.hash = '#/adapters'")
    page.wait_for_selector(".adapter-card")
    return page


def names(page):
    return page.locator(".adapter-card h3").all_inner_texts()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_load_and_unload(opened, running, locale):
    load, unload, sure, keep = WORDS[locale]
    page = open_adapters(opened, running, locale=locale)
    assert names(page) == ["one", "two"]
    three = page.locator(".available", has_text="three")
    three.get_by_role("button").click()
    assert page.evaluate("document.activeElement.value") == "three"
    page.keyboard.type("my name")
    page.keyboard.press("Enter")
    page.wait_for_selector(".adapter-card >> nth=2")
    assert names(page) == ["one", "two", "my name"]
    assert "my name" in page.locator(".available", has_text="three").inner_text()
    assert "my name" in running.client.get("/v1/models").text
    page.evaluate("location.hash = '#/ask'")
    page.wait_for_selector(".models .choice >> nth=3")  # the other views know it
    page.evaluate("location.hash = '#/adapters'")
    card = page.locator(".adapter-card", has_text="my name")
    card.get_by_role("button", name=unload, exact=True).click()
    assert page.evaluate("document.activeElement.textContent") == keep
    page.keyboard.press("Escape")
    assert len(names(page)) == 3 and page.evaluate("document.activeElement.textContent") == unload
    page.keyboard.press("Enter")
    card.get_by_role("button", name=sure).click()
    page.wait_for_selector(".adapter-card >> nth=2", state="detached")
    assert names(page) == ["one", "two"] and "my name" not in running.client.get("/v1/models").text


def test_a_name_that_is_taken(opened, running):
    page = open_adapters(opened, running)
    page.locator(".available", has_text="four").get_by_role("button").click()
    page.keyboard.type("one")
    page.keyboard.press("Enter")
    page.wait_for_selector(".available .problem")
    assert "one" in page.inner_text(".available .problem") and names(page) == ["one", "two"]
    page.keyboard.press("Escape")
    assert page.locator(".load-form").count() == 0
    page.complaints = [text for text in page.complaints if "400" not in text]


def test_norms_by_block(opened, running):
    page = open_adapters(opened, running)
    one = running.client.get("/ui/adapters").json()["loaded"][0]
    card = page.locator(".adapter-card").first
    assert f"{one['update']:.3f}" in card.inner_text() and "1,792" in card.inner_text()
    card.locator(".bars").focus()
    page.keyboard.press("End")
    last = sum(row["update"] ** 2 for row in one["modules"] if row["layer"] == 1) ** 0.5
    assert card.locator(".bars-said").inner_text() == f"Block 1 · {last:.3f}"
    box = card.locator(".bars").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 30)
    assert card.locator(".bars-said").inner_text().startswith("Block 0")
    card.locator("summary").click()
    assert card.locator("tbody tr").count() == 4 and "transformer.h.1.mlp.c_fc" in card.inner_text()


def test_two_side_by_side(opened, running):
    page = open_adapters(opened, running)
    page.wait_for_selector(".compare-apart details")
    table = page.locator(".compare-table")
    assert table.locator("thead").inner_text().split() == ["one", "two"]
    assert "cosine" in page.inner_text(".compare-apart")
    page.locator(".compare-apart summary").click()
    assert page.locator(".compare-apart tbody tr").count() == 4
    page.locator(".compare-choice select").nth(1).select_option("one")
    page.wait_for_selector(".compare-apart:has-text('1.00')")


def test_what_cannot_be_loaded_says_why(opened, running):
    broken = running.folder / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text('{"r": "<img src=x onerror=alert(1)>"}')
    try:
        page = open_adapters(opened, running)
        row = page.locator(".available", has_text="broken")
        assert row.get_by_role("button").is_disabled() and row.locator(".refused").inner_text()
        assert page.locator(".available img").count() == 0
    finally:
        shutil.rmtree(broken)


@pytest.mark.parametrize("locale, scheme", [("en-US", "light"), ("zh-CN", "dark")])
@pytest.mark.parametrize("width, height", [(360, 740), (800, 1000), (1440, 900)])
def test_legible_at_all_sizes(opened, running, locale, scheme, width, height):
    page = open_adapters(opened, running, locale=locale, scheme=scheme, width=width, height=height)
    page.wait_for_selector(".compare-apart details")
    page.locator(".available").nth(1).get_by_role("button").click()
    page.locator(".adapter-card").first.get_by_role("button").click()
    for summary in page.locator("summary").all():
        summary.click()
    assert_legible(page, width)
