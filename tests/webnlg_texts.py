"""Texts for the scores of WebNLG and DART, the same everywhere: descriptions changed in several ways, odd strings."""

from __future__ import annotations

import random

from e2e_texts import e2e_texts

ODD = ("", " ", '"', '"quoted" and \'single\' marks', 'He said "I cannot, gonna, wanna, gotta, lemme, gimme" . . .',
       "a ||| b ||| c", "<skipped> &quot;x&quot; &amp; &lt;y&gt; 1,000.5 3-4 5.", "snake_case __init__ a_b_c",
       "café naïve Ünïcödé İstanbul ß ẞ", "中文 文本。", "😀 zero\u200bwidth no\u00a0break \u2028 line\u0085end",
       "\x00\x01\x1f control", "— – … “ ” ‘ ’ « »", "can't won't it's d'ye more'n 'tis", "the " * 120, ". . . . , , ,",
       "`" * 7, "[()]{}<>@#$%^&*+=~|\\/", "A.B.C. U.S.A. e.g. Mr. Smith", "12.5% of 3,000 people in 2004-05")


def webnlg_texts(count: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(references, predictions) of `count` prompts: up to 34 references, predictions that are one of them whole,
    shuffled, halved, turned round, in capitals or with words twice, and each odd text once as a prediction and once as
    a reference."""
    chance, predictions = random.Random(0), {}
    references, _ = e2e_texts(count)
    for number, (name, texts) in enumerate(references.items()):
        words = chance.choice(texts).split(" ")
        kind = number % 6
        if kind == 1:
            chance.shuffle(words)
        elif kind == 2:
            words = words[: len(words) // 2]
        elif kind == 3:
            words = words[len(words) // 2 :] + words[: len(words) // 2]
        elif kind == 4:
            words = [word.upper() for word in words]
        elif kind == 5:
            words = [word for word in words for _ in range(1 + (chance.random() < 0.1))]
        predictions[name] = " ".join(words)
    for number, odd in enumerate(ODD):
        references[f"odd {number}"] = [ODD[(number + 1) % len(ODD)] or "none", f"{odd} and so on", "a cannot b"]
        predictions[f"odd {number}"] = odd
    return references, predictions
