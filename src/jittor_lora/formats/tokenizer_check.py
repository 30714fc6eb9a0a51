"""Checks an untrusted tokenizer.json before the tokenizers library runs the steps it describes.

A tokenizer is a small program: steps that rewrite a text, split it by regular expressions and put the pieces into a
template. Steps that could make a text grow without bound, expressions whose matching could take forever, and templates
that do not contain the text exactly once are refused. What fails in the library all the same becomes a UserError.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any, Iterator

from jittor_lora.errors import UserError
from jittor_lora.files.patterns import wrong_pattern
from jittor_lora.formats.hugging_face import shorten

LONGEST_INSERT = 64  # characters that a step substitutes for others, or puts before a text
MOST_GROWTH = 1_000  # times
AROUND = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")  # steps that put tokens around a text
_PROPERTY = re.compile(r"\\[pP]\{\^?\w+\}")  # not in Python's syntax; any class takes as long to match


def check_steps(path: Any, content: dict[str, Any]) -> None:
    """
    Raises:
        UserError: lists everything that is refused; the message starts with `path`.
    """
    parts = {name: list(_objects(content.get(name)))
             for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    wrong, growth = [], 1
    for name, steps in parts.items():
        for step in steps:
            inserted = [step[key] for key in ("content", "prepend") if isinstance(step.get(key), str)]
            wrong += [f"{name}: expected a step that inserts at most {LONGEST_INSERT} characters; found {len(text):,}"
                      for text in inserted if len(text) > LONGEST_INSERT]
            growth *= max(1, *map(len, inserted)) if inserted and name == "normalizer" else 1
            pattern = step.get("Regex")
            problem = wrong_pattern(_PROPERTY.sub(r"\\w", pattern)) if isinstance(pattern, str) else None
            if problem:
                wrong.append(f"{name}: {problem}, found {pattern[:60]!r}")
            if step.get("type") == "TemplateProcessing" and not _contains_text_once(step.get("single")):
                wrong.append(f"{name}: expected a template that contains the text once")
    around = [step["type"] for step in parts["post_processor"] if step.get("type") in AROUND]
    if len(around) > 1:
        wrong.append(f"post_processor: expected one step that puts tokens around a text; found {shorten(around, 5)}")
    model = content.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        wrong.append("model.dropout: expected null, because with dropout the tokens of a text are random; "
                     f"found {str(model['dropout'])[:20]}. Set it to null there")
    if growth > MOST_GROWTH:
        wrong.append(f"normalizer: expected steps that make a text at most {MOST_GROWTH:,} times as long; found "
                     f"{f'{growth:,}' if growth < 10**15 else 'more than 10^15'} times")
    if wrong:
        raise UserError(f"{path}:\n  {shorten(dict.fromkeys(wrong), 20, chr(10) + '  ')}")


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns exceptions of the tokenizers library into a UserError that starts with `what`."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # The library raises plain Exceptions; a panic in its Rust code is not even one of these.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{what}: {error}.") from error
        raise


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a value, nested ones included."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)


def _contains_text_once(pieces: Any) -> bool:
    return isinstance(pieces, list) and sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces) == 1
