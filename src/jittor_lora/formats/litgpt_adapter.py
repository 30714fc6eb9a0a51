"""Adapters of litgpt: a folder with `lit_model.pth.lora`, written by torch.save, and `hyperparameters.yaml`.

Names are litgpt's, and q, k and v are one matrix, `attn.qkv`, of which the settings lora_query, lora_key and lora_value
choose g parts: lora_A (g r, in) has their A in order, lora_B their B (out of that part, r) one below the other. A part
is an update of PEFT's, of q_proj, k_proj or v_proj.

Until 0.5.3 the matrix was called `attn.attn`, and its rows were ordered by group: the queries of a group of heads,
their key, their value. lora_B was not, and with all three parts its row i was added to row i of the matrix: the rows of
q_proj then have the A of several parts. They are read as one update of rank up to 3 r; written is the newer form.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Optional

import numpy as np
import yaml

from jittor_lora.errors import UserError
from jittor_lora.files.atomic import atomic_write
from jittor_lora.files.finite import not_finite
from jittor_lora.formats.adapter_check import regular_file
from jittor_lora.formats.low_rank import LowRank, place, uniform
from jittor_lora.formats.opened_adapter import (
    OpenedAdapter,
    is_positive,
    is_rank,
    is_share,
    name_or_none,
    needs_base,
    refuse,
    wrong_pair,
    wrong_settings,
    wrong_tensors,
)
from jittor_lora.formats.torch_file import TorchFile
from jittor_lora.formats.torch_writer import write_torch
from jittor_lora.formats.yaml_file import read_settings
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import MAX_RANK
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.model.config import ModelConfig

SETTINGS_FILE, WEIGHTS_FILE = "hyperparameters.yaml", "lit_model.pth.lora"
_WEIGHTS_FILES = (WEIGHTS_FILE, "lit_model.lora.pth", "lit_model_lora_finetuned.pth")
_PARTS = {"self_attn.q_proj": "lora_query", "self_attn.k_proj": "lora_key", "self_attn.v_proj": "lora_value"}
_OTHERS = {"attn.proj": ("self_attn.o_proj", "lora_projection"), "mlp.fc_1": ("mlp.gate_proj", "lora_mlp"),
           "mlp.fc_2": ("mlp.up_proj", "lora_mlp"), "mlp.proj": ("mlp.down_proj", "lora_mlp")}
_HEAD = "lora_head"
_SWITCHES = (*_PARTS.values(), "lora_projection", "lora_mlp", _HEAD)
_NAME = re.compile(rf"(?:transformer\.h\.(\d{{1,4}})\.(attn\.qkv|attn\.attn|{'|'.join(map(re.escape, _OTHERS))})"
                   r"|(lm_head))\.lora_([AB])", re.ASCII)
_BLOCK = "model.layers."
_MOST = 20_000  # tensors


class _Sizes(NamedTuple):
    """Rows of q_proj, of k_proj and v_proj, of a head, and heads per group."""

    query: int
    key: int
    head: int
    group: int

    @classmethod
    def of(cls, config: ModelConfig) -> _Sizes:
        return cls(config.heads * config.head_dim, config.kv_heads * config.head_dim, config.head_dim,
                   config.heads // config.kv_heads)

    @property
    def rows(self) -> tuple[int, int, int]:
        return self.query, self.key, self.key

    def by_group(self) -> list[np.ndarray]:
        """The rows of q, k and v in a matrix ordered by group."""
        of_row = np.arange(sum(self.rows)) // self.head % (self.group + 2)
        return [np.flatnonzero(found) for found in (of_row < self.group, of_row == self.group, of_row > self.group)]


def is_here(folder: Path) -> bool:
    """Does the folder have litgpt's settings of LoRA?"""
    path = folder / SETTINGS_FILE
    try:
        return path.is_file() and "lora_r" in read_settings(path)
    except UserError:
        return _weights(folder).is_file()  # `opened` says what is wrong


def opened(folder: Path) -> OpenedAdapter:
    """
    Raises:
        UserError: settings are missing or wrong; all are listed.
    """
    path = folder / SETTINGS_FILE
    values = read_settings(path)
    refuse(path, wrong_settings([
        ("lora_r", values.get("lora_r"), is_rank, f"a whole number from 1 to {MAX_RANK}"),
        ("lora_alpha", values.get("lora_alpha", 1), is_positive, "a number above 0"),
        ("lora_dropout", values.get("lora_dropout", 0.0), is_share, "a number from 0 to below 1"),
        *((name, values.get(name, False), lambda value: type(value) is bool, "true or false") for name in _SWITCHES),
    ]))
    base = _base(folder, values)
    return OpenedAdapter(path, _weights(folder), base, partial(_read, _weights(folder), values, base))


