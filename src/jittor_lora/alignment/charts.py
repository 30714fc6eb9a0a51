"""Charts of an alignment: both loss curves, their difference, and the final adapters' difference by module."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jittor_lora.alignment.result import Alignment, Check
from jittor_lora.alignment.words import WORDS, amount, say
from jittor_lora.evaluation.charts import (
    DPI,
    INK,
    LARGEST_LOSS,
    SMALL,
    TEXT,
    TITLE,
    add_legend,
    label_font,
    listed,
    matplotlib_defaults,
)

CHARTS = ("loss", "difference", "layers")
_SIZE = (8.0, 4.5)  # 1200 by 675 pixels
_BLUE, _VERMILION, _GREY, _GRID = "#0072B2", "#D55E00", "#777777", "#E3E3E3"
_LOWEST = 1e-9  # on the logarithmic axis; equal numbers are drawn there


@matplotlib_defaults()
def loss_chart(alignment: Alignment, language: str = "en", font: str | os.PathLike | None = None) -> Figure:
    """The second side's losses as a thin line on the wide one of the first: both are seen where they agree.

    Args:
        language: "en" or "zh".
        font: font file for the labels; None looks for one.

    Raises:
        UserError: no font has the characters.
    """
    figure, axes, face = _canvas(language, font, *alignment.names)
    looks = ({"color": "#9CC9E3", "linewidth": 5}, {"color": _VERMILION, "linewidth": 1.3})
    for name, steps, look in zip(alignment.names, alignment.steps, looks):
        shown = [(one.step, one.loss) for one in steps if math.isfinite(one.loss) and abs(one.loss) < LARGEST_LOSS]
        at, losses = zip(*shown) if shown else ((), ())
        axes.plot(at, losses, label=listed(name), solid_joinstyle="round", marker="o" if len(shown) == 1 else None,
                  **look)
    axes.set_ylabel(say(language, "axis loss"))
    return _finished(figure, axes, face, language, say(language, "chart loss"))


@matplotlib_defaults()
def difference_chart(alignment: Alignment, language: str = "en", font: str | os.PathLike | None = None) -> Figure:
    """Differences of losses and gradient norms by step, on a logarithmic axis, with their tolerances.

    Arguments as in `loss_chart`. Steps that are not finite are left out.

    Raises:
        UserError: no font has the characters.
    """
    figure, axes, face = _canvas(language, font)
    found = {check.key: check for check in alignment.checks}
    for key, colour in (("losses", _BLUE), ("gradient_norms", _VERMILION)):
        check = found.get(key)
        if check is None or not check.rows:
            continue
        name = say(language, "series loss difference" if key == "losses" else "series norm difference")
        rows = [(int(step), max(value, _LOWEST)) for step, value in check.rows if math.isfinite(value)]
        axes.plot(*(zip(*rows) if rows else ((), ())), color=colour, linewidth=1.3, label=name,
                  marker="o" if len(rows) == 1 else None)
        if check.tolerance:
            axes.axhline(check.tolerance, color=colour, linestyle="--", linewidth=1.2, label=say(
                language, "series tolerance", value=amount(check.tolerance)))
    axes.set_yscale("log")
    axes.set_ylabel(say(language, "axis difference"))
    _log_axis(axes.yaxis)
    return _finished(figure, axes, face, language, say(language, "chart difference"), columns=2)


@matplotlib_defaults()
def layers_chart(check: Check, language: str = "en", font: str | os.PathLike | None = None) -> Figure:
    """The final adapters' difference as a dot per module, by block: those of one kind have one colour.

    Arguments as in `loss_chart`.

    Args:
        check: of the final adapter.

    Raises:
        UserError: no font has the characters.
    """
    kinds = {kind: points for kind, points in _by_kind(check.rows).items() if points}
    figure, axes, face = _canvas(language, font, *kinds)
    colours = (_BLUE, _VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    for number, (kind, points) in enumerate(kinds.items()):
        axes.plot(*zip(*points), linestyle="none", marker="osD^vP*X"[number % 8], markersize=6,
                  color=colours[number % len(colours)], label=listed(kind))
    if check.tolerance:
        axes.axhline(check.tolerance, color=_GREY, linestyle="--", linewidth=1.2,
                     label=say(language, "series tolerance", value=amount(check.tolerance)))
    axes.set_yscale("log")
    _log_axis(axes.yaxis)
    axes.set_ylabel(say(language, "axis layers"))
    return _finished(figure, axes, face, language, say(language, "chart layers"), columns=4, across="axis block")


def _by_kind(rows: Sequence[tuple[str, float]]) -> Mapping[str, list[tuple[int, float]]]:
    """Kind of module → (block, difference); -1 is no block."""
    kinds: dict[str, list[tuple[int, float]]] = {}
    for name, value in rows:
        parts = name.split(".")
        at = next((number for number, part in enumerate(parts) if part.isdigit()), None)
        kind = ".".join(parts[at + 1:]) if at is not None else name
        points = kinds.setdefault(kind, [])
        if math.isfinite(value):
            points.append((int(parts[at]) if at is not None else -1, max(value, _LOWEST)))
    return kinds


def charts(alignment: Alignment, language: str, font: str | os.PathLike | None = None) -> Iterator[tuple[str, Figure]]:
    """(name of the file, figure) of those that there is something to draw in."""
    checks = {check.key: check for check in alignment.checks}
    yield "loss", loss_chart(alignment, language, font)
    if any(checks[key].rows for key in ("losses", "gradient_norms") if key in checks):
        yield "difference", difference_chart(alignment, language, font)
    final = checks.get("final_adapter")
    if final is not None and any(math.isfinite(value) for _, value in final.rows):
        yield "layers", layers_chart(final, language, font)


def _canvas(language: str, font: str | os.PathLike | None, *texts: str) -> tuple[Figure, Axes, FontProperties]:
    words = (text for key, text in WORDS[language].items() if key.startswith(("chart ", "axis ", "series ")))
    face = label_font(language, font, *words, *texts)
    figure = Figure(figsize=_SIZE, dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure, figure.add_subplot(), face


def _log_axis(axis) -> None:
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+00", "")))


def _finished(figure: Figure, axes: Axes, face: FontProperties, language: str, title: str, columns: int = 4,
              across: str = "axis step") -> Figure:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(say(language, across))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend = add_legend(axes, columns, handlelength=1.8, columnspacing=1.2)
    lines = math.ceil(len(legend.get_texts()) / columns)
    heading = axes.set_title(title, loc="left", pad=12 + 20 * lines)
    sizes = {heading: TITLE, axes.xaxis.label: TEXT, axes.yaxis.label: TEXT}
    _set_fonts(axes, face, sizes)
    figure.draw_without_rendering()
    _set_fonts(axes, face, sizes)  # for tick labels added by the layout
    return figure


def _set_fonts(axes: Axes, face: FontProperties, sizes: Mapping[Text, float]) -> None:
    for text in axes.findobj(Text):
        text.set_fontproperties(face)
        text.set(size=sizes.get(text, SMALL), color=INK)
