"""Charts of many systems: a row each."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from jittor_lora.evaluation.bootstrap import Difference
from jittor_lora.evaluation.charts import SMALL, save_chart
from jittor_lora.evaluation.metrics import Metrics
from jittor_lora.evaluation.system_charts import improvement_chart, score_chart

pytestmark = pytest.mark.filterwarnings("error")  # Matplotlib warns of labels without room

ONE = Metrics(41.5, 55.94, 400, 0, (36.8, 46.3), (51.3, 60.4), "article", 16)


def many(count, name="lora {}"):
    return [(name.format(number), dataclasses.replace(ONE, f1=50.0 + number % 7)) for number in range(count)]


def gains(count, name="lora {}"):
    return [(name.format(number), Difference(number / 10, -1.0, 9.0, 0.1), Difference(-number / 10, -9.0, 1.0, 0.1))
            for number in range(count)]


def boxes(figure):
    """The texts, and where they are; but for the numbers of the axes, some of which are not drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    numbers = {label for axes in figure.axes for label in axes.get_xticklabels()}
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in numbers]
    return shown, [text.get_window_extent(canvas.get_renderer()) for text in shown]


@pytest.mark.parametrize("count", [7, 20, 53])
@pytest.mark.parametrize("name", ["lora {}", "{} is a name that is rather long for a row", "{} " + 40 * "W",
                                  "{}" + 39 * "\u4e2d"])
def test_no_text_of_rows_lies_on_another_or_outside(count, name, make_font):
    look = {"font": make_font({chr(code) for code in range(32, 127)} | set("\u4e2d…"))} if "\u4e2d" in name else {}
    for figure in (score_chart(many(count, name), **look), improvement_chart("base", gains(count, name), ONE, **look)):
        shown, found = boxes(figure)
        width, height = figure.bbox.width, figure.bbox.height
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in found)
        assert width == 1200 and all(text.get_size() >= SMALL for text in shown)
        assert min(axes.get_window_extent().width for axes in figure.axes) > 120
        for one, other in itertools.combinations(found, 2):
            common = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(common) <= 1


def test_more_systems_than_colours_are_rows(tmp_path):
    assert [len(score_chart(many(count)).axes) for count in (6, 7)] == [1, 2]
    assert [len(improvement_chart("base", gains(count), ONE).axes) for count in (5, 6)] == [1, 2]
    figure = score_chart([("base", ONE), *many(7, "_lr $x$ {}")])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][:2] == ["base model", "_lr $x$ 0"]
    top, bottom = (figure.axes[0].transData.transform((0, row))[1] for row in (0, 7))
    assert top > bottom
    for axes, score, low, high in zip(figure.axes, (41.5, 55.94), (36.8, 51.3), (46.3, 60.4)):
        points, _, (whiskers,) = axes.containers[0].lines
        assert points.get_xdata()[0] == score
        np.testing.assert_allclose(whiskers.get_segments()[0][:, 0], [low, high])
    shown = {text.get_text() for text in figure.findobj(Text)}
    assert {"Exact match", "F1", "Score (%)", "41.5", "55.9", "53.0"} <= shown
    assert "400 questions of 16 articles; whiskers: 95 % intervals" in shown
    assert all(path.stat().st_size > 10_000 for path in save_chart(figure, tmp_path / "scores"))


def test_gains_in_rows_show_zero():
    figure = improvement_chart("base", [(str(n), *[Difference(5.0, 4.0, 6.0, 0.1)] * 2) for n in range(6)], ONE)
    assert all(axes.get_xlim()[0] <= 0 for axes in figure.axes)
    shown = {text.get_text() for text in figure.findobj(Text)}
    assert {"Gain over base model", "Difference (points)", "+5.0"} <= shown


def test_hundreds_of_systems_have_a_picture(tmp_path):
    assert save_chart(score_chart(many(600)), tmp_path / "scores", ["png"])[0].stat().st_size > 10_000
