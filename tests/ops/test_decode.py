"""The kernel that reads a whole network, against the operators: row by row, whatever else is read, on any threads."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from decoding import ALIGNED, ODD_HEADS, VARIANTS, adapted, check_close, ids, network, operators, read
from jittor_lora.errors import UserError
from jittor_lora.inference.fused_reader import FusedReader
from jittor_lora.inference.reader import Turn
from jittor_lora.inference.readers import readers_of
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import adapters_of
from jittor_lora.model.load import build_model
from jittor_lora.system import runtime
from needs import PRECISIONS, needs_bf16, needs_kernels

pytestmark = needs_kernels

@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(0, [1]), (7, [3, 1, 12]), (1, [2])])
def test_logits_are_those_of_the_operators(variant, shape):
    model = network(VARIANTS[variant])
    check_close(read(FusedReader(model), *shape), operators(model, *shape), 1e-5)


@pytest.mark.parametrize("shape", [(70, [33, 20]), (0, [100]), (64, [1, 32, 5])])
@pytest.mark.parametrize("source", [ODD_HEADS, ALIGNED])
def test_several_panels_of_keys(source, shape):
    model = network(source)
    check_close(read(FusedReader(model), *shape), operators(model, *shape), 1e-5)


def test_forty_branches_over_one_prefix():
    model, shape = network(ALIGNED), (40, [1 + b % 7 for b in range(40)])
    check_close(read(FusedReader(model), *shape), operators(model, *shape), 1e-5)


@pytest.mark.parametrize("r", [1, 5, 16, 33])
@pytest.mark.parametrize("variant", ["gpt2", "llama", "odd-heads", "qwen2", "qwen3"])
def test_adapters_of_any_rank(variant, r):
    model, _ = adapted(VARIANTS[variant], r=r)
    with_update = read(FusedReader(model), 6, [3, 4])
    check_close(with_update, operators(model, 6, [3, 4]), 1e-5)
    with adapters_of(model).off():
        base = read(FusedReader(model), 6, [3, 4])
    check_close(base, read(FusedReader(network(VARIANTS[variant])), 6, [3, 4]), 0)
    assert np.abs(with_update[0] - base[0]).max() > 0.1


def test_keys_left_out_of_the_adapter():
    model, _ = adapted(tiny.GPT2, qv_only=True)
    check_close(read(FusedReader(model), 6, [3]), operators(model, 6, [3]), 1e-5)


def test_a_reader_has_the_adapter_as_it_is():
    """Also a merged one, one that is switched off while merged, and one that has been trained on."""
    model, adapter = adapted(tiny.LLAMA)
    apart, adapters = read(FusedReader(model), 6, [3]), adapters_of(model)
    adapters.merge()
    check_close(read(FusedReader(model), 6, [3]), apart, 1e-5)
    with adapters.off():
        check_close(read(FusedReader(model), 6, [3]), read(FusedReader(network(tiny.LLAMA)), 6, [3]), 0)
    adapters.unmerge()
    check_close(read(FusedReader(model), 6, [3]), apart, 0)
    adapter.load({name: p.numpy() * 0.5 for name, p in adapter.parameters().items()})
    check_close(read(FusedReader(model), 6, [3]), operators(model, 6, [3]), 1e-5)


@needs_bf16
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16(variant):
    exact = operators(network(VARIANTS[variant]), 9, [4, 2])
    found = read(FusedReader(network(VARIANTS[variant], "bf16")), 9, [4, 2])
    check_close(found, exact, 4e-2)
    assert any(np.abs(ours - theirs).max() > 1e-4 for ours, theirs in zip(found, exact))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("source", [ODD_HEADS, ALIGNED])
def test_company_does_not_change_a_bit(source, precision):
    """Alone, with other branches, with other groups, and while those join: the same logits."""
    model, _ = adapted(source, precision)
    reader, prefix, prompt, steps = FusedReader(model), ids(40, 1), ids(9, 2), [ids(1, 90 + i) for i in range(3)]
    group = reader.open(40, [12])
    alone = [reader.logits([Turn(group, prefix, [(0, prompt)])])]
    alone += [reader.logits([Turn(group, (), [(0, step)])]) for step in steps]

    group, other = reader.open(40, [20] * 30), reader.open(3, [9] * 5)
    crowd = [(b, ids(1 + b % 8, b)) for b in range(30) if b != 17]
    late = [(b, ids(2, b)) for b in range(5)]
    turns = [[Turn(group, prefix, [*crowd[:17], (17, prompt), *crowd[17:]])],
             [Turn(group, (), [(2, ids(1, 3)), (17, steps[0]), (20, ids(1, 4))])],
             [Turn(other, ids(3, 5), late), Turn(group, (), [(17, steps[1])])],
             [Turn(other, (), [(4, ids(1))]), Turn(group, (), [(b, ids(1, b)) for b in range(17)] + [(17, steps[2])])]]
    rows = [17, 1, 5, 18]
    for expected, turn, row in zip(alone, turns, rows):
        np.testing.assert_array_equal(reader.logits(turn)[row], expected[0])


ADAPTERS = {
    "all": LoraConfig(r=5, target_modules="all-linear"),
    "large": LoraConfig(r=33, target_modules="all-linear"),
    "mlp": {"gpt2": LoraConfig(r=2, target_modules=("c_fc",)), "llama": LoraConfig(r=2, target_modules=("down_proj",))},
    "more": {"gpt2": LoraConfig(r=3, target_modules=("c_attn",), bias="all"), "llama": LoraConfig(r=3, use_dora=True)},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("source", [ODD_HEADS, ALIGNED, tiny.GPT2, tiny.VARIANTS["qwen3"]])
def test_several_adapters_in_one_call(source, precision):
    """Each row with its own, and the same bits as in a call by itself; an adapter that changes more than low ranks is
    on another base."""
    model = network(source, precision)
    kind, draw = ("gpt2" if source["model_type"] == "gpt2" else "llama"), np.random.RandomState(3)
    for name, config in ADAPTERS.items():
        adapter = adapters_of(model).add(config[kind] if isinstance(config, dict) else config, name)
        adapter.load({key: (draw.standard_normal(p.shape) * 0.3).astype(np.float32)
                      for key, p in adapter.parameters().items()})
    readers = readers_of(model, [None, *ADAPTERS])
    assert [reader.base == readers[0].base for reader in readers] == [True, True, True, True, False]
    readers = readers[:4]

    def group(reader):
        return reader.open(20, [12, 12])

    def turns(reader, opened):
        yield Turn(opened, ids(20, 1), [(0, ids(9, 2)), (1, ids(3, 3))])
        yield Turn(opened, (), [(0, ids(1, 4))])
        yield Turn(opened, (), [(1, ids(1, 5)), (0, ids(2, 6))])

    alone = [[reader.logits([turn]) for turn in turns(reader, group(reader))] for reader in readers]
    order = [2, 0, 1, 3, 0, 2]
    for step, together in enumerate(zip(*(turns(readers[i], group(readers[i])) for i in order))):
        found = readers[1].logits(list(together))
        np.testing.assert_array_equal(found, np.concatenate([alone[i][step] for i in order]))
    assert len({logits[0].tobytes() for logits, *_ in alone}) == 4
    tokens = readers[1].likeliest([next(turns(reader, group(reader))) for reader in readers])
    assert tokens.tolist() == [logits.argmax() for first, *_ in alone for logits in first]


@pytest.mark.parametrize("source", [tiny.GPT2, ALIGNED])
def test_the_number_of_threads_does_not_change_a_bit(source):
    model, _ = adapted(source)
    before = runtime.threads()
    try:
        found = []
        for threads in (1, 2, 3):
            runtime.set_threads(threads)
            found.append(np.concatenate(read(FusedReader(model), 20, [5, 1, 14])))
    finally:
        runtime.set_threads(before)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("source", [tiny.GPT2, ALIGNED])
def test_the_likeliest_is_the_first_with_the_largest_logit(source):
    tensors = tiny.tensors(source)
    name = next(n for n in tensors if "wte" in n or "embed_tokens" in n)
    tensors[name][1::2] = tensors[name][::2][: len(tensors[name][1::2])]  # every logit twice
    reader = FusedReader(build_model(tiny.config(source), tensors))
    branches = [(b, ids(3, b)) for b in range(20)]
    turns = [[Turn(reader.open(5, [3] * 20), ids(5), branches)] for _ in range(2)]
    expected = reader.logits(turns[0]).argmax(1)
    assert (expected % 2 == 0).all() and len(set(expected)) > 1
    np.testing.assert_array_equal(reader.likeliest(turns[1]), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("ask", ["likeliest", "logits"])
def test_numbers_that_are_not_finite(value, ask):
    tensors = tiny.tensors(tiny.GPT2)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    reader = FusedReader(build_model(tiny.config(tiny.GPT2), tensors))
    with pytest.raises(UserError, match="not finite"):
        getattr(reader, ask)([Turn(reader.open(0, [4]), (), [(0, ids(4))])])


def test_no_more_rows_than_there_is_room_for():
    reader = FusedReader(network(tiny.GPT2))
    with pytest.raises(ValueError, match="room"):
        reader.logits([Turn(reader.open(0, [1]), (), [(0, ids(40))])])
