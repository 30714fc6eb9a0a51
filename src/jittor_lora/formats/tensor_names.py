"""Tensor names with a prefix from what wrapped the model: torch.compile, DistributedDataParallel, a module."""

from __future__ import annotations

import re
from itertools import islice
from typing import Callable, Iterable, TypeVar

Value = TypeVar("Value")

WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DataParallel or DistributedDataParallel"}
_MOST_PARTS = 16  # of a wrapper prefix: trying all parts of a hostile one would take quadratic time
_ADAPTER = re.compile(r"(.*\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(\w+)((?:\.weight)?)")


def wrapper_of(names: Iterable[str], known: Callable[[str], bool]) -> str:
    """The prefix before known names that all names share; empty if there is none, or some name is known without one.

    Args:
        known: whether this is the name of a tensor of the model.
    """
    names = list(names)
    if not names or any(map(known, names)):
        return ""
    # All names are searched, not the first alone: that may be a buffer's.
    found = {name[: dot.end()] for name in names for dot in islice(re.finditer(r"\.", name), _MOST_PARTS)
             if known(name[dot.end() :])}
    return next((prefix for prefix in sorted(found) if all(name.startswith(prefix) for name in names)), "")


def wrapper_note(prefix: str) -> str:
    """The note about a prefix that is removed from the names."""
    parts = re.findall(r"[^.]+\.", prefix)
    origins = ", ".join(f"{part[:-1]} ({WRAPPERS[part]})" if part in WRAPPERS else part[:-1]
                        for part in dict.fromkeys(parts))
    return f"all tensor names start with {prefix}, which is removed: the model was saved inside {origins}."


def without_adapter_name(entries: dict[str, Value]) -> tuple[dict[str, Value], str]:
    """Tensors of a PEFT model's state dict under the names that PEFT saves, without the adapter's name in them.

    Returns: the tensors, and the name removed; empty if there is none, or several.
    """
    matches = {name: _ADAPTER.fullmatch(name) for name in entries}
    # PEFT's own are "lora_A.weight", and "lora_embedding_A" with nothing after it.
    named = {match.group(2) for match in matches.values() if match and not (match.group(2) == "weight"
                                                                           and not match.group(3))}
    if len(named) != 1:
        return entries, ""
    (name,) = named
    if any(match and match.group(2) != name for match in matches.values()):
        return entries, ""
    return {match.group(1) + (match.group(3) or "") if match else old: entries[old]
            for old, match in matches.items()}, name
