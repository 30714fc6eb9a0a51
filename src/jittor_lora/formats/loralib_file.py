"""LoRA weights of loralib (https://github.com/microsoft/LoRA): what `torch.save(lora_state_dict(model), …)` writes.

A module M has `M.lora_A` and `M.lora_B`, which are PEFT's A (r, in) and B (out, r), for an embedding A (r, tokens) and
B (D, r). GPT-2's c_attn, whose out is 3 D, may be loralib's MergedLinear, which updates g of queries, keys and values
separately, `enable_lora=[True, False, True]` in the examples: A (g r, in) holds their g matrices A in order, and
B (g D, r) their matrices B. Such updates of rank r are one of rank g r, with each matrix B on its own rows and columns:

    [ Bq Aq ]   [ Bq  0 ] [ Aq ]
    [   0   ] = [ 0   0 ] [ Av ]
    [ Bv Av ]   [ 0   Bv]

The file contains neither alpha nor `enable_lora`; two updates are taken to be those of queries and values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.files.finite import not_finite
from jittor_lora.formats.adapter_check import PREFIX, regular_file, show
from jittor_lora.formats.low_rank import last_part
from jittor_lora.formats.tensor_file import FLOAT_TYPES
from jittor_lora.formats.tensor_names import wrapper_note, wrapper_of
from jittor_lora.formats.torch_file import TorchFile
from jittor_lora.lora.combine import Factors
from jittor_lora.lora.config import MAX_RANK

PARTS = "qkv"  # of c_attn, in this order
_BY_COUNT = {2: "qv", 3: "qkv"}
FUSED = "c_attn"
_LONGEST_NAME = 256  # characters
_MOST_TENSORS = 20_000
_NAME = re.compile(r"(\w+(?:\.\w+)*)\.lora_([AB])", re.ASCII)
# Names of models without an output head → PEFT's, which count from the model with one
_OUTER = (("h.", "transformer."), ("wte", "transformer."), ("wpe", "transformer."), ("layers.", "model."),
          ("embed_tokens", "model."))
_STARTS = ("transformer.", "model.", "lm_head.", *(start for start, _ in _OUTER))


class LoralibUpdates(NamedTuple):
    """
    Attributes:
        factors: module name, as PEFT has it → A, B and scaling.
        rank: r of most modules; of a fused module that of its parts.
        notes: sentences on how the file was read.
    """

    factors: dict[str, Factors]
    rank: int
    notes: list[str]


def read_loralib(path: Path, alpha: float, enabled: str | None = None) -> LoralibUpdates:
    """
    Args:
        alpha: `lora_alpha` of the training.
        enabled: the parts of c_attn that were updated: "qv" for `enable_lora=[True, False, True]`; by default those
            that their number suggests.

    Raises:
        UserError: another kind of file, or a damaged or hostile one; or the number of updates in c_attn is not that of
            `enabled`, or without it ambiguous; all offenders are listed.
    """
    file = TorchFile(regular_file(path))
    if len(file) > _MOST_TENSORS:
        raise UserError(f"{path}: expected at most {_MOST_TENSORS:,} tensors of LoRA, found {len(file):,}.")
    wrong = list(_wrong_entries(file))
    if not wrong:
        wrong = [f"{name}: holds numbers that are not finite ({what})" for name, what in not_finite(file).items()]
    _refuse(path, wrong)
    wrapper = wrapper_of(file, lambda name: name.startswith(_STARTS))
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name in file:
        module, part = _NAME.fullmatch(name[len(wrapper) :]).groups()
        outer = next((outer for start, outer in _OUTER if module.startswith(start)), "")
        pairs.setdefault(outer + module, {})[part] = file[name]
    notes = [f"{path}: {wrapper_note(wrapper)}"] if wrapper else []
    factors, ranks, guessed = {}, [], False
    for module, pair in pairs.items():
        problem = _problem(module, pair)
        if problem:
            wrong.append(f"{module}: {problem}")
            continue
        a, b = pair["A"], pair["B"]
        rank = b.shape[1]
        if _is_fused(module, a, b):
            count = len(a) // rank
            parts = enabled or _BY_COUNT.get(count, "")
            if len(parts) != count:
                wrong.append(f"{module}: holds {count} of the updates of q, k and v; name them with --enable-lora, "
                             + (f"found {enabled}" if enabled else "such as --enable-lora q"))
                continue
            b = placed(b, parts)
            guessed |= enabled is None and count == 2
        factors[module] = Factors(a, b, alpha / rank)
        ranks.append(rank)
    _refuse(path, wrong)
    if guessed:
        notes.append(f"{path}: the two updates of each {FUSED} are taken to be those of queries and values, as in "
                     "loralib's examples; --enable-lora names others.")
    return LoralibUpdates(factors, max(sorted(set(ranks)), key=ranks.count), notes)


def _wrong_entries(file: TorchFile) -> Iterator[str]:
    for name, entry in file.entries.items():
        if name.startswith(PREFIX):
            yield f"{show(name)}: a tensor of PEFT; name the adapter's folder as the adapter"
        elif not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            yield (f"{show(name)}: expected a name such as transformer.h.0.attn.c_attn.lora_A; save loralib's "
                   "lora_state_dict(model) alone, without biases")
        elif entry.dtype not in FLOAT_TYPES or len(entry.shape) != 2 or 0 in entry.shape:
            yield f"{name}: expected a matrix of {', '.join(FLOAT_TYPES)}, found {entry.dtype} of shape {entry.shape}"


def _problem(module: str, pair: dict[str, np.ndarray]) -> str | None:
    if len(pair) != 2:
        return f"expected lora_A and lora_B, found lora_{next(iter(pair))} alone"
    a, b = pair["A"], pair["B"]
    shapes = f"found shapes {a.shape} and {b.shape}"
    if len(a) > MAX_RANK:
        return f"expected a rank of at most {MAX_RANK}, {shapes}"
    if len(a) == b.shape[1]:
        return None
    count, rest = divmod(len(a), b.shape[1])
    if last_part(module) == FUSED and not rest and count in _BY_COUNT and len(b) == count * a.shape[1]:
        return None
    return f"expected A (r, in) and B (out, r), {shapes}"


def _is_fused(module: str, a: np.ndarray, b: np.ndarray) -> bool:
    """Is this a MergedLinear? A plain update of c_attn has all 3 D rows in B, at rank r."""
    return last_part(module) == FUSED and (len(a) != b.shape[1] or len(b) == a.shape[1])


def placed(b: np.ndarray, parts: Sequence[str]) -> np.ndarray:
    """B (g D, r) of g parts as B (3 D, g r), zero outside the parts' own rows and columns."""
    rows, rank = len(b) // len(parts), b.shape[1]
    whole = np.zeros((len(PARTS) * rows, len(parts) * rank), np.float32)
    for i, part in enumerate(parts):
        at = PARTS.index(part) * rows
        whole[at : at + rows, i * rank : (i + 1) * rank] = b[i * rows : (i + 1) * rows]
    return whole


def _refuse(path: Path, wrong: list[str]) -> None:
    if wrong:
        raise UserError("\n  ".join([f"{path}:", *some_of_each(wrong)]))

