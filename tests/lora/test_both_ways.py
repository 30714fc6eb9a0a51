"""An adapter gives the same alone, on top of others and merged into the weight, whatever its settings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora import ops
from jittor_lora.lora.adapted import ActiveAdapters
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.layer import LoraLinear, Update
from jittor_lora.model.modules import Linear
from jittor_lora.ops import Matrix, frozen
from jittor_lora.system.runtime import jt

IN, OUT, ROWS = 7, 12, 5
NAME = "h.0.attn.c_attn"
few = settings(max_examples=40, deadline=None)

configs = st.builds(
    LoraConfig, r=st.sampled_from([1, 3, 6]), alpha=st.sampled_from([1.0, 16.0]),
    dropout=st.sampled_from([0.0, 0.1, 0.5]), target_modules=st.just(("c_attn",)),
    init=st.sampled_from(["gaussian", "kaiming", "pissa", "pissa_niter_4", "olora"]), qv_only=st.booleans(),
    use_rslora=st.booleans(), use_dora=st.booleans())
trains = st.booleans()  # dropout is active only in training
biases = st.sampled_from(["none", "frozen", "trained"])

# Settings that take different paths.
DORA_WITHOUT_A_PART = LoraConfig(r=3, dropout=0.5, target_modules=("c_attn",), init="pissa", use_dora=True)
PLAIN = LoraConfig(r=3, dropout=0.5, target_modules=("c_attn",))


def normal(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def base(bias="none"):
    return Linear(Matrix.of(normal(OUT, IN, seed=1)), None if bias == "none" else frozen(normal(OUT, seed=2)))


def trained(config, linear, bias="none", training=True, seed=3):
    """An update as it may be after some steps of training."""
    update = Update(linear, config, NAME, seed, with_bias=bias == "trained")
    for i, array in enumerate(update.trained.values()):
        array.update(jt.array(array.numpy() * 0.9 + 0.3 * normal(*array.shape, seed=seed + i)))
    update.dropout_seed = 11 * seed if training else None
    return update


def values_and_gradients(run, updates):
    """The output of `run` for an input, and the gradients of the input and of all trained arrays."""
    x, arrays = jt.array(normal(ROWS, IN, seed=4)), [v for update in updates for v in update.trained.values()]
    y = run(x)
    gradients = jt.grad((y * jt.array(normal(ROWS, OUT, seed=5))).sum(), [x, *arrays])
    return [y.numpy(), *(g.numpy() for g in gradients)]


def check_same(found, expected):
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_part_taken_out_of_the_weight_sees_the_whole_input(init, dora):
    linear, x = base(), jt.array(normal(ROWS, IN, seed=4))
    config = LoraConfig(r=3, dropout=0.5, target_modules=("c_attn",), init=init, use_dora=dora)
    update = trained(config, linear)
    onto = update.apply_to_output(ops.linear(x, linear.weight), x, linear.weight)
    check_same([onto.numpy()], [update.output(x, linear.weight, None).numpy()])


# Jittor takes minutes to compile the gradients of each kind of adapter at the first run.
@pytest.mark.slow
@few
@given(configs, trains)
@example(DORA_WITHOUT_A_PART, True)
@example(LoraConfig(r=3, dropout=0.5, target_modules=("c_attn",), init="olora", use_dora=True), True)
@example(PLAIN, True)
def test_alone_and_onto_the_base(config, training):
    linear = base()
    update = trained(config, linear, training=training)
    alone = values_and_gradients(lambda x: update.output(x, linear.weight, None), [update])
    onto = values_and_gradients(
        lambda x: update.apply_to_output(ops.linear(x, linear.weight), x, linear.weight), [update])
    check_same(onto, alone)


@pytest.mark.slow
@few
@given(configs, configs, trains, biases, st.booleans())
@example(DORA_WITHOUT_A_PART, PLAIN, True, "trained", True)
@example(DORA_WITHOUT_A_PART, PLAIN, True, "none", False)
def test_beside_another_that_changes_nothing(config, other, training, bias, first):
    """Before or after an adapter whose update is zero, it gives what it gives alone: with DoRA too, the other scales by
    one."""
    linear = base(bias)
    update, idle = trained(config, linear, bias, training), Update(linear, other, NAME)
    if not other.changes_base:
        idle.lora_B.update(jt.zeros(idle.lora_B.shape))  # otherwise it changes nothing as it starts
    idle.dropout_seed = None
    layer = LoraLinear(linear, ActiveAdapters(), NAME)
    layer.versions.update(update=update, idle=idle)
    alone = values_and_gradients(lambda x: layer.run(x, ("update",)), [update])
    names = ("idle", "update") if first else ("update", "idle")
    together = values_and_gradients(lambda x: layer.run(x, names), [update])
    check_same(together, alone)


@pytest.mark.slow
@few
@given(configs, biases)
@example(DORA_WITHOUT_A_PART, "trained")
def test_beside_the_weight_and_in_it(config, bias):
    linear = base(bias)
    update = trained(config, linear, bias, training=False)
    b = None if bias == "none" else update.bias.numpy() if bias == "trained" else linear.bias.numpy()
    x = normal(ROWS, IN, seed=4)
    beside = update.output(jt.array(x), linear.weight, None if b is None else jt.array(b)).numpy()
    within = x @ update.merged(linear.weight.numpy(), linear.weight.numpy()).T
    check_same([beside], [within if b is None else within + b])
