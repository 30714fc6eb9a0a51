"""LoRA adapters for `serving.py`: random ones in PEFT's format, and any of them in llama.cpp's and mlx-lm's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from jittor_lora.benchmark.workloads import ALPHA, RANK
from jittor_lora.formats import mlx_adapter
from jittor_lora.formats.adapter_folder import read_adapter_folder
from jittor_lora.formats.gguf_adapter import write_gguf_adapter
from jittor_lora.formats.hugging_face import read_json
from jittor_lora.formats.low_rank import LowRank
from jittor_lora.lora.config import DEFAULT_TARGETS
from jittor_lora.model.config import ModelConfig, tensor_shapes

PREFIX = "base_model.model."
BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def write_random(folder: Path, config: ModelConfig, seed: int, scale: float = 0.03) -> Path:
    """An adapter of the default targets, in PEFT's format; A and B are normal with standard deviation `scale`."""
    targets = DEFAULT_TARGETS[config.family]
    shapes = {}
    for name, shape in tensor_shapes(config).items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(f".{target}" for target in targets)) and len(shape) == 2:
            out, columns = shape[::-1] if config.family == "gpt2" else shape  # GPT-2's checkpoints hold (in, out)
            shapes[f"{module}.lora_A"], shapes[f"{module}.lora_B"] = (RANK, columns), (out, RANK)
    draw = np.random.RandomState(seed)
    values = {f"{PREFIX}{name}.weight": (draw.standard_normal(shape) * scale).astype(np.float32)
              for name, shape in sorted(shapes.items())}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(values, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0,
        "target_modules": list(targets), "fan_in_fan_out": config.family == "gpt2", "bias": "none"}))
    return folder


def read(folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int, float]:
    """A plain LoRA adapter in PEFT's format: module -> (A (r, in), B (out, r)); its rank and alpha."""
    config = read_json(folder / "adapter_config.json")
    arrays = load_file(folder / "adapter_model.safetensors")
    modules = {name[len(PREFIX):].removesuffix(".lora_A.weight") for name in arrays if name.endswith(".lora_A.weight")}
    pairs = {module: tuple(arrays.pop(f"{PREFIX}{module}.lora_{part}.weight") for part in "AB")
             for module in sorted(modules)}
    if arrays or config.get("use_dora") or config.get("use_rslora") or config.get("rank_pattern"):
        raise SystemExit(f"{folder}: expected plain LoRA of one rank; the peers know no more.")
    return pairs, config["r"], config["lora_alpha"]


def write_gguf(adapter: Path, path: Path, config: ModelConfig) -> Path:
    """llama.cpp's file of an adapter."""
    write_gguf_adapter(path, config, read_adapter_folder(adapter).factors)
    return path


def write_mlx(adapter: Path, folder: Path, config: ModelConfig) -> Path:
    """mlx-lm's folder of an adapter."""
    found = read_adapter_folder(adapter)
    folder.mkdir(parents=True, exist_ok=True)
    mlx_adapter.write(folder, LowRank(found.factors, RANK, ALPHA), config)
    return folder
