"""All weights trained in place of an adapter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tiny
from jittor_lora.errors import UserError
from jittor_lora.inference.generate import generate
from jittor_lora.lora.whole import TrainedTensors, WholeModel
from jittor_lora.model.load import build_model
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.batches import streams_of
from jittor_lora.training.gradients import batch_gradients


def network(family, precision="fp32"):
    source = tiny.VARIANTS[family]
    return build_model(tiny.config(source), tiny.tensors(source), precision)


@pytest.mark.parametrize("family", tiny.VARIANTS)
def test_it_begins_as_the_base(family):
    model, tensors = network(family), tiny.tensors(tiny.VARIANTS[family])
    prompt = tiny.tokens(7).tolist()
    before = generate(model, [], [prompt], 9)
    whole = WholeModel(model)
    assert generate(model, [], [prompt], 9) == before
    assert whole.count() == sum(array.size for array in tensors.values())
    now = TrainedTensors(tensors, model)
    assert list(now) == list(tensors)
    assert all(np.array_equal(now[name], tensors[name]) and now[name].shape == tensors[name].shape for name in now)
    with pytest.raises(KeyError):
        now["lm_head.bias"]


@pytest.mark.parametrize("family", tiny.VARIANTS)
def test_gradients_are_the_same_with_activations_computed_again(family):
    streams, found = streams_of(tiny.groups(4), RunConfig(max_tokens_per_stream=512)), []
    for again in (False, True):
        model = network(family)
        whole = WholeModel(model)
        model.activation_checkpointing = again
        loss, gradients = batch_gradients(model, streams, whole.parameters(), smoothing=0.1)
        found.append((loss, {name: gradient.numpy() for name, gradient in gradients.items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        most = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(found[1][1][name], gradient, atol=1e-5 * most, err_msg=name)
        assert np.abs(gradient).max() > 0, name


def test_arrays_are_set_all_or_none():
    whole = WholeModel(network("gpt2"))
    arrays = {name: np.full(parameter.shape, 2.0, np.float32) for name, parameter in whole.parameters().items()}
    whole.load(arrays)
    assert all((parameter.numpy() == 2).all() for parameter in whole.parameters().values())
    arrays.pop("transformer.ln_f.weight")
    with pytest.raises(UserError, match="transformer.ln_f.weight: missing"):
        whole.load(arrays)
    with pytest.raises(UserError, match="no such module"):
        whole.load_initial({"x": np.zeros(1)})


def test_what_is_kept_for_the_gradients():
    """About 1,000 rows of two layers, width 128: each array kept is half a MiB, and some 35 are."""
    source = {**tiny.LLAMA, "hidden_size": 128, "head_dim": 32, "intermediate_size": 256,
              "max_position_embeddings": 2000}
    model = build_model(tiny.config(source), tiny.tensors(source))
    whole = WholeModel(model)
    streams = streams_of(tiny.groups(4, longer=20), RunConfig(max_tokens_per_stream=2000))
    jt.sync_all()
    jt.gc()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = memory_mib("VmRSS")
    batch_gradients(model, streams, whole.parameters())
    assert memory_mib("VmHWM") - before < 80  # 21; 148 where Jittor derives the products itself


def memory_mib(kind: str) -> float:
    return int(re.search(rf"{kind}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
