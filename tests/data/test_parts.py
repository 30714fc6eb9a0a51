"""How the streams of a step are dealt to ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jittor_lora.data.parts import parts, runs
from jittor_lora.data.stream import micro_batches

GROUPS = tiny.groups(9)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("budget", [24, 60, 1024])
def test_all_rows_and_labels_are_dealt_once(budget, ranks, share):
    whole = micro_batches(GROUPS, budget, 0.3, share)
    rows = [np.zeros(len(stream.tokens), int) for stream in whole]
    labelled = [np.zeros(len(np.unique(stream.label_rows)), int) for stream in whole]
    ids, weight = [], 0.0
    for rank in range(ranks):
        for part in parts(GROUPS, budget, 0.3, share, rank, ranks):
            stream, of = part.stream, whole[part.number]
            own = slice(part.stream.rows_before, part.stream.rows_before + len(stream.tokens))
            np.testing.assert_array_equal(stream.tokens, of.tokens[own])
            np.testing.assert_array_equal(stream.positions, of.positions[own])
            rows[part.number][own] += 1
            distinct = np.unique(stream.label_rows)
            first = part.stream.label_rows_before
            np.testing.assert_array_equal(distinct + part.stream.rows_before,
                                          np.unique(of.label_rows)[first : first + len(distinct)])
            labelled[part.number][first : first + len(distinct)] += 1
            ids += stream.ids
            weight += stream.total_weight
    assert all((seen == 1).all() for seen in [*rows, *labelled])
    assert sorted(ids) == sorted(name for stream in whole for name in stream.ids)
    assert weight == pytest.approx(sum(stream.total_weight for stream in whole), rel=1e-9)


def test_a_rank_for_which_nothing_is_left_gets_nothing():
    assert [len(parts(GROUPS[:2], 1024, rank=rank, ranks=4)) for rank in range(4)] == [1, 1, 0, 0]


def test_one_rank_gets_the_streams_as_they_are():
    made = parts(GROUPS, 60)
    assert [part.stream.ids for part in made] == [stream.ids for stream in micro_batches(GROUPS, 60)]
    assert all(part.stream.rows_before == part.stream.label_rows_before == 0 for part in made)


def test_a_part_says_where_its_masks_begin():
    first, second = (parts(GROUPS, 1024, rank=rank, ranks=2)[0] for rank in range(2))
    rows, labelled = len(first.stream.tokens), len(np.unique(first.stream.label_rows))
    assert 0 < labelled < rows
    assert (second.stream.rows_before, second.stream.label_rows_before) == (rows, labelled)


@given(st.lists(st.integers(1, 30), max_size=7), st.integers(1, 5))
def test_the_longest_run_is_as_short_as_can_be(sizes, count):
    made = runs(sizes, count)
    assert len(made) == count
    assert [i for start, end in made for i in range(start, end)] == list(range(len(sizes)))
    ways = itertools.combinations_with_replacement(range(len(sizes) + 1), count - 1)
    best = min(max(sum(sizes[a:b]) for a, b in zip((0, *ends), (*ends, len(sizes)))) for ends in ways)
    assert max(sum(sizes[start:end]) for start, end in made) == best
