"""Names of tensors that begin with what the model was wrapped in: torch.compile, DistributedDataParallel, a module."""

from __future__ import annotations

import re
from itertools import islice
from typing import Callable, Iterable, TypeVar

Value = TypeVar("Value")

WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DataParallel or DistributedDataParallel"}
_MOST_PARTS = 16  # of a wrapper's name: to try all of a hostile one takes time quadratic in its length
_ADAPTER = re.compile(r"(.*\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(\w+)((?:\.weight)?)")


def wrapper_of(names: Iterable[str], known: Callable[[str], bool]) -> str:
    """What all names begin with before a name that is known; empty if there is no such text, or no need of one.

    Args:
        known: is this the name of a tensor of the model?
    """
    names = list(names)
    if not names or any(map(known, names)):
        return ""
    # Not of the first name alone: it may be that of a buffer.
    found = {name[: dot.end()] for name in names for dot in islice(re.finditer(r"\.", name), _MOST_PARTS)
             if known(name[dot.end() :])}
    return next((prefix for prefix in sorted(found) if all(name.startswith(prefix) for name in names)), "")


def wrapper_note(prefix: str) -> str:
    """What is said of a wrapper that is left out of the names."""
    parts = re.findall(r"[^.]+\.", prefix)
    left = ", ".join(f"{part} ({WRAPPERS[part]})" if part in WRAPPERS else part for part in dict.fromkeys(parts))
    return f"all tensors' names have {prefix} before them, which is left out: {left} was around the saved model."


def without_adapter_name(entries: dict[str, Value]) -> tuple[dict[str, Value], str]:
    """Tensors of a PEFT model's state dict under the names that PEFT saves, which are without the adapter's own.

    Returns: the tensors, and the name that was left out; empty if there is none, or several.
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
