"""The modules that a configuration selects, by PEFT's rules."""

from __future__ import annotations

import re
from typing import Sequence

from jittor_lora.errors import UserError
from jittor_lora.lora.config import ALL_LINEAR, LoraConfig

OUTPUT_HEAD = "lm_head"


def match_targets(names: Sequence[str], config: LoraConfig, linear: Sequence[str] | None = None) -> list[str]:
    """The names that get an update, in the order of `names`.

    A selected module matches `target_modules`, and neither `exclude_modules` nor `modules_to_save`. If targets are
    names, `layers_to_transform` restricts them to these blocks; a whole name counts in any block.

    Args:
        names: dotted names of the modules that can get one.
        linear: those that are linear layers, for "all-linear"; by default all.

    Raises:
        UserError: a target matches nothing, or nothing remains.
    """
    targets = config.target_modules
    if targets == ALL_LINEAR:
        named = [name for name in (names if linear is None else linear) if _last(name) != OUTPUT_HEAD]
    else:
        named = _named(names, targets)
    idle = idle_targets(names, targets)
    if idle:
        raise UserError(f"target_modules: nothing in the model is called {', '.join(idle)}. It has "
                        f"{', '.join(short_names(names))}; {ALL_LINEAR} selects all linear layers but the output head.")
    excluded = set(_named(names, config.exclude_modules)) if config.exclude_modules else set()
    chosen = [name for name in named if name not in excluded and not _is_left_to_saved(name, config.modules_to_save)
              and _in_layers(name, config)]
    if not chosen:
        raise UserError("target_modules: nothing remains after exclude_modules, modules_to_save and "
                        f"layers_to_transform. It selects {', '.join(named[:8])}{', …' if len(named) > 8 else ''}.")
    return chosen


def idle_targets(names: Sequence[str], targets: tuple[str, ...] | str) -> list[str]:
    """The targets that match no name."""
    if targets == ALL_LINEAR:
        return []
    if isinstance(targets, str):
        return [] if _named(names, targets) else [targets]
    return [target for target in targets if not any(selects(target, name) for name in names)]


def match_saved(names: Sequence[str], saved: Sequence[str]) -> list[str]:
    """The names of the modules to train whole: those that end in a text of `saved`, and all modules below them.

    Args:
        names: of the modules that hold a weight.

    Raises:
        UserError: no name ends in one of the texts.
    """
    idle = [text for text in saved if not any(is_saved(name, [text]) for name in names)]
    if idle:
        raise UserError(f"modules_to_save: no module name ends in {', '.join(idle)}. The model has "
                        f"{', '.join(short_names(names))}.")
    return [name for name in names if is_saved(name, saved)]


def is_saved(name: str, saved: Sequence[str]) -> bool:
    """Does the name of the module, or of a module around it, end in one of the texts?"""
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(part.endswith(tuple(saved)) for part in above)


def selects(target: str, name: str) -> bool:
    """Is the target the whole name, or its last parts?"""
    return name == target or name.endswith("." + target)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of the names, without duplicates."""
    return list(dict.fromkeys(map(_last, names)))


def _named(names: Sequence[str], targets: tuple[str, ...] | str) -> list[str]:
    if not isinstance(targets, str):
        return [name for name in names if any(selects(target, name) for target in targets)]
    return [name for name in names if re.fullmatch(targets, name)]


def _is_left_to_saved(name: str, saved: Sequence[str]) -> bool:
    return any(f".{text}." in f".{name}." for text in saved)


def _in_layers(name: str, config: LoraConfig) -> bool:
    if config.layers_to_transform is None or name in config.target_modules:
        return True
    patterns = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in config.layers_pattern or ()]
    matches = (re.match(pattern, name) for pattern in patterns or [r".*?\.[^.]*\.(\d+)\."])
    found = next((match for match in matches if match), None)
    # The number is the last group, as the pattern may contain groups itself.
    return found is not None and int(found.group(found.re.groups)) in config.layers_to_transform


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
