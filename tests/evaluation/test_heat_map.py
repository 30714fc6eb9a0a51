from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from jittor_lora.evaluation.charts import save_chart
from jittor_lora.evaluation.heat_map import heat_map

pytestmark = pytest.mark.filterwarnings("error")  # Matplotlib warns of missing glyphs and of labels without room

KINDS = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj",
         "self_attn.v_proj")


def picture(blocks: int, kinds: int, scale: float = 1.0):
    values = {(str(i), kind): scale * (1 + i + k / 10) for i in range(blocks) for k, kind in enumerate(KINDS[:kinds])}
    return heat_map(values, title="adapter", quantity="Frobenius norm of ΔW")


@pytest.mark.parametrize("blocks, kinds, scale", [(1, 1, 1.0), (2, 1, 1e-6), (12, 4, 1e5), (30, 7, 1e-3)])
def test_all_text_is_inside_and_no_two_touch(blocks, kinds, scale):
    figure = picture(blocks, kinds, scale)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        box = axes.get_tightbbox(canvas.get_renderer())  # of everything drawn, labels too
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= canvas.get_width_height()[0]
        assert box.y1 <= canvas.get_width_height()[1]
    boxes = []
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            assert text.get_size() >= 10
            if text.get_gid() == "cell" or text in figure.axes[0].get_xticklabels():
                boxes.append(text.get_window_extent(canvas.get_renderer()))
    assert len(boxes) == blocks * kinds + kinds
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_every_value_is_in_its_cell_and_readable():
    figure = heat_map({("0", "a"): 1.0, ("0", "b"): 2.5, ("10", "b"): 9.0, ("–", "wte"): 4.0}, title="t", quantity="q")
    image = figure.axes[0].images[0]
    grid = np.asarray(image.get_array().filled(np.nan))
    np.testing.assert_array_equal(grid, [[1, 2.5, np.nan], [np.nan, 9, np.nan], [np.nan, np.nan, 4]])
    cells = {text.get_text(): text for text in figure.findobj(Text) if text.get_gid() == "cell"}
    assert set(cells) == {"1", "2.5", "9", "4"}
    for text in cells.values():
        column, row = map(int, text.get_position())
        red, green, blue, _ = image.cmap(image.norm(grid[row, column]))
        brightness = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert text.get_color() == ("white" if brightness < 0.52 else "black")


def test_the_same_picture_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_chart(picture(2, 3), tmp_path / name, ["png"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name", ["_a", "$x", "$\\frac{$", "50 %"])
def test_names_are_shown_verbatim(name):
    figure = heat_map({("0", name): 1.0}, title=name, quantity=name)
    FigureCanvasAgg(figure).draw()
    assert [text.get_text() for text in figure.findobj(Text)].count(name) >= 3
