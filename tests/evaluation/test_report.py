from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from report_pages import HOSTILE, make_report

VOID = {"meta", "input", "img"}


class Page(HTMLParser):
    """Elements with their attributes and own texts; complains where end tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.open[-1][2] += data

    def all(self, tag):
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text(encoding="utf-8"))


def test_it_is_whole_and_texts_stay_texts(page):
    assert page.all("html")[0][0] == {"lang": "en"}
    assert page.all("title")[0][1] == page.all("h1")[0][1] == f"Title {HOSTILE}"
    assert [attributes.get("type") for attributes, _ in page.all("script")] == ["application/json", None]
    heads = [text for attributes, text in page.all("th") if attributes.get("scope") == "row"]
    assert "A & <b>" in heads


def test_nothing_is_fetched(page):
    addresses = [value for _, attributes, _ in page.elements for name, value in attributes.items()
                 if name in ("src", "href", "action", "srcset", "data", "poster")]
    assert addresses and all(address.startswith(("#", "data:image/svg+xml;base64,")) for address in addresses)
    (_, style), = page.all("style")
    assert "url(" not in style and "@import" not in style
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, *_ in page.elements}


def test_the_policy_allows_its_own_parts_alone(page):
    policy = next(attributes["content"] for attributes, _ in page.all("meta")
                  if attributes.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("style", page.all("style")[0][1]), ("script", page.all("script")[1][1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_data_hold_every_prediction(page):
    text = page.all("script")[0][1]
    assert not re.search("[<>&]", text)
    data = json.loads(text)
    assert data["systems"] == ["base", "A & <b>", "odd"]
    assert len(data["items"]) == 60 and len(data["contexts"]) == 12
    predictions = [item[7][0][0] for item in data["items"]]
    assert predictions[:4] == ["answer 0", HOSTILE, "", None]
    name, question, word, context, start, length, references, answers = data["items"][7]
    assert (name, question, word, references) == ("q7", "Who is number 7?", "who", ["answer 7"])
    assert answers == [["answer 7 or so", 0, 0.6667], ["answer 7 or so", 0, 0.6667], ["answer 7", 1, 1]]
    utf16 = data["contexts"][context].encode("utf-16-le")
    assert utf16[2 * start:2 * (start + length)].decode("utf-16-le") == "answer 7"


def test_every_picture_has_words_and_every_field_a_name(page):
    assert len(page.all("img")) == 2
    assert all(attributes["alt"] for attributes, _ in page.all("img"))
    labels = [text for _, text in page.all("label")]
    assert len(labels) == len(page.all("input")) + len(page.all("select")) and all(map(str.strip, labels))


def test_tables_and_sections_are_there(report, page):
    assert [attributes["id"] for attributes, _ in page.all("section")] == [
        "scores", "kinds", "duplicates", "settings", "predictions"]
    paragraphs = "".join(text for _, text in page.all("p"))
    assert "Questions that occur in the training data with the same context: 60." in paragraphs
    comparison = json.loads((report.parent / "comparison.json").read_text())
    assert [one["metrics"]["exact_match"] for one in comparison["systems"]] == pytest.approx([10, 50, 50])
    assert len(comparison["duplicates"]["questions"]) == 60
    assert comparison["extremes"]["base"]["best"][0]["id"] == "q0"
    assert {path.name for path in (report.parent / "plots").iterdir()} == {
        "scores.png", "scores.svg", "improvement.png", "improvement.svg"}


def test_same_input_same_bytes(report, tmp_path):
    text = make_report(tmp_path).read_text()
    assert text.replace(str(tmp_path), "") == report.read_text().replace(str(report.parents[1]), "")
