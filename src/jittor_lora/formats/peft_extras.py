"""What PEFT saves beside low-rank updates: rows of single tokens, embeddings and heads of resized vocabularies, and
pairs of embedding and head that are tied."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Mapping, NamedTuple

import numpy as np

from jittor_lora.errors import UserError, some_of_each
from jittor_lora.lora.config import LoraConfig
from jittor_lora.lora.merge import TOKEN_EMBEDDINGS
from jittor_lora.lora.targets import OUTPUT_HEAD, is_saved, selects

TOKEN_ROWS = "trainable_tokens_delta"  # PEFT's name of the rows
INDICES = "trainable_token_indices"
TYING = "ensure_weight_tying"
_TIES = ("embed_tokens", OUTPUT_HEAD)  # the names by which PEFT knows what to tie; GPT-2's wte is not among them


class Resolved(NamedTuple):
    """An adapter in the terms of `lora/`.

    Attributes:
        token_rows: module → ids of tokens, and their rows (tokens, D).
        notes: sentences on what is done otherwise than in PEFT.
    """

    config: LoraConfig
    arrays: dict[str, np.ndarray]
    token_rows: dict[str, tuple[np.ndarray, np.ndarray]]
    notes: list[str]


def resolve(config: LoraConfig, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
            bases: Mapping[str, Any], tied: bool) -> Resolved:
    """
    Args:
        settings: adapter_config.json.
        arrays: of the file, see `adapter_arrays`; weights as (out, in).
        bases: the network's modules.
        tied: whether its head is the embedding.

    Raises:
        UserError: copies of the base's weights that are not this base's, or rows of tokens that it does not have.
    """
    embedding = next((name for name in TOKEN_EMBEDDINGS if name in bases), "")
    ties = tied and bool(settings.get(TYING))
    notes: list[str] = []
    token_rows, arrays = _token_rows(settings.get(INDICES), dict(arrays), bases, embedding, tied)
    if token_rows:
        rows = {name: len(tokens) for name, (tokens, _) in token_rows.items()}
        notes.append(f"{INDICES}: rows of {_counted(rows)} are loaded; further training leaves them as they are.")
    if ties:
        config, tied_notes = _tied(config, arrays, embedding)
        notes += tied_notes
    config, arrays, saved_notes = _copies(config, arrays, bases, embedding, tied, ties)
    return Resolved(config, arrays, token_rows, notes + saved_notes)


def _token_rows(indices: Any, arrays: dict[str, np.ndarray], bases: Mapping[str, Any], embedding: str,
                tied: bool) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """The rows of tokens by module, and the other arrays."""
    given = {name[: -len(TOKEN_ROWS) - 1]: arrays.pop(name) for name in list(arrays) if name.endswith(f".{TOKEN_ROWS}")}
    by_name = indices if isinstance(indices, dict) else {embedding: indices} if indices else {}
    found, wrong = {}, []
    for module, rows in given.items():
        tokens = next((value for key, value in by_name.items() if module.endswith(key)), None)
        if tokens is None and tied and module == OUTPUT_HEAD and np.array_equal(rows, given.get(embedding, ())):
            continue  # the embedding's, see below
        if module not in bases or tokens is None:
            wrong.append(f"{module}.{TOKEN_ROWS}: {INDICES} names no tokens of such a module")
            continue
        vocabulary, width = bases[module].weight.shape
        missing = [token for token in tokens if token >= vocabulary]
        if rows.shape != (len(tokens), width) or len(set(tokens)) != len(tokens):
            wrong.append(f"{module}.{TOKEN_ROWS}: expected shape {(len(set(tokens)), width)}, one row for each of "
                         f"{INDICES}; found {rows.shape}")
        elif missing:
            wrong.append(f"{INDICES}: {module} has {vocabulary:,} rows in this base, found token {missing[0]}")
        else:
            found[module] = np.asarray(tokens, np.int64), rows
    wrong += [f"{INDICES}: {key}: the file has no rows of its tokens" for key in by_name
              if not any(module.endswith(key) for module in given)
              and not (tied and selects(key, OUTPUT_HEAD) and embedding in given)]
    _refuse(wrong)
    if tied and embedding in found and OUTPUT_HEAD not in found:
        found[OUTPUT_HEAD] = found[embedding]
    return found, arrays


def _tied(config: LoraConfig, arrays: Mapping[str, np.ndarray], embedding: str) -> tuple[LoraConfig, list[str]]:
    """The settings with updates of both the embedding and the head, if the file has both."""
    pair = [name for name in (embedding, OUTPUT_HEAD) if any(array.startswith(f"{name}.lora_") for array in arrays)]
    if len(pair) < 2:
        return config, []
    targets = config.target_modules
    if isinstance(targets, str):
        targets = tuple(dict.fromkeys(name.rpartition(".")[0] for name in arrays if ".lora_" in name))
    targets += tuple(name for name in pair if not any(selects(target, name) for target in targets))
    note = (f"{TYING}: the updates of {embedding} and {OUTPUT_HEAD} are loaded as two; further training does not tie "
            "them.")
    return replace(config, target_modules=targets), [note]


def _copies(config: LoraConfig, arrays: dict[str, np.ndarray], bases: Mapping[str, Any], embedding: str, tied: bool,
            ties: bool) -> tuple[LoraConfig, dict[str, np.ndarray], list[str]]:
    """Copies of weights that are not declared to be saved: those of the base itself are left out; an embedding or head
    that differs from it, as of a resized vocabulary, becomes a module that is saved whole."""
    kept, wrong, differs = {}, [], {}
    for name, array in arrays.items():
        module = re.sub(r"\.base_layer$", "", name.rpartition(".")[0])
        if not name.endswith(".weight") or module not in bases or is_saved(module, config.modules_to_save):
            kept[name] = array
            continue
        shape = tuple(bases[module].weight.shape)
        if array.shape == shape and np.array_equal(bases[module].weight.numpy(), array):
            continue
        may_differ = module in (embedding, OUTPUT_HEAD) and not any(
            other.startswith(f"{module}.lora_") for other in arrays)
        if may_differ and array.shape == shape:
            differs[module] = array
        elif module in (embedding, OUTPUT_HEAD) and array.ndim == 2 and array.shape[1:] == shape[1:] and (
                array.shape != shape):
            wrong.append(_resized(name, array.shape[0], shape[0]))
        else:
            wrong.append(f"{name}: the file's copy of the base's weight, shape {array.shape}, differs from this "
                         f"base's, shape {shape}")
    _refuse(wrong)
    of_pair = {embedding: OUTPUT_HEAD, OUTPUT_HEAD: embedding}
    # With tied weights PEFT's copy replaces both, and `ensure_weight_tying` saves both as one.
    given = {**{name[: -len(".weight")]: array for name, array in kept.items()
                if ties and name.endswith(tuple(f"{end}.weight" for end in _TIES))}, **differs}
    for module in [name for name in given if tied and name in of_pair]:
        if f"{of_pair[module]}.weight" not in arrays:
            differs[of_pair[module]] = given[module]
    if not differs:
        return config, kept, []
    kept.update({f"{module}.weight": array for module, array in differs.items()})
    note = (f"the file has its own weights of {', '.join(differs)}, which differ from the base's: they are taken as "
            "modules saved whole. PEFT saves them after the vocabulary was resized, or with ensure_weight_tying.")
    return replace(config, modules_to_save=(*config.modules_to_save, *differs)), kept, [note]


def _resized(name: str, found: int, expected: int) -> str:
    if found < expected:
        return (f"{name}: has {found:,} rows, this base {expected:,}: it is of another base, or of a shortened "
                "vocabulary")
    return (f"{name}: has {found:,} rows, this base {expected:,}: tokens were added to the vocabulary. Load the base "
            "and the adapter together, with the tokenizer that has the added tokens in the adapter's folder")


def _counted(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in rows.items())


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise UserError("The adapter does not fit the model:\n  " + "\n  ".join(some_of_each(wrong)))
