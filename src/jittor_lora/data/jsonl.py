"""JSON Lines: one object with `prompt` and `completion` per line; also an array, or objects over several lines."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, replace

from jittor_lora.data.records import Ids, Source, records
from jittor_lora.data.subset import choose
from jittor_lora.data.text_file import MISSING, Offenders, is_text, read_text
from jittor_lora.errors import UserError


@dataclass(frozen=True)
class Completion:
    """The text after a prompt; `id` is the row's `id` or its line number, or says which text of an entry it is."""

    id: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """A prompt with all its completions in the file: branches in training, references in evaluation.

    Attributes:
        id: that of its first row or entry.
        text: the prompt.
        completions: in the order of the file.
        group: part of the data that is also scored by itself, as WebNLG's "seen" and "unseen"; "" if there are none.
    """

    id: str
    text: str
    completions: tuple[Completion, ...]
    group: str = ""


@dataclass(frozen=True)
class PromptData:
    """The prompts of one file, equal ones merged, in order of first occurrence.

    Attributes:
        path: of the file.
        prompts: see `Prompt`.
        format: its name for messages; "" for rows of prompts.
        left_out: what of the file is not in it, for messages: "10 texts not marked good".
    """

    path: str
    prompts: tuple[Prompt, ...]
    format: str = ""
    left_out: str = ""

    def __len__(self) -> int:
        """The number of completions."""
        return sum(len(prompt.completions) for prompt in self.prompts)

    def subset(self, count: int, seed: int) -> PromptData:
        """Exactly `count` completions (all if there are fewer), of whole prompts as far as possible."""
        kept = choose([[len(prompt.completions)] for prompt in self.prompts], count, seed)
        chosen = sorted((i, n) for (i, _), n in kept.items())
        prompts = [(self.prompts[i], n) for i, n in chosen]
        return replace(self, prompts=tuple(replace(p, completions=p.completions[:n]) for p, n in prompts))

    def only(self, ids: Container[str]) -> PromptData:
        """The prompts with these ids."""
        return replace(self, prompts=tuple(prompt for prompt in self.prompts if prompt.id in ids))

    def places(self) -> dict[str, tuple[str, ...]]:
        """Prompt id -> (): prompts belong to no article or paragraph."""
        return {prompt.id: () for prompt in self.prompts}

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Name of a group -> the ids of its prompts, by name; empty unless the data have two groups or more."""
        found: dict[str, list[str]] = {}
        for prompt in self.prompts:
            found.setdefault(prompt.group, []).append(prompt.id)
        return {name: tuple(found[name]) for name in sorted(found)} if len(found) > 1 else {}

    def references(self) -> dict[str, list[str]]:
        """Prompt id -> all its completions, without surrounding whitespace."""
        return {prompt.id: [c.text.strip() for c in prompt.completions] for prompt in self.prompts}


def read_jsonl(path: str | os.PathLike, purpose: str = "training") -> PromptData:
    """Read a JSON Lines file; blank lines are skipped, keys other than `prompt`, `completion` and `id` ignored.

    Args:
        path: the file.
        purpose: "training" and "evaluation" need a completion in each row, "prompts" does not.

    Raises:
        UserError: lines are malformed, with their numbers, or there are no rows.
    """
    return parse_jsonl(read_text(path), path, purpose)


def parse_jsonl(source: Source, path: str | os.PathLike, purpose: str = "training") -> PromptData:
    """`read_jsonl` for a text that is already read, or for other records."""
    offenders, optional, ids = Offenders(path), purpose == "prompts", Ids()
    merged: dict[str, list[Completion]] = {}
    for place, row in records(source, offenders):
        if not isinstance(row, dict):
            offenders.add(place, 'an object with "prompt" and "completion"', row)
            continue
        prompt, completion = row.get("prompt", MISSING), row.get("completion", "" if optional else MISSING)
        for key, value in (("prompt", prompt), ("completion", completion)):
            if not is_text(value) or not (value or optional and key == "completion"):
                found = row if value is MISSING else value
                offenders.add(f"{place}, {key}", f'"{key}" with a text that is not empty', found)
        name = ids.take(row, place, offenders)
        if name is not None and not offenders.count:
            merged.setdefault(prompt, []).append(Completion(name, completion))
    offenders.check('Each line is one object: {"prompt": "…", "completion": "…"}.')
    if not merged:
        raise UserError(f"{path}: no rows in it.")
    return PromptData(str(path), tuple(Prompt(rows[0].id, text, tuple(rows)) for text, rows in merged.items()))
