"""Writes every form of the report into a folder."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jittor_lora.alignment.charts import CHARTS, charts
from jittor_lora.alignment.report_page import page
from jittor_lora.alignment.report_text import markdown, summary
from jittor_lora.alignment.result import Alignment
from jittor_lora.alignment.words import LANGUAGES, say
from jittor_lora.errors import UserError
from jittor_lora.evaluation.charts import chart_bytes
from jittor_lora.evaluation.html_page import Chart
from jittor_lora.files.atomic import atomic_write, write_json

PAGE, STEPS, SUMMARY = "report.html", "steps.csv", "summary.json"
MARKDOWN = {"en": "alignment.md", "zh": "alignment.zh-CN.md"}
_COLUMNS = ("loss", "grad_norm", "learning_rate", "labels", "tokens", "seconds")
File = tuple[str, str, Mapping[str, str]]


def write_reports(folder: str | os.PathLike, alignment: Alignment, *, language: str = "en",
                  font: str | os.PathLike | None = None, files: Sequence[File] = ()) -> list[Path]:
    """Write report.html, alignment.md and alignment.zh-CN.md, the charts as PNG, steps.csv and summary.json.

    Args:
        language: of the PNG charts, "en" or "zh"; the page has both, if there is a font for Chinese.
        font: font file for the charts; None looks for one.
        files: what else to link to: path beside the page, key of its description in `words`, values for that.

    Returns:
        what was written.

    Raises:
        UserError: a file cannot be written, or no font has the characters of `language`.
    """
    folder, drawn, written = Path(folder), {}, []
    for one in (language, *(other for other in LANGUAGES if other != language)):
        try:
            for name, figure in charts(alignment, one, font):
                drawn.setdefault(name, {})[one] = Chart(chart_bytes(figure, "svg"), say(one, f"chart {name}"))
                if one == language:
                    written.append(_written(folder / f"{name}.png", chart_bytes(figure, "png")))
        except UserError:
            if one == language:
                raise
    for name in CHARTS:
        if name not in drawn:  # of a report with other checks
            (folder / f"{name}.png").unlink(missing_ok=True)
    written.append(folder / STEPS)
    _write_steps(folder / STEPS, alignment)
    for one, name in MARKDOWN.items():
        images = tuple(chart for chart in drawn if chart != "layers")
        written.append(_written(folder / name, markdown(alignment, one, images).encode()))
    write_json(folder / SUMMARY, summary(alignment))
    links = [*files, (STEPS, "file steps", {}), (SUMMARY, "file summary", {})]
    in_order = {name: {one: drawn[name][one] for one in LANGUAGES if one in drawn[name]} for name in drawn}
    written += [folder / SUMMARY, _written(folder / PAGE, page(alignment, in_order, links).encode())]
    return written


def _written(path: Path, content: bytes) -> Path:
    with atomic_write(path, "wb") as stream:
        stream.write(content)
    return path


def _write_steps(path: Path, alignment: Alignment) -> None:
    """A line per step of either side: both values of every column, and the difference of losses and norms."""
    sides = [{step.step: step for step in steps} for steps in alignment.steps]
    suffixes = [re.sub(r"\W+", "_", name).strip("_").lower() or str(number)
                for number, name in enumerate(alignment.names, 1)]
    if suffixes[0] == suffixes[1]:
        suffixes = ["1", "2"]
    heads = ["step"]
    for column in _COLUMNS:
        heads += [f"{column}_{suffix}" for suffix in suffixes]
        heads += [f"{column}_difference"] if column in ("loss", "grad_norm") else []
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(heads)
        for step in sorted(set(sides[0]) | set(sides[1])):
            row: list[object] = [step]
            for column in _COLUMNS:
                values = [getattr(side[step], column) if step in side else "" for side in sides]
                row += values
                if column in ("loss", "grad_norm"):
                    row.append("" if "" in values else values[1] - values[0])
            writer.writerow(row)
