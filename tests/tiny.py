"""Tiny seeded models and examples, without torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jittor_lora.data.groups import Branch, TokenGroup
from jittor_lora.model.config import ModelConfig, tensor_shapes

GPT2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 48,
        "bos_token_id": 60, "eos_token_id": 60}
LLAMA = {"model_type": "llama", "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 40, "max_position_embeddings": 48,
         "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}

LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 24}

# Every path through the networks: tied and untied heads, activations, grouped queries, different widths, biases, norms
# of queries and keys, scaled rotary positions.
VARIANTS = {
    "gpt2": GPT2,
    "gpt2-erf-untied": {**GPT2, "activation_function": "gelu", "tie_word_embeddings": False, "n_inner": 40,
                        "layer_norm_epsilon": 1e-3},
    "llama": LLAMA,
    "llama-untied": {**LLAMA, "tie_word_embeddings": False, "head_dim": 8, "num_key_value_heads": 4,
                     "rope_theta": 500.0, "rms_norm_eps": 1e-3},
    "llama-one-key": {**LLAMA, "num_key_value_heads": 1},
    "llama-biased": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama3": {**LLAMA, "rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500.0}},
    "mistral": {**LLAMA, "model_type": "mistral", "tie_word_embeddings": False, "sliding_window": None},
    "qwen2": {**LLAMA, "model_type": "qwen2", "rope_theta": 1e6, "num_key_value_heads": 1},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 10, "rope_theta": 1e6},
    "gpt2-scores-by-layer": {**GPT2, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
                             "n_layer": 3, "activation_function": "quick_gelu"},
    "gpt2-scores-unscaled": {**GPT2, "scale_attn_weights": False, "activation_function": "tanh", "n_inner": 40},
}
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")  # one variant of each, by its name


def config(source: dict) -> ModelConfig:
    return ModelConfig.from_hugging_face(source, "config.json")


def tensors(source: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights without symmetry, biases and norms included, that give logits of the order of 10."""
    draw = np.random.RandomState(seed)  # gives the same numbers in every numpy version
    made = {}
    for name, shape in tensor_shapes(config(source)).items():
        values = draw.standard_normal(shape)
        if "norm" in name or ".ln_" in name:
            values = values * 0.2 + (0.0 if name.endswith("bias") else 1.0)
        elif name.endswith("bias"):
            values = values * 0.2
        elif "wte" in name or "embed" in name or "lm_head" in name:
            values = values * 0.5
        else:
            values = values * 0.25
        made[name] = values.astype(np.float32)
    return made


def tokens(count: int, seed: int = 0, vocab_size: int = 61) -> np.ndarray:
    return np.random.RandomState(1000 + seed).randint(0, vocab_size, count).astype(np.int32)


def groups(count: int = 4, seed: int = 0, branches: int = 3, vocab_size: int = 61, longer: int = 1) -> list[TokenGroup]:
    """Paragraphs of 3 to 9 tokens with 1 to `branches` questions of 1 to 4 tokens and answers of 1 to 3, all lengths
    times `longer`."""
    draw = np.random.RandomState(seed)

    def some(low: int, high: int) -> list[int]:
        return [int(t) for t in draw.randint(0, vocab_size, draw.randint(low * longer, high * longer + 1))]

    return [TokenGroup(some(3, 9), [Branch(f"{g}.{b}", some(1, 4), some(1, 3))
                                    for b in range(draw.randint(1, branches + 1))]) for g in range(count)]


def several(count: int = 5, seed: int = 0) -> list[TokenGroup]:
    """`groups` whose questions have one to three answers each, with weights that add up to 1."""
    draw = np.random.RandomState(seed)

    def more(branch: Branch) -> Branch:
        weights = (draw.randint(1, 4, draw.randint(1, 4)) / 6).tolist()
        others = [Branch(branch.id, branch.prompt, [int(t) for t in draw.randint(0, 61, draw.randint(1, 4))],
                         weight=weight / sum(weights)) for weight in weights]
        return replace(others[0], completion=branch.completion, others=tuple(others[1:]))

    return [group.with_branches([more(branch) for branch in group.branches]) for group in groups(count, seed)]


def one_by_one(made: list[TokenGroup]) -> list[TokenGroup]:
    """Each answer as an example of its own, with its weight."""
    return [TokenGroup([], [replace(one, prompt=group.prefix + one.prompt, others=())])
            for group in made for branch in group.branches for one in branch.all]


def seen_rows(lengths: list[tuple[int, list[int]]]) -> np.ndarray:
    """(N, N) bool, the definition of a layout: a row sees the rows of its group that come no later and belong to the
    prefix or to its own branch.

    Args:
        lengths: of each group's prefix and branches.
    """
    owners = []  # (group, branch) per row, branch -1 for the prefix
    for g, (prefix, branches) in enumerate(lengths):
        owners += [(g, -1)] * prefix
        for b, length in enumerate(branches):
            owners += [(g, b)] * length
    seen = np.zeros((len(owners), len(owners)), bool)
    for i, (group, branch) in enumerate(owners):
        for j in range(i + 1):
            seen[i, j] = owners[j][0] == group and owners[j][1] in (-1, branch)
    return seen


def adapter_arrays(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Values for an adapter's arrays, A and B alike, large enough to matter."""
    return {name: (np.random.RandomState([seed, i]).standard_normal(shape) * 0.2).astype(np.float32)
            for i, (name, shape) in enumerate(sorted(shapes.items()))}
