"""The words that WebNLG's evaluation counts, as the LoRA paper ran it for WebNLG and DART.

The paper's program that decodes texts puts them in lower case and a space around each mark (`gpt2_decode.py --tokenize
--lower`), and repeats or cuts the references of a prompt to six. The evaluation of the WebNLG challenge 2020
(GenerationEval's `eval.py`) then splits them once more: for BLEU as mteval-v13a does (Moses' `multi-bleu-detok.perl`),
for METEOR and TER as NLTK's `word_tokenize`, which between spaces changes these few words alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jittor_lora.evaluation.tokens import SPLIT_WORDS, mteval_words

MOST_REFERENCES = 6
_WORDS = re.compile(r"\w+|[^\w\s]")


def bleu_words(text: str) -> list[str]:
    """The words and marks that n-grams are made of."""
    return mteval_words(" ".join(_words(text)))


def treebank_words(text: str) -> list[str]:
    """The words and marks for METEOR and TER."""
    found: list[str] = []
    for word in _words(text):
        found += ("``",) if word == '"' else SPLIT_WORDS.get(word, (word,))
    return found


def _words(text: str) -> Sequence[str]:
    return _WORDS.findall(text.lower())
