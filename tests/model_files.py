"""Small models in files: a Hugging Face folder, a GGUF file, a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jittor_lora.formats.byte_level import END_OF_TEXT
from jittor_lora.model.config import ModelConfig, tensor_shapes

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 6,
    "n_inner": 64,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 6,
    "tie_word_embeddings": True,
}
# What llama.cpp can store, beyond these two: biases, Llama 3's frequencies, norms of queries and keys.
GGUF_MODELS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama3": {**LLAMA, "head_dim": 64, "max_position_embeddings": 16384, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}},
    "llama-biased": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama-linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 16},
}
TEXTS = ["The answer is 42 or 1066.", "naïve café, 北京 🎉", "def f(x):\n    return  x ** 2\n\n", "a b  c   d"]
GGUF_BLOCK = {
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_WHOLE = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}


def make_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the model under its canonical name."""
    shapes = tensor_shapes(ModelConfig.from_hugging_face(config, "config.json"))
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def make_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_bpe() -> Tokenizer:
    """Byte-level BPE of 300 tokens, the last of them the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet,
                                                                 show_progress=False))
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert tokenizer.token_to_id(END_OF_TEXT) == 299
    return tokenizer


def make_gguf(path: Path, config: dict, tensors: dict[str, np.ndarray], kind: str = "F32", pre: str = "gpt-2",
              changed: dict | None = None, extra: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Write the model as llama.cpp's conversion does, matrices quantised to `kind`: rounded if the gguf library can do
    so, else in random blocks.

    Args:
        changed: metadata to write instead of, or in addition to, the usual; None leaves a key out.
        extra: more tensors under llama.cpp's names.

    Returns: the tensors as they are after quantisation, under their canonical names.
    """
    writer = gguf.GGUFWriter(path, config["model_type"])
    metadata = {**_gguf_metadata(config, pre), **(changed or {})}
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    kept = {}
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        stored = _to_llama_cpp(name, tensor, config)
        if stored.ndim == 2 and kind != "F32":
            blocks = _blocks(stored, quantisation)
            stored = gguf.quants.dequantize(blocks, quantisation)
            writer.add_tensor(_gguf_name(name), blocks, raw_dtype=quantisation)
        else:
            writer.add_tensor(_gguf_name(name), stored)
        kept[name] = _from_llama_cpp(name, stored, config)
    for name, tensor in {**_rope_factors(config), **(extra or {})}.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def _gguf_metadata(config: dict, pre: str) -> dict:
    bpe = json.loads(make_bpe().to_str())["model"]
    tokens = [*sorted(bpe["vocab"], key=bpe["vocab"].get), END_OF_TEXT]
    tokenizer = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [1] * 299 + [3],
        "merges": [" ".join(merge) for merge in bpe["merges"]],
        "eos_token_id": 299,
    }
    if config["model_type"] == "gpt2":
        sizes = {"embedding_length": config["n_embd"], "block_count": config["n_layer"],
                 "attention.head_count": config["n_head"], "context_length": config["n_positions"],
                 "feed_forward_length": config["n_inner"], "attention.layer_norm_epsilon": 1e-5}
    else:
        sizes = {"embedding_length": config["hidden_size"], "block_count": config["num_hidden_layers"],
                 "attention.head_count": config["num_attention_heads"],
                 "context_length": config["max_position_embeddings"],
                 "attention.head_count_kv": config["num_key_value_heads"],
                 "feed_forward_length": config["intermediate_size"], "rope.freq_base": 5e5,
                 "attention.layer_norm_rms_epsilon": 1e-5}
        if config["model_type"] == "llama":
            sizes["rope.dimension_count"] = config["head_dim"]
        elif config["model_type"] == "qwen3":
            sizes["attention.key_length"] = sizes["attention.value_length"] = config["head_dim"]
        if config.get("rope_scaling", {}).get("rope_type") == "linear":
            sizes.update({"rope.scaling.type": "linear", "rope.scaling.factor": config["rope_scaling"]["factor"]})
    return {**{f"{config['model_type']}.{key}": value for key, value in sizes.items()},
            **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}}


def _rope_factors(config: dict) -> dict[str, np.ndarray]:
    """What the conversion writes for Llama 3: by how much each frequency is divided."""
    scaling = config.get("rope_scaling", {})
    if scaling.get("rope_type") != "llama3":
        return {}
    factor, low, high, original = (scaling[key] for key in (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    found = []
    for i in range(0, config["head_dim"], 2):
        length = 2 * np.pi * 5e5 ** (i / config["head_dim"])
        smooth = (original / length - low) / (high - low)
        found.append(1 if length < original / high else factor if length > original / low
                     else 1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(found, np.float32)}


# Where a block holds scales in float16, any other byte of it being free
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
           "IQ4_XS": (0,), "TQ2_0": (64,)}


def _blocks(matrix: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """(rows, bytes) of the matrix, or of another one of its size."""
    if kind.name not in _SCALES:
        return gguf.quants.quantize(matrix, kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(matrix.size)
    blocks = draw.integers(0, 256, (matrix.size // values, size), np.uint8)
    for at in _SCALES[kind.name]:
        blocks[:, at : at + 2] = draw.uniform(1e-3, 1e-2, (len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(len(matrix), -1)


def _gguf_name(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if module in GGUF_WHOLE:
        return f"{GGUF_WHOLE[module]}.{kind}"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{GGUF_BLOCK[module]}.{kind}"


def _to_llama_cpp(name: str, tensor: np.ndarray, config: dict) -> np.ndarray:
    if ".c_" in name and name.endswith("weight"):
        return np.ascontiguousarray(tensor.T)
    heads = _rotary_heads(name, config)
    if heads:  # permute in llama.cpp's convert_hf_to_gguf.py
        half = tensor.shape[0] // heads // 2
        return tensor[[2 * half * head + i + part for head in range(heads) for i in range(half) for part in (0, half)]]
    return tensor


def _from_llama_cpp(name: str, tensor: np.ndarray, config: dict) -> np.ndarray:
    if ".c_" in name and name.endswith("weight"):
        return tensor.T
    heads = _rotary_heads(name, config)
    if heads:
        order = _to_llama_cpp(name, np.arange(tensor.shape[0])[:, None], config)[:, 0]
        restored = np.empty_like(tensor)
        restored[order] = tensor
        return restored
    return tensor


def _rotary_heads(name: str, config: dict) -> int:
    """Of a tensor whose rows the conversion reorders, as of Llama alone."""
    if config["model_type"] != "llama":
        return 0
    if "q_proj" in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if "k_proj" in name else 0
