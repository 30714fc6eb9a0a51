"""The contenders of `bench` do the same work: equal losses, gradients, tokens and answers."""

from __future__ import annotations

import pytest

import small_run
from jittor_lora.benchmark import ours, peers
from needs import needs_bf16

STEP = {"shape": (2, 24)}
QUESTIONS = {"questions": 40}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_run.make_base(tmp_path_factory.mktemp("bench") / "base"))


def outcome(module, base, job, precision="fp32", options=None, **spec):
    work = getattr(module.Contender(base, 1, precision, **(options or {})), job)(spec)
    work.run()
    return work.check()


@pytest.mark.parametrize("rows", ["all", "answer"])
@pytest.mark.parametrize("logits", ["all", "labels"])
def test_step(base, rows, logits):
    found = outcome(ours, base, "step", rows=rows, **STEP)
    assert outcome(peers, base, "step", rows=rows, logits=logits, **STEP) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("module, options", [
    pytest.param(ours, {}, marks=needs_bf16), (peers, {}), (peers, {"autocast": True})])
def test_step_in_bf16(base, module, options):
    found = outcome(ours, base, "step", rows="all", **STEP)
    assert outcome(module, base, "step", "bf16", options, rows="all", **STEP) == pytest.approx(found, rel=3e-2)


@pytest.mark.parametrize("share, logits", [(True, "labels"), (False, "labels"), (False, "all")])
def test_squad(base, share, logits):
    found = outcome(ours, base, "squad", share=share, logits=logits, **QUESTIONS)
    for order, theirs in (("random", "all"), ("length", "labels")):
        assert outcome(peers, base, "squad", order=order, logits=theirs, **QUESTIONS) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_decode(base, cache):
    sizes = {"batch": 3, "prompt": 9, "new": 12}
    assert outcome(peers, base, "decode", cache=cache, **sizes) == outcome(ours, base, "decode", **sizes)


def test_evaluate(base):
    sizes = {"questions": 12, "new": 16}
    assert outcome(peers, base, "evaluate", batch=5, **sizes) == outcome(ours, base, "evaluate", **sizes)
