"""A self-contained HTML page that compares systems on the same questions: no network, no other files."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jittor_lora.evaluation.bootstrap import Difference, Estimate
from jittor_lora.evaluation.breakdown import Group
from jittor_lora.evaluation.duplicates import Duplicates
from jittor_lora.evaluation.html_page import Chart, figure, filled, json_in_script
from jittor_lora.evaluation.items import Item
from jittor_lora.evaluation.seeds import CLAIM, TEXT_CLAIM, Runs, Spread, TextSpreads, text_rows
from jittor_lora.evaluation.standings import Standing, interval, p_value
from jittor_lora.evaluation.systems import System
from jittor_lora.evaluation.text import TextScore
from jittor_lora.files.atomic import atomic_write

_PAGE = Path(__file__).parent / "page"
_SHOWN_DUPLICATES = 20
_TEXT_CELL = ' class="text"'


@dataclass(frozen=True)
class Report:
    """Attributes:
        summary: one line about the data.
        systems: in the order of `standings`; the others are compared with the first.
        breakdowns: by system name.
        texts: by system name, group of prompts and score, see `evaluation.text.scores_by_group`.
        duplicates: None if no training data was given.
        charts: scores.
        curves: losses of the runs that trained the systems.
        runs: means over the systems that are runs of one.
        text_runs: their text scores, see `seeds.text_spreads`.
    """

    title: str
    summary: str
    items: Sequence[Item]
    systems: Sequence[System]
    standings: Sequence[Standing]
    breakdowns: Mapping[str, Mapping[str, Sequence[Group]]]
    texts: Mapping[str, Mapping[str, Mapping[str, TextScore]]] = field(default_factory=dict)
    duplicates: Duplicates | None = None
    charts: Sequence[Chart] = ()
    curves: Sequence[Chart] = ()
    runs: Sequence[Runs] = ()
    text_runs: TextSpreads = field(default_factory=dict)


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Write the page, atomically."""
    with atomic_write(path) as stream:
        stream.write(page(report))


def page(report: Report) -> str:
    """The whole page; the same report gives the same text."""
    sections = {"scores": ("Scores", _scores(report)), "kinds": ("By kind of question", _kinds(report)),
                "texts": ("Text scores", _texts(report)), "curves": ("Loss curves", _charts(report.curves)),
                "duplicates": ("Overlap with the training data", _duplicates(report.duplicates)),
                "settings": ("Settings", _settings(report.systems))}
    sections = {name: section for name, section in sections.items() if section[1]}
    links = [(name, title) for name, (title, _) in sections.items()] + [("predictions", "All predictions")]
    return filled(_PAGE, {
        "TITLE": html.escape(report.title), "SUMMARY": html.escape(report.summary),
        "SECTIONS": "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in links),
        "CONTENT": "\n".join(f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
                             f"{content}</section>" for name, (title, content) in sections.items()),
        "DATA": json_in_script(_data(report)),
    })


def _data(report: Report) -> dict[str, Any]:
    """The data that page.js shows; its format is described there."""
    contexts: dict[str, int] = {}
    rows = []
    for number, item in enumerate(report.items):
        at = contexts.setdefault(item.context, len(contexts)) if item.context else -1
        start = _utf16(item.context[:item.start]) if item.start >= 0 else -1
        answers = [(one.prediction, one.em, round(one.f1, 4))
                   for one in (system.score.per_question[number] for system in report.systems)]
        rows.append((item.id, item.question, item.question_word if item.context else "", at, start,
                     _utf16(item.answer), item.references, answers))
    return {"systems": [system.name for system in report.systems], "contexts": list(contexts), "items": rows}


def _utf16(text: str) -> int:
    """The length of `text` as JavaScript counts it."""
    return len(text.encode("utf-16-le")) // 2


def _scores(report: Report) -> str:
    first = report.standings[0]
    heads = ["System", "Exact match", "F1"]
    heads += ["EM gain", "p", "F1 gain", "p", "Won", "Lost"] if len(report.standings) > 1 else []
    perplexities = [system.perplexity for system in report.systems]
    heads += ["Perplexity"] if any(perplexities) else []
    rows = []
    for standing, perplexity in zip(report.standings, perplexities):
        row = [_text(standing.name), _range(standing.metrics.exact_match, standing.metrics.exact_match_interval),
               _range(standing.metrics.f1, standing.metrics.f1_interval)]
        if len(report.standings) > 1:
            row += [*_difference(standing.exact_match), *_difference(standing.f1),
                    *((f"{standing.gained:,}", f"{standing.lost:,}") if standing.f1 else ("", ""))]
        if any(perplexities):
            row.append("" if perplexity is None else f"{perplexity:.3f}")
        rows.append(row)
    caption = f"{first.metrics.sample}, in percent; {first.metrics.claim}."
    if len(report.standings) > 1:
        caption += (f" Gain: points above {first.name} on the same questions, with the p-value of a randomisation test "
                    f"that swaps whole {first.metrics.unit}s (Holm-adjusted if there are several). Won: right where "
                    f"{first.name} is not; lost: the reverse.")
    missing = [f"<p>{_text(one.name)}: questions without a prediction, which count as 0: {one.metrics.missing:,}.</p>"
               for one in report.standings if one.metrics.missing]
    return _table(caption, heads, rows) + "".join(missing) + _runs(report.runs) + _charts(report.charts)


