// Attention over a layout (data/layout.py), forward and backward. The formulas are in ops/cpu/kernels/attention.h: with
//     S = scale · Q Kᵀ,  P = softmax(S),  O = P V,  L = log-sum-exp of the rows of S,  D = rowsum(dO ∘ O)
//     dS = P ∘ (dO Vᵀ - D),  dV = Pᵀ dO,  dQ = scale · dS K,  dK = scale · dSᵀ Q.
//
// The scheme is FlashAttention-2's (Dao 2023). A block of threads has 64 query rows of one head and goes through the
// keys that these see, 64 at a time, with a running maximum m and sum of e^(S - m) of each row (algorithm 1): S is
// never in memory. The backward pass computes it again, twice (algorithm 2 in two kernels): dQ in a block per 64 query
// rows, dK and dV in one per 64 key rows. So each sum has one owner that adds in fixed order, without atomics: the same
// bits each time. Query heads that share a key head sum by themselves, and a last kernel adds up their sums.
//
// Which pairs of tiles meet is computed once per layout for all layers and heads (ops/tiles.py). Blocks with most work
// start first, so that a long text and many short ones keep the GPU busy to the end.
//
// A NaN in a row of q, k or v reaches each row that it has a weight in, and may reach others of the same tile, for
// which its weight is zero.
#pragma once
#include "device.cuh"

namespace jl {

constexpr int TILE = 64;           // as in ops/tiles.py
constexpr int LARGEST_HEAD = 256;  // as in ops/cuda/attention.py
constexpr float LOG2_E = 1.4426950408889634f;

// The tables of ops/tiles.py, by queries or by keys.
struct Tiles {
    const int4 *tiles, *steps;
    int count;
};

struct Attention {
    const float *q, *k, *v;
    int q_stride, kv_stride;  // of q and dq; of k and v
    const int* query_rows;    // the row of q that holds each query row; null: the row itself
    const int4* seen;         // the key rows that each query row sees: [x, y) and [z, w)
    Tiles by_queries, by_keys;
    int rows, key_rows, heads, share, d;  // `share` query heads per key head
    float scale;  // positive
    bool vectors;  // rows of heads are aligned to 16 bytes, and so is d
    float *out, *lse;
    // the backward pass; dk and dv are (key rows, heads · d), or those of k and v where share is 1
    const float* upstream;
    float *delta, *dq, *dk, *dv;
    int dkv_stride;
};

void attention_forward_in_fp32(const Attention& a);
void attention_backward_in_fp32(const Attention& a);
// Products in bf16 where the GPU has them: for heads of up to 128, a multiple of 16 as on the CPU.
bool attention_takes_bf16(const Attention& a);
void attention_forward_in_bf16(const Attention& a);
void attention_backward_in_bf16(const Attention& a);

// --- in kernels ---

// Up to 64 rows of one head: row i at data + (index ? index[i] : i) · stride.
struct RowsOfHead {
    const float* data;
    int64_t stride;
    const int* index;
    int count, d;
    bool vectors;

    // Elements [column, column + 4) of row i; zero beyond the rows and beyond d. column: a multiple of 4.
    __device__ float4 four(int i, int column) const {
        if (i >= count || column >= d) return make_float4(0.f, 0.f, 0.f, 0.f);
        const float* at = data + (index ? index[i] : i) * stride + column;
        if (vectors) return *reinterpret_cast<const float4*>(at);
        return make_float4(at[0], column + 1 < d ? at[1] : 0.f, column + 2 < d ? at[2] : 0.f,
                           column + 3 < d ? at[3] : 0.f);
    }
};

__device__ inline RowsOfHead queries(const Attention& a, int first, int head) {
    int count = min(TILE, a.rows - first);
    if (a.query_rows) return {a.q + head * a.d, a.q_stride, a.query_rows + first, count, a.d, a.vectors};
    return {a.q + int64_t(first) * a.q_stride + head * a.d, a.q_stride, nullptr, count, a.d, a.vectors};
}

// Rows of `array` (query rows, heads · d): the output or its gradient.
__device__ inline RowsOfHead outputs(const Attention& a, const float* array, int first, int head) {
    int64_t stride = int64_t(a.heads) * a.d;
    return {array + first * stride + head * a.d, stride, nullptr, min(TILE, a.rows - first), a.d, a.vectors};
}

// Rows [first, end) of k or v, at most 64.
__device__ inline RowsOfHead keys(const Attention& a, const float* array, int first, int end, int head) {
    const float* data = array + int64_t(first) * a.kv_stride + head / a.share * a.d;
    return {data, a.kv_stride, nullptr, end - first, a.d, a.vectors};
}

__device__ inline bool sees(int4 seen, int key) {
    return unsigned(key - seen.x) < unsigned(seen.y - seen.x) || unsigned(key - seen.z) < unsigned(seen.w - seen.z);
}

// What query row `row` sees; beyond the last row nothing.
__device__ inline int4 seen_by(const Attention& a, int row) {
    return row < a.rows ? a.seen[row] : make_int4(0, 0, 0, 0);
}

// Over `lanes` lanes side by side, which each get the result.
template <int LANES>
__device__ float sum_across(float x) {
#pragma unroll
    for (int offset = LANES / 2; offset; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

template <int LANES>
__device__ float maximum_across(float x) {
#pragma unroll
    for (int offset = LANES / 2; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// x_i · y_i, by `lanes` lanes side by side.
template <int LANES>
__device__ float dot(const RowsOfHead& x, const RowsOfHead& y, int i) {
    float sum = 0.f;
    for (int column = threadIdx.x % LANES * 4; column < x.d; column += LANES * 4) {
        const float4 p = x.four(i, column), q = y.four(i, column);
        sum += p.x * q.x, sum += p.y * q.y, sum += p.z * q.z, sum += p.w * q.w;
    }
    return sum_across<LANES>(sum);
}

// P and dS in place of q · k and dO · V. log_sum: L in powers of 2.
__device__ inline void differentiate(float& weight, float& gradient, bool seen, float factor, float log_sum,
                                     float delta) {
    const float power = fmaf(weight, factor, -log_sum);
    // Of very large scores L has no digits behind the point: P is at most 1 all the same.
    weight = seen ? exp2f(power > 0.f ? 0.f : power) : 0.f;
    gradient = seen ? weight * (gradient - delta) : 0.f;
}

}  // namespace jl
