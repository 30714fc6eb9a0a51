"""A reader that stands for several: the next token by the mean of their probabilities."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from jittor_lora.inference.reader import Reader, Turn


class EnsembleReader:
    """Reads everything with each of several readers (see `Reader`); its logits are the logarithm of the mean of their
    probabilities, as in an ensemble of translation models (Sutskever et al. 2014, section 3.6).

    Args:
        readers: at least one, of models with one vocabulary. One that occurs several times counts as often.
    """

    def __init__(self, readers: Sequence[Reader]):
        self._readers, self.base, self.block_rows = list(readers), id(self), readers[0].block_rows
        self.row_bytes = sum(reader.row_bytes for reader in readers)
        self._together = len({reader.base for reader in readers}) == 1

    def open(self, prefix: int, rooms: Sequence[int]) -> list[Any]:
        return [reader.open(prefix, rooms) for reader in self._readers]

    def fork(self, group: list[Any], length: int, rooms: Sequence[int]) -> list[Any]:
        return [reader.fork(own, length, rooms) for reader, own in zip(self._readers, group)]

    def join(self, group: list[Any], rooms: Sequence[int]) -> list[Any]:
        return [reader.join(own, rooms) for reader, own in zip(self._readers, group)]

    def rewind(self, group: list[Any], branch: int, length: int) -> None:
        for reader, own in zip(self._readers, group):
            reader.rewind(own, branch, length)

    def copy(self, group: list[Any], source: int, target: int) -> None:
        for reader, own in zip(self._readers, group):
            reader.copy(own, source, target)

    def likeliest(self, turns: Sequence[Turn]) -> np.ndarray:
        return self.logits(turns).argmax(1)

    def logits(self, turns: Sequence[Turn]) -> np.ndarray:
        own = [[turn._replace(group=turn.group[number]) for turn in turns] for number in range(len(self._readers))]
        if self._together:  # one pass over the base's weights
            logits = self._readers[0].logits([turn for several in own for turn in several])
            return mean_of(logits.reshape(len(own), -1, logits.shape[-1]))
        return mean_of(np.stack([reader.logits(several) for reader, several in zip(self._readers, own)]))

    def every_row(self, group: list[Any], tokens: Sequence[int]) -> np.ndarray:
        return mean_of(np.stack([reader.every_row(own, tokens) for reader, own in zip(self._readers, group)]))

    def block(self, group: list[Any], number: int) -> np.ndarray:
        return np.stack([reader.block(own, number) for reader, own in zip(self._readers, group)])

    def restore(self, group: list[Any], blocks: Sequence[np.ndarray], length: int) -> None:
        for number, (reader, own) in enumerate(zip(self._readers, group)):
            reader.restore(own, [block[number] for block in blocks], length)


def mean_of(logits: np.ndarray) -> np.ndarray:
    """The logarithm (rows, V) of the mean of the probabilities that several models' logits (models, rows, V) give."""
    logs = logits - logits.max(2, keepdims=True)
    logs -= np.log(np.exp(logs).sum(2, keepdims=True))
    highest = logs.max(0)
    return highest + np.log(np.exp(logs - highest).mean(0))
