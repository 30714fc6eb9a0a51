"""The chart of a run's losses, and what all charts share.

The colours are Okabe and Ito's palette, which is safe for colour-blind readers. Only Matplotlib's objects are used,
never pyplot: nothing here touches a display or another figure. Text is drawn as outlines, so that an SVG needs no font
where it is viewed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, ScalarFormatter

from jittor_lora.errors import UserError
from jittor_lora.evaluation.fonts import find_font
from jittor_lora.evaluation.loss_logs import LossCurves, LossSeries
from jittor_lora.evaluation.metrics import Metrics
from jittor_lora.files.atomic import atomic_write

LABELS = {
    "en": {
        "loss title": "Loss during training",
        "optimizer step": "Optimizer step",
        "step": "Step",
        "iteration": "Iteration",
        "batch": "Batch",
        "count": "Progress bar count",
        "epoch": "Epoch",
        "order": "Losses in log order",
        "at optimizer step": "at step {at}",
        "at step": "at step {at}",
        "at iteration": "at iteration {at}",
        "at batch": "at batch {at}",
        "at count": "at {at}",
        "at epoch": "at epoch {at}",
        "at order": "at loss {at}",
        "loss": "Loss (nats per token)",
        "raw": "training",
        "raw, smoothed labels": "training, label smoothing {share:g}",
        "smoothed": "training, mean of {count}",
        "validation": "validation",
        "best": "lowest: {loss} {place}",
        "score title": "Exact match and F1",
        "score": "Score (%)",
        "exact_match": "Exact match",
        "f1": "F1",
        "base": "base model",
        "adapter": "with adapter",
        "interval": "{samples}; whiskers: 95 % intervals",
        "article": "{count} questions of {units} articles",
        "paragraph": "{count} questions of {units} paragraphs",
        "question": "{count} questions",
        "prompt": "{count} prompts",
        "improvement title": "Gain over {name}",
        "improvement": "Difference (points)",
    },
    "zh": {
        "loss title": "训练过程中的损失",
        "optimizer step": "优化步数（步）",
        "step": "步数",
        "iteration": "迭代次数",
        "batch": "批次",
        "count": "进度条计数",
        "epoch": "轮次",
        "order": "日志中的损失序号",
        "at optimizer step": "第 {at} 步",
        "at step": "第 {at} 步",
        "at iteration": "第 {at} 次迭代",
        "at batch": "第 {at} 批",
        "at count": "计数 {at}",
        "at epoch": "第 {at} 轮",
        "at order": "第 {at} 个",
        "loss": "损失（奈特/词元）",
        "raw": "训练",
        "raw, smoothed labels": "训练，标签平滑 {share:g}",
        "smoothed": "训练，{count} 个值的移动平均",
        "validation": "验证",
        "best": "最低：{loss}（{place}）",
        "score title": "完全匹配（EM）与 F1",
        "score": "得分（%）",
        "exact_match": "完全匹配（EM）",
        "f1": "F1",
        "base": "基座模型",
        "adapter": "加适配器",
        "interval": "{samples}；误差线：95% 置信区间",
        "article": "{units} 篇文章的 {count} 个问题",
        "paragraph": "{units} 个段落的 {count} 个问题",
        "question": "{count} 个问题",
        "prompt": "{count} 个提示",
        "improvement title": "相对于“{name}”的提升",
        "improvement": "差值（百分点）",
    },
}

INK, FAINT = "#222222", "#777777"
BLUE, _PALE_BLUE, _VERMILION = "#0072B2", "#9CC9E3", "#D55E00"
SIZE, DPI = (8.0, 4.5), 150  # 1200 by 675 pixels
TITLE, TEXT, SMALL = 14, 12, 10.5  # points; at least 22 pixels of the 1200
_LISTED = "legend: "
LARGEST_LOSS = 1e300  # near the largest float, tick positions overflow
_SHOWN_POINTS = 4000  # more than the image has pixel columns


@contextlib.contextmanager
def matplotlib_defaults() -> Iterator[None]:
    """Matplotlib's default settings, whatever the user's matplotlibrc says, within the block or function."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "jittor-lora"
        matplotlib.rcParams["axes.unicode_minus"] = False  # WenQuanYi Zen Hei has no minus sign
        matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is not a formula
        yield


