"""Logits against transformers: small configurations, GPT-2 124M, SmolLM2 from its GGUF file."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import tiny
from jittor_lora import ops
from jittor_lora.data.layout import Layout
from jittor_lora.errors import UserError
from jittor_lora.formats.bases import load_base, resolve_base
from jittor_lora.formats.hugging_face import read_checkpoint
from jittor_lora.model.load import build_model
from jittor_lora.model.rotary import frequencies
from jittor_lora.system.runtime import jt
from parity import reference

pytestmark = pytest.mark.parity

TOKENS = 512


def logits(model, tokens, rows=None):
    tokens = np.asarray(tokens, np.int32)
    with jt.no_grad():
        hidden = model.hidden(tokens, np.arange(len(tokens), dtype=np.int32), Layout.plain(len(tokens)), rows)
        return model.logits(hidden).numpy()


def assert_close(found, expected):
    """Within 2e-4, and that not because the logits are small."""
    difference = np.abs(found - expected).max()
    print(f"largest difference {difference:.2e} of logits up to {np.abs(expected).max():.1f}")
    assert np.abs(expected).max() > 5
    assert difference < 2e-4
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.99


SMALL = {
    **{name: {**source, "vocab_size": 300} for name, source in tiny.VARIANTS.items()},
    **{f"gpt2-{name}": {**tiny.GPT2, "activation_function": name, "vocab_size": 300}
       for name in ("relu", "silu", "swish", "tanh", "quick_gelu", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast",
                    "gelu_accurate", "gelu_python")},
    "gpt2-both-scales": {**tiny.GPT2, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
                         "n_layer": 3, "vocab_size": 300},
    "llama-rope": {**tiny.LLAMA, "rope_theta": 1e6, "vocab_size": 300},
    "llama-linear": {**tiny.LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
                     "vocab_size": 300},
    "mistral-window": {**tiny.VARIANTS["mistral"], "sliding_window": TOKENS, "vocab_size": 300},
}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_small_models(name, kernels):
    length = "n_positions" if name.startswith("gpt2") else "max_position_embeddings"
    source = {**SMALL[name], length: 1024}
    tensors = tiny.tensors(source)
    tokens = tiny.tokens(TOKENS, vocab_size=300)
    with nullcontext() if kernels else ops.portable_operations():
        found = logits(build_model(tiny.config(source), tensors), tokens)
    assert_close(found, reference.logits(reference.network(source, tensors), tokens))


SCALINGS = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3.1": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192},
    "llama3.2": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192},
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim", [6, 64, 80, 128])
@pytest.mark.parametrize("theta", [500.0, 1e4, 5e5, 1e6])
def test_rotary_frequencies(scaling, head_dim, theta):
    """The same numbers but for PyTorch's power, which may be off by one unit in the last place, and what follows."""
    rope = {"rope_parameters": {**SCALINGS[scaling], "rope_theta": theta}}
    sizes = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "head_dim": head_dim}
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**sizes, **rope, max_position_embeddings=131072)).inv_freq
    ours = tiny.config({**tiny.LLAMA, **sizes, **rope})
    found = frequencies(head_dim, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=2.4e-7)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2 124M of random weights as transformers writes it, with and without its head."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    # Larger weights than GPT-2 starts with, and biases, which start at zero: logits of a size that shows differences.
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(initializer_range=0.05)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder / "head")
    model.transformer.save_pretrained(folder / "body")
    return folder, model


def test_gpt2_124m(gpt2):
    folder, model = gpt2
    checkpoint = read_checkpoint(folder / "head")
    body = read_checkpoint(folder / "body")
    assert checkpoint.tensors.keys() == body.tensors.keys()
    assert all(np.array_equal(checkpoint.tensors[name], body.tensors[name]) for name in checkpoint.tensors)
    tokens = tiny.tokens(TOKENS, vocab_size=50257)
    assert_close(logits(build_model(body.config, body.tensors), tokens), reference.logits(model, tokens))


@pytest.fixture(scope="module")
def smollm2():
    try:
        resolved = resolve_base("smollm2-135m")
    except UserError as error:
        pytest.skip(f"needs SmolLM2, which cannot be fetched here: {error}")
    return resolved, *load_base(resolved)


TEXT = """A river has its source in the hills, where rain and melting snow run together, and its mouth at the sea or at
a lake. On its way it takes in smaller rivers, cuts valleys into the rock and leaves sand and clay on the plains.
Who lives beside it fishes, ships goods, waters the fields in summer, and fears the floods of spring.
def add(a, b): return a + b  # 3.14159, naïve café, 你好。
"""


def test_smollm2(smollm2):
    """transformers reads and dequantises the same file in its own way."""
    resolved, checkpoint, tokenizer = smollm2
    folder, name = resolved.path.parent, resolved.path.name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokens = (tokenizer.encode(TEXT) * 10)[:TOKENS]
    assert len(tokens) == TOKENS
    found = logits(build_model(checkpoint.config, checkpoint.tensors), tokens)
    assert_close(found, reference.logits(model, tokens))
