"""The report as one HTML page, in English and Chinese: no network, no other files."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from jittor_lora.alignment import words
from jittor_lora.alignment.cost import cost_rows, same_settings
from jittor_lora.alignment.html_parts import NUMBER, both, each, folded, section, table
from jittor_lora.alignment.result import Alignment, Check
from jittor_lora.alignment.words import LANGUAGES
from jittor_lora.evaluation.html_page import Chart, figure, filled

_PAGE = Path(__file__).parent / "page"
_SHOWN_ANSWERS = 200


def page(alignment: Alignment, charts: Mapping[str, Mapping[str, Chart]],
         files: Sequence[tuple[str, str, Mapping[str, str]]] = ()) -> str:
    """The whole page; the same arguments give the same text.

    Args:
        charts: name → language → chart; "loss", and what else there is.
        files: (path beside the page, key of its description, values for that) to link to.
    """
    checks = {check.key: check for check in alignment.checks}
    sections = [_overview(alignment, charts)]
    if not alignment.of_log:
        sections += [section("cost", "heading cost", _cost(alignment)),
                     section("scores", "heading scores", _scores(alignment)),
                     section("answers", "heading answers", _answers(alignment)),
                     section("layers", "heading layers", _layers(checks.get("final_adapter"), charts)),
                     section("activations", "heading activations", _activations(checks.get("activations")))]
    sections.append(section("steps", "heading steps", _steps(alignment)))
    sections.append(section("files", "heading files", _files(files)))
    failure = alignment.first_failure
    first, second = map(html.escape, alignment.names)
    return filled(_PAGE, {
        "TITLE": html.escape(words.verdict(alignment, "en")), "TITLE_ZH": html.escape(words.verdict(alignment, "zh")),
        "NAMES": f"{first} · {second} · " + both("step count", count=f"{len(alignment.steps[0]):,}"),
        "SWITCH": both("language"),
        "STATE": "plain" if alignment.of_log else "wrong" if failure else "right",
        "VERDICT": each(lambda language: words.verdict(alignment, language)), "LEAD": _lead(alignment),
        "CONTENT": "\n".join(filter(None, sections)),
    })


def _lead(alignment: Alignment) -> str:
    failure, parts = alignment.first_failure, []
    if alignment.of_log:
        parts.append(f'<p>{both("with note", second=alignment.names[1])}</p>'
                     f"<p>{each(lambda language: words.overlay(alignment, language))}</p>")
    if alignment.dropout:
        parts.append(f"<p>{both('dropout note')}</p>")
    text = f'<div class="lead">{"".join(parts)}</div>' if parts else ""
    if failure is None:
        return text
    heading = each(lambda language: words.say(language, "first failure", check=words.title(failure, language)))
    cause = each(lambda language: words.sentence(alignment, failure, language))
    return text + (f'<div class="first"><p>{heading}</p><p class="cause">{cause}</p>'
                   f'<p class="note">{both("cause")}</p></div>')


def _overview(alignment: Alignment, charts: Mapping[str, Mapping[str, Chart]]) -> str:
    growth = next((check.values for check in alignment.checks if check.key == "losses"), {})
    told = f'<p class="note">{both("growth", **growth)}</p>' if "early" in growth else ""
    curves = section("curves", "heading curves", _charts(charts, "loss") + _charts(charts, "difference") + told)
    if not alignment.checks:
        return curves
    checks = section("checks", "heading checks", _checks(alignment))
    return f'<div class="overview">{curves}{checks}</div>'


def _checks(alignment: Alignment) -> str:
    rows = []
    for check in alignment.checks:
        state = words.state(check)
        # Of those that fail later the place alone: their reason may be the first one's.
        speaks = check is alignment.first_failure or state == "skipped"
        told = each(lambda language, check=check, speaks=speaks: words.sentence(alignment, check, language) if speaks
                     else words.place(check, language))
        found = each(lambda language, check=check: words.found(check, language))
        labels = [" ".join(f'data-{language}="{html.escape(words.say(language, f"column {name}"))}"'
                           for language in LANGUAGES) for name in ("found", "tolerance")]
        rows.append(f'<tr><th scope="row">{both(f"check {check.key}")}</th>'
                    f'<td class="result keep"><span class="{state}">{both(f"state {state}")}</span></td>'
                    f'<td class="number" {labels[0]}>{found}</td>'
                    f'<td class="number" {labels[1]}>{words.tolerance(check)}</td>'
                    f'<td class="where">{told}</td></tr>')
    heads = "".join(f'<th scope="col"{NUMBER if name in ("found", "tolerance") else ""}>{both(f"column {name}")}</th>'
                    for name in ("check", "result", "found", "tolerance", "where"))
    return (f'<table class="checks"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            f'<p class="note">{both("checks note")}</p>')


def _cost(alignment: Alignment) -> str:
    rows = []
    for label, first, second in cost_rows(alignment):
        mark = ' class="differs"' if first != second else ""
        rows.append([each(lambda language, label=label: label[language]), *(
            f"<span{mark}>{html.escape(text)}</span>" for text in (first, second))])
    same = {language: same_settings(alignment, language) for language in LANGUAGES}
    note = each(lambda language: words.say(language, "cost note", same=same[language]))
    return f'<p class="note">{note}</p>' + table(["", *map(html.escape, alignment.names)], rows, "cost")


def _scores(alignment: Alignment) -> str:
    if not all(alignment.scores):
        return ""
    rows = [[both("exact match"), *(f"{one.exact_match:.2f}" for one in alignment.scores)],
            [both("f1"), *(f"{one.f1:.2f}" for one in alignment.scores)]]
    return (f'<p class="note">{both("of questions", count=f"{alignment.scores[0].count:,}")}</p>'
            + table(["", *map(html.escape, alignment.names)], rows, "scores"))


def _answers(alignment: Alignment) -> str:
    if not alignment.answered:
        return ""
    told = both("answers note", different=f"{len(alignment.answers):,}", count=f"{alignment.answered:,}")
    rows = [[html.escape(name), *map(html.escape, texts)]
            for name, texts in list(alignment.answers.items())[:_SHOWN_ANSWERS]]
    heads = [both("column question"), *map(html.escape, alignment.names)]
    return f'<p class="note">{told}</p>' + (table(heads, rows, "answers", "text") if rows else "")


def _layers(check: Check | None, charts: Mapping[str, Mapping[str, Chart]]) -> str:
    if check is None or not check.rows:
        return ""
    return (f'<p class="note">{both("layers note")}</p>{_charts(charts, "layers")}'
            + _details(check.rows, "column module", "layers"))


def _activations(check: Check | None) -> str:
    if check is None or not check.rows:
        return ""
    return f'<p class="note">{both("activations note")}</p>' + _details(check.rows, "column module", "activations")


def _steps(alignment: Alignment) -> str:
    """Loss, gradient norm and learning rate of both sides, with differences."""
    sides = [{step.step: step for step in steps} for steps in alignment.steps]
    columns = [("loss", "{:.6f}")]
    if not alignment.of_log:
        columns += [("grad_norm", "{:#.5g}"), ("learning_rate", "{:.4g}")]
    heads, rows = [both("column step")], []
    for column, _ in columns:
        heads += [f"{both(f'column {column}')}, {html.escape(name)}" for name in alignment.names]
        heads += [both("column difference")] if column != "learning_rate" else []
    for number in sorted(set(sides[0]) & set(sides[1])):
        row = [str(number)]
        for column, form in columns:
            first, second = (getattr(side[number], column) for side in sides)
            row += [form.format(first), form.format(second)]
            row += [words.signed(second - first)] if column != "learning_rate" else []
        rows.append(row)
    return folded(len(rows), table(heads, rows, "steps", "number", "tall")) if rows else ""


def _details(rows: Sequence[tuple[str, float]], head: str, name: str) -> str:
    cells = [[html.escape(row), words.amount(value)] for row, value in rows]
    return folded(len(rows), table([both(head), both("column difference")], cells, name, "number", "tall"))


def _files(files: Sequence[tuple[str, str, Mapping[str, str]]]) -> str:
    if not files:
        return ""
    items = "".join(f'<li><a href="{html.escape(path)}">{html.escape(path)}</a>: {both(key, **values)}</li>'
                    for path, key, values in files)
    return f'<p class="note">{both("files note")}</p><ul class="files">{items}</ul>'


def _charts(charts: Mapping[str, Mapping[str, Chart]], name: str) -> str:
    drawn = charts.get(name, {})
    if len(drawn) == 1:  # for the other language there is no font
        return figure(*drawn.values())
    return "".join(f'<div class="{language}">{figure(chart)}</div>' for language, chart in drawn.items())