@matplotlib_defaults()
def loss_chart(curves: LossCurves, *, smoothing: int | None = None, title: str | None = None, language: str = "en",
               font: str | os.PathLike | None = None) -> Figure:
    """Training loss (raw, and its moving average) and validation loss with its minimum marked, over the run.

    Args:
        smoothing: window of the moving average; 1 draws none, None means a tenth of the losses, at most 50.
        language: "en" or "zh".
        font: font file for the labels; None looks for one.

    Raises:
        UserError: no font has the characters, or the losses are too large to draw.
    """
    labels = LABELS[language]
    train, validation = curves.train, curves.validation
    largest = max(np.abs(series.losses).max() for series in (train, validation or train))
    if largest > LARGEST_LOSS:
        raise UserError(f"the losses reach {largest:.1e}; none beyond {LARGEST_LOSS:.0e} can be drawn. Remove those "
                        "lines from the log.")
    title = labels["loss title"] if title is None else title
    smoothing = min(max(1, len(train.losses) // 10), 50) if smoothing is None else min(smoothing, len(train.losses))
    share = curves.label_smoothing
    raw = labels["raw, smoothed labels"].format(share=share) if share else labels["raw"]
    figure, axes, face = canvas(language, font, title)
    if smoothing > 1:
        _line(axes, train, color=_PALE_BLUE, linewidth=1.0, label=raw)
        _line(axes, LossSeries(train.steps, moving_average(train.losses, smoothing)), color=BLUE, linewidth=2.2,
              label=labels["smoothed"].format(count=smoothing))
    else:
        _line(axes, train, color=BLUE, linewidth=1.8, label=raw)
    if validation is not None:
        _line(axes, validation, color=_VERMILION, linewidth=1.8, marker="o", markersize=5, label=labels["validation"])
        best = int(np.argmin(validation.losses))
        axes.plot(validation.steps[best], validation.losses[best], linestyle="none", marker="*", markersize=17,
                  color=_VERMILION, markeredgecolor="white", markeredgewidth=1.2, zorder=4,
                  label=labels["best"].format(loss=f"{validation.losses[best]:.4g}", place=labels[
                      f"at {curves.unit}"].format(at=_place(validation.steps[best]))))
    if min(series.losses.min() for series in (train, validation or train)) >= 0:
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(labels[curves.unit])
    axes.set_ylabel(labels["loss"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=curves.unit != "epoch", nbins=8, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _place(place)))
    axes.yaxis.set_major_formatter(_loss_ticks(axes.get_ylim()[1]))
    finish(axes, face, title, columns=2 if share else 4)  # as many as fit
    return figure


def save_chart(figure: Figure, path: str | os.PathLike, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write `figure` as `path`.png and `path`.svg, each atomically; the same figure gives the same bytes.

    Raises:
        UserError: a file cannot be written.
    """
    written = []
    for suffix in formats:
        target = Path(f"{path}.{suffix}")
        with atomic_write(target, "wb") as stream:
            stream.write(chart_bytes(figure, suffix))
        written.append(target)
    return written


def chart_bytes(figure: Figure, suffix: str) -> bytes:
    """The content of a "png" or "svg" file; the same figure gives the same bytes."""
    stream, metadata = io.BytesIO(), {"Software": None} if suffix == "png" else {"Date": None, "Creator": None}
    with matplotlib_defaults():
        figure.savefig(stream, format=suffix, dpi=DPI, metadata=metadata)
    return stream.getvalue()


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Means (n,) of each of `values` (n,) and up to window − 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def label_font(language: str, font: str | os.PathLike | None, *texts: str) -> FontProperties:
    """The font for the charts' labels, numbers and `texts`.

    Raises:
        UserError: no font has the characters.
    """
    return find_font([*LABELS[language].values(), *texts, "0123456789.,/e+-"], language, font)


def interval_label(language: str, scores: Sequence[Metrics]) -> str:
    """What was scored, and what the whiskers show."""
    labels = LABELS[language]
    samples = sorted({(metrics.count, metrics.unit, metrics.units) for metrics in scores})
    shown = " / ".join(labels[unit].format(count=f"{count:,}", units=f"{units:,}") for count, unit, units in samples)
    return labels["interval"].format(samples=shown)


def listed(label: str) -> str:
    """A label for `add_legend`, marked so that Matplotlib lists it even if it starts with an underscore."""
    return _LISTED + label


def add_legend(axes: Axes, columns: int, **look: Any) -> Legend:
    """A legend above the axes, where it hides no data; labels from `listed` may start with any character."""
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.3,
                         **look)
    for text in legend.get_texts():
        text.set_text(text.get_text().removeprefix(_LISTED))
    return legend


def canvas(language: str, font: str | os.PathLike | None, *texts: str) -> tuple[Figure, Axes, FontProperties]:
    """An empty figure, and the font for its labels, numbers and `texts`."""
    face = label_font(language, font, *texts)
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure, axes, face


def _place(value: float) -> str:
    """A step, or an epoch, which may be a fraction."""
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:,.4g}"


def _loss_ticks(highest: float) -> Formatter:
    if highest >= 1e5:
        return FuncFormatter(lambda loss, _: f"{loss:.3g}")
    ticks = ScalarFormatter(useOffset=False)
    ticks.set_scientific(False)
    return ticks


def _line(axes: Axes, series: LossSeries, **style: object) -> None:
    steps, losses = _thinned(series.steps, series.losses)
    if len(steps) == 1 and "marker" not in style:
        style.update(marker="o", markersize=6)
    axes.plot(steps, losses, solid_joinstyle="round", **style)


def _thinned(steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_SHOWN_POINTS` points: the lowest and highest of each stretch, which keep the curve's outline."""
    if len(steps) <= _SHOWN_POINTS:
        return steps, losses
    kept = {0, len(steps) - 1}
    for stretch in np.array_split(np.arange(len(steps)), _SHOWN_POINTS // 2 - 1):
        kept.update((stretch[np.argmin(losses[stretch])], stretch[np.argmax(losses[stretch])]))
    order = np.array(sorted(kept))
    return steps[order], losses[order]


def finish(axes: Axes, face: FontProperties, title: str, columns: int) -> None:
    """Set grid, colours, legend (above the axes, where it hides no data), title and, on every text, `face`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=SMALL)
    box = add_legend(axes, columns, borderpad=0.2, handlelength=1.6, handletextpad=0.5, columnspacing=1.4)
    rows = math.ceil(len(box.get_texts()) / columns)
    axes.set_title(title, loc="left", size=TITLE, pad=12 + 20 * rows)
    _set_fonts(axes, face, box)
    axes.figure.draw_without_rendering()
    _set_fonts(axes, face, box)  # for tick labels added by the layout


def _set_fonts(axes: Axes, face: FontProperties, legend: Legend) -> None:
    sizes = {axes.xaxis.label: TEXT, axes.yaxis.label: TEXT, **dict.fromkeys(legend.get_texts(), SMALL),
             **dict.fromkeys((*axes.get_xticklabels(), *axes.get_yticklabels()), SMALL)}
    for text in axes.findobj(Text):
        size = sizes.get(text, text.get_size())
        text.set_fontproperties(face)
        text.set(size=size, color=INK)
