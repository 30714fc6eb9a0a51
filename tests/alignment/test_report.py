"""The forms of the report: page, Markdown, charts, tables, the lines for the terminal."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import string
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from matplotlib.text import Text
from PIL import Image

from alignment.synthetic import FACTS, gelu_erf, make_record, replaced, steps
from jittor_lora.alignment import charts, report_files
from jittor_lora.alignment.compare import compare
from jittor_lora.alignment.overlay import overlay
from jittor_lora.alignment.report_files import write_reports
from jittor_lora.alignment.report_text import lines_for_terminal, markdown, summary
from jittor_lora.alignment.words import LANGUAGES, WORDS, amount
from jittor_lora.errors import UserError
from needs import needs_cjk_font

pytestmark = pytest.mark.filterwarnings("error")  # Matplotlib warns of missing glyphs and of labels without room

HOSTILE = "</script><b>|`*</b>\n| x"
REFERENCES = {f"q{number}": [f"answer {number}"] for number in range(8)}
HERE, THERE = make_record(), make_record(there=True)
AGREES = compare(HERE, THERE, references=REFERENCES)
DIFFERS = compare(HERE, replaced(make_record(there=True, gelu=gelu_erf), "answers", q3=HOSTILE), references=REFERENCES)


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps texts and links."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_reports(folder, DIFFERS, files=[("pytorch_twin.py", "file twin", {})])
    return folder


def test_all_forms_are_written_whole(folder, tmp_path):
    written = write_reports(tmp_path / "new", DIFFERS, files=[("pytorch_twin.py", "file twin", {})])
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "alignment.md", "alignment.zh-CN.md", "difference.png", "layers.png", "loss.png", "report.html", "steps.csv",
        "summary.json"]
    for path in written:  # the same numbers give the same bytes
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_page_is_one_file_and_shows_hostile_texts_as_texts(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert [link for link in page.links if not link.startswith("data:")] == ["pytorch_twin.py", "steps.csv",
                                                                            "summary.json"]
    assert "default-src 'none'" in text and text.count("<script>") == 1 and "<b>" not in text
    assert "between h.0.mlp.c_fc and h.0.mlp.c_proj: the activation function" in page.texts
    assert "h.0.mlp.c_fc 与 h.0.mlp.c_proj 之间：激活函数不同" in page.texts
    assert HOSTILE in "".join(page.texts)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("alignment", [AGREES, DIFFERS])
def test_markdown_tables_have_a_cell_per_column(alignment, language):
    text = markdown(alignment, language)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1
    assert all(f"]({name}.png)" in text for name in ("loss", "difference"))
    assert "{" not in text and "nan" not in text


def test_markdown_of_a_failure_names_it():
    assert "between h.0.mlp.c\\_fc" not in markdown(DIFFERS, "en")
    assert "between h.0.mlp.c_fc and h.0.mlp.c_proj" in markdown(DIFFERS, "en")
    assert "最先出现差异之处" in markdown(DIFFERS, "zh")


def test_steps_of_both_sides_and_their_differences(folder):
    with open(folder / "steps.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60
    row = rows[30]
    assert float(row["loss_pytorch"]) - float(row["loss_jittor_lora"]) == float(row["loss_difference"])
    assert float(row["grad_norm_pytorch"]) == DIFFERS.steps[1][30].grad_norm


def test_sides_of_the_same_name_and_of_other_lengths(tmp_path):
    other = dataclasses.replace(AGREES, names=("run", "run"), steps=(HERE.steps, THERE.steps[:-5]))
    write_reports(tmp_path, other)
    with open(tmp_path / "steps.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60 and rows[-1]["loss_1"] and rows[-1]["loss_2"] == rows[-1]["loss_difference"] == ""


def test_summary_is_json_whatever_the_numbers(folder, tmp_path):
    found = json.loads((folder / "summary.json").read_text())
    assert found["agrees"] is False and found["first_failure"]["check"] == "activations"
    assert found["different_answers"] == {"q3": ["answer 3", HOSTILE]}
    broken = compare(HERE, dataclasses.replace(THERE, steps=tuple(
        dataclasses.replace(step, loss=math.nan, grad_norm=math.inf) for step in THERE.steps)))
    found = json.loads(json.dumps(summary(broken), allow_nan=False))
    losses = next(check for check in found["checks"] if check["check"] == "losses")
    assert losses["passed"] is False and losses["found"] is None
    write_reports(tmp_path / "broken", broken)  # charts without a finite number, too
    assert "∞" in (tmp_path / "broken" / "report.html").read_text(encoding="utf-8")


def test_lines_for_the_terminal():
    lines = lines_for_terminal(AGREES)
    assert lines[0] == "jittor-lora and PyTorch agree in all 12 checks"
    assert "0 of 8 greedy answers differ." in lines and len(lines) < 10
    lines = lines_for_terminal(DIFFERS)
    assert lines[0] == "jittor-lora and PyTorch differ: 2 of 12 checks fail"
    assert lines[1].startswith("first: Activations, logits: 3.3e-4, tolerance 1e-5")
    assert "the activation function" in lines[2]


def test_with_dropout_all_forms_say_what_is_not_compared(tmp_path):
    found = compare(HERE, THERE, dropout=True)
    (tmp_path / "layers.png").write_bytes(b"of an earlier report")
    write_reports(tmp_path, found)
    assert not (tmp_path / "difference.png").exists() and not (tmp_path / "layers.png").exists()
    for name, language in (("report.html", "en"), ("report.html", "zh"), ("alignment.md", "en"),
                           ("alignment.zh-CN.md", "zh")):
        assert WORDS[language]["dropout note"] in (tmp_path / name).read_text(encoding="utf-8")
    assert WORDS["en"]["dropout note"] in lines_for_terminal(found)


def test_both_languages_have_the_same_sentences():
    english, chinese = WORDS["en"], WORDS["zh"]
    assert english.keys() == chinese.keys()
    for key in english:
        fields = [sorted({field for _, field, _, _ in string.Formatter().parse(words[key]) if field})
                  for words in (english, chinese)]
        assert fields[0] == fields[1], key


@pytest.mark.parametrize("value, unit, shown", [
    (None, "relative", "–"), (math.inf, "relative", "∞"), (0.0, "relative", "0"), (2e-6, "relative", "2e-6"),
    (1.23e-10, "nats", "1.2e-10"), (0.0123, "relative", "0.012"), (1234, "count", "1,234"), (2e9, "nats", "2e+09")])
def test_numbers(value, unit, shown):
    assert amount(value, unit) == shown


# --- charts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=needs_cjk_font)])
def test_charts(language):
    drawn = dict(charts.charts(AGREES, language))
    assert list(drawn) == ["loss", "difference", "layers"]
    for name, figure in drawn.items():
        texts = {text.get_text() for text in figure.findobj(Text)}
        assert WORDS[language][f"chart {name}"] in texts
        inside, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert inside.x0 >= 0 and inside.y0 >= 0 and inside.x1 <= width and inside.y1 <= height
    curves = [line.get_ydata() for line in drawn["loss"].axes[0].lines]
    assert [list(curve) for curve in curves] == [[step.loss for step in side] for side in AGREES.steps]
    assert drawn["difference"].axes[0].get_yscale() == "log"


def test_a_png_of_1200_pixels(folder):
    for name in ("loss", "difference", "layers"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == (1200, 675)


def test_without_a_chinese_font_the_page_has_the_english_charts(tmp_path, monkeypatch):
    drawn = charts.charts

    def only_english(alignment, language, font=None):
        if language == "zh":
            raise UserError("No font on this machine has all characters")
        yield from drawn(alignment, language, font)

    monkeypatch.setattr(report_files, "charts", only_english)
    write_reports(tmp_path, AGREES)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<img") == 3 and WORDS["zh"]["heading checks"] in text
    with pytest.raises(UserError, match="No font"):
        write_reports(tmp_path / "zh", AGREES, language="zh")


@needs_cjk_font
def test_png_charts_in_chinese(folder, tmp_path):
    write_reports(tmp_path, DIFFERS, language="zh", files=[("pytorch_twin.py", "file twin", {})])
    assert (folder / "loss.png").read_bytes() != (tmp_path / "loss.png").read_bytes()
    pages = [(one / "report.html").read_bytes() for one in (folder, tmp_path)]
    assert pages[0] == pages[1] and pages[0].count(b"<img") == 6


def test_svg_charts_in_the_page_are_xml(folder):
    import base64

    text = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert found and all(ElementTree.fromstring(base64.b64decode(one)).tag.endswith("svg") for one in found)


# --- a foreign log ---------------------------------------------------------------------------------------------------


def test_losses_of_a_log_and_nothing_else(tmp_path):
    log = tmp_path / "their <log>.txt"
    log.write_text("\n".join(f"{{'loss': {step.loss + 0.01:.4f}, 'step': {step.step}}}" for step in steps()))
    found, notes = overlay(steps(), FACTS, log)
    assert notes == () and found.checks == () and found.agrees
    write_reports(tmp_path / "out", found)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "alignment.md", "alignment.zh-CN.md", "loss.png", "report.html", "steps.csv", "summary.json"]
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    texts = "".join(page.texts)
    assert "At the 60 steps that both report, losses differ by 0.01 nats in the mean, by 0.01 at most (step " in texts
    assert "their <log>.txt" in texts
    assert "agree" not in " ".join(lines_for_terminal(found))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["agrees"] is None


def test_a_log_of_epochs_is_spread_over_the_run(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("\n".join(f"epoch {epoch}: loss {3 - epoch / 10:.2f}" for epoch in range(1, 7)))
    found, notes = overlay(steps(), FACTS, log)
    assert [step.step for step in found.steps[1]] == [10, 20, 30, 40, 50, 60]
    assert "spread evenly" in notes[-1]
    log.write_text("nothing here")
    with pytest.raises(UserError, match="log.txt"):
        overlay(steps(), FACTS, log)
