"""Charts of EM and F1 of several systems, and of their gains over the first: bars, or in rows if they are many."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jittor_lora.evaluation.bootstrap import Difference
from jittor_lora.evaluation.charts import (
    BLUE,
    DPI,
    FAINT,
    INK,
    LABELS,
    SIZE,
    SMALL,
    TEXT,
    TITLE,
    canvas,
    finish,
    interval_label,
    label_font,
    listed,
    matplotlib_defaults,
)
from jittor_lora.evaluation.compare import display_width
from jittor_lora.evaluation.metrics import Metrics

_COLOURS = ("#A6A6A6", BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_LEGEND_WIDTH, _LONGEST_NAME = 96, 40  # characters
_LONGEST_LABEL = 30  # columns of a terminal
_ROW, _AROUND, _MOST_INCHES = 0.27, 1.7, 100  # inches; with more than 360 rows they get closer


@matplotlib_defaults()
def score_chart(systems: Sequence[tuple[str, Metrics]], *, title: str | None = None, language: str = "en",
                font: str | os.PathLike | None = None) -> Figure:
    """EM and F1 of each of `systems` (name, metrics) with values and 95 % intervals: as bars, or in rows if there
    are more than six.

    The names "base" and "adapter" are spelt out in `language`. Other arguments as in `loss_chart`.

    Raises:
        UserError: no font has the characters.
    """
    labels = LABELS[language]
    names = [_shown_name(labels, name) for name, _ in systems]
    title = labels["score title"] if title is None else title
    sample = interval_label(language, [metrics for _, metrics in systems])
    values = np.array([[metrics.exact_match, metrics.f1] for _, metrics in systems])
    intervals = np.array([[metrics.exact_match_interval, metrics.f1_interval] for _, metrics in systems])
    if len(names) > len(_COLOURS):
        return _rows(names, values, intervals, "{:.1f}", labels, labels["score"], title, sample,
                     label_font(language, font, title, *names))
    figure, axes, face = canvas(language, font, title, *names)
    _grouped_bars(axes, names, values, intervals, _COLOURS, "{:.1f}")
    axes.set_ylim(0, max(1.0, intervals.max()) * 1.14)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda score, _: f"{score:g}" if score <= 100 else ""))
    axes.set_ylabel(labels["score"])
    _finish_bars(axes, face, title, labels, sample, names)
    return figure


@matplotlib_defaults()
def improvement_chart(first: str, systems: Sequence[tuple[str, Difference, Difference]], sample: Metrics, *,
                      language: str = "en", font: str | os.PathLike | None = None) -> Figure:
    """The gain over `first` of each of `systems` (name, difference in EM, difference in F1, in points): as
    bars, or in rows if there are more than five.

    Other arguments as in `loss_chart`.

    Args:
        sample: scores on the same questions.

    Raises:
        UserError: no font has the characters.
    """
    labels = LABELS[language]
    name_of_first, *names = (_shown_name(labels, name) for name in (first, *(name for name, *_ in systems)))
    title = labels["improvement title"].format(name=name_of_first)
    values = np.array([[difference.mean for difference in differences] for _, *differences in systems])
    intervals = np.array([[(difference.low, difference.high) for difference in differences]
                          for _, *differences in systems])
    if len(names) > len(_COLOURS) - 1:
        figure = _rows(names, values, intervals, "{:+.1f}", labels, labels["improvement"], title,
                       interval_label(language, [sample]), label_font(language, font, title, *names))
        for axes in figure.axes:
            axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        return figure
    figure, axes, face = canvas(language, font, title, *names)
    _grouped_bars(axes, names, values, intervals, _COLOURS[1:], "{:+.1f}")
    axes.axhline(0, color=INK, linewidth=1.2)
    low, high = min(0.0, intervals.min()), max(0.0, intervals.max())
    room = 0.14 * max(1.0, high - low)
    axes.set_ylim(low - room if low < 0 else 0, high + room if high > 0 or low == 0 else 0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda points, _: f"{points:+g}" if points else "0"))
    axes.set_ylabel(labels["improvement"])
    _finish_bars(axes, face, title, labels, interval_label(language, [sample]), names)
    return figure


def _grouped_bars(axes: Axes, names: Sequence[str], values: np.ndarray, intervals: np.ndarray,
                  colours: Sequence[str], number: str) -> None:
    """Bars of EM and F1 side by side: `values` (systems, 2), `intervals` (systems, 2, 2), `number` formats a value."""
    width = min(0.3, 0.84 / len(names))
    for index, (name, heights, ends) in enumerate(zip(names, values, intervals)):
        centres = np.arange(2) + (index - (len(names) - 1) / 2) * width
        low, high = ends.T
        axes.bar(centres, heights, width * 0.94, color=colours[index % len(colours)], label=listed(name))
        axes.errorbar(centres, heights, yerr=np.clip([heights - low, high - heights], 0, None), fmt="none", ecolor=INK,
                      elinewidth=1.4, capsize=5, capthick=1.4)
        for centre, height, bottom, top in zip(centres, heights, low, high):
            above = height >= 0
            axes.annotate(number.format(height), (centre, max(top, height) if above else min(bottom, height)),
                          xytext=(0, 4 if above else -4), textcoords="offset points", ha="center",
                          va="bottom" if above else "top", size=TEXT if len(names) < 5 else SMALL)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlim(-0.62, 1.62)


def _finish_bars(axes: Axes, face: FontProperties, title: str, labels: dict[str, str], intervals: str,
                 names: Sequence[str]) -> None:
    axes.set_xticks([0, 1], [labels["exact_match"], labels["f1"]])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(intervals)
    columns = _LEGEND_WIDTH // (max(map(display_width, names)) + 6)
    finish(axes, face, title, columns=max(1, min(columns, 3 if len(names) > 4 else 4)))
    axes.xaxis.label.set(size=SMALL, color=FAINT)
    for label in axes.get_xticklabels():
        label.set_size(TEXT)


def _rows(names: Sequence[str], values: np.ndarray, intervals: np.ndarray, number: str, labels: dict[str, str],
          axis: str, title: str, sample: str, face: FontProperties) -> Figure:
    """EM and F1 side by side, a row for each system; arguments as in `_grouped_bars`, `axis` names the values."""
    figure = Figure(figsize=(SIZE[0], min(_AROUND + _ROW * len(names), _MOST_INCHES)), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.02)
    rows = np.arange(len(names))
    for at, (axes, score) in enumerate(zip(figure.subplots(1, 2, sharey=True), ("exact_match", "f1"))):
        low, high = intervals[:, at].T
        axes.errorbar(values[:, at], rows, xerr=np.clip([values[:, at] - low, high - values[:, at]], 0, None), fmt="o",
                      color=BLUE, ecolor=INK, markersize=6, elinewidth=1.4, capsize=3, capthick=1.4)
        for row, value in zip(rows, values[:, at]):
            axes.annotate(number.format(value), (1, row), xycoords=axes.get_yaxis_transform(), xytext=(4, 0),
                          textcoords="offset points", va="center", size=SMALL)
        axes.set_title(labels[score], size=TEXT)
        axes.set_xlabel(axis, size=SMALL)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.grid(color="#E3E3E3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value and "+" in number else
                                                     f"{value:g}"))
    axes.set_yticks(rows, [_cut(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, x=0.02, ha="left", size=TITLE)
    figure.supxlabel(sample, size=SMALL)
    _set_font(figure, face)
    figure.draw_without_rendering()
    _set_font(figure, face)  # for tick labels added by the layout
    return figure


def _set_font(figure: Figure, face: FontProperties) -> None:
    for text in figure.findobj(Text):
        size = text.get_size()
        text.set_fontproperties(face)
        text.set(size=size, color=INK)


def _shown_name(labels: dict[str, str], name: str) -> str:
    """The name of a system, cut to fit the legend; "base" and "adapter" are spelt out."""
    name = labels[name] if name in ("base", "adapter") else name
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME - 1] + "…"


def _cut(name: str) -> str:
    """The name of a system, cut to fit beside its row."""
    if display_width(name) <= _LONGEST_LABEL:
        return name
    while display_width(name) >= _LONGEST_LABEL:
        name = name[:-1]
    return f"{name}…"
