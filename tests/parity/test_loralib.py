"""Weights of loralib's MergedLinear, as an adapter here and in PEFT, against its formula in torch."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn import functional

import tiny
from jittor_lora.formats.peft import load_adapter
from jittor_lora.model.load import build_model
from jittor_lora.tasks.adapter import loralib_to_folder
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
