from __future__ import annotations

import dataclasses
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import Difference
from jittor_lora.evaluation.charts import (
    LABELS,
    _thinned,
    loss_chart,
    moving_average,
    save_chart,
)
from jittor_lora.evaluation.loss_logs import LossCurves, LossSeries
from jittor_lora.evaluation.metrics import Metrics
from jittor_lora.evaluation.system_charts import improvement_chart, score_chart

pytestmark = pytest.mark.filterwarnings("error")  # Matplotlib warns of missing glyphs and of labels without room

STEPS = np.arange(1.0, 401.0)
CURVES = LossCurves(LossSeries(STEPS, 1 + 2 * np.exp(-STEPS / 80) + 0.1 * np.sin(STEPS)),
                    LossSeries(np.array([0.0, 100, 200, 300, 400]), np.array([3.0, 1.6, 1.25, 1.21, 1.3])))
BASE = Metrics(4.25, 11.34, 400, 0, (2.5, 6.3), (9.0, 13.7), "article", 16)
ADAPTER = Metrics(41.5, 55.94, 400, 0, (36.8, 46.3), (51.3, 60.4), "article", 16)
SYSTEMS = [("base", BASE), ("adapter", ADAPTER)]


def texts(figure):
    return {text.get_text() for text in figure.findobj(Text) if text.get_visible()}


