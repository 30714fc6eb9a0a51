"""Random layouts of token streams, for comparisons of attention."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from jittor_lora.data.layout import Layout
from jittor_lora.ops import AttentionPlan
from jittor_lora.system.runtime import jt
from kernel_comparison import both, normal

# Of each group the length of its prefix, and those of its branches.
lengths = st.lists(st.tuples(st.integers(0, 80), st.lists(st.integers(1, 30), max_size=6)), min_size=1, max_size=4)
chosen_rows = st.none() | st.lists(st.integers(0, 500), min_size=1, max_size=9)


def layout_of(groups, chosen=None) -> tuple[Layout, np.ndarray]:
    """The layout of these lengths, of all rows or of `chosen` ones alone (modulo their number), and the rows."""
    layout = Layout.of_lengths([g for g in groups if g[0] or g[1]] or [(1, ())])
    if chosen is None:
        return layout, np.arange(layout.rows)
    rows = np.unique([c % layout.rows for c in chosen])
    return layout.restricted(rows), rows


def attention_case(groups, heads, share, d, chosen=None, precision="fp32", scale=None, **tolerances):
    layout, rows = layout_of(groups, chosen)
    plan, n = AttentionPlan(layout, precision), layout.groups[-1].k1
    both("attention", [normal(len(rows), heads * share, d), normal(n, heads, d, seed=1), normal(n, heads, d, seed=2)],
         (plan, scale), **tolerances)
    if share == 1:
        picked = None if chosen is None else jt.array(rows.astype(np.int32))
        both("fused_attention", [normal(n, 3 * heads * d, seed=3)], (heads, plan, picked, scale), **tolerances)
