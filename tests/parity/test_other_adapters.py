"""Adapters of mlx-lm and litgpt, in both directions, against the programs themselves.

Without them, tests/formats/test_other_adapters.py has files of theirs with the logits they give.
"""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from jittor_lora.formats import litgpt_adapter, mlx_adapter
from jittor_lora.formats.adapter_export import updates_of
from jittor_lora.formats.peft import load_adapter
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.inject import inject
from jittor_lora.model.load import build_model
from needs import needs_litgpt, needs_mlx, peer_python
from parity.make_adapters import CASES, logits, make_base, spelled_out, trained
from parity.test_peft_files import TOKENS
from parity.test_peft_files import logits as our_logits

pytestmark = [pytest.mark.parity, pytest.mark.slow]
PROGRAMS = {"mlx": ("mlx_lm", "mlx_peer.py", mlx_adapter.write),
            "litgpt": ("litgpt", "litgpt_peer.py", litgpt_adapter.write)}
PROJECTIONS = ("q_proj", "k_proj", "down_proj")
OURS = {
    "mlx": [("llama-untied", {"r": 3, "alpha": 7.0, "target_modules": (*PROJECTIONS, "lm_head")}),
            ("qwen2", {"r": 2, "target_modules": PROJECTIONS, "use_dora": True, "rank_pattern": {"q_proj": 4}}),
            ("gpt2", {"r": 2, "target_modules": ("c_attn", "mlp.c_proj"), "layers_to_transform": (1,),
                      "init": "pissa"})],
    "litgpt": [("llama-untied", {"r": 3, "alpha": 7.0, "target_modules": (*PROJECTIONS, "lm_head")}),
               ("qwen2", {"r": 2, "target_modules": ("v_proj", "o_proj"), "rank_pattern": {"v_proj": 4},
                              "layers_to_transform": (1,)})],
}


def network(variant: str):
    source = spelled_out(variant)
    return build_model(tiny.config(source), tiny.tensors(source))


@pytest.mark.parametrize("form", [pytest.param("mlx", marks=needs_mlx), pytest.param("litgpt", marks=needs_litgpt)])
def test_both_ways(tmp_path, form):
    package, program, write = PROGRAMS[form]
    python = peer_python(package)
    for number, (variant, settings) in enumerate(OURS[form]):
        model, folder = network(variant), tmp_path / str(number)
        adapter = inject(model, LoraConfig(**settings))
        adapter.load(tiny.adapter_arrays({name: tuple(p.shape) for name, p in adapter.parameters().items()}))
        folder.mkdir()
        write(folder, updates_of(adapter, "some/base"), model.config)
        theirs = logits(python, program, make_base(folder / "base", variant), folder, TOKENS)
        ours = our_logits(model)
        with model.adapters.off():
            assert np.abs(our_logits(model) - ours).max() > 0.5
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    case = {"mlx": "mlx-dora", "litgpt": "litgpt-all"}[form]
    folder, theirs = trained(case, python, tmp_path / case)
    model = network(CASES[case][1])
    load_adapter(folder, model)
    np.testing.assert_allclose(our_logits(model)[: len(theirs)], theirs, atol=1e-4)
