"""What all views share: languages, themes, the key, the connection; and the page's own rules against Python's."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from browser.measure import assert_legible, switch_language
from browser.scripted import Script, scripted
from jittor_lora.evaluation.squad import exact_match, f1
from jittor_lora.serving.views import page_files
from needs import needs_browser

pytestmark = needs_browser
KEY = "sk-0123456789"
VIEWS = ("ask", "write", "runs", "adapters")


@pytest.fixture(scope="module")
def address():
    with scripted(Script()) as address:
        yield address


def test_both_languages_have_the_same_strings(opened, address):
    page = opened(address)
    tables = page.evaluate("import('./page/i18n.js').then(({ STRINGS }) => STRINGS)")
    assert tables["en"].keys() == tables["zh"].keys() and len(tables["en"]) > 100
    for key in tables["en"]:
        texts = [table[key] if isinstance(table[key], dict) else {"other": table[key]} for table in tables.values()]
        assert all(text["other"].strip() for text in texts), key
        places = [{*re.findall(r"\{\w+\}", text["other"])} for text in texts]
        assert places[0] == places[1], key
        assert {"one", "other"} >= texts[0].keys() and ("one" not in texts[0] or "{n}" in texts[0]["one"]), key
    source = "".join(file.content.decode() for file in page_files.page_files().values())
    used = {*re.findall(r'\bt\("([\w.]+)"[,)]', source), *re.findall(r'data-t(?:-label)?="([\w.]+)"', source)}
    assert used <= tables["en"].keys(), used - tables["en"].keys()


@pytest.mark.parametrize("locale, lang, ask", [("en-GB", "en", "Ask"), ("zh-TW", "zh-CN", "问答"),
                                               ("de-DE", "en", "Ask")])
def test_the_browser_chooses_the_language_until_the_reader_does(opened, address, locale, lang, ask):
    page = opened(address, locale)
    assert page.evaluate("document.documentElement.lang") == lang
    assert page.inner_text("#title") == ask and page.title() == f"{ask} · jittor-lora"
    page.click("#language")
    other = {"en": "zh-CN", "zh-CN": "en"}[lang]
    assert page.evaluate("document.documentElement.lang") == other
    page.reload()
    page.wait_for_selector("#view > .view")
    assert page.evaluate("document.documentElement.lang") == other


def test_no_word_of_the_other_language_is_left(opened, address):
    page = opened(address, "zh-CN")
    for view in ("ask", "write"):
        page.click(f"#nav a[data-view={view}]")
        page.wait_for_selector(f".view-{view}:not(.settling)")
        shown = page.inner_text("header") + page.inner_text("main .heading") + page.inner_text("#view")
        switch_language(page)
        assert not re.search(r"[\u4e00-\u9fff]", page.inner_text("#view") + page.inner_text("main .heading"))
        switch_language(page)
        assert re.search(r"[\u4e00-\u9fff]", shown)


def test_the_theme_follows_the_system_until_the_reader_chooses(opened, address):
    page = opened(address, scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(15, 19, 23)"
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-theme=light]")
    assert page.evaluate(background) == "rgb(246, 247, 249)"
    page.click("#theme")
    assert page.evaluate(background) == "rgb(15, 19, 23)"
    page.reload()
    assert page.evaluate(background) == "rgb(15, 19, 23)"


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_key_is_asked_for(opened, locale, scheme, width):
    with scripted(Script(key=KEY)) as address:
        page = opened(address, locale, scheme, width)
        page.wait_for_selector("#key:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "key-field"
        assert page.locator("#state[data-state=key]").count() == 1
        assert_legible(page, width)
        for wrong in ("密钥", "wrong"):
            page.fill("#key-field", wrong)
            page.keyboard.press("Enter")
            page.locator("#key-note", has_text=re.compile("accept|不接受")).wait_for()
        page.fill("#key-field", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".models input")
        assert page.locator("#key").is_hidden() and page.locator(".problem").count() == 0
        page.locator("#state[data-state=ready]").wait_for()
        page.reload()  # the tab knows it
        page.wait_for_selector(".models input")
        assert page.locator("#key").is_hidden()
        assert page.evaluate("JSON.stringify(localStorage)").find(KEY) < 0
        assert {line.split(":")[0] for line in page.complaints} == {"Failed to load resource"}
        page.complaints.clear()


def test_the_connection_is_shown(opened):
    script = Script()
    with scripted(script) as address:
        page = opened(address)
        page.locator("#state[data-state=ready]").wait_for()
    page.locator(".paper textarea").fill("A text.")
    page.locator(".questions").fill("What?")
    page.locator(".questions").press("Control+Enter")
    page.wait_for_selector(".output .problem")
    assert "jittor-lora serve" in page.inner_text(".problem")
    assert page.locator("#state[data-state=away]").count() == 1
    assert page.input_value(".paper textarea") == "A text."
    page.complaints.clear()


def test_routes(opened, address):
    page = opened(f"{address}/#/nowhere/%E0%A4%A")
    assert page.inner_text("#title") == "Ask"
    for view in VIEWS:
        page.locator(f"#nav a[data-view={view}]").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(f".view-{view}")
        assert page.locator("#nav [aria-current=page]").get_attribute("data-view") == view
        assert page.evaluate("document.activeElement.id") == "title"
    assert len(page.title()) > len(" · jittor-lora")
    page.complaints.clear()  # this server has no runs


def test_a_screen_reader_is_told_once(opened, address):
    page = opened(address)
    page.evaluate("""() => {
      window.said = [];
      new MutationObserver(() => { const text = live.textContent; if (text) said.push(text); })
        .observe(live, { childList: true, characterData: true, subtree: true });
    }""")
    page.get_by_role("button", name="Try it").click()
    page.wait_for_selector(".output[aria-busy=false]")
    page.wait_for_timeout(300)
    said = page.evaluate("said")
    assert len(said) == 1 and said[0].startswith("smollm2-135m: The answer") and said[0].endswith("quickstart: One")
    assert page.locator(":is([aria-live], [role=log], [role=status]):is(.output *)").count() == 0


def test_nothing_blinks_where_motion_is_unwelcome(opened, address):
    page = opened(address, reduced_motion="reduce")
    page.get_by_role("button", name="Try it").click()
    page.wait_for_selector(".generated.streaming")
    style = "(node) => getComputedStyle(node, '::after').animationName"
    assert page.locator(".generated").first.evaluate(style) == "none"


@pytest.fixture(scope="module")
def module_page(chrome, address):
    """A page to call the page's own modules in."""
    page = chrome.new_page()
    page.goto(address)
    yield page
    page.close()


