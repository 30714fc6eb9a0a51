from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from jittor_lora.inference.span_tree import span_tree, spans_of


def texts(context, max_words=16):
    return [context[start:end] for start, end in spans_of(context, max_words)]


def test_spans_start_and_end_at_words_and_punctuation():
    assert texts("In 1,200 (U.S.)", 1) == [
        "In", "1", "1,", ",200", ",200 (", "200", "200 (", "(U", "(U.", "U", "U.", ".S", ".S.", ".S.)", "S", "S.",
        "S.)"]
    assert "U.S." in texts("In 1,200 (U.S.)", 2) and "1,200" in texts("In 1,200 (U.S.)", 2)
    assert texts("北京 is") == ["北", "北京", "北京 is", "京", "京 is", "is"]
    assert texts("... !") == [] and texts("") == []


@given(st.text(alphabet="ab1 .,-\n北é", max_size=20), st.integers(1, 4))
def test_all_spans_are_enumerated(context, most):
    borders = {b for m in re.finditer(r"北|[^\W北]+|[^\w\s]", context) for b in ((m.start(), 0), (m.end(), 1))}
    starts, ends = ({b for b, side in borders if side == which} for which in (0, 1))
    expected = [(s, e) for s, e in itertools.product(sorted(starts), sorted(ends))
                if 1 <= len(re.findall(r"北|[^\W北]+", context[s:e])) <= most and s < e]
    assert spans_of(context, most) == expected


def test_a_tree_holds_each_text_once_under_its_own_tokens():
    def encode(found):  # two letters are one token where possible: a longer span is split unlike a shorter one
        return [[*map(hash, re.findall(r" ?\w\w|.", text))] for text in found]

    context = "a b ab a"
    root = span_tree(context, encode, 3)
    held, below = {}, [root]
    while below:
        node = below.pop()
        if node.span:
            held[tuple(node.path())] = node.span
            assert node.depth == len(node.path())
        below.extend(node.children.values())
    expected = {}
    for start, end in spans_of(context):
        tokens = tuple(encode([context[start:end]])[0])
        if len(tokens) <= 3:
            expected.setdefault(tokens, (start, end))
    assert held == expected
    assert held[tuple(encode(["a"])[0])] == (0, 1)  # the first occurrence
