"""Attention over a layout in stock Jittor: the definition, on any device. See `portable`.

Query heads that share a key head are stacked, and the groups of a batch of the plan are padded to one size, so that a
layer takes a few calls to a GPU. Only products of two matrices reach oneDNN on a CPU: there a batch is one group and
one key head.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Sequence

from jittor_lora.ops.plan import AttentionPlan, Batch
from jittor_lora.system.runtime import jt

SCORES_ON_CUDA = 1 << 25  # at most so many scores at a time, unless one group and head alone have more
STACKED_ON_CPU = 1 << 22  # query heads are stacked up to so many scores, which a cache holds


def attention(q, k, v, plan: AttentionPlan, scale: float | None = None):
    """softmax(scale · q · kᵀ) · v over the keys that the layout lets each row see (Vaswani et al. 2017, eq. 1).

    Args:
        q: (N, H, d), at least one row. k, v: (M, G, d) with G a divisor of H: query head h uses key head h // (H / G)
            (Ainslie et al. 2023).
        plan: of the layout.
        scale: of the scores, 1 / √d if None.

    Returns: (N, H · d).
    """
    return _Attention.apply(q, k, v, plan, score_scale(scale, q.shape[2]))


def score_scale(scale: float | None, head_dim: int) -> float:
    """What attention multiplies its scores by."""
    return head_dim**-0.5 if scale is None else scale


def fused_attention(qkv, heads: int, plan: AttentionPlan, rows=None, scale: float | None = None):
    """`attention` with queries, keys and values side by side in one array.

    Args:
        qkv: (N, 3 · D), each of `heads` heads.
        rows: (M,) int32, the rows that are queries in the plan; None for all.
        scale: as for `attention`.

    Returns: (M, D).
    """
    n, d = qkv.shape[0], qkv.shape[1] // 3 // heads
    if rows is None:
        return _FusedAttention.apply(qkv.reshape((n, 3, heads, d)), plan, score_scale(scale, d))
    q, k, v = (qkv[:, i * heads * d : (i + 1) * heads * d].reshape((n, heads, d)) for i in range(3))
    return attention(q[rows], k, v, plan, scale)


class _Heads(NamedTuple):
    """Rows of several heads, (N, heads, d), as one of the parts of an array (N, parts, heads, d)."""

    array: jt.Var
    part: int = 0

    def blocks(self, index, share: int = 1):
        """The rows `index` (B, rows), heads first: (heads / share, B, share, rows, d); zero for an index of -1."""
        heads, d = self.array.shape[2:]
        blocks, rows = index.shape
        return self.array.reindex([heads // share, blocks, share, rows, d],
                                  ["@e0(i1,i3)", str(self.part), "i0*yshape2+i2", "i4"], extras=[index])

    def like(self, blocks, places):
        """The inverse of `blocks`, in the form of the array; zero in the other parts.

        Args:
            places: (2, N), block and row within it of each row; -1 for a row of zeros.
        """
        _, parts, heads, d = self.array.shape
        return blocks.reindex([places.shape[1], parts, heads, d],
                              ["i2/xshape2", "@e0(0,i0)", "i2%xshape2", "@e0(1,i0)", "i3"], 0,
                              [f"i1!={self.part}"] if parts > 1 else [], extras=[places])


class _Attention(jt.Function):
    """Keeps its inputs, its output, and of each row and head the largest score and the sum of the softmax.

    The gradient computes the weights again: they would be the largest arrays of all. Besides inputs, all that is kept
    is cut off from its history, which Jittor would keep too.
    """

    def execute(self, q, k, v, plan, scale):
        out, sums = _attended(*self._heads(q, k, v), plan, scale)
        self.inputs, self.made = (q, k, v, plan, scale), (out.detach(), sums)
        return out

    def grad(self, upstream):
        *arrays, plan, scale = self.inputs
        found = _gradients(*self._heads(*arrays), plan, scale, *self.made, upstream)
        return (*(gradient.squeeze(1) for gradient in found), None, None)

    @staticmethod
    def _heads(*arrays):
        return [_Heads(x.reshape((x.shape[0], 1, *x.shape[1:]))) for x in arrays]


class _FusedAttention(jt.Function):
    """`_Attention` of one array (N, 3, heads, d)."""

    def execute(self, qkv, plan, scale):
        out, sums = _attended(*self._heads(qkv), plan, scale)
        self.inputs, self.made = (qkv, plan, scale), (out.detach(), sums)
        return out

    def grad(self, upstream):
        qkv, plan, scale = self.inputs
        dq, dk, dv = _gradients(*self._heads(qkv), plan, scale, *self.made, upstream)
        return dq + dk + dv, None, None

    @staticmethod
    def _heads(qkv):
        return [_Heads(qkv, part) for part in range(3)]


def _attended(q: _Heads, k: _Heads, v: _Heads, plan: AttentionPlan, scale: float):
    """The output (N, heads · d), and of each piece the largest score and the sum of the softmax by row."""
    heads, d = q.array.shape[2:]
    outputs, sums = [], []
    for batch in plan.batches(_scores_at_a_time()):
        stacked = _stacked(batch, heads // k.array.shape[2])
        parts = []
        for (q_b,), (k_b, v_b) in _pieces(batch, [q.blocks(batch.queries, stacked) * scale],
                                          [k.blocks(batch.keys), v.blocks(batch.keys)]):
            scores = _product(q_b, k_b, transpose_b=True) + batch.mask
            top = scores.max(-1, keepdims=True)
            odds = jt.exp(scores - top)
            total = odds.sum(-1, keepdims=True)
            parts.append(_product(odds, v_b) / total)
            sums.append((top.stop_grad(), total.stop_grad()))
        rows = _Heads(q.array.reshape((-1, 1, heads, d)))
        outputs.append(rows.like(joined(parts), batch.query_places).reshape((-1, heads * d)))
    return joined(outputs), sums


def _gradients(q: _Heads, k: _Heads, v: _Heads, plan: AttentionPlan, scale: float, out, sums, upstream):
    """Of queries, keys and values, each in the form of its array."""
    heads, kv_heads, d = q.array.shape[2], *k.array.shape[2:]
    plan.check_keys(k.array.shape[0])
    out, upstream = (_Heads(x.reshape((-1, 1, heads, d))) for x in (out, upstream))
    sums, found = iter(sums), ([], [], [])
    for batch in plan.batches(_scores_at_a_time()):
        stacked = _stacked(batch, heads // kv_heads)
        parts = [], [], []
        queries = [q.blocks(batch.queries, stacked) * scale, out.blocks(batch.queries, stacked),
                   upstream.blocks(batch.queries, stacked)]
        for (q_b, y, dy), (k_b, v_b) in _pieces(batch, queries, [k.blocks(batch.keys), v.blocks(batch.keys)]):
            top, total = next(sums)
            weights = jt.exp(_product(q_b, k_b, transpose_b=True) + batch.mask - top) / total
            # Σ_j weights_j · (dy · v_j) is dy · y
            ds = weights * (_product(dy, v_b, transpose_b=True) - (dy * y).sum(-1, keepdims=True))
            parts[0].append(_product(ds, k_b) * scale)
            parts[1].append(_product(ds, q_b, transpose_a=True))
            parts[2].append(_product(weights, dy, transpose_a=True))
        dq, dk, dv = map(joined, parts)
        found[0].append(q.like(dq, batch.query_places))
        for own, gradient, gradients in ((k, dk, found[1]), (v, dv, found[2])):
            if gradient.shape[0] > kv_heads:
                gradient = gradient.reshape((kv_heads, -1, *gradient.shape[1:])).sum(1)
            gradients.append(own.like(gradient, batch.key_places))
    return map(joined, found)


def _scores_at_a_time() -> int:
    return SCORES_ON_CUDA if jt.flags.use_cuda else 0


def _stacked(batch: Batch, share: int) -> int:
    """How many of the `share` query heads that use a key head are stacked: all, or each is alone."""
    most = SCORES_ON_CUDA if jt.flags.use_cuda else STACKED_ON_CPU
    return share if batch.scores * share <= most else 1


def _pieces(batch: Batch, queries: Sequence[jt.Var], keys: Sequence[jt.Var]) -> Iterator[tuple[Sequence, Sequence]]:
    """Queries (stacks, B, …) and keys (key heads, B, …), so many at a time that their scores have the size allowed."""
    stacks, kv_heads = queries[0].shape[0], keys[0].shape[0]
    count = max(1, _scores_at_a_time() // (batch.scores * queries[0].shape[2])) if stacks == kv_heads else 1
    if count >= stacks:
        yield queries, keys
        return
    for first in range(0, stacks, count):
        key = first * kv_heads // stacks
        yield [x[first : first + count] for x in queries], [x[key : key + count] for x in keys]


def _product(a, b, transpose_a: bool = False, transpose_b: bool = False):
    """The products of the matrices in a (heads, B, x, rows, columns) and b, each of x · rows rows.

    Of aᵀ · b, x is 1.
    """
    heads, blocks, share, rows, columns = a.shape
    a, b = (v.reshape((heads * blocks, -1, v.shape[-1])) for v in (a, b))
    if jt.flags.use_cuda:
        product = jt.compile_extern.cublas_ops.cublas_batched_matmul(a, b, transpose_a, transpose_b)
    else:
        two = transposed_product if transpose_a else jt.nn.matmul_transpose if transpose_b else jt.matmul
        product = jt.stack([two(a[i], b[i]) for i in range(a.shape[0])], 0) if a.shape[0] > 1 else two(a[0], b[0])
    return product.reshape((heads, blocks, *((1, columns) if transpose_a else (share, rows)), -1))


def transposed_product(a, b):
    """aᵀ · b of (N, I) and (N, J): (I, J). Written so that it reaches oneDNN without a transposed copy."""
    shape = [a.shape[0], a.shape[1], b.shape[1]]
    return (a.broadcast(shape, [2]) * b.broadcast(shape, [1])).sum(0)


def joined(parts):
    return parts[0] if len(parts) == 1 else jt.concat(parts, 0)
