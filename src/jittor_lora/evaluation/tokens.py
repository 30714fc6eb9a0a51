"""The word tokenizers of the E2E NLG challenge's evaluation.

There are two: mteval-v13a's for BLEU and NIST, and the Penn Treebank's, as applied by Stanford's PTBTokenizer and the
COCO caption evaluation, for METEOR, ROUGE-L and CIDEr.
"""

from __future__ import annotations

import re

_MTEVAL = (
    (re.compile(r"<skipped>|-\n"), ""),
    (re.compile(r"\n"), " "),
    (re.compile("&quot;"), '"'),
    (re.compile("&amp;"), "&"),
    (re.compile("&lt;"), "<"),
    (re.compile("&gt;"), ">"),
    (re.compile(r"^|$"), " "),  # so that a mark at the start or end has a neighbour
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)

_NORMALIZED = str.maketrans({"…": " ... ", "–": " -- ", "—": " -- ", "’": "'", "‘": "'", "“": '"', "”": '"',
                             "£": " # ", "€": " $ ", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 "})
_ABBREVIATIONS = ("adm|aug|ave|blvd|bldg|capt|co|col|comdr|corp|dec|dr|etc|feb|gen|gov|hon|inc|jan|jr|lt|ltd|mr|mrs|ms"
                  "|messrs|mt|no|nov|oct|op|ph|pres|prof|pp|pvt|rd|rep|reps|rev|sen|sept|sep|sgt|sr|st|ste|vol|vs")
SPLIT_WORDS = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
                "gimme": ("gim", "me"), "lemme": ("lem", "me")}
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|re|ve|ll|d|m))")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PTB = re.compile(
    r"(?:https?://|www\.)\S*[\w/]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    rf"|(?:[^\W\d_]\.)+[^\W\d_]\.?|(?:{_ABBREVIATIONS})\.(?!\w)"
    r"|\d+(?:[.,:]\d+)*/\d+(?![\w.,])"
    r"|\d+(?:[.,:]\d+)+(?:-\d+(?:[.,:]\d+)*)*"
    r"|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-'&/]\w+)*"
    r"|\S")
# Marks that the COCO caption evaluation drops; the double quote stands for `` and ''. It means to drop brackets too,
# but looks for -LRB- while the tokenizer gives -lrb-, so they count as words.
_DROPPED = frozenset("'\"`.?!,:;-")


def mteval_words(text: str) -> list[str]:
    """The words and marks of `text` in lower case, as mteval-v13a splits them."""
    for pattern, replacement in _MTEVAL:
        text = pattern.sub(replacement, text)
    return text.lower().split()


def ptb_words(text: str) -> list[str]:
    """The words of `text` in lower case by the Penn Treebank's rules, without punctuation other than brackets.

    Clitics are words ("is n't", "it 's"), hyphenated words are one, £ is "#" and € is "$". Stanford's tokenizer, a
    grammar of thousands of lines, handles more: names with odd marks, file names, emoticons, times. On restaurant
    descriptions and encyclopedic English all but a few words in a thousand are the same.
    """
    words: list[str] = []
    for token in _PTB.findall(text.lower().translate(_NORMALIZED)):
        if token in _DROPPED:
            continue
        clitic = _CLITIC.fullmatch(token)
        words += SPLIT_WORDS.get(token) or (clitic.groups() if clitic else (_BRACKETS.get(token, token),))
    return words
