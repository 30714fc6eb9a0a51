"""Putting LoRA layers into a network, and finding them again."""

from __future__ import annotations

import re
import zlib

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.lora.config import ALL_LINEAR, LoraConfig
from jittor_lora.lora.layer import LoraLinear, is_fused_qkv
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import linear_layers
from jittor_lora.runtime import jt

OUTPUT_HEAD = "lm_head"


class Adapter:
    """The LoRA layers of one network, in the network's order.

    Args:
        config: what they were made from.
        layers: name of the adapted module → layer.
    """

    def __init__(self, config: LoraConfig, layers: dict[str, LoraLinear]):
        self.config, self.layers = config, layers

    def parameters(self) -> dict[str, jt.Var]:
        """The trained arrays: "<module>.lora_A" (r, in) and "<module>.lora_B" (out, r)."""
        return {f"{name}.{part}": getattr(layer, part)
                for name, layer in self.layers.items() for part in ("lora_A", "lora_B")}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Set the trained arrays, all of them, to these values.

        Raises:
            UserError: a missing, unexpected or misshapen array; all are listed.
        """
        parameters = self.parameters()
        wrong = [f"{name}: missing" for name in parameters if name not in arrays]
        wrong += [f"{name}: no such module is adapted" for name in arrays if name not in parameters]
        wrong += [f"{name}: expected shape {tuple(p.shape)}, found {tuple(arrays[name].shape)}"
                  for name, p in parameters.items() if name in arrays and tuple(p.shape) != tuple(arrays[name].shape)]
        if wrong:
            raise UserError(f"The adapter does not fit the model:\n  {listing(wrong)}\n"
                            "Load it with the base model and the target modules it was trained with.")
        for name, parameter in parameters.items():
            parameter.update(jt.array(np.ascontiguousarray(arrays[name], np.float32)))

    def count(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(p.shape)) for p in self.parameters().values())

    def set_dropout(self, *key: int) -> None:
        """Choose the masks of the next run by these numbers (seed, step, stream); without numbers no dropout."""
        for name, layer in self.layers.items():
            layer.dropout_seed = seed_of(*key, zlib.crc32(name.encode())) if key else None

    def enable(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.enabled = on


def inject(model: CausalLM, config: LoraConfig, seed: int = 0) -> Adapter:
    """Wrap the modules of `model` that the configuration names, in place.

    Raises:
        UserError: a target that matches nothing or the output head, or `qv_only` where there is no fused projection;
            the names there are stand in the message.
        ValueError: the model has an adapter already.
    """
    if any(isinstance(holder, LoraLinear) for _, holder, _, _ in linear_layers(model)):
        raise ValueError("the model has an adapter already; build it anew for another")
    found = {name: (holder, attribute, layer) for name, holder, attribute, layer in linear_layers(model)}
    names = match_targets(list(found), config.target_modules)
    if OUTPUT_HEAD in names:
        others = ", ".join(short_names([name for name in found if name != OUTPUT_HEAD]))
        raise UserError(f"target_modules: {_shown(config.target_modules)} takes in the output head, {OUTPUT_HEAD}, "
                        f"which cannot be adapted. There are {others}.")
    if config.qv_only and not any(is_fused_qkv(name) for name in names):
        raise UserError("qv_only: expected the fused projection c_attn (GPT-2) among the target modules, found "
                        f"{', '.join(short_names(names))}. Name q_proj and v_proj as target modules instead.")
    layers = {}
    for name in names:
        holder, attribute, base = found[name]
        layers[name] = LoraLinear(base, config, name, seed)
        setattr(holder, attribute, layers[name])
    return Adapter(config, layers)


def match_targets(names: list[str], targets: tuple[str, ...] | str) -> list[str]:
    """The names that the targets select, by PEFT's rules, in the order of `names`.

    Args:
        names: dotted names of the linear layers.
        targets: last parts of names; or one regular expression for the whole name; or "all-linear".

    Raises:
        UserError: a target matches nothing, or is not a regular expression.
    """
    if targets == ALL_LINEAR:
        return [name for name in names if name.rsplit(".", 1)[-1] != OUTPUT_HEAD]
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"target_modules: {targets!r} is not a regular expression ({error}).") from error
        chosen = [name for name in names if pattern.fullmatch(name)]
        idle = [] if chosen else [targets]
    else:
        chosen = [name for name in names if any(selects(t, name) for t in targets)]
        idle = [t for t in targets if not any(selects(t, name) for name in names)]
    if idle:
        raise UserError(f"target_modules: nothing in the model is called {', '.join(idle)}. "
                        f"There are {', '.join(short_names(names))}; {ALL_LINEAR} takes all but the output head.")
    return chosen


def selects(target: str, name: str) -> bool:
    """Is the target the name, or its last parts?"""
    return name == target or name.endswith("." + target)


def short_names(names: list[str]) -> list[str]:
    """Last parts of the names, each once."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def _shown(targets: tuple[str, ...] | str) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets)


def seed_of(*key: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence([k & 0xFFFFFFFFFFFFFFFF for k in key]).generate_state(1)[0]) >> 1


def listing(lines: list[str], most: int = 20) -> str:
    """The lines below each other, cut where there are too many to read."""
    rest = len(lines) - most
    return "\n  ".join(lines[:most] + ([f"… and {rest} more"] if rest > 0 else []))