def call(page, module, body, *arguments):
    return page.evaluate(f"([...a]) => import('./page/{module}').then((m) => ({body})(m, ...a))", list(arguments))


MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.sampled_from("ab cA😀𝒜é中\n—'\".,!theTHE "), max_size=24)


@MANY
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_verdicts_are_those_of_the_evaluation(module_page, cases):
    found = call(module_page, "ask/match.js", "(m, cases) => cases.map(([text, refs]) => m.verdict(text, refs))", cases)
    for (text, references), verdict in zip(cases, found):
        assert (verdict["kind"] == "right") == bool(exact_match(text, references))
        if verdict["kind"] != "right":
            assert verdict["f1"] == pytest.approx(f1(text, references))


@MANY
@given(TEXTS, st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=5))
def test_spans_are_cut_at_code_points(module_page, text, pairs):
    spans = [(min(pair), max(pair)) for pair in pairs if max(pair) <= len(text)]
    body = """(m, text, spans) => {
      const units = m.unitsOf(text);
      const inUnits = spans.map(([start, end], i) => ({ start: units(start), end: units(end), kind: `k${i}` }));
      return [m.cut(text, inUnits), spans.map(([start, end]) => m.snippet(text, units(start), units(end), 5))];
    }"""
    parts, snippets = call(module_page, "ask/spans.js", body, text, spans)
    assert "".join(part for part, _ in parts) == text
    if spans and spans[0][0] < spans[0][1]:  # the first is whole
        assert "".join(part for part, kind in parts if kind == "k0") == text[slice(*spans[0])]
    for span, (before, inside, after) in zip(spans, snippets):
        assert inside == text[slice(*span)]
        assert text[:span[0]].endswith(before.lstrip("…")) and text[span[1]:].startswith(after.rstrip("…"))


@MANY
@given(st.lists(TEXTS.filter(bool), max_size=6), st.integers(1, 7), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_arrive_whole_however_they_are_cut(module_page, texts, size, end):
    lines = [": ping", ""]
    for text in texts:
        lines += [f"data: {line}" for line in text.split("\n")] + ["event: x", ""]
    sent = (end.join(lines) + end).encode()
    body = """async (m, bytes, size) => {
      const stream = new ReadableStream({ start(to) {
        for (let i = 0; i < bytes.length; i += size) to.enqueue(new Uint8Array(bytes.slice(i, i + size)));
        to.close();
      } });
      const found = [];
      for await (const data of m.events(stream)) found.push(data);
      return found;
    }"""
    assert call(module_page, "events.js", body, list(sent), size) == texts


@MANY
@given(st.lists(TEXTS.filter(bool), max_size=8), st.integers(0, 3))
def test_tokens_make_up_the_text(module_page, texts, hidden):
    text = "".join(texts)
    tokens = [{"text": f"bytes:\\x{i}" if i == hidden else one, "probability": 0.5, "likeliest": []}
              for i, one in enumerate(texts)]
    units = call(module_page, "write/tokens.js", "(m, text, tokens) => m.unitsOf(text, tokens)", text, tokens)
    assert "".join(unit["text"] for unit in units) == text
    if hidden >= len(texts):
        assert [unit["text"] for unit in units] == texts and all(len(unit["tokens"]) == 1 for unit in units)
