"""How the streams of a step are distributed over ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jittor_lora.data.parts import deal, runs
from jittor_lora.data.stream import micro_batches

GROUPS = tiny.groups(9)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("budget", [24, 60, 1024])
def test_all_rows_and_labels_are_dealt_once(budget, ranks, share):
    whole = micro_batches(GROUPS, budget, 0.3, share)
    rows = [np.zeros(len(stream.tokens), int) for stream in whole]
    labelled = [np.zeros(len(stream.label_rows), int) for stream in whole]
    ids, weight = [], 0.0
    for rank in range(ranks):
        for part in deal(GROUPS, budget, 0.3, share, rank, ranks):
            of = whole[part.number]
            own = slice(part.rows_before, part.rows_before + len(part.tokens))
            np.testing.assert_array_equal(part.tokens, of.tokens[own])
            np.testing.assert_array_equal(part.positions, of.positions[own])
            rows[part.number][own] += 1
            own = slice(part.label_rows_before, part.label_rows_before + len(part.label_rows))
            np.testing.assert_array_equal(part.label_rows + part.rows_before, of.label_rows[own])
            labelled[part.number][own] += 1
            ids += part.ids
            weight += part.total_weight
    assert all((seen == 1).all() for seen in [*rows, *labelled])
    assert sorted(ids) == sorted(name for stream in whole for name in stream.ids)
    assert weight == pytest.approx(sum(stream.total_weight for stream in whole), rel=1e-9)


def test_a_rank_for_which_nothing_is_left_gets_nothing():
    assert [len(deal(GROUPS[:2], 1024, 0.0, True, rank, 4)) for rank in range(4)] == [1, 1, 0, 0]


def test_a_single_rank_gets_whole_streams():
    dealt, whole = deal(GROUPS, 60, 0.3, True, 0, 1), micro_batches(GROUPS, 60, 0.3)
    assert len(dealt) == len(whole)
    for part, stream in zip(dealt, whole):
        assert part.number == stream.number and part.rows_before == part.label_rows_before == 0
        np.testing.assert_equal((part.tokens, part.label_rows, part.label_index, part.labels, part.ids),
                                (stream.tokens, stream.label_rows, stream.label_index, stream.labels, stream.ids))


def test_a_part_knows_how_many_rows_come_before_it():
    first, second = (deal(GROUPS, 1024, 0.0, True, rank, 2)[0] for rank in range(2))
    assert (first.rows_before, first.label_rows_before) == (0, 0)
    assert (second.rows_before, second.label_rows_before) == (len(first.tokens), len(first.label_rows))
    assert 0 < second.label_rows_before < second.rows_before


@given(st.lists(st.integers(1, 30), max_size=7), st.integers(1, 5))
def test_the_longest_run_is_as_short_as_possible(sizes, count):
    made = runs(sizes, count)
    assert len(made) == count
    assert [i for start, end in made for i in range(start, end)] == list(range(len(sizes)))
    ways = itertools.combinations_with_replacement(range(len(sizes) + 1), count - 1)
    best = min(max(sum(sizes[a:b]) for a, b in zip((0, *ends), (*ends, len(sizes)))) for ends in ways)
    assert max(sum(sizes[start:end]) for start, end in made) == best
