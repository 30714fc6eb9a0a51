"""Training on a base that stays in the number format of its file: as on the same file decoded to float32, bit for bit,
and without a float32 copy."""

from __future__ import annotations

import json

import numpy as np
import pytest

import model_files
import tiny
from jittor_lora.data.layout import Layout
from jittor_lora.formats.gguf import read_gguf
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.inference.generate import generate
from jittor_lora.lora.config import DEFAULT_TARGETS, LoraConfig
from jittor_lora.lora.inject import adapters_of, inject
from jittor_lora.lora.merge import MergedTensors
from jittor_lora.model.load import build_model
from jittor_lora.model.modules import leaf_modules
from jittor_lora.ops.backend import portable_operations
from jittor_lora.ops.blocks import STORED
from jittor_lora.settings.run import RunConfig
from jittor_lora.system.runtime import jt
from jittor_lora.training.log import RunLog
from jittor_lora.training.loop import train
from jittor_lora.training.optimizer import AdamW
from jittor_lora.training.progress import Progress

MODELS = {
    "gpt2": {**model_files.GPT2, "n_positions": 128},
    "llama": {**model_files.LLAMA, "max_position_embeddings": 128, "tie_word_embeddings": False},
}
WIDE = {  # blocks of 256 numbers
    "gpt2": {**MODELS["gpt2"], "n_embd": 256, "n_inner": 256, "n_layer": 1},
    "llama": {**MODELS["llama"], "hidden_size": 256, "head_dim": 64, "intermediate_size": 256,
              "num_hidden_layers": 1},
}
TOKENS = tiny.tokens(20, vocab_size=300)


def gguf(path, family, kind):
    source = (WIDE if kind.endswith("_K") else MODELS)[family]
    tensors = {name: array * np.float32(0.2 if array.ndim == 2 else 1) for name, array in
               model_files.make_tensors(source).items()}
    model_files.make_gguf(path, source, tensors, kind)
    return read_gguf(path)


class Noted(AdamW):
    def __init__(self, parameters):
        super().__init__(parameters)
        self.gradients = []

    def step(self, gradients, rate, factor):
        self.gradients.append({name: g.numpy().copy() for name, g in gradients.items()})
        super().step(gradients, rate, factor)


def trained(folder, checkpoint, base_precision, checkpointing=False, **lora):
    """Three steps on streams short and long, and what came of them: bytes by name, and the network."""
    family = checkpoint.config.family
    model = build_model(checkpoint.config, checkpoint.tensors, base_precision=base_precision)
    model.activation_checkpointing = checkpointing
    lora = {"dropout": 0.1, "target_modules": DEFAULT_TARGETS[family], **lora}
    adapter = inject(model, LoraConfig(r=2, alpha=4.0, **lora))
    config = RunConfig(max_steps=3, batch_size=4, learning_rate=0.01, lora_dropout=lora["dropout"], eval_every=1,
                       seed=3)
    optimizer = Noted(adapter.parameters())
    folder.mkdir(exist_ok=True)
    with RunLog(folder, quiet=True) as log:
        train(model, adapter, tiny.groups(6, vocab_size=300, longer=6), tiny.groups(2, 9, vocab_size=300), config, log,
              optimizer, Progress(), lambda progress: None, lambda progress: None)
    found = {name: (folder / name).read_bytes() for name in ("train_loss.txt", "val_loss.txt")}
    for step, gradients in enumerate(optimizer.gradients):
        found.update((f"gradient {step} {name}", array.tobytes()) for name, array in gradients.items())
    found.update((name, p.numpy().tobytes()) for name, p in adapter.parameters().items())
    found.update((f"initial {name}", array.tobytes()) for name, array in adapter.initial().items())
    assert len(optimizer.gradients) == 3 and all(np.isfinite(g).all() for g in optimizer.gradients[0].values())
    return found, model


def results(model, checkpoint):
    """Texts, logits of the adapter and of its merge, and the merged tensors."""
    found = [generate(model, [], [TOKENS[:9].tolist(), TOKENS[9:12].tolist()], 8), logits(model)]
    merged = MergedTensors(checkpoint.tensors, model, untied=True)
    found += [merged[name].tobytes() for name in merged]
    adapters_of(model).merge()
    return [*found, logits(model)]


