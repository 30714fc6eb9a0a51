"""Tiles against the mask of their layout."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jittor_lora.data.layout import Group, Layout, Segment
from jittor_lora.ops.tiles import TILE, key_tiles, query_tiles
from layouts import chosen_rows, layout_of, lengths

long = st.lists(st.tuples(st.integers(0, 300), st.lists(st.integers(1, 150), max_size=5)), min_size=1, max_size=4)


def mask_of(layout):
    """(N, keys) bool: which keys each row sees."""
    mask = np.zeros((layout.rows, layout.groups[-1].k1), bool)
    for group in layout.groups:
        mask[group.q0 : group.q1, group.k0 : group.k1] = group.mask()
    return mask


def tables(array, rows, tiles):
    return array[:rows], array[rows : rows + tiles], array[rows + tiles :]


def check_tiles(mask, tiles, steps):
    """Each tile of the mask's rows meets each of its true entries in exactly one step."""
    assert sorted(tiles[:, 0]) == list(range(0, len(mask), TILE))
    assert (np.diff(tiles[:, 2] - tiles[:, 1]) <= 0).all()
    used = np.zeros(len(steps), int)
    for first, begin, end, _ in tiles:
        rows, met = mask[first : first + TILE], np.zeros(mask.shape[1], int)
        for a, b, whole, _ in steps[begin:end]:
            assert 0 <= a < b <= mask.shape[1] and b - a <= TILE
            met[a:b] += 1
            assert not whole or (b - a == TILE and rows[:, a:b].all())
            assert whole or not (b - a == TILE and rows[:, a:b].all() and len(rows) == TILE)
            assert rows[:, a:b].any()
        assert (met <= 1).all() and met[rows.any(0)].all()
        used[begin:end] += 1
    assert (used == 1).all()


def check(layout):
    mask = mask_of(layout)
    seen, tiles, steps = tables(query_tiles(layout), layout.rows, -(-layout.rows // TILE))
    keys = np.arange(mask.shape[1])
    p0, p1, k0, k1 = seen.T[..., None]
    assert (((p0 <= keys) & (keys < p1) | (k0 <= keys) & (keys < k1)) == mask).all()
    assert (p0 <= p1).all() and (k0 <= k1).all()
    check_tiles(mask, tiles, steps)
    check_tiles(mask.T, *tables(key_tiles(layout), 0, -(-mask.shape[1] // TILE))[1:])


@settings(deadline=None)
@given(lengths | long, chosen_rows)
@example([(64, []), (128, [64, 64])], None)
@example([(5, [1] * 200)], None)
@example([(200, []), (3, [3]), (200, [])], [0, 405])
def test_tiles_hold_what_rows_see(groups, chosen):
    check(layout_of(groups, chosen)[0])


def test_a_cache_with_room_for_more():
    """A prefix and two branches that begin in the middle of their keys, with rows between them that none sees."""
    check(Layout([Group(0, 70, 0, 400, (Segment(0, 60, 0, 0, 0, 150), Segment(60, 62, 0, 150, 200, 260),
                                        Segment(62, 70, 0, 150, 300, 308)))]))