def texts_of_svg(path):
    """Matplotlib writes each text as a comment before its outlines."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    root = ElementTree.parse(path, ElementTree.XMLParser(target=builder)).getroot()
    return [element.text.strip() for element in root.iter(ElementTree.Comment)]


def test_loss_chart_shows_both_losses_and_marks_the_lowest(tmp_path):
    figure = loss_chart(CURVES, smoothing=20)
    png, svg = save_chart(figure, tmp_path / "loss")
    assert (png.name, svg.name) == ("loss.png", "loss.svg")
    assert {"Loss during training", "Optimizer step", "Loss (nats per token)", "training", "training, mean of 20",
            "validation", "lowest: 1.21 at step 300"} <= set(texts_of_svg(svg))
    raw, smoothed, validation, star = figure.axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), CURVES.train.losses)
    np.testing.assert_array_equal(smoothed.get_ydata(), moving_average(CURVES.train.losses, 20))
    np.testing.assert_array_equal(validation.get_xydata(),
                                  np.transpose([CURVES.validation.steps, CURVES.validation.losses]))
    assert star.get_xydata().tolist() == [[300, 1.21]]


def test_smoothed_labels_are_named():
    """Training losses with them lie above validation losses, which have none."""
    smoothed = dataclasses.replace(CURVES, label_smoothing=0.1)
    assert "training, label smoothing 0.1" in texts(loss_chart(smoothed))
    assert "training, label smoothing 0.1" in texts(loss_chart(smoothed, smoothing=1))
    assert "training" in texts(loss_chart(CURVES))


def test_png_is_1200_pixels_wide_and_shows_both_lines(tmp_path):
    png = save_chart(loss_chart(CURVES), tmp_path / "loss", ["png"])[0]
    image = Image.open(png).convert("RGB")
    assert image.size == (1200, 675)
    counts = {colour: count for count, colour in image.getcolors(1 << 24)}
    assert counts[(0x00, 0x72, 0xB2)] > 1000
    assert counts[(0xD5, 0x5E, 0x00)] > 500


def test_all_text_is_inside_and_large_enough():
    smoothed = dataclasses.replace(CURVES, label_smoothing=0.1)
    for figure in (loss_chart(CURVES), loss_chart(smoothed), score_chart(SYSTEMS)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure.axes[0].get_tightbbox(canvas.get_renderer())  # of everything drawn, labels too
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1200 and box.y1 <= 675
        for text in figure.findobj(Text):
            assert not text.get_text() or text.get_size() >= 10  # points at 150 dpi: 21 pixels


def test_score_chart_has_values_names_and_whiskers(tmp_path):
    figure = score_chart(SYSTEMS)
    svg = save_chart(figure, tmp_path / "scores", ["svg"])[0]
    assert {"4.2", "11.3", "41.5", "55.9", "Exact match", "F1", "Score (%)", "base model", "with adapter",
            "400 questions of 16 articles; whiskers: 95 % intervals"} <= set(texts_of_svg(svg))
    heights = [[bar.get_height() for bar in container] for container in figure.axes[0].containers[::2]]
    assert heights == [[4.25, 11.34], [41.5, 55.94]]
    whiskers = figure.axes[0].containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in whiskers], [[2.5, 6.3], [9.0, 13.7]])
    assert figure.axes[0].get_ylim()[0] == 0


def test_improvement_chart_has_bars_on_both_sides_of_zero(tmp_path):
    more, less = Difference(20.0, 15.0, 25.0, 0.01), Difference(-5.0, -8.0, -2.0, 0.2)
    figure = improvement_chart("base", [("adapter", more, less), ("other", less, more)], BASE)
    svg = save_chart(figure, tmp_path / "improvement", ["svg"])[0]
    assert {"Gain over base model", "+20.0", "-5.0", "with adapter", "other", "Difference (points)",
            "400 questions of 16 articles; whiskers: 95 % intervals"} <= set(texts_of_svg(svg))
    assert [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers[::2]] == [[20, -5], [-5, 20]]
    low, high = figure.axes[0].get_ylim()
    assert low < -8 and high > 25


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_improvement_chart_of_one_sign_or_none_keeps_zero_in_sight(value, tmp_path):
    difference = Difference(value, value, value, 1.0)
    figure = improvement_chart("base", [("x", difference, difference)], BASE)
    save_chart(figure, tmp_path / "improvement")
    low, high = figure.axes[0].get_ylim()
    assert low <= 0 <= high and low <= value <= high and low < high


def test_long_names_leave_room_for_the_bars():
    difference = Difference(1.0, 0.5, 1.5, 0.1)
    names = [f"a name that is rather long for a legend, number {number}" for number in range(5)]
    for figure in (improvement_chart("base", [(name, difference, difference) for name in names], BASE),
                   score_chart([(name, BASE) for name in names])):
        FigureCanvasAgg(figure).draw()
        assert figure.axes[0].get_window_extent().width > 900
        assert all(len(text.get_text()) <= 40 for text in figure.axes[0].get_legend().get_texts())


def test_chinese_labels_are_drawn_with_the_font_that_has_them(tmp_path, make_font):
    font = make_font(set("".join(LABELS["zh"].values()) + "0123456789.,/e+-"))
    for figure, expected in ((loss_chart(CURVES, language="zh", font=font), LABELS["zh"]["loss title"]),
                             (score_chart(SYSTEMS, language="zh", font=font), "\u52a0\u9002\u914d\u5668")):
        svg = save_chart(figure, tmp_path / "chart", ["svg"])[0]
        assert expected in texts_of_svg(svg)
        assert {text.get_fontproperties().get_file() for text in figure.axes[0].findobj(Text)} == {str(font)}
    with pytest.raises(UserError, match="lacks 1 characters"):
        score_chart([("\u5317", BASE)], language="zh", font=font)


def test_languages_have_the_same_labels():
    assert LABELS["en"].keys() == LABELS["zh"].keys()


def test_dollars_and_underscores_in_names_are_not_formulas(tmp_path):
    figure = score_chart([("$r_8$", BASE), ("a_b", ADAPTER)], title="$5 and $6")
    assert {"$r_8$", "a_b", "$5 and $6"} <= set(texts_of_svg(save_chart(figure, tmp_path / "s", ["svg"])[0]))


@pytest.mark.parametrize("name", ["_lr1", "__", "$x", "$\\frac{$", "50 %", "%s {a} {}", "\\alpha^2_1", "#1",
                                  "legend: x", "-"])
def test_any_name_is_in_the_legend_verbatim(name, tmp_path):
    """Matplotlib leaves out labels that start with an underscore, and sets text between dollars as a formula."""
    difference = Difference(1.0, 0.5, 1.5, 0.1)
    for figure in (score_chart([(name, BASE), ("b", ADAPTER)], title=name),
                   improvement_chart(name, [(name, difference, difference)], BASE)):
        legend = figure.axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()][0] == name
        handles = legend.legend_handles if hasattr(legend, "legend_handles") else legend.legendHandles
        assert len(handles) == len(legend.get_texts())
        assert name in " ".join(texts_of_svg(save_chart(figure, tmp_path / "s", ["svg"])[0]))
    figure = loss_chart(CURVES, title=name)
    assert name in texts_of_svg(save_chart(figure, tmp_path / "s", ["svg"])[0])


@pytest.mark.parametrize("unit, axis, place", [
    ("step", "Step", "lowest: 1.5 at step 2"), ("iteration", "Iteration", "lowest: 1.5 at iteration 2"),
    ("epoch", "Epoch", "lowest: 1.5 at epoch 2"), ("batch", "Batch", "lowest: 1.5 at batch 2"),
    ("order", "Losses in log order", "lowest: 1.5 at loss 2"),
    ("count", "Progress bar count", "lowest: 1.5 at 2")])
def test_the_axis_label_names_its_unit(unit, axis, place, tmp_path):
    series = LossSeries(np.array([1.0, 2.0]), np.array([2.0, 1.5]))
    for language in ("en", "zh"):
        assert {unit, f"at {unit}"} <= LABELS[language].keys()
    figure = loss_chart(LossCurves(series, series, unit))
    assert {axis, place} <= set(texts_of_svg(save_chart(figure, tmp_path / "loss", ["svg"])[0]))
    series = LossSeries(np.array([0.05, 0.1]), np.array([2.0, 1.5]))
    if unit == "epoch":
        assert "lowest: 1.5 at epoch 0.1" in texts(loss_chart(LossCurves(series, series, unit)))


def test_same_picture_same_bytes_whatever_the_users_settings(tmp_path):
    first = [path.read_bytes() for path in save_chart(loss_chart(CURVES), tmp_path / "first")]
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.facecolor": "red"}):
        second = [path.read_bytes() for path in save_chart(loss_chart(CURVES), tmp_path / "second")]
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second


@pytest.mark.parametrize("losses, bottom", [([3.0], None), ([0.0, 0.001, 0.0], 0.0), ([-1.0, -2.0], None),
                                            ([1e300, 1.0], 0.0), ([3.0, 3.0000001], None)])
def test_odd_losses_give_a_picture(tmp_path, losses, bottom):
    figure = loss_chart(LossCurves(LossSeries(np.arange(1.0, len(losses) + 1), np.array(losses)), None))
    save_chart(figure, tmp_path / "loss")
    if bottom is not None:
        assert figure.axes[0].get_ylim()[0] == bottom
    assert all(len(text) < 20 for text in texts(figure) if text[:1].isdigit())


@pytest.mark.parametrize("percent", [0.0, 100.0])
def test_extreme_scores_give_a_picture(tmp_path, percent):
    metrics = Metrics(percent, percent, 1, 0, (percent, percent), (percent, percent), "question", 1)
    figure = score_chart([("base", metrics)])
    svg = save_chart(figure, tmp_path / "scores", ["svg"])[0]
    assert f"{percent:.1f}" in texts_of_svg(svg)
    assert not {"110", "120"} & set(texts_of_svg(svg))


def test_moving_average():
    assert moving_average(np.array([4.0, 2.0, 6.0, 1.0]), 2).tolist() == [4.0, 3.0, 4.0, 3.5]


def test_thinning_keeps_ends_and_extremes():
    steps = np.arange(100_000.0)
    losses = np.sin(steps / 5000)
    losses[[33_333, 70_001]] = 50, -50
    kept_steps, kept = _thinned(steps, losses)
    assert len(kept) <= 4000
    assert {0, 33_333, 70_001, 99_999} <= set(kept_steps.astype(int))
    np.testing.assert_array_equal(kept, losses[kept_steps.astype(int)])


def test_pyplot_is_never_imported():
    code = "import sys, jittor_lora.evaluation.system_charts; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_chart(score_chart(SYSTEMS), tmp_path / "file" / "scores")
