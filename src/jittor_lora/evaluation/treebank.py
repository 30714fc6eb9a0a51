"""English words as NLTK's `word_tokenize` cuts them, for scores that are defined by it.

The rules are those of the Penn Treebank's tokenizer (MacIntyre 1995) in NLTK's form (`NLTKWordTokenizer`): a comma
before a digit stays, a period ends a token only at the end of a sentence, clitics ("'s", "n't") are tokens. Sentences
are found by the rules of Punkt (Kiss and Strunk 2006) with the abbreviations of NLTK's English model, but without its
table of word forms, which matters after initials and numbers in rare cases.

Only text in lower case without `: - * / _ ~ + = \\` ^` is handled, which is what CMRC 2018's evaluation leaves of Latin
text.
"""

from __future__ import annotations

import re

# What NLTK's English Punkt model knows.
_ABBREVIATIONS = frozenset(
    "a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c.i.t c.o.m.b c.v calif chg cie co col "
    "colo conn corp cos ct d.c d.h d.w dec dr e.f e.h e.l e.m f.g f.j feb fla fri ft g.d g.f g.k ga gen h.c h.f h.m "
    "i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr kan ky l.a l.f l.p lt ltd m.b.a m.d.c m.j maj messrs mg mich minn mr "
    "mrs ms n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p.a.m p.m pa ph.d prof r.a r.h r.i r.j r.k r.t rep "
    "reps s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t.j tenn tues u.k u.n u.s u.s.a u.s.s.r va vs vt w.c w.r "
    "w.va w.w wash wed wis yr c d e f g h k l m n p r s t v w".split())
_MARK = re.compile(r"[.?!](?=(?P<next>[)\]}(\[{\"';@!?])|\s+(?P<word>\S))")
_LAST_WORD = re.compile(r"[^\s()\[\]{}\"';@!?]*$")
_NUMBER = re.compile(r"[.,]?\d[\d,.]*")
_CLOSING = re.compile(r"\s*[\"')\]}]+(?:\s+|$)")  # belongs to the sentence before it

# In this order.
_STEPS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"[«“‘„]", r" \g<0> "),
    (r'^"', " `` "),
    (r"([ (\[{<])(?:\"|'')", r"\1 `` "),
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
    (r"([^.])\.([\])}>\"'»”’ ]*)\s*$", r"\1 . \2 "),
    (r",(\D)", r" , \1"),
    (r",$", " , "),
    (r"\.{2,}|[;@#$%&\u2012-\u2015]", r" \g<0> "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[\]\[(){}<>]", r" \g<0> "),
    (r"^|$", " "),
    (r"[»”’]", r" \g<0> "),
    (r"''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can)(not)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(gim|lem)(me)\b", r" \1 \2 "),
    (r"\b(gon)(na)\b", r" \1 \2 "),
    (r"\b(got)(ta)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is|was)\b", r" \1 \2 "),
)]


def words(text: str) -> list[str]:
    """The words of text in lower case."""
    found: list[str] = []
    for sentence in sentences(text):
        for pattern, replacement in _STEPS:
            sentence = pattern.sub(replacement, sentence)
        found += sentence.split()
    return found


def sentences(text: str) -> list[str]:
    """The sentences of text in lower case, without the space between them."""
    text, found, start = text.rstrip(), [], 0
    for match in _MARK.finditer(text):
        if match.start() >= start and _ends(text[start : match.end()], match["next"] or match["word"]):
            closing = _CLOSING.match(text, match.end())
            end = closing.end() if closing else match.end()
            found.append(text[start:end])
            start = end
    found.append(text[start:])
    return [found[0].rstrip(), *(sentence.strip() for sentence in found[1:] if sentence.strip())]


def _ends(text: str, following: str) -> bool:
    """Whether a text up to a mark is a sentence, given the character that follows."""
    if not text.endswith("."):
        return True
    word = _LAST_WORD.search(text[:-1])[0].lstrip("&#,")
    if word.endswith(".") or word in _ABBREVIATIONS or word.rsplit("-", 1)[-1] in _ABBREVIATIONS:
        return False
    if _NUMBER.fullmatch(word) or len(word) == 1 and word.isalpha():
        return not following.islower() and following not in ",;.!?"
    return True
