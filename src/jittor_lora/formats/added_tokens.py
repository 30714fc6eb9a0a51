"""A base with the tokens that were added to its vocabulary when an adapter was trained.

PEFT then saves the whole embedding, and the head if it is another matrix, with the adapter. Trainers put the tokenizer
beside them. The base's own rows stay as they are; the rows of the new tokens are the adapter's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Iterator, Mapping

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.formats.adapter_check import PREFIX, show
from jittor_lora.formats.adapter_source import AdapterSource
from jittor_lora.formats.hugging_face import Checkpoint, shorten
from jittor_lora.formats.tokenizer import Tokenizer, read_tokenizer
from jittor_lora.lora.merge import TOKEN_EMBEDDINGS
from jittor_lora.lora.targets import OUTPUT_HEAD
from jittor_lora.ops.blocks import Blocks, stored_in

# Where PEFT has an embedding's weight; of several the last is the base's
_COPIES = ("", "base_layer.", "token_adapter.base_layer.", "original_module.")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def with_added_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer,
                      adapter: AdapterSource) -> tuple[Checkpoint, Tokenizer]:
    """The base as the adapter needs it: unchanged, unless the adapter's embedding has more rows and its folder the
    tokenizer of these.

    Raises:
        UserError: the adapter's weights cannot be read, the tokenizer's other tokens are not the base's, or the head
            lacks the new rows.
    """
    config, folder = checkpoint.config, adapter.folder
    if adapter.opened is not None:  # only PEFT's have whole embeddings
        return checkpoint, tokenizer
    file = adapter.contents(config, numbers=False)[1]
    names = {name: key for name in (*TOKEN_EMBEDDINGS, OUTPUT_HEAD) for part in _COPIES
             for key in [f"{PREFIX}{name}.{part}weight"] if key in file.entries}
    embedding = next((name for name in TOKEN_EMBEDDINGS if f"{name}.weight" in checkpoint.tensors), "")
    wider = {name: file.entries[key].shape[0] for name, key in names.items()
             if name in (embedding, OUTPUT_HEAD) and file.entries[key].shape[0] > config.vocab_size
             and file.entries[key].shape[1:] == (config.hidden_size,)}
    if not wider or not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return checkpoint, tokenizer
    needed = [embedding] if config.tied_head else [embedding, OUTPUT_HEAD]
    if any(wider.get(name) != wider.get(embedding) for name in needed):
        raise UserError(f"{file.path}: expected as many rows in {' and '.join(needed)}; found "
                        f"{', '.join(f'{name} ({rows:,})' for name, rows in wider.items())}.")
    rows = wider[embedding]
    new = read_tokenizer(folder, config)
    _check(tokenizer, new, config.vocab_size, rows)
    added = {f"{name}.weight": file[names[name]][config.vocab_size :] for name in needed}
    config = replace(config, vocab_size=rows, source={**config.source, "vocab_size": rows})
    new.fit(config, checkpoint.end_ids)
    note = (f"{folder}: its {rows - checkpoint.config.vocab_size:,} tokens beyond the base's vocabulary of "
            f"{checkpoint.config.vocab_size:,} are added to the base, with the adapter's embeddings and its tokenizer.")
    return replace(checkpoint, config=config, tensors=_Longer(checkpoint.tensors, added),
                   notes=(*checkpoint.notes, note)), new


def _check(old: Tokenizer, new: Tokenizer, vocabulary: int, rows: int) -> None:
    moved = [token for token, number in old.vocabulary.items() if new.vocabulary.get(token) != number
             and number < vocabulary]
    if moved:
        raise UserError(f"{new.origin}: expected the base's tokens and added ones; found other ids for "
                        f"{shorten(map(show, moved), 5)}.")
    if not vocabulary < new.vocab_size <= rows:
        raise UserError(f"{new.origin}: expected from {vocabulary + 1:,} to {rows:,} tokens, as many as the adapter's "
                        f"embedding has rows; found {new.vocab_size:,}.")


class _Longer(Mapping[str, np.ndarray]):
    """Tensors with rows added to some."""

    def __init__(self, tensors: Mapping[str, np.ndarray], added: Mapping[str, np.ndarray]):
        self._tensors, self._added = tensors, added

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._tensors[name]
        return np.concatenate([array, self._added[name]]) if name in self._added else array

    def stored(self, name: str) -> Blocks | None:
        return None if name in self._added else stored_in(self._tensors, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
