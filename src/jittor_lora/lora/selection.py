"""Which modules of a network an adapter trains, and how."""

from __future__ import annotations

from typing import NamedTuple

from jittor_lora.errors import UserError
from jittor_lora.lora.adapted import AdaptedModule
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.layer import is_fused_qkv
from jittor_lora.lora.targets import OUTPUT_HEAD, match_saved, match_targets, short_names
from jittor_lora.model.causal_lm import CausalLM
from jittor_lora.model.modules import Embedding, Linear, leaf_modules
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


def base_modules(model: CausalLM) -> dict[str, jt.Module]:
    """The base's leaf modules by name, in the network's order."""
    return {leaf.name: leaf.module.base if isinstance(leaf.module, AdaptedModule) else leaf.module
            for leaf in leaf_modules(model)}


def select(bases: dict[str, jt.Module], config: LoraConfig) -> Selection:
    """The modules that `config` names, of those in `base_modules`.

    Raises:
        UserError: a name matches nothing, or a setting does not apply to what it names; all are listed.
    """
    saved = match_saved(list(bases), config.modules_to_save) if config.modules_to_save else []
    linear = [name for name, module in bases.items() if isinstance(module, Linear)]
    targets = match_targets([name for name, module in bases.items() if isinstance(module, (Linear, Embedding))], config,
                            linear)
    wrong = []
    if config.qv_only and not any(is_fused_qkv(name) for name in targets):
        wrong.append("qv_only: expected the fused projection c_attn (GPT-2) among the target modules, found "
                     f"{', '.join(short_names(targets))}. Name q_proj and v_proj as target modules instead.")
    embeddings = [name for name in targets if isinstance(bases[name], Embedding)]
    if embeddings and config.changes_base:
        wrong.append(f"init: {config.init} is for linear layers, and {', '.join(embeddings)} is an embedding.")
    without = [name for name in targets if isinstance(bases[name], Embedding) or name == OUTPUT_HEAD]
    if config.lora_bias and without:
        wrong.append(f"lora_bias: not supported for {', '.join(without)}.")
    biased = {name for name, module in bases.items() if getattr(module, "bias", None) is not None
              and (config.bias == "all" or (config.bias == "lora_only" and name in targets))}
    if config.bias != "none" and not biased:
        wrong.append(f"bias: {config.bias}, but the modules it refers to have no biases in this base.")
    if wrong:
        raise UserError("\n".join(wrong))
    return Selection(frozenset(targets), frozenset(saved), frozenset(biased))


def trained_shapes(model: CausalLM, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained arrays of an adapter with these settings, named as in `Adapter.parameters`.

    Raises:
        UserError: as `select`.
    """
    bases = base_modules(model)
    selection = select(bases, config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, base in bases.items():
        rows, columns = base.weight.shape[0], base.weight.shape[-1]
        if name in selection.targets:
            is_embedding, rank = isinstance(base, Embedding), config.rank_of(name)
            a, b = (rank, rows if is_embedding else columns), (columns if is_embedding else rows, rank)
            kind = "lora_embedding_" if is_embedding else "lora_"
            shapes.update({f"{name}.{kind}A": a, f"{name}.{kind}B": b})
            if config.use_dora:
                shapes[f"{name}.lora_magnitude_vector"] = b[:1]
            if config.lora_bias:
                shapes[f"{name}.lora_B_bias"] = (rows,)
        elif name in selection.saved:
            shapes[f"{name}.weight"] = tuple(base.weight.shape)
        if name in selection.biased or (name in selection.saved and getattr(base, "bias", None) is not None):
            shapes[f"{name}.bias"] = (rows,)
    return shapes
