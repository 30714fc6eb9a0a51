"""Which modules of a network an adapter trains, and how."""

from __future__ import annotations

from typing import NamedTuple

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.lora.adapted import AdaptedModule, parameters_of
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.kinds import SUPPORTED, kind_of
from jittor_lora.lora.layer import is_fused_qkv
from jittor_lora.lora.places import has_modules, places
from jittor_lora.lora.targets import match_saved, match_targets, short_names
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.system.runtime import jt


class Selection(NamedTuple):
    """Names of modules.

    Attributes:
        targets: get a low-rank update.
        saved: are trained whole (PEFT's `modules_to_save`).
        biased: have their bias trained.
    """

    targets: frozenset[str]
    saved: frozenset[str]
    biased: frozenset[str]


def base_modules(network: jt.Module) -> dict[str, jt.Module]:
    """The base's modules by name, see `places`, in the network's order."""
    return {place.name: place.module.base if isinstance(place.module, AdaptedModule) else place.module
            for place in places(network)}


def select(network: jt.Module, config: LoraConfig) -> Selection:
    """The modules of the network that `config` names.

    Raises:
        UserError: a name matches nothing, or a setting does not apply to what it names; all are listed.
    """
    bases = base_modules(network)
    kinds = {name: kind_of(module) for name, module in bases.items()}
    with_weight = [name for name, module in bases.items() if parameters_of(module)]
    saved = match_saved(with_weight, config.modules_to_save) if config.modules_to_save else []
    # Of our own networks all but norms can be adapted; of others each kind that cannot be is refused by name.
    adaptable = [name for name, kind in kinds.items() if kind is not None]
    linear = [name for name in adaptable if kinds[name].is_linear]
    targets = match_targets(adaptable if isinstance(network, CausalLM) else list(bases), config, linear)
    wrong = [f"{name}: a {type(bases[name]).__name__} cannot be adapted; {SUPPORTED} can. Leave it out with "
             "exclude_modules, or train it whole with modules_to_save." for name in targets if kinds[name] is None]
    wrong += [f"modules_to_save: {name}, a {type(bases[name]).__name__}, has arrays of its own and modules below it, "
              "and cannot be trained whole. Name the modules below it, or adapt it." for name in saved
              if has_modules(bases[name])]
    if config.bias != "none":
        wrong += [f"bias: {config.bias} is not supported for {name}.{part}" for name, module in bases.items()
                  for part in parameters_of(module) if "bias" in part and part != "bias"
                  and (config.bias == "all" or name in targets)]
    if config.qv_only and not any(is_fused_qkv(name) for name in targets):
        wrong.append(f"qv_only: expected the fused projection c_attn (GPT-2) among the target modules, found "
                     f"{', '.join(short_names(targets))}. Name q_proj and v_proj as target modules instead.")
    for name in targets:
        if kinds[name] is not None:
            wrong += kinds[name].update.refusals(bases[name], config, name)
    biased = {name for name, module in bases.items() if getattr(module, "bias", None) is not None
              and (config.bias == "all" or (config.bias == "lora_only" and name in targets))}
    if config.bias != "none" and not biased:
        wrong.append(f"bias: {config.bias}, but the modules it refers to have no biases in this base.")
    if wrong:
        raise UserError("\n".join(some_of_each(wrong)))
    return Selection(frozenset(targets), frozenset(saved), frozenset(biased))


def trained_shapes(network: jt.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays of an adapter with these settings, named as in `Adapter.parameters`.

    Raises:
        UserError: as `select`.
    """
    selection = select(network, config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, base in base_modules(network).items():
        own: dict[str, tuple[int, ...]] = {}
        if name in selection.targets:
            own.update(kind_of(base).update.shapes(base, config, name))
        elif name in selection.saved:
            own.update({part: tuple(getattr(base, part).shape) for part in parameters_of(base)})
        if name in selection.biased:
            own["bias"] = tuple(base.bias.shape)
        shapes.update({f"{name}.{part}": shape for part, shape in own.items()})
    return shapes
