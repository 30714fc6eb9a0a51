from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jittor_lora.data.layout import Group, Layout, Segment

LENGTHS = st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(1, 5), max_size=5)), max_size=4)


def visible(layout):
    seen = np.zeros((layout.rows, layout.rows), bool)
    for group in layout.groups:
        seen[group.q0 : group.q1, group.k0 : group.k1] = group.mask()
    return seen


@given(LENGTHS)
def test_mask_is_the_rule(groups):
    layout = Layout.of_lengths(groups)
    assert layout.rows == sum(prefix + sum(branches) for prefix, branches in groups)
    np.testing.assert_array_equal(visible(layout), tiny.seen_rows(groups))


@given(LENGTHS)
def test_segments_say_the_same_as_the_mask(groups):
    layout = Layout.of_lengths(groups)
    seen = np.zeros((layout.rows, layout.rows), bool)
    for q0, q1, p0, p1, k0, k1 in layout.segments():
        for row in range(q0, q1):
            seen[row, p0:p1] = True
            seen[row, k0 : k1 - (q1 - 1 - row)] = True
    np.testing.assert_array_equal(seen, tiny.seen_rows(groups))


@given(LENGTHS)
def test_groups_cover_the_rows_in_order(groups):
    layout = Layout.of_lengths(groups)
    row = 0
    for group in layout.groups:
        assert (group.q0, group.k0, group.q1) == (row, row, group.k1)
        for segment in group.segments:
            assert segment.q0 == row
            row = segment.q1
        assert group.q1 == row
    assert row == layout.rows


@given(LENGTHS, st.data())
def test_restricted_to_some_rows(groups, data):
    layout = Layout.of_lengths(groups)
    chosen = sorted(data.draw(st.sets(st.integers(0, layout.rows - 1)))) if layout.rows else []
    restricted = layout.restricted(chosen)
    assert restricted.rows == len(chosen)
    assert [(g.k0, g.k1) for g in restricted.groups] == [(g.k0, g.k1) for g in layout.groups]
    expected, seen = visible(layout)[chosen], np.zeros((len(chosen), layout.rows), bool)
    row = 0
    for group in restricted.groups:
        seen[group.q0 : group.q1, group.k0 : group.k1] = group.mask()
        for segment in group.segments:
            assert segment.q0 == row < segment.q1 <= group.q1
            row = segment.q1
    assert row == len(chosen)
    np.testing.assert_array_equal(seen, expected)


def test_a_row_that_sees_no_key_of_its_own():
    """Of three rows aligned with one key the first two see the prefix alone."""
    group = Group(0, 3, 0, 5, (Segment(0, 3, 0, 4, 4, 5),))
    for rows in ([0], [1, 2], [0, 1], [0, 2]):
        np.testing.assert_array_equal(Layout([group]).restricted(rows).groups[0].mask(), group.mask()[rows])


@pytest.mark.parametrize("rows", [[1, 0], [2, 2], [-1, 0], [3, 5]])
def test_rows_that_a_layout_cannot_be_restricted_to(rows):
    with pytest.raises(ValueError, match="ascending rows from 0 to 4"):
        Layout.plain(2, 3).restricted(rows)


def test_plain_texts_are_causal_and_apart():
    np.testing.assert_array_equal(visible(Layout.plain(2, 3)), tiny.seen_rows([(2, ()), (3, ())]))


def test_keys_of_a_cache_may_be_more_than_the_queries():
    """One new row each for two branches of lengths 3 and 2, on a prefix of 4; a gap of unused cache rows between."""
    group = Group(0, 2, 0, 12, (Segment(0, 1, 0, 4, 4, 7), Segment(1, 2, 0, 4, 9, 11)))
    expected = np.zeros((2, 12), bool)
    expected[0, :7] = True
    expected[1, [0, 1, 2, 3, 9, 10]] = True
    np.testing.assert_array_equal(group.mask(), expected)


@pytest.mark.parametrize("groups", [[(-1, [2])], [(3, [0])], [(3, [2, -1])]])
def test_impossible_lengths_are_refused(groups):
    with pytest.raises(ValueError, match="prefix"):
        Layout.of_lengths(groups)


def test_an_empty_layout_has_no_rows():
    assert Layout.of_lengths([(0, [])]).rows == 0
    assert Layout.of_lengths([]).segments().shape == (0, 6)