def _runs(found: Sequence[Runs]) -> str:
    if not found:
        return ""
    rows = [[_text(one.name), f"{one.f1.count}",
             *_spread(one.exact_match), *_spread(one.f1)] for one in found]
    means = _table(f"Means over runs, in percent; ±: standard deviation of a run; {CLAIM}.",
                   ["System", "Runs", "Exact match", "±", "F1", "±"], rows)
    if len(found) == 1:
        return means
    units = f"new {found[0].unit}s"
    rows = [[_text(one.name), *(cell for seeds, questions in ((one.exact_match_gain, one.exact_match_difference),
                                                              (one.f1_gain, one.f1_difference))
                                for cell in (_gain(seeds), *_difference(questions)))] for one in found[1:]]
    return means + _table(f"Gains of the means, in points above {found[0].name}, with 95 % intervals for new seeds on "
                          f"the same questions, and for {units} and these very runs; the p-values are of the latter.",
                          ["System", "EM gain, new seeds", units, "p", "F1 gain, new seeds", units, "p"], rows)


def _kinds(report: Report) -> str:
    heads = ["Kind", "Questions"]
    for system in report.systems:
        heads += [f"{system.name}: EM", f"{system.name}: F1"]
    rows: list[list[str]] = []
    for kind, groups in report.breakdowns[report.systems[0].name].items():
        rows.append([_text(kind)])
        for number, group in enumerate(groups):
            row = [_text(group.name), f"{group.count:,}"]
            for system in report.systems:
                found = report.breakdowns[system.name][kind][number]
                row += [_range(one.mean, (one.low, one.high)) for one in (found.exact_match, found.f1)]
            rows.append(row)
    return _table(f"In percent; {report.standings[0].metrics.claim}. Lengths are in words, in Chinese and "
                  "Japanese in characters; length and place are those of the most frequent reference answer.",
                  heads, rows)


def _texts(report: Report) -> str:
    if not report.texts:
        return ""
    rows: list[list[str]] = []
    groups = next(iter(report.texts.values()))
    for group, names in groups.items():
        rows += [[_text(group)]] if len(groups) > 1 else []
        for name in names:
            found = [report.texts[system.name][group][name] for system in report.systems]
            rows.append([_text(name), *(one.shown for one in found), _text(found[0].note)])
    heads = ["Score", *(system.name for system in report.systems), "How"]
    return _table("BLEU, ROUGE, METEOR and TER in percent; CIDEr from 0 to 10. TER counts edits: lower is better. "
                  "95 % intervals are for new prompts.", heads, rows,
                  text_columns=(len(heads) - 1,)) + _text_runs(report.text_runs)


def _text_runs(found: TextSpreads) -> str:
    if not found:
        return ""
    rows = [[_text(label), *(cell for one in spreads for cell in _spread(one))] for label, spreads in text_rows(found)]
    return _table(f"Means over runs; ±: standard deviation of a run; {TEXT_CLAIM}.",
                  ["Score", *(head for name in found for head in (name, "±"))], rows)


def _duplicates(found: Duplicates | None) -> str:
    if found is None:
        return ""
    text = (f"<p>Questions that occur in the training data with the same context: {len(found.questions):,}. Questions "
            f"about a context that occurs there: {len(found.contexts):,}.</p>")
    if found.questions:
        rows = [[_text(first), _text(second)] for first, second in found.questions[:_SHOWN_DUPLICATES]]
        text += _table(f"The first {len(rows)}.", ["Id in the training data", "Id here"], rows, text_columns=(1,))
    return text


def _settings(systems: Sequence[System]) -> str:
    names = list(dict.fromkeys(name for system in systems for name in system.settings))
    rows = [[_text(name), *(_text(system.settings.get(name, "")) for system in systems)] for name in names]
    heads = ["Setting", *(system.name for system in systems)]
    return _table("How the answers were generated.", heads, rows, text_columns=range(1, len(heads))) if rows else ""


def _charts(charts: Sequence[Chart]) -> str:
    figures = "".join(map(figure, charts))
    return f'<div class="charts">{figures}</div>' if charts else ""


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Iterable[int] = ()) -> str:
    """`rows` are HTML, `caption` and `heads` text. The first cell heads its row; a single cell heads the rows below."""
    columns = set(text_columns)
    lines = []
    for first, *others in rows:
        if not others:
            lines.append(f'<tr><th colspan="{len(heads)}" scope="rowgroup">{first}</th></tr>')
            continue
        cells = "".join(f"<td{_TEXT_CELL if at in columns else ''}>{cell}</td>"
                        for at, cell in enumerate(others, 1))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    head = "".join(f'<th scope="col"{_TEXT_CELL if at in columns else ""}>{_text(name)}</th>'
                   for at, name in enumerate(heads))
    return (f'<p class="note">{_text(caption)}</p><div class="scroll" tabindex="0" role="region" '
            f'aria-label="{html.escape(caption)}"><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


def _range(value: float, ends: tuple[float, float]) -> str:
    return f'{value:.2f} <span class="range">{interval(*ends)}</span>'


def _spread(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "absent", ""
    return _range(spread.mean, (spread.low, spread.high)), f"{spread.deviation:.2f}"


def _gain(gain: Estimate | Difference | None) -> str:
    return "" if gain is None else \
        f'{gain.mean:+.2f} <span class="range">{interval(gain.low, gain.high, "+")}</span>'


def _difference(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "", ""
    return _gain(difference), _text(p_value(difference.p_value))


def _text(value: object) -> str:
    return html.escape(str(value))
