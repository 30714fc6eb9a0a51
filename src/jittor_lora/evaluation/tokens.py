"""How the evaluation of the E2E NLG challenge cuts a text into words.

It has two tokenizers: that of mteval-v13a for BLEU and NIST, and the Penn Treebank's, as Stanford's PTBTokenizer and
the evaluation of COCO captions apply it, for METEOR, ROUGE-L and CIDEr.
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
    (re.compile(r"^|$"), " "),  # so that a mark at the beginning or end has a neighbour
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)

_NORMALIZED = str.maketrans({"…": " ... ", "–": " -- ", "—": " -- ", "’": "'", "‘": "'", "“": '"', "”": '"',
                             "£": " # ", "€": " $ ", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 "})
_ABBREVIATIONS = ("adm|aug|ave|blvd|bldg|capt|co|col|comdr|corp|dec|dr|etc|feb|gen|gov|hon|inc|jan|jr|lt|ltd|mr|mrs|ms"
                  "|messrs|mt|no|nov|oct|op|ph|pres|prof|pp|pvt|rd|rep|reps|rev|sen|sept|sep|sgt|sr|st|ste|vol|vs")
_SPLIT_WORDS = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
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
# Marks that the evaluation of COCO captions leaves out; the double quote stands for `` and ''. It means to leave out
# brackets too, but looks for -LRB- where the tokenizer gives -lrb-: they count as words.
_LEFT_OUT = frozenset("'\"`.?!,:;-")


def mteval_words(text: str) -> list[str]:
    """The words and marks of `text` in lower case, as mteval-v13a tells them apart."""
    for pattern, replacement in _MTEVAL:
        text = pattern.sub(replacement, text)
    return text.lower().split()


def ptb_words(text: str) -> list[str]:
    """The words of `text` in lower case after the Penn Treebank's rules, punctuation but for brackets left out.

    Clitics are words ("is n't", "it 's"), hyphenated words are one, £ is "#" and € is "$". Stanford's tokenizer, a
    grammar of thousands of lines, knows more: names with odd marks, file names, emoticons, times. On restaurant
    descriptions and on encyclopedic English the words are the same but for a few in a thousand.
    """
    words: list[str] = []
    for token in _PTB.findall(text.lower().translate(_NORMALIZED)):
        if token in _LEFT_OUT:
            continue
        clitic = _CLITIC.fullmatch(token)
        words += _SPLIT_WORDS.get(token) or (clitic.groups() if clitic else (_BRACKETS.get(token, token),))
    return words
