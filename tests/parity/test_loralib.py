"""Weights of loralib's MergedLinear, as an adapter here and in PEFT, against its formula in torch."""

from __future__ import annotations

import loralib
import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn import functional

import tiny
from jittor_lora.formats.peft import load_adapter
from jittor_lora.model.load import build_model
from jittor_lora.tasks.adapter import folder_to_loralib, loralib_to_folder
from parity import reference
from parity.test_peft_files import TOKENS, logits

pytestmark = pytest.mark.parity
ALPHA = 32


class MergedLinear(torch.nn.Module):
    """x W + b, and at the enabled thirds of the output the grouped convolution of x Aᵀ with B."""

    def __init__(self, base, rank, enabled):
        super().__init__()
        self.base, self.enabled, self.scaling = base, enabled, ALPHA / rank
        rows, columns = base.weight.shape  # of transformers' Conv1D: (in, out)
        self.lora_A = torch.nn.Parameter(0.2 * torch.randn(rank * sum(enabled), rows))
        self.lora_B = torch.nn.Parameter(0.2 * torch.randn(columns // 3 * sum(enabled), rank))

    def forward(self, x):
        y = functional.conv1d((x @ self.lora_A.T).transpose(-2, -1), self.lora_B.unsqueeze(-1),
                              groups=sum(self.enabled)).transpose(-2, -1)
        parts = iter(y.chunk(sum(self.enabled), -1))
        zero = torch.zeros_like(y[..., : y.shape[-1] // sum(self.enabled)])
        return self.base(x) + self.scaling * torch.cat([next(parts) if on else zero for on in self.enabled], -1)


@pytest.mark.parametrize("enabled, named", [([True, False, True], None), ([True, True, True], None),
                                            ([False, True, False], "k"), ([False, True, True], "kv")])
@pytest.mark.parametrize("ddp", [False, True])
def test_merged_linear(tmp_path, enabled, named, ddp):
    torch.manual_seed(0)
    model = reference.network(tiny.GPT2, tiny.tensors(tiny.GPT2))
    before = reference.logits(model, TOKENS)
    for block in model.transformer.h:
        assert isinstance(block.attn.c_attn, transformers.pytorch_utils.Conv1D)
        block.attn.c_attn = MergedLinear(block.attn.c_attn, 4, enabled)
    expected = reference.logits(model, TOKENS)
    assert np.abs(expected - before).max() > 0.5
    state = {("module." if ddp else "") + name: p for name, p in model.state_dict().items() if "lora_" in name}
    torch.save({"model_state_dict": state}, tmp_path / "lora.pt")
    loralib_to_folder(tmp_path / "lora.pt", tmp_path / "out", "gpt2", ALPHA, named)
    ours = build_model(tiny.config(tiny.GPT2), tiny.tensors(tiny.GPT2))
    load_adapter(tmp_path / "out", ours)
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)
    theirs = peft.PeftModel.from_pretrained(reference.network(tiny.GPT2, tiny.tensors(tiny.GPT2)), tmp_path / "out")
    np.testing.assert_allclose(reference.logits(theirs.eval(), TOKENS), expected, atol=1e-4)


def test_loaded_by_loralib(tmp_path):
    """What is written, in loralib's own layers: an adapter of PEFT's with one A for queries and values."""
    model = peft.get_peft_model(reference.network(tiny.GPT2, tiny.tensors(tiny.GPT2)), peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["c_attn", "mlp.c_proj"], init_lora_weights=False, fan_in_fan_out=True))
    for block in model.base_model.model.transformer.h:
        b = block.attn.c_attn.lora_B["default"].weight.data
        b[len(b) // 3 : 2 * len(b) // 3] = 0
    model.save_pretrained(tmp_path / "peft")
    found = folder_to_loralib(tmp_path / "peft", tmp_path / "lora.pt", None)
    assert found == ({"attn.c_attn": [3], "mlp.c_proj": [3]}, 5, "qv")
    theirs = reference.network(tiny.GPT2, tiny.tensors(tiny.GPT2))
    for block in theirs.transformer.h:
        merged = {"enable_lora": [part in found.enabled for part in "qkv"]}
        for parent, name, kind, more in ((block.attn, "c_attn", loralib.MergedLinear, merged),
                                         (block.mlp, "c_proj", loralib.Linear, {})):
            base = getattr(parent, name)
            layer = kind(*base.weight.shape, r=3, lora_alpha=found.alpha, fan_in_fan_out=True, merge_weights=False,
                         **more)
            layer.weight.data, layer.bias.data = base.weight.data, base.bias.data
            setattr(parent, name, layer)
    unknown = theirs.load_state_dict(torch.load(tmp_path / "lora.pt", weights_only=True), strict=False).unexpected_keys
    assert not unknown
    expected = reference.logits(model.eval(), TOKENS)
    np.testing.assert_allclose(reference.logits(theirs.eval(), TOKENS), expected, atol=1e-4)
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "theirs.pt")
    loralib_to_folder(tmp_path / "theirs.pt", tmp_path / "ours", "gpt2", found.alpha, None)
    folder_to_loralib(tmp_path / "ours", tmp_path / "back.pt", None)
    ours, back = (torch.load(tmp_path / name, weights_only=True) for name in ("theirs.pt", "back.pt"))
    assert ours.keys() == back.keys() and all(torch.equal(ours[name], back[name]) for name in ours)
