"""What /ui/adapters and /ui/adapters/difference answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from jittor_lora.serving.views.adapter_norms import ModuleDifference, ModuleNorms


@dataclass
class LoadedAdapter:
    """
    Attributes:
        folder: from which it was loaded, below a folder that the server was given, or its name.
        created: when it was loaded, seconds since 1970.
        variant: "LoRA", or what is not plain about it.
        line: its settings in one line.
        parameters, bytes: trained values, and their size in memory.
        whole: modules that are trained whole, or whose bias is.
        settings: those in use, by PEFT's names.
        a, b, update: norms over all modules.
    """

    name: str
    folder: str
    created: int
    variant: str
    line: str
    rank: int
    alpha: float
    dropout: float
    targets: Any
    parameters: int
    bytes: int
    whole: list[str]
    settings: dict[str, Any]
    a: float
    b: float
    update: float
    modules: list[ModuleNorms]


@dataclass
class AvailableAdapter:
    """An adapter that can be loaded.

    Attributes:
        path: for /v1/load_lora_adapter.
        folder: shorter, for people.
        of_this_base: by its record of the base's weights; None without one.
        problem: why it cannot be loaded; the other values are then missing.
        loaded: the names under which it is loaded.
    """

    path: str
    folder: str
    base: Optional[str] = None
    of_this_base: Optional[bool] = None
    rank: Optional[int] = None
    alpha: Optional[float] = None
    targets: Any = None
    parameters: Optional[int] = None
    bytes: Optional[int] = None
    problem: Optional[str] = None
    loaded: list[str] = field(default_factory=list)


@dataclass
class AdapterList:
    """
    Attributes:
        base: its name in requests.
        more: how many available ones are not listed.
    """

    base: str
    loaded: list[LoadedAdapter] = field(default_factory=list)
    available: list[AvailableAdapter] = field(default_factory=list)
    more: int = 0


@dataclass
class AdapterDifference:
    """Two loaded adapters; modules that both have."""

    first: str
    second: str
    modules: list[ModuleDifference] = field(default_factory=list)
