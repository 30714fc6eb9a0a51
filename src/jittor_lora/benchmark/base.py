"""The base model that all contenders load: a GPT-2 with random weights, or the one requested."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jittor_lora.formats.bases import load_base, resolve_base
from jittor_lora.formats.hugging_face import Checkpoint, write_checkpoint
from jittor_lora.model.config import ModelConfig, tensor_shapes

# The smallest GPT-2, 124M parameters (Radford et al. 2019, table 2).
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 50256, "eos_token_id": 50256}


class RandomWeights(Mapping[str, np.ndarray]):
    """Random weights on the scale of GPT-2's initialisation, generated on access. Biases are not zero, so that errors
    in them would show."""

    def __init__(self, config: ModelConfig):
        self._shapes = tensor_shapes(config)

    def __getitem__(self, name: str) -> np.ndarray:
        draw = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
        values = draw.standard_normal(self._shapes[name], np.float32) * np.float32(0.02)
        if len(values.shape) == 1 and name.endswith("weight"):  # of a norm
            values += 1
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Base(NamedTuple):
    """
    Attributes:
        folder: in Hugging Face's layout.
        gguf: the file that the folder was made from, if there is one.
    """

    folder: Path
    description: str
    gguf: Path | None = None


def provide(name: str | None, folder: Path, source: Mapping = GPT2) -> Base:
    """The base as a Hugging Face folder.

    Args:
        name: as for `--base`; None for random weights.
        folder: where to write the base if it is not a Hugging Face folder yet.
        source: the config.json for random weights.

    Raises:
        UserError: the base cannot be found or read.
    """
    if name is None:
        config = ModelConfig.from_hugging_face(dict(source), "config.json")
        write_checkpoint(folder, Checkpoint(config, RandomWeights(config), None))
        size = sum(int(np.prod(shape)) for shape in tensor_shapes(config).values())
        return Base(folder, f"GPT-2 with {size / 1e6:.0f}M parameters, random")
    resolved = resolve_base(name)
    if resolved.kind == "folder":
        return Base(resolved.path, resolved.description)
    checkpoint, tokenizer = load_base(resolved)  # transformers reads folders
    write_checkpoint(folder, checkpoint)
    tokenizer.save(folder)
    return Base(folder, resolved.description, resolved.path)
