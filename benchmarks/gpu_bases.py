"""The base models of benchmarks/gpu.sh: random weights, so nothing is downloaded, and GPT-2's tokenizer, which is here.

    python benchmarks/gpu_bases.py FOLDER [--tiny]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jittor_lora.benchmark.base import GPT2, RandomWeights
from jittor_lora.benchmark.workloads import open_base
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.model.config import ModelConfig

# SmolLM2-135M's config.json, but for the vocabulary, which is GPT-2's.
SMOLLM2 = {"model_type": "llama", "vocab_size": 50257, "hidden_size": 576, "num_hidden_layers": 30,
           "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
           "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
           "hidden_act": "silu", "bos_token_id": 50256, "eos_token_id": 50256}
BASES = {"gpt2": GPT2, "smollm2": SMOLLM2}
NAMES = {"gpt2": "GPT-2 124M", "smollm2": "SmolLM2-135M's shape"}
TINY = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "smollm2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                    "intermediate_size": 48, "max_position_embeddings": 1024}}


def title(name: str, tiny: bool) -> str:
    """What tables call a base."""
    return f"tiny {name}" if tiny else NAMES[name]


def write(folder: Path, tiny: bool) -> None:
    """`gpt2` and `smollm2` in this folder, in Hugging Face's layout, unless they are there."""
    for name, source in BASES.items():
        if (folder / name / "config.json").is_file():  # written last
            continue
        config = ModelConfig.from_hugging_face({**source, **(TINY[name] if tiny else {})}, "config.json")
        write_checkpoint(folder / name, Checkpoint(config, RandomWeights(config), None))
        if name != "gpt2":
            open_base(folder / "gpt2")[1].save(folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="two layers of 32 numbers, to try the scripts")
    given = parser.parse_args()
    write(given.folder, given.tiny)
