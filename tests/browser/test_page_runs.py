"""The view Runs over real folders, used as a person would."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading

import pytest
import uvicorn
from fastapi import FastAPI

from browser.measure import assert_legible, assert_still, shift
from jittor_lora.serving.api.openai_errors import install
from jittor_lora.serving.process import health
from jittor_lora.serving.process.guard import guarded
from jittor_lora.serving.settings import ServeSettings
from jittor_lora.serving.views import page_files, runs_api
from jittor_lora.system.locks import locked
from needs import needs_browser
from run_folders import loss, make_run, make_scores
from serving.served import free_port, until

pytestmark = needs_browser
HOSTILE = "<img src=x onerror=alert(1)>"
WORDS = {"en-US": {"training": "Training", "interrupted": "Interrupted", "finished": "Finished", "scores": "Scores"},
         "zh-CN": {"training": "训练中", "interrupted": "已中断", "finished": "已完成", "scores": "得分"}}


class OnlySettings:
    """What the router of runs needs of a service."""

    def __init__(self, settings):
        self.settings = settings


@contextlib.contextmanager
def serving(root):
    port = free_port()
    settings, app = ServeSettings(port=port, runs=root), FastAPI()
    install(app)
    for router in (page_files.router(None), health.router(health.Health(), None),
                   runs_api.router(OnlySettings(settings))):
        app.include_router(router)
    app.add_api_route("/v1/models", lambda: {"data": []})  # for the view that is opened first
    server = uvicorn.Server(uvicorn.Config(guarded(app, settings, health.Health()), "127.0.0.1", port,
                                           log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "first", 40)
    make_scores(root / "first", "base", {"q0": "", "q1": "no"}, ["yes", "ja"], 0.0)
    make_scores(root / "first", "adapter", {f"q{n}": HOSTILE for n in range(8)}, ["yes"], 37.5)
    make_run(root / "sub" / "second", 20, total=30, ended=None)
    settings = root / "sub" / "second" / "config.yaml"
    settings.write_text(settings.read_text().replace("lora_r: 8", "lora_r: 64"))
    return root


@pytest.fixture
def address(root):
    with serving(root) as address:
        yield address


def open_runs(opened, address, run=None, **how):
    page = opened(address, **how)
    page.evaluate("(hash) => { location.hash = hash; }", "#/runs" + (f"/{run}" if run else ""))
    page.wait_for_selector(".run-figures dd" if run else ".view-runs .run-list a, .view-runs .invite")
    return page


def path_end(page, look):
    """The x of the last point of the curve of this look."""
    path = page.locator(f".chart-picture g.{look} path.curve").last.get_attribute("d")
    return float(path.replace("M", "L").split("L")[-1].split()[0])


def heights(page):
    """The y of the curve in its middle and at its ends."""
    points = page.locator(".chart-picture .training path").first.get_attribute("d").replace("M", "L").split("L")[1:]
    return [float(points[k].split()[1]) for k in (len(points) // 8, 0, -1)]


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_list_and_a_run(opened, address, locale):
    page = open_runs(opened, address, locale=locale)
    assert sorted(page.locator(".run-name").all_inner_texts()) == ["first", "sub/second"]
    assert "null" not in page.inner_text("main")
    names, states = (page.locator(f".run-list .{part}").all_inner_texts() for part in ("run-name", "run-state"))
    states = dict(zip(names, states))
    assert states["first"].endswith(WORDS[locale]["finished"])
    assert states["sub/second"].endswith(WORDS[locale]["interrupted"])
    page.get_by_role("link", name="first").click()
    page.wait_for_selector(".run-scores table")
    assert page.inner_text(".run-head h2") == "first" and page.url.endswith("#/runs/first")
    figures = page.inner_text(".run-figures")
    assert f"{loss(40):.4f}" in figures and f"{loss(40) + 0.25:.4f}" in figures
    assert page.inner_text(".run-scores h3") == WORDS[locale]["scores"]
    row = page.locator(".score-table tbody tr").nth(1).inner_text()
    assert "37.5" in row and "[0.0, 100.0]" in row and "[10.0, 90.0]" in row
    assert page.locator(".run-answers li").count() == 5 and page.locator(".run-answers img").count() == 0
    assert HOSTILE in page.locator(".run-answers li").first.inner_text()
    page.locator(".run-answers-more, .more").click()
    assert page.locator(".run-answers li").count() == 8
    page.locator(".run-settings summary").click()
    assert "learning_rate" in page.inner_text(".settings-table")


def test_the_chart_is_read_by_pointer_and_keys(opened, address):
    page = open_runs(opened, address, "first")
    page.wait_for_selector(".chart-picture .training path")
    frame, heading = page.locator(".chart-frame"), page.locator(".chart-step")
    values = page.locator(".chart-value")
    assert heading.inner_text() == "Step 40"
    assert values.all_inner_texts() == [f"{loss(40):.4f}", f"{loss(40) + .25:.4f}"]
    frame.focus()
    page.keyboard.press("Home")
    assert heading.inner_text() == "Step 1" and values.all_inner_texts() == [f"{loss(1):.4f}", "–"]
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert heading.inner_text() == "Step 11"
    assert values.all_inner_texts() == [f"{loss(11):.4f}", f"{loss(10) + .25:.4f}"]  # validated at step 10
    assert frame.get_attribute("aria-valuenow") == "11"
    assert f"training loss {loss(11):.4f}" in frame.get_attribute("aria-valuetext")
    page.keyboard.press("Escape")
    assert heading.inner_text() == "Step 40"
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 58 + (box["width"] - 72) / 2, box["y"] + 20)
    assert heading.inner_text() == "Step 20" and page.locator(".chart-guide.shown").count() == 1
    shift(page)
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 20)
    page.mouse.move(0, 0)
    assert_still(page)


def test_curves_move_while_a_run_trains(opened, address, root):
    live = root / "live"
    asked = []
    with locked(live):
        make_run(live, 31, total=400, ended=None)
        page = open_runs(opened, address, "live")
        page.on("request", lambda request: "/ui/runs/live" in request.url and asked.append(request.url))
        page.wait_for_selector(".chart-picture .training path")
        assert page.inner_text(".run-head .run-state").endswith("Training")
        assert "31 of 400" in page.inner_text(".run-head")
        before = path_end(page, "training")
        shift(page)
        make_run(live, 45, total=400, ended=None, first=32)
        page.wait_for_selector(".chart-step:text-is('Step 45')")
        assert_still(page)
        assert path_end(page, "training") > before + 20
        assert asked and all("since=" in url for url in asked)
        assert f"{loss(45):.4f}" in page.locator(".chart-value").first.inner_text()
    make_run(live, 45, total=400, ended="finished", first=46)
    page.wait_for_selector(".run-head .run-state.finished")


def test_nothing_is_asked_while_the_page_is_hidden(opened, address, root):
    with locked(root / "sub" / "second"):
        page = open_runs(opened, address, "sub%2Fsecond")
        page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.away }); window.away = true")
        page.wait_for_timeout(500)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(5600)
        assert not [url for url in asked if "/ui/" in url]
        page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(500)
        assert [url for url in asked if "/ui/runs/sub/second?since=20" in url]


def test_two_runs_over_each_other(opened, address):
    page = open_runs(opened, address, "first")
    page.select_option(".compare-row select", "sub/second")
    page.wait_for_selector(".chart-picture g.second.training path")
    assert page.locator(".chart-legend li").count() == 4 and page.locator(".chart-picture rect.mark").count() == 2
    differing = page.locator(".run-settings table").first
    assert differing.locator("tbody tr").count() == 1
    assert differing.locator("tbody tr").inner_text().split() == ["lora_r", "8", "64"]
    assert path_end(page, "second.training") < path_end(page, "first.training")
    page.reload()
    page.wait_for_selector(".chart-picture g.second.training path")  # the address holds both
    page.select_option(".compare-row select", "")
    page.wait_for_selector(".chart-picture g.second.training", state="detached")


def test_quantities_and_the_scale(opened, address):
    page = open_runs(opened, address, "first")
    page.wait_for_selector(".chart-picture .training path")
    middle, first, last = heights(page)
    page.locator(".chart-controls input").check()
    bent = heights(page)
    assert (bent[2] - bent[0]) / (bent[2] - bent[1]) > (last - middle) / (last - first) + 0.05
    page.select_option(".chart-controls select", "learning_rate")
    assert page.locator(".chart-legend li").count() == 1
    page.select_option(".chart-controls select", "scores")
    assert page.locator(".chart-legend").inner_text().split() == ["F1", "20.000", "EM", "10.000"]


def test_smoothed_labels_are_said_beside_the_losses(opened, address, root):
    settings = root / "first" / "config.yaml"
    settings.write_text(settings.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    page = open_runs(opened, address, "first")
    page.wait_for_selector(".chart-picture .training path")
    about = page.locator(".chart-about")
    assert about.inner_text() == "first: training losses include label smoothing of 0.1; validation losses do not."
    page.select_option(".chart-controls select", "learning_rate")
    assert about.inner_text().strip() == ""
    page = open_runs(opened, address, "sub%2Fsecond")
    page.wait_for_selector(".chart-picture .training path")
    assert page.locator(".chart-about").inner_text().strip() == ""


@pytest.mark.parametrize("low, high, count", [
    (0, 1, 4), (3.1, 9.7, 6), (1e-5, 3e-4, 5), (-2, 2, 5), (0, 80_000, 7), (5, 5, 3)])
def test_ticks_are_round_and_within(opened, address, low, high, count):
    page = open_runs(opened, address)
    found = page.evaluate("async (all) => (await import('/page/chart/ticks.js')).ticks(...all)", [low, high, count])
    assert 1 <= len(found) <= count + 2
    for value in found:
        assert low - 1e-12 <= value <= high * (1 + 1e-9) + 1e-12
        if value:
            digits = value / 10 ** math.floor(math.log10(abs(value)))
            assert abs(digits * 2 - round(digits * 2)) < 1e-6


def test_a_damaged_run_says_so(opened, address, root):
    with open(root / "first" / "metrics.jsonl", "ab") as stream:
        stream.write(b"\xff\xfe\nnull\n" + json.dumps({"step": 41, "train_loss": None}).encode() + b"\n" + b'{"step')
    (root / "first" / "summary.json").write_text("{")
    page = open_runs(opened, address, "first")
    page.wait_for_selector(".left-out li")
    notes = page.inner_text(".run-detail .left-out")
    assert "metrics.jsonl: 2 damaged lines" in notes and "1 value is not finite" in notes and "summary.json" in notes
    assert page.inner_text(".run-head .run-state").endswith("Interrupted")


def test_a_run_that_goes(opened, address, root):
    page = open_runs(opened, address, "sub%2Fsecond")
    shutil.rmtree(root / "sub")
    with locked(root / "first"):
        pass
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector(".run-problem .notice")
    assert "no longer" in page.inner_text(".run-problem")
    page.complaints = [text for text in page.complaints if "404" not in text]


@pytest.mark.parametrize("there", [True, False])
def test_no_runs(opened, tmp_path, there):
    root = tmp_path / "empty"
    root.mkdir()
    with serving(root if there else None) as address:
        page = open_runs(opened, address)
        assert ("--output empty/first" if there else "--runs") in page.inner_text(".command")


@pytest.mark.parametrize("locale, scheme", [("en-US", "light"), ("zh-CN", "dark")])
@pytest.mark.parametrize("width, height", [(360, 740), (800, 1000), (1440, 900)])
def test_legible_at_all_sizes(opened, address, root, locale, scheme, width, height):
    make_run(root / "a-very-long-name-without-any-break-in-it-that-goes-on-and-on-and-on" / HOSTILE.replace("/", ""), 3)
    how = {"locale": locale, "scheme": scheme, "width": width, "height": height}
    assert_legible(open_runs(opened, address, **how), width)
    page = open_runs(opened, address, "first/sub%2Fsecond", **how)
    page.wait_for_selector(".chart-picture g.second.training path")
    page.locator(".run-settings summary").click()
    page.locator(".chart-frame").focus()
    page.keyboard.press("ArrowLeft")
    assert_legible(page, width)


def test_on_a_telephone_the_list_gives_way_to_the_run(opened, address):
    page = open_runs(opened, address, width=360, height=740)
    assert page.locator(".run-detail h2").count() == 0
    page.get_by_role("link", name="first").click()
    page.wait_for_selector(".run-figures dd")
    assert not page.locator(".run-list").is_visible()
    page.locator(".back").click()
    assert page.locator(".run-list").is_visible()
    page.go_back()
    page.wait_for_selector(".run-figures dd")
    assert page.url.endswith("#/runs/first")
