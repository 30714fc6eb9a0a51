"""Extracts the numbers of a log line, or of a JSON object, with the words that name them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jittor_lora.evaluation.logs.names import is_loss, part_of

# Every repetition in these patterns is bounded: they are tried at every position of a line, and would otherwise take
# time polynomial in its length.
LONGEST_LINE = 20_000  # characters
_DIGITS = r"(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,5})?"
NUMBER = re.compile(rf"[-+]?(?:{_DIGITS}|nan|inf(?:inity)?)", re.IGNORECASE)
_TOKEN = re.compile(
    r"(?P<thousands>(?<![\w.,])\d{1,3}(?:,\d{3}){1,5}(?![\w,]|\.\d))"
    # Times, dates, versions, percentages and numbers with a unit are not values: 10:00:03, 01/02/2025, 0.16s.
    rf"|(?P<number>(?:(?<![\w.)\]])[-+])?(?<![\w.]){_DIGITS})"
    r"(?:\s{0,8}/\s{0,8}(?P<total>\d{1,20}))?(?![A-Za-z0-9_%/]|\.\d|:\d\d|-\d)"
    r"|(?P<junk>\d[\w.%:/-]{0,100})"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]{0,100}|[\u4e00-\u9fff]{1,100})"
    r"|(?P<end>[,;|}，；、。]|(?<=\s)[-–—](?=\s))"
    r"|(?P<brace>\{)|(?P<assign>[:=：])", re.ASCII)
_NOT_FINITE = ("nan", "inf", "infinity", "null", "none")
# In "第 20 步" the name follows the number.
_CHINESE_ORDINAL = re.compile(r"第\s{0,3}(\d{1,20})\s{0,3}(?:/\s{0,3}(\d{1,20})\s{0,3})?[个次]?(步|轮|批|迭代|epoch)")
# What frameworks print around a number: jt.Var([3.2],dtype=float32), tensor(3.2, device='cuda:0'), np.float32(3.2).
_WRAPPER = re.compile(r"(?<!\w)(?:jt\.Var|[Tt]ensor|array|Var|(?:np|numpy|torch|jnp)\.\w{1,20})\(")
_LIST = re.compile(rf"\[\s{{0,4}}[-+]?{_DIGITS}\s{{0,4}},[-+.,\deE\s]{{1,200}}\]")
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")


class Pair(NamedTuple):
    """A number and the words before it; `total` of "3/12"; `context` is the part of the run that earlier words
    mentioned, see `names.part_of`; `exact` is false for "1,200", which may mean thousands or three decimals."""

    words: tuple[str, ...]
    value: float
    total: float | None = None
    context: str | None = None
    exact: bool = True


def pairs_of_line(line: str) -> list[Pair]:
    """The numbers of a line that follow a name, and those such as "3/12", which need none."""
    if len(line) > LONGEST_LINE:
        return []
    line = _ANSI.sub("", line)
    line = _CHINESE_ORDINAL.sub(lambda found: f" {found[3]} {found[1]}{'/' + found[2] if found[2] else ''} ", line)
    return list(_scan(_LIST.sub("[]", _WRAPPER.sub("(", line))))


def _scan(line: str) -> Iterator[Pair]:
    words: list[str] = []
    context: str | None = None
    pending: tuple[str, ...] = ()  # "Loss" of "Loss at step 100: 3.2", whose number follows the step's
    assigned = False
    for token in _TOKEN.finditer(line):
        kind, text = token.lastgroup, token.group()
        kind = "number" if kind == "total" else kind
        if kind == "word":
            if text.lower() in _NOT_FINITE and is_loss(tuple(words)):
                yield Pair(tuple(words), math.nan, None, context)
                words = []
                continue
            context = part_of(text) or context
            words.append(text)
        elif kind in ("number", "thousands"):
            exact = kind == "number"
            value = float(token["number"]) if exact else float(text.replace(",", ""))
            total = float(token["total"]) if token["total"] else None
            named = tuple(words) or (pending if assigned else ())
            if named or total is not None:
                yield Pair(named, value, total, context, exact)
            pending = _loss_before_place(words)
            words = []
        elif kind == "assign":
            assigned = True
            continue
        elif kind == "end" or kind == "junk" or (kind == "brace" and not assigned):
            words = []
            pending = () if kind != "brace" else pending
        assigned = False


def _loss_before_place(words: list[str]) -> tuple[str, ...]:
    """The words up to "loss" in such as "Train loss at step"."""
    for index, word in enumerate(words[1:], 1):
        if word.lower() in ("at", "after", "in", "of", "for") and is_loss(tuple(words[:index])):
            return tuple(words[:index])
    return ()


def pairs_of_object(record: Mapping[str, Any], outer: tuple[str, ...] = ()) -> list[Pair]:
    """The numbers of a JSON object, also quoted ones; those of nested objects have the words of both keys."""
    texts = [value for value in record.values() if isinstance(value, str)]
    context = next((found for found in map(part_of, texts) if found), None)
    pairs = []
    for key, value in record.items():
        words = (*outer, *re.findall(r"[A-Za-z_][A-Za-z0-9_]{0,100}|[\u4e00-\u9fff]{1,100}", key[:200]))
        if isinstance(value, Mapping):
            pairs += pairs_of_object(value, words)
        elif value is None:
            pairs += [Pair(words, math.nan, None, context)] if is_loss(words) else []
        elif isinstance(value, str):
            fraction = re.fullmatch(r"(\d{1,20})/(\d{1,20})", value)
            if fraction:
                pairs.append(Pair(words, float(fraction[1]), float(fraction[2]), context))
            elif NUMBER.fullmatch(value):
                pairs.append(Pair(words, float(value), None, context))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            pairs.append(Pair(words, float(value), None, context))
    return pairs
