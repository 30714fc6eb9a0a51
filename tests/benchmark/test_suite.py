"""Which contenders are measured on which workloads."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from jittor_lora.benchmark import ring
from jittor_lora.benchmark.suite import OURS, Suite
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from jittor_lora.settings.bench import PARTS, BenchConfig


def suite(peers=True, **settings):
    made = Suite(BenchConfig(**settings), peers, Path("base"), tiny.config({**tiny.GPT2, "n_positions": 1024}),
                 {"choices": {}, "results": []}, lambda text: None)
    tried = []

    def turns(workload, precision, threads, contenders, warmups, repeats):
        tried.append([contender.name for contender in contenders])
        return [{"name": c.name, "runs": [{"seconds": 9.0 - i}]} for i, c in enumerate(contenders)]

    made.turns = turns
    return made, tried


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("part", [part for part in PARTS
                                  if part not in ("additive", "adapters", "bandwidth", *ring.PARTS)])
def test_ours_comes_first_and_peers_take_part(part, precision):
    made, _ = suite()
    for workload in made.workloads(part):
        contenders = made.contenders(part, workload, precision)
        assert contenders[0].name == OURS and contenders[0].module == "ours"
        assert all(c.module == "peers" for c in contenders[1:])
        assert len({c.name for c in contenders}) == len(contenders)
        assert (len(contenders) > 1) == (part != "memory")
        assert [c.name for c in suite(peers=False)[0].contenders(part, workload, precision)] == [OURS]


def test_the_fastest_setup_of_a_peer_is_chosen_once():
    made, tried = suite()
    [squad] = made.workloads("squad")
    for _ in range(2):
        assert all(c.options == {"autocast": True} for c in made.contenders("squad", squad, "bf16")[1:])
    assert tried == [["bf16 weights", "autocast"]]
    [evaluate] = made.workloads("evaluate")
    assert made.contenders("evaluate", evaluate, "fp32")[1].spec == {"batch": 64}


def test_each_line_of_the_additive_table_differs_from_the_one_above():
    made, _ = suite()
    [workload] = made.workloads("additive")
    lines = made.contenders("additive", workload, "fp32")
    assert all(c.module == "ours" for c in lines)
    assert len({str((c.options, c.spec)) for c in lines}) == len(lines) == 7
    assert len(suite(precisions="fp32")[0].contenders("additive", workload, "fp32")) == 6


@pytest.mark.parametrize("base", [tiny.GPT2, tiny.LLAMA])
def test_kinds_of_adapters_are_those_of_the_base(base):
    made, _ = suite()
    made.model = tiny.config(base)
    [workload] = made.workloads("adapters")
    first, *others = made.contenders("adapters", workload, "fp32")
    assert first.spec == {"lora": {}} and len(others) >= 10
    for contender in (first, *others):
        model = build_model(made.model, tiny.tensors(base))
        assert inject(model, LoraConfig(**{"r": 2, **contender.spec["lora"]})).count()
