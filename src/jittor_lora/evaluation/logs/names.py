"""Interprets the words before a number: a training or validation loss, or a place in the run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

TRAIN, VALIDATION, TEST, SUMMARY = "train", "validation", "test", "summary"
# Places, best axis first. BATCH usually counts within an epoch; FRACTION is a progress bar's "3/30".
STEP, ITERATION, BATCH, FRACTION, EPOCH = PLACES = ("step", "iteration", "batch", "count", "epoch")

_PARTS = {
    TRAIN: ("train", "training", "tr", "训练"),
    VALIDATION: ("val", "valid", "validation", "validating", "eval", "evaluation", "evaluating", "dev", "heldout",
                 "holdout", "验证", "评估", "测评"),
    TEST: ("test", "testing", "测试"),
}
# Losses that belong to no single place: the lowest so far, the mean of the whole run.
_SUMMARIES = {"best", "lowest", "min", "minimum", "final", "prev", "previous", "max", "maximum", "highest", "target",
              "initial", "最佳", "最优", "最好", "最低", "最小", "最终", "初始"}
# Words after "loss" in names of other quantities.
_NOT_LOSSES = {"scale", "scaler", "scaling", "weight", "weights", "coef", "coeff", "coefficient", "factor", "fn",
               "func", "function", "type", "time", "ms", "sec", "seconds", "delta", "diff", "change",
               "improvement", "ratio", "patience", "threshold", "smoothing", "history", "file", "plot", "improved",
               "decreased", "increased", "from", "to", "below", "above", "than", "did", "not", "backward", "ppl",
               "perplexity", "acc", "accuracy"}
_PLACES = {
    STEP: ("step", "update", "步", "步骤", "步数", "更新"),
    ITERATION: ("iter", "iteration", "itr", "iters", "迭代", "迭代次数"),
    BATCH: ("batch", "minibatch", "批", "批次"),
    EPOCH: ("epoch", "ep", "轮", "轮次", "轮数", "周期"),
}
_PLURALS = {"steps": "step", "updates": "update", "iterations": "iteration"}  # after "current" or "global" only
_BEFORE_PLACES = {"global", "current", "cur", "curr", "train", "training", "trainer", "optimizer", "optimiser", "opt",
                  "num", "当前", "全局", "训练", "优化"}
_NOT_BEFORE_PLACES = {"per", "each", "every", "max", "total", "number", "of", "save", "saving", "log", "logging",
                      "warmup", "s", "sec", "ms", "samples", "tokens"}
_NOISE = {"info", "debug", "warning", "root", "main", "the", "with", "current", "curr", "is"}
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[\u4e00-\u9fff]+")


class LossName(NamedTuple):
    """The name of a loss, and the part of the run that it mentions, if any."""

    name: str
    part: str | None


def loss_name(words: Sequence[str]) -> LossName | None:
    """The loss that the words before a number name; None if they name something else.

    `part` is TRAIN, VALIDATION, TEST, SUMMARY (no single place in the run), or None if the words do not say.
    """
    parts = _split(words)
    places = [index for index, part in enumerate(parts) if _is_loss_word(part)]
    if not places or any(part in _NOT_LOSSES for part in parts[places[-1] + 1:]):
        return None
    name = " ".join(word.lower() for word in words if word.lower() not in _NOISE)
    if any(part in _SUMMARIES or part.startswith("最") for part in parts):
        return LossName(name, SUMMARY)
    return LossName(name, next((found for found in map(part_of, reversed(parts)) if found), None))


def is_loss(words: Sequence[str]) -> bool:
    return loss_name(words) is not None


def is_plain(name: str) -> bool:
    """Whether it is the loss itself, of whichever part of the run, rather than a term or a mean of it."""
    return all(part in ("loss", "total", "step", "value") or part_of(part) or re.fullmatch("总?损失值?", part)
               for part in _split(name.split()))


def part_of(word: str) -> str | None:
    """The part of the run that a single word mentions, as in `[val] step 10 loss 3.2`: TRAIN, VALIDATION or TEST."""
    word = word.lower()
    for name, words in _PARTS.items():
        if word in words or any(not known.isascii() and word.startswith(known) for known in words):
            return name
    return None


def place_name(words: Sequence[str]) -> str | None:
    """The one of `PLACES` that the words before a number name; None if they name something else."""
    words = [word.lower() for word in words]
    while len(words) > 1 and _is_total(words[-1]) and _one_place(words[-2]):  # "global_step/max_steps": "1/93"
        words.pop()
    if not words or (len(words) > 1 and words[-2] in _NOT_BEFORE_PLACES):
        return None
    return _one_place(words[-1])


def _one_place(word: str) -> str | None:
    *before, last = [part for part in word.split("_") if part] or [""]
    if len(before) == 0 and not last.isascii():
        before, last = _chinese(last)
    if any(part not in _BEFORE_PLACES for part in before):
        return None
    last = _PLURALS.get(last, last) if before else last
    return next((place for place, names in _PLACES.items() if last in names), None)


def _chinese(word: str) -> tuple[list[str], str]:
    """("当前", "步数"): the words before the name of a place, and the name."""
    name = next((name for names in _PLACES.values() for name in sorted(names, key=len, reverse=True)
                 if not name.isascii() and word.endswith(name)), word)
    return [word[:-len(name)]] if len(word) > len(name) else [], name


def _is_total(word: str) -> bool:
    return word.split("_")[0] in ("max", "total", "num")


def _split(words: Sequence[str]) -> list[str]:
    """The parts of the words, in lower case: "trainLoss_step" is train, loss, step."""
    return [part.lower() for word in words for part in _PART.findall(word)]


def _is_loss_word(part: str) -> bool:
    if part in ("loss", "losses"):
        return True
    before, found, after = part.rpartition("损失")
    return bool(found) and after in ("", "值", "为", "是", "均值")
