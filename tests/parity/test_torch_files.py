"""Files of torch.save, in every form that torch writes, read without torch."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
import transformers

from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.formats.torch_file import TorchFile

pytestmark = pytest.mark.parity
DATA = torch.arange(48.0).reshape(6, 8)
TENSORS = OrderedDict(
    float=torch.randn(3, 4), half=torch.randn(5).half(), bfloat=torch.randn(2, 3).bfloat16(),
    double=torch.randn(2, 2).double(),
    transposed=DATA.T, sliced=DATA[2:4, 1:7:2], shared=DATA, scalar=torch.tensor(3.0), empty=torch.zeros(0, 4),
    parameter=torch.nn.Parameter(torch.ones(2, 2)), expanded=torch.randn(1, 4).expand(1, 4),
    permuted=torch.randn(2, 3, 4).permute(2, 0, 1))
TENSORS._metadata = OrderedDict({"": {"version": 1}})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [dict, lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1e-4}}])
def test_what_torch_saves(tmp_path, protocol, zipped, wrap):
    torch.save(wrap(TENSORS) if wrap is not dict else TENSORS, tmp_path / "x.bin", pickle_protocol=protocol,
               _use_new_zipfile_serialization=zipped)
    file = TorchFile(tmp_path / "x.bin")
    assert list(file) == list(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(file[name], tensor.detach().float().numpy(), err_msg=name)
        assert file[name].shape == tuple(tensor.shape)
    if zipped:  # torch aligns what it stores
        assert not file["float"].flags.writeable and not file["float"].flags.owndata  # mapped


def test_other_types_are_listed_and_not_converted(tmp_path):
    tensors = {str(dtype): torch.ones(3, dtype=dtype) for dtype in (
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)}
    torch.save(tensors, tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    assert [entry.dtype for entry in file.entries.values()] == ["I64", "I32", "I16", "I8", "U8", "BOOL", "C64"]


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model", "LlamaForCausalLM"])
@pytest.mark.parametrize("half", [False, True])
def test_base_models(tmp_path, kind, half):
    """With the head that shares the embedding's storage, and with GPT2Model's names."""
    torch.manual_seed(0)
    if kind.startswith("GPT2"):
        config = transformers.GPT2Config(n_layer=2, n_embd=24, n_head=3, vocab_size=61, n_positions=48,
                                         bos_token_id=1, eos_token_id=2)
    else:
        config = transformers.LlamaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
                                          num_key_value_heads=2, head_dim=6, intermediate_size=40)
    model = getattr(transformers, kind)(config)
    model = model.half() if half else model
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found, state = read_checkpoint(tmp_path), model.state_dict()
    prefix = "transformer." if kind == "GPT2Model" else ""
    for name, array in found.tensors.items():
        np.testing.assert_array_equal(array, state[name[len(prefix):]].float().numpy(), err_msg=name)
