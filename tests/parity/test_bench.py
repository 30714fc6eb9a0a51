"""The contenders of `bench` do the same work: equal losses, gradients, tokens and answers."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import small_run
from jittor_lora.benchmark import ours, peers
from jittor_lora.benchmark.formats import Files
from jittor_lora.benchmark.process import Worker
from jittor_lora.benchmark.ring import differences
from needs import needs_bf16, needs_llama_cpp, peer_python

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


@needs_llama_cpp
def test_llama_cpp(tmp_path, monkeypatch):
    """One text, several, a shared context, with the caches of all settings; logits in float32, and in 8 bits, where
    llama.cpp rounds activations too."""
    monkeypatch.setattr(sys, "executable", peer_python("llama_cpp"))
    files = Files(small_run.make_base(tmp_path / "base"), None, tmp_path)
    prefix, questions = list(range(5, 40)), [[41], [42, 43, 44], [45, 46]]
    works = [("decode", {"batch": 1, "prompt": 1, "new": 12}), ("decode", {"batch": 3, "prompt": 9, "new": 12}),
             ("context", {"prefix": prefix, "questions": questions, "new": 8})]
    settings = [{"flash": flash, "unified": unified, "together": together, "kv": "f32"}
                for flash, unified, together in ((True, True, True), (True, False, True), (False, True, False))]
    apart = {}
    for name in ("f32", "q8_0"):
        mine = ours.Contender(str(files.path(name)), 1, "fp32")
        options = {"base": str(files.path(name)), "threads": 1, "precision": "fp32"}
        with Worker("llama_cpp", options, tmp_path / "log") as worker:
            worker.ask("start")
            for job, spec in works if name == "f32" else ():
                work = getattr(mine, job)(spec)
                work.run()
                for chosen in settings:
                    worker.ask("prepare", job=job, **spec, **chosen)
                    for _ in range(2):  # the caches of the first run are forgotten
                        worker.ask("run")
                    assert worker.ask("check")["value"] == work.check(), (job, chosen)
            exact, other = str(tmp_path / "exact.npy"), str(tmp_path / "other.npy")
            mine.logits({"tokens": prefix, "path": exact}).run()
            worker.ask("prepare", job="logits", tokens=prefix, path=other, kv="f32")
            worker.ask("run")
        assert np.load(other).shape == (len(prefix), small_run.GPT2["vocab_size"])
        records = [{"name": "float32", "format": name, "spec": {"path": exact}},
                   {"name": "llama.cpp", "format": name, "spec": {"path": other}, "check": None}]
        differences(records)
        apart[name] = records[1]["check"]["max"]
    # Its GELU is a table of float16 numbers; with weights in 8 bits it rounds activations to 8 bits too.
    assert 0 < apart["f32"] < 0.02 < apart["q8_0"] < 0.5
