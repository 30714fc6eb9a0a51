"""The peers: which file measures each, what it needs, what it can do. A further one is a file and a line here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from jittor_lora.settings.bench import TOOLS


@dataclass(frozen=True)
class Tool:
    """
    Attributes:
        module: the file of this folder with its `Contender`.
        packages: what it needs: import name -> name on the package index.
        shown: job -> its name in tables, for the jobs that are compared by storage format.
        formats: storage format (see formats.py) -> options of its `Contender` that choose it.
        reads_gguf: its base is a GGUF file in that format, else the Hugging Face folder.
        specs: job -> what is added to the job's arguments.
        tried: job -> arguments of which the fastest are found before measuring, by their name in the report.
    """

    module: str
    packages: Mapping[str, str]
    shown: Mapping[str, str]
    formats: Mapping[str, dict[str, Any]]
    reads_gguf: bool = False
    specs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    tried: Mapping[str, Mapping[str, dict[str, Any]]] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Packages to install, by their names on the index."""
        return [package for name, package in self.packages.items() if importlib.util.find_spec(name) is None]


_GGUF = ("file", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
_ONE = {"flash attention": {"flash": True}, "no flash attention": {"flash": False}}
_SEVERAL = {"flash attention, one cache": {"flash": True, "unified": True},
            "flash attention, a cache per text": {"flash": True, "unified": False},
            "no flash attention, one cache": {"flash": False, "unified": True}}
_LLAMA, _MLX = "llama.cpp", "mlx-lm"

PEERS = dict(zip(TOOLS, (
    Tool("peers", {"torch": "torch", "transformers": "transformers", "peft": "peft"},
         {"decode": "transformers", "step": "PEFT"},
         {"f32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}}, specs={"decode": {"cache": "dynamic"}}),
    Tool("llama_cpp", {"llama_cpp": "llama-cpp-python"},
         {"decode": _LLAMA, "context": _LLAMA, "logits": _LLAMA}, {name: {} for name in _GGUF}, reads_gguf=True,
         specs={"context": {"together": True}},
         tried={"decode": _ONE, "decode of several texts": _SEVERAL, "context": _SEVERAL}),
    Tool("mlx_lm", {"mlx": "mlx", "mlx_lm": "mlx-lm"},
         {"decode": _MLX, "step": _MLX, "logits": _MLX},
         {"f32": {"storage": "f32"}, "bf16": {"storage": "bf16"}, "f16": {"storage": "f16"}, "q8_0": {"storage": "q8"},
          "q4_0": {"storage": "q4"}, "q4_1": {"storage": "q4"}}),
)))


def chosen(names: Iterable[str]) -> dict[str, Tool]:
    """The installed ones of these."""
    return {name: PEERS[name] for name in names if not PEERS[name].missing()}


def versions() -> dict[str, str]:
    """Of the packages of all installed peers."""
    packages = [package for tool in chosen(PEERS).values() for package in tool.packages.values()]
    return {package: metadata.version(package) for package in packages}
