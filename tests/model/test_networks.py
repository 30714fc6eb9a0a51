from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.model.load import build_model
from jittor_lora.system.runtime import jt

GOLDEN = Path(__file__).parent.parent / "golden" / "networks.npz"  # made by tests/parity/make_golden.py


def network(variant, **changes):
    source = {**tiny.VARIANTS[variant], **changes}
    return build_model(tiny.config(source), tiny.tensors(source))


def logits(model, tokens, positions=None, layout=None, rows=None):
    tokens = np.asarray(tokens, np.int32)
    positions = np.arange(len(tokens), dtype=np.int32) if positions is None else np.asarray(positions, np.int32)
    with jt.no_grad():
        return model.logits(model.hidden(tokens, positions, layout or Layout.plain(len(tokens)), rows)).numpy()


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_logits_are_those_of_transformers(variant):
    expected = np.load(GOLDEN)[f"{variant}/logits"]
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(logits(network(variant), tiny.tokens(24)), expected, atol=2e-5)


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama3", "qwen2", "qwen3"])
def model(request):
    return network(request.param)


def test_a_shared_prefix_is_the_same_as_separate_texts(model):
    prefix, branches = tiny.tokens(9, 1), [tiny.tokens(n, 10 + n) for n in (5, 1, 7)]
    plain = tiny.tokens(6, 2)
    stream = np.concatenate([prefix, *branches, plain])
    positions = np.concatenate([np.arange(9), *[9 + np.arange(len(b)) for b in branches], np.arange(6)])
    shared = logits(model, stream, positions, Layout.of_lengths([(9, [5, 1, 7]), (6, [])]))
    row = 9
    for branch in branches:
        alone = logits(model, np.concatenate([prefix, branch]))
        np.testing.assert_allclose(shared[:9], alone[:9], atol=2e-5)
        np.testing.assert_allclose(shared[row : row + len(branch)], alone[9:], atol=2e-5)
        row += len(branch)
    np.testing.assert_allclose(shared[row:], logits(model, plain), atol=2e-5)


def test_a_row_knows_nothing_of_later_ones(model):
    tokens = tiny.tokens(12)
    changed = tokens.copy()
    changed[8:] = (changed[8:] + 1) % 61
    before, after = logits(model, tokens), logits(model, changed)
    np.testing.assert_array_equal(before[:8], after[:8])
    assert np.abs(before[8:] - after[8:]).max(1).min() > 0.01


def test_positions_matter(model):
    tokens = tiny.tokens(4)
    moved = logits(model, tokens, [0, 2, 4, 6])
    np.testing.assert_allclose(moved[0], logits(model, tokens)[0], atol=1e-5)
    assert np.abs(moved[3] - logits(model, tokens)[3]).max() > 0.01


def test_some_rows(model):
    tokens = tiny.tokens(8)
    np.testing.assert_allclose(logits(model, tokens, rows=[0, 7]), logits(model, tokens)[[0, 7]], atol=1e-5)


@pytest.mark.parametrize("token", [61, -1, 2**31 - 1])
def test_a_token_that_the_model_does_not_have(model, token):
    with pytest.raises(UserError, match=rf"token id {token} is out of range: the model has 0 to 60"):
        logits(model, [3, token, 5])


@pytest.mark.parametrize("position", [48, -1])
def test_a_position_that_the_model_does_not_have(model, position):
    with pytest.raises(UserError, match=f"position {position} is out of range: the model has 0 to 47"):
        logits(model, [3, 4], [0, position])


def test_an_empty_stream(model):
    with pytest.raises(UserError, match="empty"):
        logits(model, [])


def test_a_layout_of_another_stream(model):
    with pytest.raises(ValueError, match="3 tokens"):
        logits(model, [1, 2, 3], layout=Layout.plain(1))


def test_the_longest_text_is_taken(model):
    assert logits(model, tiny.tokens(48)).shape == (48, 61)


def test_weights_are_frozen(model):
    """None takes a gradient, and what is computed from them alone has no way back."""
    weights = [model.head().var]
    block = model.transformer.h[0] if hasattr(model, "transformer") else model.model.layers[0]
    for module in vars(block).values():
        weights += [v for v in vars(module).values() if isinstance(v, jt.Var)]
        inner = [m.weight for m in vars(module).values() if hasattr(m, "weight")]
        weights += [weight if isinstance(weight, jt.Var) else weight.var for weight in inner]
    assert len(weights) > 6
    assert all(weight.is_stop_grad() for weight in weights)
