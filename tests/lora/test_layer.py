from __future__ import annotations

import numpy as np
import pytest

from jittor_lora.lora.adapted import ActiveAdapters
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.init import initial_pair
from jittor_lora.lora.layer import LoraLinear, Update
from jittor_lora.model.modules import Linear
from jittor_lora.ops import Matrix, frozen
from jittor_lora.system.runtime import jt

IN, OUT, R = 6, 12, 3
CONFIG = LoraConfig(r=R, alpha=2.0, target_modules=("c_attn",))


def normal(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def layer(config=CONFIG, name="h.0.attn.c_attn", bias=True, b=True):
    """A layer with one update, which acts."""
    base = Linear(Matrix.of(normal(OUT, IN, seed=1)), frozen(normal(OUT, seed=2)) if bias else None)
    active = ActiveAdapters()
    active.names = ("default",)
    made = LoraLinear(base, active, name)
    made.versions["default"] = Update(base, config, name)
    if b:
        update(made).lora_B.update(jt.array(normal(OUT, R, seed=3)))
    return made


def update(layer):
    return layer.versions["default"]


X = normal(5, IN, seed=4)


def out(module):
    return module(jt.array(X)).numpy()


def base_out(module):
    return X @ module.base.weight.numpy().T + (0 if module.base.bias is None else module.base.bias.numpy())


@pytest.mark.parametrize("bias", [True, False])
def test_update_is_scaling_times_b_a(bias):
    made = layer(bias=bias)
    product = update(made).lora_B.numpy() @ update(made).lora_A.numpy()
    np.testing.assert_allclose(out(made), base_out(made) + X @ product.T * (2.0 / 3), atol=1e-5)
    assert np.abs(out(made) - base_out(made)).max() > 0.1


def test_at_the_start_it_is_the_base():
    made = layer(b=False)
    assert update(made).lora_A.numpy().any()
    np.testing.assert_array_equal(out(made), made.base(jt.array(X)).numpy())


def test_disabled_it_is_the_base_also_when_merged():
    made = layer()
    base = made.base(jt.array(X)).numpy()
    with_update = out(made)
    with made.active.only():
        np.testing.assert_array_equal(out(made), base)
    made.merge()
    with made.active.only():
        np.testing.assert_array_equal(out(made), base)
    np.testing.assert_allclose(out(made), with_update, atol=1e-5)


def test_merged_weight_is_w_plus_b_a():
    made = layer()
    weight, before = made.base.weight.numpy(), out(made)
    made.merge()
    merged, _, beside = made.for_inference()
    assert beside is None
    expected = weight + np.float32(2.0 / 3) * (update(made).lora_B.numpy() @ update(made).lora_A.numpy())
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out(made), before, atol=1e-5)
    assert merged.var.is_stop_grad()


def test_merging_three_times_is_merging_once():
    made = layer()
    made.merge()
    once = made.for_inference()[0].numpy().tobytes()
    made.merge()
    made.merge()
    assert made.for_inference()[0].numpy().tobytes() == once


def test_unmerging_gives_the_very_bits_back():
    made = layer()
    weight, before = made.base.weight.numpy().tobytes(), out(made)
    for _ in range(3):
        made.merge()
        made.unmerge()
    made.unmerge()
    assert made.for_inference()[0].numpy().tobytes() == weight
    np.testing.assert_array_equal(out(made), before)


def test_qv_only_leaves_the_keys_alone():
    made = layer(LoraConfig(r=R, alpha=2.0, target_modules=("c_attn",), qv_only=True))
    full = layer()
    third = OUT // 3
    keys = slice(third, 2 * third)
    base = made.base(jt.array(X)).numpy()
    assert update(made).lora_B.numpy()[keys].any()  # even so
    np.testing.assert_array_equal(out(made)[:, keys], base[:, keys])
    others = np.r_[0:third, 2 * third : OUT]
    np.testing.assert_allclose(out(made)[:, others], out(full)[:, others], atol=1e-6)
    assert not update(made).effective_b()[keys].any()
    np.testing.assert_array_equal(made.effective_weight()[keys], made.base.weight.numpy()[keys])
    np.testing.assert_allclose(made.effective_weight()[others], full.effective_weight()[others], atol=1e-6)
    gradient = jt.grad((made(jt.array(X)) ** 2).sum(), update(made).lora_B).numpy()
    assert not gradient[keys].any()
    assert gradient[others].all()


def test_qv_only_is_about_the_fused_projection_alone():
    config = LoraConfig(r=R, alpha=2.0, target_modules=("c_attn", "c_proj"), qv_only=True)
    np.testing.assert_array_equal(out(layer(config, "h.0.mlp.c_proj")), out(layer(name="h.0.mlp.c_proj")))


class Unreadable:
    """A weight whose values cannot be had: whatever asks for them fails."""

    shape, precision = (OUT, IN), "fp32"

    def numpy(self):
        raise AssertionError("the weight was read")


def test_arrays_that_are_given_are_not_initialised():
    """DoRA would take the norms of the weight's rows."""
    base, config = Linear(Unreadable()), LoraConfig(r=R, use_dora=True)
    with pytest.raises(AssertionError, match="was read"):
        Update(base, config, "c_fc")
    values = {"lora_A": normal(R, IN), "lora_B": normal(OUT, R), "lora_magnitude_vector": normal(OUT)}
    made = Update(base, config, "c_fc", values=values)
    for part, array in made.trained.items():
        np.testing.assert_array_equal(array.numpy(), values[part])


def initial_a(config, columns, name, seed):
    a, b = initial_pair(config, name, seed, (5, columns), lambda: None)
    assert not b.any() and b.shape == (5, config.r)
    return a


@pytest.mark.parametrize("r", [2, 8])
def test_gaussian_start(r):
    a = initial_a(LoraConfig(r=r, init="gaussian"), 40000, "c_attn", 0)
    assert a.shape == (r, 40000) and a.dtype == np.float32
    assert a.std() == pytest.approx(1 / r, rel=0.02)
    assert abs(a.mean()) < 0.02 / r
    assert (np.abs(a) > 3 / r).mean() == pytest.approx(0.0027, rel=0.25)  # the tails of a normal distribution


def test_kaiming_start():
    a = initial_a(LoraConfig(r=8, init="kaiming"), 10000, "c_attn", 0)
    assert 0.0099 < np.abs(a).max() <= 0.01
    assert a.std() == pytest.approx(0.01 / 3**0.5, rel=0.02)
    assert abs(a.mean()) < 1e-4


def test_the_start_depends_on_name_and_seed_alone():
    config = LoraConfig(r=4)
    starts = [initial_a(config, 50, name, seed) for name, seed in (("a", 0), ("a", 1), ("b", 0))]
    np.testing.assert_array_equal(starts[0], initial_a(config, 50, "a", 0))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(starts[i].ravel(), starts[j].ravel())[0, 1]) < 0.3