def _weights(folder: Path) -> Path:
    found = [folder / name for name in _WEIGHTS_FILES if (folder / name).is_file()]
    return found[0] if found else folder / WEIGHTS_FILE


def _base(folder: Path, values: Mapping[str, Any]) -> Optional[str]:
    """organisation/name of the model on the Hub, from the folder of litgpt's checkpoints."""
    parts = Path(name_or_none(values.get("checkpoint_dir")) or "").parts
    return "/".join(parts[-2:]) if len(parts) > 2 and parts[-3] == "checkpoints" else None


def _read(path: Path, values: Mapping[str, Any], base: Optional[str], config: Optional[ModelConfig]) -> LowRank:
    if config is None:
        raise needs_base(path, "litgpt has q, k and v in one matrix, whose parts only the base's sizes tell")
    if config.network != "llama":
        raise UserError(f"{path}: litgpt has the Llama family, and no {config.family}. Name the base that the adapter "
                        "was trained on.")
    file, rank = TorchFile(regular_file(path)), values["lora_r"]
    refuse(path, [f"expected at most {_MOST:,} tensors of LoRA, found {len(file):,}"] if len(file) > _MOST else
           list(wrong_tensors(file, _NAME, "transformer.h.0.attn.qkv.lora_A")))
    refuse(path, [f"{name}: holds numbers that are not finite ({what})" for name, what in not_finite(file).items()])
    pairs: dict[tuple[Optional[int], str], dict[str, np.ndarray]] = {}
    for name in file:
        block, kind, head, part = _NAME.fullmatch(name).groups()
        pairs.setdefault((None, head) if head else (int(block), kind), {})[part] = file[name]
    scaling, sizes = values.get("lora_alpha", 1) / rank, _Sizes.of(config)
    enabled = [bool(values.get(name, False)) for name in _PARTS.values()]
    factors: dict[str, Factors] = {}
    wrong = [] if pairs else ["holds no arrays"]
    for (block, kind), pair in pairs.items():
        fused = kind in ("attn.qkv", "attn.attn")
        problem = _fused_problem(pair, rank, enabled, sizes) if fused else wrong_pair(pair, "lora_A", "lora_B", rank)
        if problem:
            wrong.append(f"{'' if block is None else f'transformer.h.{block}.'}{kind}: {problem}")
        elif fused:
            found = _parts(pair["A"], pair["B"], rank, enabled, sizes, kind == "attn.attn")
            factors.update({f"{_BLOCK}{block}.{module}": Factors(a, b, scaling) for module, (a, b) in found.items()})
        else:
            module = OUTPUT_HEAD if block is None else f"{_BLOCK}{block}.{_OTHERS[kind][0]}"
            factors[module] = Factors(pair["A"], pair["B"], scaling)
    refuse(path, wrong)
    return LowRank(factors, rank, float(values.get("lora_alpha", 1)), dropout=float(values.get("lora_dropout", 0.0)),
                   base=base)


def _fused_problem(pair: Mapping[str, np.ndarray], rank: int, enabled: list[bool], sizes: _Sizes) -> str | None:
    if len(pair) != 2:
        return wrong_pair(pair, "lora_A", "lora_B", rank)
    expected = rank * sum(enabled), sum(size for size, on in zip(sizes.rows, enabled) if on), rank
    found = len(pair["A"]), *pair["B"].shape
    if found == expected:
        return None
    names = ", ".join(name for name, on in zip(_PARTS.values(), enabled) if on) or "no part"
    return (f"expected lora_A ({expected[0]}, in) and lora_B {expected[1:]} for {names} of rank {rank} in this base, "
            f"found {pair['A'].shape} and {pair['B'].shape}")


