"""Sets of triples and the texts that express them, as in WebNLG and DART, linearised as by the LoRA paper."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jittor_lora.data.e2e import BARS
from jittor_lora.data.jsonl import Completion, Prompt, PromptData
from jittor_lora.data.text_file import MISSING, Offenders, is_text
from jittor_lora.errors import UserError

PARTS = ("subject", "relation", "object")


def linearised(triples: Iterable[Sequence[str]]) -> str:
    """"subject : relation : object | subject : relation : object", as in `microsoft/LoRA`, `format_converting_*.py`."""
    return " | ".join(" : ".join(triple) for triple in triples)


class TripleSets:
    """Collects the entries of one file: prompts "<triples> ||", equal ones merged, with their texts as completions.

    A completion starts with a space, as in the paper's code, which has the token <|endoftext|> in place of the bars.

    Args:
        purpose: "training" and "evaluation" leave out entries without a text, "prompts" does not.
    """

    def __init__(self, path: str | os.PathLike, name: str, purpose: str):
        self.offenders = Offenders(path)
        self._path, self._name, self._purpose = path, name, purpose
        self._merged: dict[str, tuple[str, str, list[Completion]]] = {}
        self._left_out: Counter[str] = Counter()
        self._entries = 0

    def triples(self, values: Any, place: str, read: Callable[[Any], Sequence[Any] | None]) -> list[tuple[str, ...]]:
        """The triples of an entry without malformed ones, which become offenders.

        Args:
            values: the list of them, as in the file.
            read: gives the three parts of one of them, or None if it does not have these.
        """
        if not isinstance(values, list) or not values:
            self.offenders.add(place, "a list of triples that is not empty", values)
            return []
        found = []
        for i, value in enumerate(values):
            parts = read(value)
            if parts is None:
                self.offenders.add(f"{place}[{i}]", f"a triple of {', '.join(PARTS)}", value)
                continue
            wrong = [(part, text) for part, text in zip(PARTS, parts) if not is_text(text)]
            for part, text in wrong:
                self.offenders.add(f"{place}[{i}], {part}", "a text", text)
            if not wrong:
                found.append(tuple(parts))
        return found

    def texts(self, values: Any, place: str, field: str,
              reason: Callable[[dict[str, Any]], str] = lambda value: "") -> list[tuple[str, str]]:
        """(Why it is left out, or "", the text) of each text about the triples; malformed ones become offenders.

        Args:
            values: the list of objects that hold them, as in the file; prompts may lack it.
            field: with the text.
            reason: why a text is left out, or "".
        """
        if values is MISSING and self._purpose == "prompts":
            return []
        if not isinstance(values, list):
            self.offenders.add(place, f"a list of objects with {field}", values)
            return []
        found = []
        for i, value in enumerate(values):
            text = value.get(field, MISSING) if isinstance(value, dict) else value
            if not isinstance(value, dict):
                self.offenders.add(f"{place}[{i}]", f"an object with {field}", value)
            elif not is_text(text):
                self.offenders.add(f"{place}[{i}], {field}", "a text", text)
            else:
                found.append((reason(value), text))
        return found

    def add(self, name: str, triples: list[tuple[str, ...]], texts: Sequence[tuple[str, str]], group: str = "") -> None:
        """Add an entry.

        Args:
            name: its id.
            texts: see `texts`; empty ones are always left out.
            group: see `Prompt.group`.
        """
        self._entries += 1
        if self.offenders.count:
            return
        kept = []
        for number, (reason, text) in enumerate(texts, 1):
            reason = reason or ("" if text.strip() else "empty")
            if reason:
                self._left_out[reason] += 1
            else:
                kept.append(Completion(f"{name}/{number}", f" {text}"))
        if not kept and self._purpose == "prompts":
            kept = [Completion(name, "")]
        if kept:
            self._merged.setdefault(f"{linearised(triples)} {BARS}", (name, group, []))[2].extend(kept)

    def data(self, advice: str) -> PromptData:
        """What was added.

        Args:
            advice: how an entry should look, which ends the message about malformed ones.

        Raises:
            UserError: there are offenders, or no entry has a text.
        """
        self.offenders.check(advice)
        left_out = ", ".join(f"{count:,} {'text' if count == 1 else 'texts'} {reason}"
                             for reason, count in self._left_out.items())
        if not self._merged:
            why = f" ({left_out})" if left_out else ""
            raise UserError(f"{self._path}: no texts in its {self._entries:,} entries{why}.")
        prompts = tuple(Prompt(name, text, tuple(completions), group)
                        for text, (name, group, completions) in self._merged.items())
        return PromptData(str(self._path), prompts, self._name, left_out)
