"""What is written for the other side against what our own training reads."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jittor_lora.alignment import twin
from jittor_lora.alignment.inputs import MOST_ROWS, label_rows, written
from jittor_lora.alignment.watching import watched
from jittor_lora.data.groups import Branch, TokenGroup, separate
from jittor_lora.data.layout import Layout
from jittor_lora.data.stream import build_stream
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import leaf_modules
from jittor_lora.system.runtime import jt

TALK = TokenGroup([1, 2, 3], [Branch("talk", [4, 5], [6, 7, 8, 9, 10, 11], ((2, 4),))])


@given(st.integers(0, 500), st.sampled_from([0.0, 0.3, 1.0]))
def test_examples_are_those_of_the_streams(seed, weight):
    for group in separate([*tiny.groups(3, seed, longer=3), TALK]):
        stream, example = build_stream([group], weight), written(group, weight)
        scored = [at for at, value in enumerate(example["weights"]) if value]
        assert example["tokens"][:-1] == stream.tokens.tolist()
        assert [at - 1 for at in scored] == stream.label_rows[stream.label_index].tolist()
        assert [example["tokens"][at] for at in scored] == stream.labels.tolist()
        np.testing.assert_allclose([example["weights"][at] for at in scored], stream.label_weights, rtol=1e-6)
        assert label_rows(group, weight) == [at - 1 for at in scored][-MOST_ROWS:]


@pytest.mark.parametrize("variant", ["gpt2", "llama", "qwen3"])
def test_modules_are_watched_in_the_order_of_computation(variant):
    model = build_model(tiny.config(tiny.VARIANTS[variant]), tiny.tensors(tiny.VARIANTS[variant]))
    inject(model, LoraConfig(r=2, target_modules="all-linear"))
    tokens, before = tiny.tokens(9), [leaf.module for leaf in leaf_modules(model)]

    def final():
        with jt.no_grad():
            return model.hidden(tokens, np.arange(9, dtype=np.int32), Layout.plain(9)).numpy()

    expected = final()
    with watched(model) as arrays:
        found = final()
    np.testing.assert_array_equal(found, expected)
    assert all(one is other for one, other in zip(before, (leaf.module for leaf in leaf_modules(model))))
    names = [name[len("output."):] for name in arrays if name.startswith("output.")]
    assert set(names) == {leaf.name for leaf in leaf_modules(model)} - {"lm_head"}
    assert all(array.shape[0] == 9 and array.ndim == 2 for array in arrays.values())
    np.testing.assert_array_equal(arrays[f"output.{names[-1]}"], expected)
    np.testing.assert_array_equal(arrays[f"input.{names[0]}"][:, 0], tokens)
    for one, other in (("ln_1", "attn.c_attn"), ("input_layernorm", "self_attn.q_proj")):
        pairs = [(name, name.replace(one, other)) for name in names if name.endswith(one)]
        for norm, linear in pairs:
            assert names.index(norm) < names.index(linear)
            np.testing.assert_array_equal(arrays[f"output.{norm}"], arrays[f"input.{linear}"])


def test_the_script_needs_nothing_of_this_package():
    tree = ast.parse(twin.script_text(None))
    names = {name.split(".")[0] for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
             for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])}
    assert "torch" in names and "jittor_lora" not in names and "jittor" not in names
    package = Path(twin.__file__).parents[1]
    importing = [path for path in package.rglob("*.py") if "import pytorch_twin" in path.read_text(encoding="utf-8")]
    assert importing == []
