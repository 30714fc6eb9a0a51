"""Translation edit rate. Against pyter, text by text: tests/parity/test_text_metrics.py."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.evaluation.ter import ter

WORDS = st.lists(st.sampled_from("abcd"), max_size=7)
SNOVER = ("THIS WEEK THE SAUDIS denied information published in the new york times",
          "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times")


@pytest.mark.parametrize("text, references, expected", [
    (*SNOVER[:1], SNOVER[1:], 4 / 13),  # Snover et al. 2006, section 3: a shift, two substitutions, an insertion
    ("a b c", ["a b c"], 0), ("", ["a b c"], 1), ("a b", [""], 1), ("", [""], 1), ("x y z", ["a"], 3),
    ("b c a", ["a b c"], 1 / 3), ("c d a b", ["a b c d"], 1 / 4), ("a b c", ["x", "a b", "a x y"], 1 / 2),
])
def test_by_hand(text, references, expected):
    assert ter(text.split(), [reference.split() for reference in references]) == expected


def levenshtein(first, second):
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        above, row = row, [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


@given(WORDS, WORDS.filter(bool))
def test_shifts_only_help(words, reference):
    """Between the words that the other text lacks, each of which takes an edit, and no shift at all."""
    rate = ter(words, [reference])
    common = sum(min(words.count(word), reference.count(word)) for word in set(words))
    assert max(len(words), len(reference)) - common <= round(rate * len(reference)) <= levenshtein(words, reference)
    if rate == 0:
        assert words == reference


EDITS = st.tuples(st.sampled_from("abcd"), st.sampled_from(["keep", "replace", "change"]))


@given(st.lists(EDITS, min_size=1, max_size=7), st.sampled_from(["drop", "insert"]))
def test_without_a_shift_it_is_the_edit_distance(edits, change):
    """Words in the order of the reference: each edit is of a word that the other text lacks, which no shift spares."""
    reference = [word for word, _ in edits]
    made = {"keep": lambda word: [word], "replace": lambda word: ["x"],
            "change": lambda word: [] if change == "drop" else [word, "x"]}
    words = [each for word, edit in edits for each in made[edit](word)]
    distance = sum(edit != "keep" for _, edit in edits)
    assert levenshtein(words, reference) == distance
    assert ter(words, [reference]) == distance / len(reference)


def test_degenerate_texts_take_no_time():
    started = time.process_time()
    assert ter(["the"] * 1000, [["the", "cat"] * 15]) > 1
    assert ter(list("ab") * 20, [list("ba") * 20]) == 1 / 40
    assert time.process_time() - started < 5
