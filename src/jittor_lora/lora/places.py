"""Where the modules of a network are, so that adapted ones can be put in their place."""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple

from jittor_lora.lora.adapted import AdaptedModule
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import leaf_modules
from jittor_lora.system.runtime import jt


class Place(NamedTuple):
    """A module of a network.

    Attributes:
        name: dotted, the first one if the module is at several.
        module: what is there.
        holders: what holds it, each with its key: a module with an attribute, a list or a dict.
    """

    name: str
    module: jt.Module
    holders: tuple[tuple[Any, Any], ...]

    def put(self, module: jt.Module) -> None:
        """Put another module in its place, everywhere it is held."""
        for holder, key in self.holders:
            if isinstance(holder, jt.Module):
                setattr(holder, key, module)
            else:
                holder[key] = module


def places(network: jt.Module) -> list[Place]:
    """The modules that an adapter may be about, in the network's order; adapted ones are not entered.

    Of our own networks, those that hold a weight. Of any other Jittor module all below it: in attributes, in
    `jt.nn.Sequential` (which `ModuleList` is too), in lists and in dicts; but not below a `MultiheadAttention`, which
    is adapted as one.
    """
    if isinstance(network, CausalLM):
        return [Place(leaf.name, leaf.module, ((leaf.parent, leaf.attribute),)) for leaf in leaf_modules(network)]
    found: dict[int, list] = {}
    for name, holder, key, module in _below(network, "", {id(network)}):
        if id(module) in found:
            found[id(module)][2].append((holder, key))
        else:
            found[id(module)] = [name, module, [(holder, key)]]
    return [Place(name, module, tuple(holders)) for name, module, holders in found.values()]


def has_modules(module: jt.Module) -> bool:
    """Are there modules below this one?"""
    return next(_below(module, "", set()), None) is not None


def _below(parent: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any, Any, jt.Module]]:
    """Name, holder, key and module of all modules below; a module that was seen is not entered again."""
    for holder, key, child in _children(parent):
        name = f"{prefix}{key}"
        if isinstance(child, jt.Module):
            yield name, holder, key, child
        if id(child) in seen:
            continue
        seen.add(id(child))
        if not isinstance(child, (AdaptedModule, jt.attention.MultiheadAttention)):
            yield from _below(child, f"{name}.", seen)


def _children(parent: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Holder, key and value of what may hold modules."""
    if isinstance(parent, jt.nn.Sequential):
        parent = parent.layers
    if isinstance(parent, jt.Module):
        items, holder = list(vars(parent).items()), parent
    elif isinstance(parent, dict):
        items, holder = list(parent.items()), parent
    elif isinstance(parent, list):
        items, holder = list(enumerate(parent)), parent
    else:
        return
    for key, value in items:
        if isinstance(value, (jt.Module, list, dict)) and not str(key).startswith("_"):
            yield holder, key, value
