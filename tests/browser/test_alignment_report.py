"""The alignment's report as its reader sees it: in Chromium, without a network, in both languages."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from alignment.synthetic import gelu_erf, make_record, replaced
from browser.conftest import WATCH
from browser.measure import CONTRAST, SMALL, WIDE
from jittor_lora.alignment.compare import compare
from jittor_lora.alignment.report_files import write_reports
from needs import needs_browser

pytestmark = needs_browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    there = replaced(make_record(there=True, gelu=gelu_erf), "answers", q3="<img src=x> " + "long" * 60)
    references = {f"q{number}": [f"answer {number}"] for number in range(8)}
    write_reports(folder, compare(make_record(), there, references=references))
    return (folder / "report.html").as_uri()


@pytest.fixture
def seen(chrome, address):
    """Opens the report; at the end no page may have logged an error, moved, or requested anything else."""
    opened = []

    def open_page(locale="en-US", width=1280, scheme="light", **more):
        context = chrome.new_context(offline=True, viewport={"width": width, "height": 900}, locale=locale,
                                     color_scheme=scheme, **more)
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("request", lambda request: request.url.startswith((address, "data:"))
                or page.complaints.append(request.url))
        page.add_init_script(WATCH)
        page.goto(address)
        opened.append((context, page))
        return page

    yield open_page
    for context, page in opened:
        if page.evaluate("'shifts' in window"):  # not without scripts
            page.wait_for_timeout(100)
            assert page.evaluate("refused") == []
            moved = page.evaluate("shifts")
            assert sum(value for value, *_ in moved) < 0.01, moved
        assert page.complaints == []
        context.close()


@contextlib.contextmanager
def sent_slowly(content, size=4_000, seconds=0.005):
    """A server that sends a page in pieces, as a busy machine reads a file."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            for start in range(0, len(content), size):
                self.wfile.write(content[start:start + size])
                time.sleep(seconds)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("width", [1280, 1440])
def test_nothing_moves_while_the_page_arrives(chrome, address, width):
    content = Path(unquote(urlsplit(address).path)).read_bytes()
    context = chrome.new_context(viewport={"width": width, "height": 900})
    with contextlib.closing(context), sent_slowly(content) as slow:
        page = context.new_page()
        page.add_init_script(WATCH)
        page.goto(slow)
        assert page.locator("h1").is_visible()
        page.wait_for_timeout(100)
        assert page.evaluate("shifts") == []


@pytest.mark.parametrize("locale, verdict, cause", [
    ("en-US", "jittor-lora and PyTorch differ", "between h.0.mlp.c_fc and h.0.mlp.c_proj: the activation function"),
    ("zh-CN", "jittor-lora 与 PyTorch 不一致", "h.0.mlp.c_fc 与 h.0.mlp.c_proj 之间：激活函数不同")])
def test_the_first_screen_has_verdict_cause_curves_and_checks(seen, locale, verdict, cause):
    page = seen(locale, width=1440)
    assert page.inner_text("h1").startswith(verdict) and page.title().startswith(verdict)
    assert page.inner_text(".cause") == cause
    assert page.evaluate("document.documentElement.lang")[:2] == locale[:2]
    ends = page.evaluate("""() => ["h1", ".first", "#curves figure", ".checks tbody tr:last-child"]
        .map((name) => [...document.querySelectorAll(name)].find((node) => node.checkVisibility()))
        .map((node) => node.getBoundingClientRect().bottom)""")
    assert max(ends) <= 900
    assert page.locator(".checks .failed:visible").count() == 2


def test_the_language_is_switched_and_remembered(seen):
    page = seen("en-US")
    assert page.locator(".zh:visible").count() == 0
    page.click("#language")
    assert page.locator(".en:visible").count() == 0 and page.locator(".zh:visible").count() > 20
    assert page.inner_text("#language") == "English"
    page.reload()
    assert page.inner_text("#language") == "English"
    page.click("#language")
    assert page.inner_text("#language") == "中文"


def test_without_scripts_the_page_is_english(seen):
    page = seen("zh-CN", java_script_enabled=False)
    assert page.inner_text("h1").startswith("jittor-lora and PyTorch differ")
    assert not page.locator("#language").is_visible()


def test_hostile_answers_are_texts(seen):
    page = seen()
    assert "<img src=x>" in page.inner_text("#answers td >> nth=1")
    assert page.locator("#answers img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("width", [360, 800, 1440])
def test_the_page_fits_the_screen_and_is_legible(seen, width, locale, scheme, tmp_path):
    page = seen(locale, width, scheme)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate(WIDE) <= 0
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text  # WCAG 2, level AA
    if width <= 400:
        assert page.evaluate(SMALL, 44) == []
    shown = page.evaluate("""() => [...document.images].filter((image) => image.checkVisibility())
        .map((image) => image.naturalWidth && image.width)""")
    assert len(shown) == 3 and min(shown) >= 300
    assert len(page.screenshot(full_page=True, path=tmp_path / "page.png")) > 20_000
