"""Fingerprints by which a resumed run knows its data and its base again."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict
from typing import Iterable, NamedTuple, Sequence

import numpy as np

from jittor_lora.data.groups import TokenGroup
from jittor_lora.files.mapped import release
from jittor_lora.formats.hugging_face import Checkpoint
from jittor_lora.model.config import is_conv1d, tensor_shapes
from jittor_lora.ops.blocks import stored_in

ARRAYS = "arrays-"  # starts a fingerprint of arrays


class Sources(NamedTuple):
    """What a run is computed from, which may not change.

    Attributes:
        data, dev: training and validation examples.
        base: its fingerprint.
        precision: of matrix products.
    """

    data: Sequence[TokenGroup]
    dev: Sequence[TokenGroup]
    base: str
    precision: str

    def identities(self) -> dict[str, str]:
        """All as text, the examples by their fingerprints; checkpoints hold this."""
        return {"data": identity_of_data(self.data), "dev": identity_of_data(self.dev), "base": self.base,
                "precision": self.precision}


def identity_of_data(groups: Sequence[TokenGroup]) -> str:
    """A fingerprint of tokenised examples: SHA-256 of their ids and tokens, and of where each part ends
    and what is scored."""
    parts = [part for group in groups
             for part in (group.prefix, *(tokens for branch in group.branches for b in branch.all
                                          for tokens in (b.prompt, b.completion)))]
    names = [branch.id.encode() for group in groups for branch in group.branches]
    sizes = [[len(group.branches) for group in groups], list(map(len, parts)), list(map(len, names))]
    unscored = [branch.unscored for group in groups for branch in group.branches]
    if any(unscored):  # others have the fingerprint of versions that had no conversations
        sizes += [list(map(len, unscored)), [bound for ranges in unscored for both in ranges for bound in both]]
    several = [branch.all for group in groups for branch in group.branches]
    if any(len(branches) > 1 for branches in several):  # likewise
        weights = np.array([one.weight for branches in several for one in branches])
        sizes += [list(map(len, several)), weights.view("<i8").tolist()]
    digest = hashlib.sha256()
    for numbers in (list(map(len, sizes)), *sizes, list(itertools.chain.from_iterable(parts))):
        digest.update(np.asarray(numbers, "<i8"))
    digest.update(b"".join(names))
    return ARRAYS + digest.hexdigest()


def is_identity_of_data(identity: str, groups: Sequence[TokenGroup]) -> bool:
    """Is this the fingerprint of these examples? Checkpoints of earlier versions have one of their JSON."""
    if identity.startswith(ARRAYS):
        return identity == identity_of_data(groups)
    digest = hashlib.sha256()
    for group in groups:
        content = asdict(group)
        for branch in content["branches"]:
            for name, usual in (("unscored", ()), ("weight", 1.0), ("others", ())):
                if branch[name] == usual:
                    del branch[name]
        digest.update(json.dumps(content).encode())
    return identity == digest.hexdigest()


def identity_of_base(checkpoint: Checkpoint) -> str:
    """A fingerprint of the configuration and all weights."""
    digest = hashlib.sha256(json.dumps(checkpoint.config.source, sort_keys=True, default=str).encode())
    for name in tensor_shapes(checkpoint.config):
        for part in _parts(checkpoint, name):
            digest.update(part)
            release(part)
    return digest.hexdigest()


def _parts(checkpoint: Checkpoint, name: str) -> Iterable[np.ndarray]:
    """A tensor's content in its order, float32; that of a quantised base as it is stored."""
    blocks = stored_in(checkpoint.tensors, name)
    if blocks is None or checkpoint.original is None and is_conv1d(checkpoint.config, name):
        return [np.ascontiguousarray(checkpoint.tensors[name])]
    return blocks.parts() if checkpoint.original is None else [np.ascontiguousarray(blocks.data)]
