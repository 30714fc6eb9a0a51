"""Translation edit rate (Snover et al. 2006, "A Study of Translation Edit Rate with Targeted Human Annotation").

The edits are insertions, deletions and substitutions of words, and shifts: a run of words moves to where the reference
has it. Finding the fewest is intractable, so each program has its own search, and numbers of two programs differ. This
is the search of pyter, which the WebNLG challenge 2020 and the LoRA paper report: the shift that leaves the smallest
edit distance is made, as long as one makes it smaller; of several the one whose words come last in order. It knows no
limits on the length or distance of shifts, which tercom has, and sacrebleu after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence


def ter(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Edits per word of the reference, with the reference for which that is least; 1 for one without words."""
    return min(_ter(list(words), reference) if reference else 1.0 for reference in references)


def _ter(words: list[str], reference: Sequence[str]) -> float:
    distance, shifts = _distance_to(reference), 0
    # Shifts leave what words there are, and each word that the other text lacks takes an edit.
    common = sum((Counter(words) & Counter(reference)).values())
    fewest = max(len(words), len(reference)) - common
    edits = distance(words)
    while edits > fewest:
        shifted = max(((-distance(moved), moved) for moved in _shifted(words, reference)), default=(-edits, words))
        if -shifted[0] >= edits:
            break
        shifts, edits, words = shifts + 1, -shifted[0], shifted[1]
    return (shifts + edits) / len(reference)


def _shifted(words: list[str], reference: Sequence[str]) -> Iterator[list[str]]:
    """`words` with a run that the reference has elsewhere moved there; a run is as long as the two agree."""
    for start, word in enumerate(words):
        for at, other in enumerate(reference):
            if word != other or start == at:
                continue
            end = start + 1
            while end < len(words) and at + end - start < len(reference) and words[end] == reference[at + end - start]:
                end += 1
            rest = words[:start] + words[end:]
            yield rest[:at] + words[start:end] + rest[at:]


def _distance_to(reference: Sequence[str]) -> Callable[[Sequence[str]], int]:
    """Levenshtein's distance to `reference`, a column of its table at a time in the bits of two integers (Hyyrö 2003,
    "A Bit-Vector Algorithm for Computing Levenshtein and Damerau Edit Distances")."""
    places: dict[str, int] = {}
    for bit, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << bit
    whole, last = (1 << len(reference)) - 1, 1 << len(reference) - 1

    def distance(words: Sequence[str]) -> int:
        above, below, found = whole, 0, len(reference)  # rows where the column rises by one, and where it falls
        for word in words:
            equal = places.get(word, 0)
            diagonal = ((equal & above) + above ^ above) | equal
            rises, falls = below | ~(diagonal | above), above & diagonal
            found += bool(rises & last) - bool(falls & last)
            rises, falls = rises << 1 | 1, falls << 1
            above, below = (falls | ~(equal | below | rises)) & whole, rises & (equal | below) & whole
        return found

    return distance
