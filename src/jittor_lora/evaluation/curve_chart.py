"""Chart of EM and F1 against the number of training examples, the rank, or the seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from jittor_lora.evaluation import charts
from jittor_lora.evaluation.charts import DPI, INK, SMALL, TEXT, TITLE, add_legend, matplotlib_defaults
from jittor_lora.evaluation.metrics import Metrics

_SIZE = (8.0, 4.5)
_FAINT, _GRID = "#777777", "#E3E3E3"
_SERIES = (("exact_match", "#0072B2", "o"), ("f1", "#D55E00", "s"))
_LABELS = {
    "en": {"exact_match": "Exact match", "f1": "F1", "base": "base: {name} {score:.1f}", "score": "Score (%)",
           "examples": "Training examples", "rank": "Rank of the update", "rank title": "Scores by rank",
           "seed": "Seed", "seed title": "Scores by seed", "mean": "mean: {name} {score:.1f}",
           "examples title": "Scores by training examples"},
    "zh": {"exact_match": "完全匹配（EM）", "f1": "F1", "base": "基座模型：{name} {score:.1f}", "score": "得分（%）",
           "examples": "训练样本数", "rank": "更新的秩", "examples title": "得分与训练样本数",
           "rank title": "得分与秩", "seed": "随机种子", "seed title": "得分与随机种子",
           "mean": "均值：{name} {score:.1f}"},
}


def label_font(language: str, font: str | os.PathLike | None) -> FontProperties:
    """The font for the chart's labels and numbers.

    Raises:
        UserError: no font has the characters.
    """
    return charts.label_font(language, font, *_LABELS[language].values())


@matplotlib_defaults()
def curve_chart(over: str, points: Sequence[tuple[int, Metrics]], base: Metrics | None = None, *,
                language: str = "en", font: str | os.PathLike | None = None) -> Figure:
    """EM and F1 of each point with 95 % intervals; the base's scores are dashed lines. Examples and ranks are on a
    logarithmic axis; seeds are side by side, and their means are lines.

    Args:
        over: "examples", "rank" or "seed": what the points' numbers are.
        language: "en" or "zh".
        font: font file for the labels; None looks for one.

    Raises:
        UserError: no font has the characters.
    """
    labels = _LABELS[language]
    face = label_font(language, font)
    figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    seeds = over == "seed"
    values = np.array([index if seeds else value for index, (value, _) in enumerate(points)], float)
    for shift, (name, colour, marker) in zip((-1, 1), _SERIES):
        scores = np.array([getattr(metrics, name) for _, metrics in points])
        low, high = np.transpose([getattr(metrics, f"{name}_interval") for _, metrics in points])
        axes.errorbar(values + 0.05 * shift if seeds else values * 1.012**shift, scores,
                      yerr=np.clip([scores - low, high - scores], 0, None), color=colour, marker=marker, markersize=6,
                      linewidth=1.8, linestyle="none" if seeds else "-", capsize=4, label=labels[name])
        if seeds:
            axes.axhline(scores.mean(), color=colour, linewidth=1.2,
                         label=labels["mean"].format(name=labels[name], score=scores.mean()))
        if base is not None:
            score = getattr(base, name)
            axes.axhline(score, color=colour, linestyle="--", linewidth=1.2,
                         label=labels["base"].format(name=labels[name], score=score))
    if seeds:
        axes.set_xlim(-0.5, len(values) - 0.5)
    else:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(
        lambda value, _: f"{points[round(value)][0]}" if seeds else f"{value:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{labels[over]}\n{charts.interval_label(language, [metrics for _, metrics in points])}")
    axes.set_ylabel(labels["score"])
    add_legend(axes, 3 if seeds else 4, handlelength=1.8, columnspacing=1.2)
    title = axes.set_title(labels[f"{over} title"], loc="left", pad=54 if seeds else 32)  # a row of the legend more
    _set_fonts(axes, face, {title: TITLE, axes.yaxis.label: TEXT})
    figure.draw_without_rendering()
    _set_fonts(axes, face, {title: TITLE, axes.yaxis.label: TEXT})  # for tick labels added by the layout
    return figure


def _set_fonts(axes: Axes, face: FontProperties, sizes: Mapping[Text, float]) -> None:
    """Set the font of every text; texts not in `sizes` are small."""
    for text in axes.findobj(Text):
        text.set_fontproperties(face)
        text.set(size=sizes.get(text, SMALL), color=INK)