def logits(model) -> bytes:
    with jt.no_grad():
        hidden = model.hidden(TOKENS, np.arange(len(TOKENS), dtype=np.int32), Layout.plain(len(TOKENS)))
        return model.logits(hidden).numpy().tobytes()


def storages(model):
    return {leaf.module.weight.storage for leaf in leaf_modules(model) if hasattr(leaf.module.weight, "storage")}


def both(tmp_path, checkpoint, kind, **lora):
    stored, model = trained(tmp_path / "stored", checkpoint, "auto", **lora)
    decoded, other = trained(tmp_path / "decoded", checkpoint, "fp32", **lora)
    assert storages(model) == {kind} and storages(other) == {"F32"}
    assert stored == decoded
    assert results(model, checkpoint) == results(other, checkpoint)


@pytest.mark.parametrize("kind", STORED)
def test_three_steps(tmp_path, kind):
    for family in MODELS:
        (tmp_path / family).mkdir()
        both(tmp_path / family, gguf(tmp_path / f"{family}.gguf", family, kind), kind)


@pytest.mark.parametrize("lora", [
    {"use_dora": True, "init": "pissa"}, {"init": "olora", "use_rslora": True, "checkpointing": True},
    {"use_dora": True, "dropout": 0.0, "target_modules": ("v_proj", "embed_tokens")},
], ids=["DoRA, PiSSA", "rsLoRA, OLoRA", "DoRA of an embedding"])
def test_kinds_of_adapters(tmp_path, lora):
    both(tmp_path, gguf(tmp_path / "model.gguf", "llama", "Q4_1"), "Q4_1", **lora)


def test_what_is_trained_whole(tmp_path):
    checkpoint = gguf(tmp_path / "model.gguf", "llama", "Q8_0")
    lora = {"modules_to_save": ("norm", "input_layernorm", "o_proj", "embed_tokens"), "target_modules": ("up_proj",)}
    stored, model = trained(tmp_path / "stored", checkpoint, "auto", **lora)
    decoded, other = trained(tmp_path / "decoded", checkpoint, "fp32", **lora)
    assert stored == decoded and storages(model) == {"F32", "Q8_0"}
    assert results(model, checkpoint) == results(other, checkpoint)


@pytest.mark.parametrize("family, kind", [("gpt2", "BF16"), ("llama", "F16")])
def test_hugging_face_folders_in_16_bits(tmp_path, family, kind):
    """Also of sizes that are no multiple of a block, and of GPT-2's transposed weights."""
    source = {**MODELS[family], "vocab_size": 299, **({"n_embd": 30} if family == "gpt2" else {"hidden_size": 30})}
    tensors = {name: array * np.float32(0.2 if array.ndim == 2 else 1) for name, array in
               model_files.make_tensors(source).items()}
    folder = model_files.make_folder(tmp_path / "base", source, tensors)
    header, data = {}, b""
    for name, array in tensors.items():
        half = array.view("<u2")[..., 1::2] if kind == "BF16" else array.astype("<f2")
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + half.nbytes]}
        data += half.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    both(tmp_path, read_checkpoint(folder), kind)


def test_stock_jittor_computes_with_the_same_numbers(tmp_path):
    checkpoint = gguf(tmp_path / "model.gguf", "gpt2", "Q4_0")
    with portable_operations():
        found = [logits(build_model(checkpoint.config, checkpoint.tensors, base_precision=base_precision))
                 for base_precision in ("auto", "fp32")]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind, most", [("Q4_1", 0.66), ("Q8_0", 1.08), ("BF16", 2.01)])
def test_no_float32_copy_stays(tmp_path, kind, most):
    """Bytes that the network's matrices hold, per number, after training and inference."""
    checkpoint = gguf(tmp_path / "model.gguf", "llama", kind)
    _, model = trained(tmp_path / "run", checkpoint, "auto")
    generate(model, [], [[1, 2, 3]], 4)
    matrices = {id(m): m for m in (leaf.module.weight for leaf in leaf_modules(model)) if hasattr(m, "storage")}
    numbers = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
    assert sum(map(held, matrices.values())) / numbers < most


def held(value) -> int:
    """Bytes of the arrays in an object's attributes."""
    if isinstance(value, jt.Var):
        return value.nbytes if hasattr(value, "nbytes") else value.numpy().nbytes
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    if isinstance(value, tuple):
        return sum(map(held, value))
    return sum(map(held, vars(value).values())) if hasattr(value, "__dict__") and not callable(value) else 0
