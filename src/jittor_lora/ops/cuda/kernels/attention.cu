// The operators of attention, and the sums over query heads that share a key head.
#include "attention.cuh"
#include "product.cuh"  // Precision
#include "scratch.cuh"

namespace jl {

// to[row, g, i] = Σ_s from[row, g · share + s, i], a block per row of `width` numbers: bound by bytes.
__global__ void add_heads(const float* from_k, const float* from_v, float* dk, float* dv, int width, int share, int d) {
    const int64_t row = int64_t(blockIdx.x) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const int64_t first = row * share + i / d * share * d + i % d;
        float sum_k = 0.f, sum_v = 0.f;
        for (int s = 0; s < share; s++) sum_k += from_k[first + s * d], sum_v += from_v[first + s * d];
        dk[row + i] = sum_k, dv[row + i] = sum_v;
    }
}

static bool aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

// The tables in input i: of rows, of `tiles` tiles, of steps.
static Tiles tables(const Call& c, int i, int rows, int tiles) {
    const int4* table = reinterpret_cast<const int4*>(c.indices(i)) + rows;
    return {table, table + tiles, tiles};
}

static Attention inputs(const Call& c, const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                        int layout, int rows, int key_rows, int heads, int kv_heads, int d, double scale) {
    if (d > LARGEST_HEAD) throw std::logic_error("attention: the heads are too large");
    Attention a{};
    a.q = q, a.k = k, a.v = v, a.q_stride = q_stride, a.kv_stride = kv_stride;
    a.rows = rows, a.key_rows = key_rows, a.heads = heads, a.share = heads / kv_heads, a.d = d, a.scale = float(scale);
    a.vectors = d % 4 == 0 && q_stride % 4 == 0 && kv_stride % 4 == 0 && aligned(q) && aligned(k) && aligned(v);
    a.seen = reinterpret_cast<const int4*>(c.indices(layout));
    a.by_queries = tables(c, layout, rows, int(blocks_for(rows, TILE)));
    return a;
}

static bool in_bf16(const Attention& a, double precision) {
    return Precision(int(precision)) == Precision::BF16 && attention_takes_bf16(a);
}

static void forward(Attention a, const Call& c, double precision) {
    a.out = c.out(0), a.lse = c.out(1);
    in_bf16(a, precision) ? attention_forward_in_bf16(a) : attention_forward_in_fp32(a);
}

// `out`: the input that holds the output; the log-sum-exp and the upstream gradient follow it. `layout`: the input with
// the tiles by keys.
static void backward(Attention a, const Call& c, int layout, int out, float* dq, float* dk, float* dv,
                     double precision) {
    a.out = const_cast<float*>(c.in(out)), a.lse = const_cast<float*>(c.in(out + 1)), a.upstream = c.in(out + 2);
    a.vectors = a.vectors && aligned(dq) && aligned(dk) && aligned(dv);
    a.by_keys = tables(c, layout, 0, int(blocks_for(a.key_rows, TILE)));
    Scratch scratch;
    a.delta = scratch.take<float>(int64_t(a.rows) * a.heads);
    a.dq = dq, a.dk = dk, a.dv = dv, a.dkv_stride = a.kv_stride;
    int64_t wide = int64_t(a.heads) * a.d;
    if (a.share > 1) {
        a.dk = scratch.take<float>(a.key_rows * wide), a.dv = scratch.take<float>(a.key_rows * wide);
        a.dkv_stride = int(wide);
    }
    in_bf16(a, precision) ? attention_backward_in_bf16(a) : attention_backward_in_fp32(a);
    if (a.share == 1) return;
    launch(add_heads, a.key_rows, 128, 0, a.dk, a.dv, dk, dv, int(wide / a.share), a.share, a.d);
}

static Attention separate(const Call& c, double scale) {
    int heads = c.size(0, 1), kv_heads = c.size(1, 1), d = c.size(0, 2);
    return inputs(c, c.in(0), heads * d, c.in(1), c.in(2), kv_heads * d, 3, c.size(0, 0), c.size(1, 0), heads, kv_heads,
                  d, scale);
}

// `rows`: the input with the rows that have a query, or -1 where all have one.
static Attention fused(const Call& c, double heads, int rows, double scale) {
    int h = int(heads), width = c.size(0, 1) / 3;
    const float* qkv = c.in(0);
    Attention a = inputs(c, qkv, 3 * width, qkv + width, qkv + 2 * width, 3 * width, 1, c.size(rows < 0 ? 0 : rows, 0),
                         c.size(0, 0), h, h, width / h, scale);
    if (rows >= 0) a.query_rows = c.indices(rows);
    return a;
}

}  // namespace jl

using namespace jl;

// The arrays and numbers are those of ops/cpu/kernels/operators.cpp, with `query_tiles` and `key_tiles` (ops/tiles.py)
// in place of segments and groups.

JL_OPERATOR(attention_forward) {
    auto& [scale, precision] = c.numbers<2>();
    forward(separate(c, scale), c, precision);
}

JL_OPERATOR(attention_backward) {
    auto& [scale, precision] = c.numbers<2>();
    backward(separate(c, scale), c, 4, 5, c.out(0), c.out(1), c.out(2), precision);
}

JL_OPERATOR(fused_attention_forward) {
    auto& [heads, chosen, scale, precision] = c.numbers<4>();
    forward(fused(c, heads, chosen ? 2 : -1, scale), c, precision);
}

JL_OPERATOR(fused_attention_backward) {
    auto& [heads, chosen, scale, precision] = c.numbers<4>();
    int width = c.size(0, 1) / 3;
    float* gradient = c.out(0);
    if (chosen)  // rows without a query
        check(cudaMemset2DAsync(gradient, 3 * width * sizeof(float), 0, width * sizeof(float), c.size(0, 0), stream()),
              "memset");
    backward(fused(c, heads, chosen ? 3 : -1, scale), c, 2, 4, gradient, gradient + width, gradient + 2 * width,
             precision);
}
