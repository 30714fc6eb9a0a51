"""The examples that adapt Jittor modules: they run, and adapters learn what their texts say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from needs import needs_sklearn

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(line: str) -> list[float]:
    """The numbers of a line of a table, after its name."""
    return [float(word.replace(",", "")) for word in line[16:].replace("±", " ").replace("–", " ").split()]


@needs_sklearn
def test_unet_runs(tmp_path, capsys):
    example("unet_adapter").main(["--quick", "--output", str(tmp_path)])
    table = {line[:13].strip(): line[13:] for line in capsys.readouterr().out.splitlines()[3:]}
    assert [*table] == ["damaged", "base", "gap adapter", "blur adapter", "off", "blur merged", "gap again",
                        "gap loaded"]
    assert table["off"] == table["base"] != table["gap adapter"] != table["blur adapter"]
    assert table["gap loaded"] == table["gap again"] == table["gap adapter"]
    assert {path.name for path in tmp_path.iterdir()} == {"gap", "blur"}


@pytest.mark.slow
@needs_sklearn
def test_unet_adapters_repair_what_the_base_cannot(tmp_path):
    unet = example("unet_adapter")
    states = unet.experiment(unet.FULL, 8, 1, tmp_path)
    mean = {state: {damage: values.mean() for damage, values in found.items()} for state, found in states.items()}
    assert mean["base"]["noise"] > mean["damaged"]["noise"] + 5
    for damage in ("gap", "blur"):
        assert mean[f"{damage} adapter"][damage] > max(mean["base"][damage], mean["damaged"][damage]) + 2
    for state, same in (("off", "base"), ("gap again", "gap adapter"), ("gap loaded", "gap adapter")):
        assert all(np.array_equal(values, states[same][damage]) for damage, values in states[state].items()), state
    for damage, values in states["blur merged"].items():
        np.testing.assert_allclose(values, states["blur adapter"][damage], rtol=0, atol=1e-2)


def test_transformer_runs(capsys):
    example("transformer_classifier").main(["--quick", "--questions", "64"])
    table = {line[:16].strip(): numbers(line) for line in capsys.readouterr().out.splitlines()[3:]}
    assert [*table] == ["the base itself", "last layer", "LoRA", "all weights"]
    assert table["last layer"][0] < table["LoRA"][0] < table["all weights"][0] / 2


@pytest.mark.slow
def test_transformer_learns_questions():
    transformer = example("transformer_classifier")
    rows, paragraphs = transformer.experiment(transformer.FULL._replace(seeds=1), 600, 8, 3e-3, 1)
    right = {row.method: row.right.mean(0) for row in rows}
    gain = right["LoRA"] - right["the base itself"]
    assert gain.mean() > transformer.half_interval(gain, paragraphs)
    assert right["LoRA"].mean() > right["all weights"].mean() - 0.05


@pytest.mark.slow
@needs_sklearn
def test_resnet_learns_sideways_digits():
    resnet = example("resnet_digits")
    resnet.main(["--quick", "--images", "40"])
    rows = {row.method: row for row in resnet.experiment(resnet.FULL._replace(seeds=1), 100, 8, 3e-3, 1)}
    sideways = {method: row.sideways.mean() for method, row in rows.items()}
    base = rows["the base itself"]
    assert base.upright.mean() > 0.95 and sideways["the base itself"] < 0.4
    assert sideways["LoRA"] > 0.75 and sideways["LoRA"] > sideways["last layer"] - 0.02
    assert rows["LoRA"].trained < 0.03 * rows["all weights"].trained == 0.03 * base.trained
