"""Heat map of an adapter: one number per adapted module, blocks from top to bottom, module kinds across."""

from __future__ import annotations

from typing import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from jittor_lora.evaluation.charts import DPI, INK, SMALL, TEXT, TITLE, matplotlib_defaults
from jittor_lora.evaluation.fonts import find_font

_CELL = (1.5, 0.36)  # inches
_MARGINS = (2.6, 1.7)
_SMALLEST = (7.0, 3.2)
_COLOURS = "cividis"  # perceptually uniform, also for colour-blind readers


@matplotlib_defaults()
def heat_map(values: Mapping[tuple[str, str], float], *, title: str, quantity: str) -> Figure:
    """A cell with its number for each of `values`; missing cells are grey.

    Args:
        values: (row, column) → number, in display order.
        quantity: what the numbers are; the label of the colour bar.

    Raises:
        UserError: no font has the characters of the names.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    grid = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in values.items():
        grid[rows.index(row), columns.index(column)] = value
    face = find_font([title, quantity, *rows, *columns, "0123456789.,/e+-"], "en")
    size = [max(least, margin + cell * count) for least, margin, cell, count in
            zip(_SMALLEST, _MARGINS, _CELL, (len(columns), len(rows)))]
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#E3E3E3")
    image = axes.imshow(grid, cmap=_COLOURS, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.set_ylabel("block")
    heading = axes.set_title(title, loc="left", pad=10)
    bar = figure.colorbar(image, ax=axes, label=quantity)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = image.norm(value) < 0.5
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color="white" if dark else "black",
                      gid="cell")
    figure.draw_without_rendering()  # adds the colour bar's tick labels
    for text in figure.findobj(Text):
        text.set_fontproperties(face)
        text.set(size=SMALL)
        if text.get_gid() != "cell":
            text.set_color(INK)
    heading.set_size(TITLE)
    axes.yaxis.label.set_size(TEXT)
    bar.ax.yaxis.label.set_size(TEXT)
    return figure
