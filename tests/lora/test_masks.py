"""A part of a stream takes its rows of the whole stream's dropout masks."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.lora.config import ALL_LINEAR, LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt

LENGTHS = (5, 6, 4)
STARTS = np.cumsum((0, *LENGTHS))


def adapted(family, **settings):
    source = tiny.VARIANTS[family]
    model = build_model(tiny.config(source), tiny.tensors(source))
    adapter = inject(model, LoraConfig(r=3, dropout=0.5, target_modules=ALL_LINEAR, **settings))
    adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
    return model, adapter


def states_and_gradients(model, adapter, texts, label_rows, **before):
    """Of the label rows of these texts, numbered as in all texts together, with loss weights that differ by row."""
    start, end = STARTS[texts[0]], STARTS[texts[-1] + 1]
    own = np.array([row - start for row in label_rows if start <= row < end], np.int32)
    lengths = [LENGTHS[text] for text in texts]
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    adapter.set_dropout(3, 5, 0)
    hidden = model.hidden(tiny.tokens(STARTS[-1])[start:end], positions, Layout.plain(*lengths), own, **before)
    weights = np.random.RandomState(1).rand(STARTS[-1], hidden.shape[1]).astype(np.float32)[start:end][own]
    parameters = adapter.parameters()
    gradients = jt.grad((hidden * hidden * jt.array(weights)).sum(), list(parameters.values()))
    return hidden.numpy(), {name: g.numpy() for name, g in zip(parameters, gradients)}


SOME, ALL = [3, 4, 6, 9, 12, 14], list(range(15))
ALL_OF_ONE = [4, *range(5, 11), 14]  # the middle text has as many rows in the last block as before it


@pytest.mark.parametrize("family, label_rows, settings", [
    *((family, rows, {}) for family in ("gpt2", "llama") for rows in (SOME, ALL_OF_ONE, ALL)),
    ("gpt2", ALL_OF_ONE, {"use_dora": True}),
    ("gpt2", ALL_OF_ONE, {"init": "pissa"}),
], ids=str)
def test_parts_add_up_to_the_whole(family, label_rows, settings):
    model, adapter = adapted(family, **settings)
    expected, whole = states_and_gradients(model, adapter, range(3), label_rows)
    found, summed = [], dict.fromkeys(whole, 0.0)
    for text in range(3):
        before = {"rows_before": STARTS[text], "label_rows_before": sum(row < STARTS[text] for row in label_rows)}
        states, gradients = states_and_gradients(model, adapter, [text], label_rows, **before)
        found.append(states)
        summed = {name: summed[name] + gradient for name, gradient in gradients.items()}
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    for name, gradient in whole.items():
        np.testing.assert_allclose(summed[name], gradient, atol=2e-5 * max(1, np.abs(gradient).max()), err_msg=name)


def test_without_their_place_parts_have_other_masks():
    model, adapter = adapted("gpt2")
    expected, _ = states_and_gradients(model, adapter, range(3), ALL_OF_ONE)
    for before in ({}, {"rows_before": 5}, {"rows_before": 5, "label_rows_before": 5}):
        found, _ = states_and_gradients(model, adapter, [1], ALL_OF_ONE, **before)
        assert np.abs(found - expected[1:7]).max() > 1e-3