def _parts(a: np.ndarray, b: np.ndarray, rank: int, enabled: list[bool], sizes: _Sizes,
           by_group: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of q_proj, k_proj and v_proj, of those that are enabled."""
    modules = [module for module, on in zip(_PARTS, enabled) if on]
    cuts = np.cumsum([size for size, on in zip(sizes.rows, enabled) if on])[:-1]
    own = np.split(b, cuts)
    if not by_group or len(modules) < len(_PARTS):
        return {module: (a[i * rank : (i + 1) * rank], own[i]) for i, module in enumerate(modules)}
    whole = np.zeros((len(b), len(a)), np.float32)
    for i, (part, begin) in enumerate(zip(own, (0, *cuts))):
        whole[begin : begin + len(part), i * rank : (i + 1) * rank] = part
    found = {}
    for module, rows in zip(modules, sizes.by_group()):
        used = np.repeat(whole[rows].reshape(len(rows), -1, rank).any((0, 2)), rank)
        used[:rank] |= not used.any()
        found[module] = a[used], whole[rows][:, used]
    return found


def write(folder: Path, updates: LowRank, config: ModelConfig) -> None:
    """Write the two files into the existing `folder`, float32. litgpt wants every module that a setting switches on in
    every block; those without an update get zeros.

    Args:
        config: of the base.

    Raises:
        UserError: litgpt does not have this model or all of these updates, or an array is not finite; all are listed.
    """
    refuse(folder, list(_unknown(updates, config)))
    rank, scaling, factors = uniform(updates.factors)
    refuse(folder, [f"{name}: holds numbers that are not finite ({what})" for name, what in not_finite(
        {f"{module}.{part}": array for module, pair in factors.items()
         for part, array in (("A", pair.a), ("B", pair.b))}).items()])
    kinds = {place(module)[1] for module in factors}
    switches = {switch: part in kinds for part, switch in _PARTS.items()}
    switches.update({switch: bool(kinds & {part for part, other in _OTHERS.values() if other == switch})
                     for _, switch in _OTHERS.values()})
    switches[_HEAD] = OUTPUT_HEAD in kinds
    inputs = {"self_attn.o_proj": config.heads * config.head_dim, "mlp.down_proj": config.intermediate_size}
    outputs = dict(zip(_PARTS, _Sizes.of(config).rows), **{"mlp.gate_proj": config.intermediate_size,
                                                           "mlp.up_proj": config.intermediate_size})
    arrays: dict[str, np.ndarray] = {}
    for block in range(config.layers):
        def pair(module: str, block: int = block) -> tuple[np.ndarray, np.ndarray]:
            if f"{_BLOCK}{block}.{module}" in factors:
                return factors[f"{_BLOCK}{block}.{module}"][:2]
            return (np.zeros((rank, inputs.get(module, config.hidden_size)), np.float32),
                    np.zeros((outputs.get(module, config.hidden_size), rank), np.float32))

        parts = [pair(module) for module, switch in _PARTS.items() if switches[switch]]
        if parts:
            name = f"transformer.h.{block}.attn.qkv.lora_"
            arrays[f"{name}A"] = np.concatenate([a for a, _ in parts])
            arrays[f"{name}B"] = np.concatenate([b for _, b in parts])
        for kind, (module, switch) in _OTHERS.items():
            if switches[switch]:
                name = f"transformer.h.{block}.{kind}.lora_"
                arrays[f"{name}A"], arrays[f"{name}B"] = pair(module)
    if switches[_HEAD]:
        arrays["lm_head.lora_A"], arrays["lm_head.lora_B"] = factors[OUTPUT_HEAD][:2]
    with atomic_write(folder / WEIGHTS_FILE, "wb") as stream:
        write_torch(stream, "model", arrays)
    with atomic_write(folder / SETTINGS_FILE) as stream:
        yaml.safe_dump({"checkpoint_dir": _checkpoint(updates.base), "lora_r": rank,
                        "lora_alpha": _whole(scaling * rank), "lora_dropout": updates.dropout, **switches}, stream,
                       sort_keys=False, allow_unicode=True)


def _checkpoint(base: Optional[str]) -> Optional[str]:
    """Where `litgpt download` puts a model of the Hub; any other base as it is called."""
    return f"checkpoints/{base}" if base and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) else base


def _whole(alpha: float) -> float | int:
    """As a whole number if it is one: that is what litgpt's flag is."""
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 * alpha else alpha


def _unknown(updates: LowRank, config: ModelConfig) -> Iterator[str]:
    if config.network != "llama":
        yield f"litgpt has the Llama family, and no {config.family}"
        return
    if updates.magnitudes:
        yield "use_dora: litgpt has no DoRA"
    known = {*_PARTS, *(module for module, _ in _OTHERS.values()), OUTPUT_HEAD}
    for module in updates.factors:
        if place(module)[1] not in known:
            yield f"{module}: litgpt adapts the projections and the head alone"
