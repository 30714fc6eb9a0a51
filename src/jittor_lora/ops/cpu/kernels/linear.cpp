// A frozen linear layer with bias and LoRA (Hu et al. 2022), y = x Wᵀ + bias + s · drop(x) Aᵀ Bᵀ, and its gradient.
//
// Forward: t = s · drop(x) Aᵀ, kept for the backward pass; y = x Wᵀ + bias + t Bᵀ. With u = s · dy B (rows, rank),
// backward:
//     dB = dyᵀ t,  dA = uᵀ drop(x),  dx = dy W + mask ∘ (u A)
// where drop(x) = mask ∘ x. The mask, 0 or 1 / (1 - p), is drawn again from its seed; neither it nor drop(x) is kept.
//
// A and B are thin: these products do few operations per number read, so they run around the product with W
// (`product`), on rows that are in the cache.
#include "dropout.h"
#include "product.h"

namespace jl {

// Ranks per group, whose sums or factors are held in registers: 8 of AVX2's 16, 24 of AVX-512's 32 for three rows at a
// time. Missing ranks are zeros.
constexpr int RANK = RANKS_AT_A_TIME;

// Rows that share one load of A's or B's vectors. With 16 registers one row's 8 sums are as many as fit beside the
// operands; two and three rows at a time were no faster on AVX2.
constexpr int ROWS_AT_ONCE = W == 16 ? 3 : 1;

// A (rank, n), or B transposed from (n, rank), padded to whole groups of ranks and whole vectors of columns.
struct Factor {
    int rank, n, groups, stride;
    float* rows;

    Factor(Buffer& memory, const float* from, int rank, int n, bool transposed)
        : rank(rank), n(n), groups(ceil_div(rank, RANK)), stride(round_up(n, W)) {
        rows = memory.get<float>(size_t(groups) * RANK * stride);
        memset(rows, 0, size_t(groups) * RANK * stride * sizeof(float));
        for (int j = 0; j < rank; j++)
            for (int i = 0; i < n; i++)
                rows[size_t(j) * stride + i] = transposed ? from[size_t(i) * rank + j] : from[size_t(j) * n + i];
    }

    int width() const { return groups * RANK; }
    const float* group(int g) const { return rows + size_t(g) * RANK * stride; }
};

// Calls body(r, rows) for rows [r, r + rows) of `count`: ROWS_AT_ONCE, a compile-time constant, then one by one.
template <class Body>
static inline void each_rows(int count, Body body) {
    int r = 0;
    for (; r + ROWS_AT_ONCE <= count; r += ROWS_AT_ONCE) body(r, std::integral_constant<int, ROWS_AT_ONCE>{});
    for (; r < count; r++) body(r, std::integral_constant<int, 1>{});
}

// t (R, RANK of width) = scale · x (R, n) · mᵀ for one group m.
template <int R>
static inline void project_rows(const float* x, const float* m, int n, int stride, float scale, float* t, int width) {
    vec acc[R][RANK] = {};
    each(n, [&](int64_t i, int count) {
        vec xs[R];
        for (int r = 0; r < R; r++) xs[r] = get(x + size_t(r) * n + i, count);
        for (int j = 0; j < RANK; j++) {
            vec w = load(m + size_t(j) * stride + i);
            for (int r = 0; r < R; r++) acc[r][j] = multiply_add(xs[r], w, acc[r][j]);
        }
    });
    for (int r = 0; r < R; r++)
        for (int j = 0; j < RANK; j++) t[size_t(r) * width + j] = scale * sum(acc[r][j]);
}

// t (count, width) = scale · x (count, n) · mᵀ
static void project(const float* x, const Factor& m, int count, float scale, float* t) {
    for (int g = 0; g < m.groups; g++)
        each_rows(count, [&](int r, auto rows) {
            project_rows<rows.value>(x + size_t(r) * m.n, m.group(g), m.n, m.stride, scale, t + size_t(r) * m.width() + g * RANK,
                                     m.width());
        });
}

// Columns of a group that stay in the first cache while rows go by: 8 · 128 floats on AVX2 are 4 KiB, 8 · 256 on
// AVX-512 8 KiB. A quarter as many take 7 % longer with rank 64, where every row of y is visited by eight groups; more
// are no faster.
constexpr int COLUMNS = 16 * W;

// y (R rows of n) += bias + t · group g of m, in columns [i0, i1); the update is masked if dropout is on.
template <int R>
static inline void expand_rows(float* y, const float* t, const Factor& m, int g, const float* bias, const Dropout& drop, int row,
                               int i0, int i1) {
    vec s[R][RANK];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < RANK; j++) s[r][j] = splat(t[size_t(r) * m.width() + g * RANK + j]);
    each(i1 - i0, [&](int64_t i, int n) {
        const float* w = m.group(g) + i0 + i;
        vec first = load(w), update[R];
        for (int r = 0; r < R; r++) update[r] = first * s[r][0];
        for (int j = 1; j < RANK; j++) {
            vec next = load(w + size_t(j) * m.stride);
            for (int r = 0; r < R; r++) update[r] = multiply_add(next, s[r][j], update[r]);
        }
        for (int r = 0; r < R; r++) {
            float* to = y + size_t(r) * m.n + i0 + i;
            if (drop.on) update[r] *= drop.mask(uint32_t(row + r) * m.n + i0 + i);
            put(to, get(to, n) + (bias ? update[r] + get(bias + i0 + i, n) : update[r]), n);
        }
    });
}

// y (count, n) += bias + t (count, width) · m; the update is masked if dropout is on. `row` is the first row's number
// for it.
static void expand(float* y, const float* t, const Factor& m, const float* bias, int count, const Dropout& drop, int row) {
    for (int i = 0; i < m.n; i += COLUMNS) {
        const int end = std::min(i + COLUMNS, m.n);
        for (int g = 0; g < m.groups; g++)
            each_rows(count, [&](int r, auto rows) {
                expand_rows<rows.value>(y + size_t(r) * m.n, t + size_t(r) * m.width(), m, g, g ? nullptr : bias, drop, row + r, i,
                                        end);
            });
        if (!m.groups && bias)
            for (int r = 0; r < count; r++)
                each(end - i, [&](int64_t k, int n) {
                    float* to = y + size_t(r) * m.n + i + k;
                    put(to, get(to, n) + get(bias + i + k, n), n);
                });
    }
}

// sums (groups · RANK, stride) += tᵀ (width, count) · x (count, n): the gradient of a factor.
static void accumulate(float* sums, const float* t, const float* x, const Factor& m, int count) {
    for (int g = 0; g < m.groups; g++)
        each(m.n, [&](int64_t i, int n) {
            vec acc[RANK];
            float* to = sums + size_t(g) * RANK * m.stride + i;
            for (int j = 0; j < RANK; j++) acc[j] = load(to + size_t(j) * m.stride);
            for (int r = 0; r < count; r++) {
                vec xs = get(x + size_t(r) * m.n + i, n);
                const float* s = t + size_t(r) * m.width() + g * RANK;
                for (int j = 0; j < RANK; j++) acc[j] += xs * s[j];
            }
            for (int j = 0; j < RANK; j++) store(to + size_t(j) * m.stride, acc[j]);
        });
}

// drop(x) for rows [r0, r1); x itself without dropout.
static const float* dropped(Buffer& memory, const float* x, const Dropout& drop, int columns, int r0, int r1) {
    const float* from = x + size_t(r0) * columns;
    if (!drop.on) return from;
    float* to = memory.get<float>(size_t(r1 - r0) * columns);
    for (int r = r0; r < r1; r++)
        each(columns, [&](int64_t i, int n) {
            size_t at = size_t(r - r0) * columns + i;
            put(to + at, get(from + at, n) * drop.mask(uint32_t(r) * columns + i), n);
        });
    return to;
}

// Rows whose input stays in the cache between the steps of an update: 15 rows of 768 floats are 45 KiB, of 3,072 floats
// 180 KiB, both within an L2 of 256 KiB; a multiple of ROWS_AT_ONCE. 4 to 60 rows differ by less than the noise of 5 %.
constexpr int UPDATE_ROWS = 15;

// Chunks of rows for the gradients of A and B. Each has sums of width · (in + out) floats to zero, write and add, so a
// chunk has at least MIN_CHUNK_ROWS rows where there are many, and there are fewer chunks the higher the rank; but
// MIN_CHUNKS at least.
static int chunks_with_sums(int rows, int width) {
    constexpr int MIN_CHUNKS = 32, MIN_CHUNK_ROWS = 32;
    return std::max(MIN_CHUNKS, std::min(rows / MIN_CHUNK_ROWS, MAX_CHUNKS * RANK / std::max(width, RANK)));
}

// Adds up the chunks' sums, in their order, into a gradient (rank, n) or, `transposed`, (n, rank).
static void reduce(const float* sums, int chunks, const Factor& m, float* out, bool transposed) {
    const size_t size = size_t(m.width()) * m.stride;
    const int pieces = ceil_div(m.n, COLUMNS);
    // Collapses ranks and pieces of columns.
    parallel_evenly(m.rank * pieces, [&](int task) {
        const int j = task / pieces, start = task % pieces * COLUMNS;
        each(std::min(COLUMNS, m.n - start), [&](int64_t k, int n) {
            const int64_t i = start + k;
            vec total{};
            for (int c = 0; c < chunks; c++) total += load(sums + c * size + size_t(j) * m.stride + i);
            if (!transposed) return put(out + size_t(j) * m.n + i, total, n);
            for (int e = 0; e < n; e++) out[size_t(i + e) * m.rank + j] = total[e];
        });
    });
}

static Dropout dropout(double p, double key1, double key2, double row, int columns) {
    // Threshold and keys as in `dropout_mask`.
    uint32_t threshold = uint32_t(std::min(std::nearbyint(p * 0x1p31), 0x1p31 - 1));
    return {p > 0, uint32_t(int64_t(key1)), uint32_t(int64_t(key2)), threshold, float(1.0 / (1.0 - p)),
            uint32_t(row) * uint32_t(columns)};
}

}  // namespace jl

using namespace jl;

// y (rows, out), t (rows, width). Without LoRA rank is 0, and a, b and t are not accessed. w is a `Frozen`'s data.
JL_API void jl_linear_forward(const float* x, const void* w, int storage, int bf16, const float* bias, const float* a, const float* b,
                              int rank, double scaling, double p, double key1, double key2, double row, float* y, float* t,
                              int rows, int in, int out) {
    static Buffer memory_a, memory_b;
    Factor factor_a(memory_a, a, rank, in, false), factor_b(memory_b, b, rank, out, true);
    Dropout drop = dropout(p, key1, key2, row, in), none{};
    int width = factor_a.width();
    product({w, storage, bool(bf16), true, out, in}, x, y, chunks_of(rows, bf16),
            [&](int, int r0, int r1) {
                static thread_local Buffer masked;
                if (!rank) return;
                for (int r = r0; r < r1; r += UPDATE_ROWS) {
                    int end = std::min(r + UPDATE_ROWS, r1);
                    project(dropped(masked, x, drop, in, r, end), factor_a, end - r, float(scaling), t + size_t(r) * width);
                }
            },
            [&](int, int r0, int r1) {
                if (rank || bias) expand(y + size_t(r0) * out, t + size_t(r0) * width, factor_b, bias, r1 - r0, none, r0);
            });
}

// dx (rows, in) unless null, da (rank, in), db (out, rank) for dy (rows, out). w is a `Frozen`'s data.
JL_API void jl_linear_backward(const float* x, const float* t, const float* dy, const void* w, int storage, int bf16, const float* a,
                               const float* b, int rank, double scaling, double p, double key1, double key2, double row,
                               float* dx, float* da, float* db, int rows, int in, int out) {
    static Buffer memory_a, memory_b, sums_a, sums_b, projections;
    Factor factor_a(memory_a, a, rank, in, false), factor_b(memory_b, b, rank, out, true);
    Dropout drop = dropout(p, key1, key2, row, in);
    int width = factor_a.width();
    size_t size_a = size_t(width) * factor_a.stride, size_b = size_t(width) * factor_b.stride;
    Chunks chunks = chunks_of(rows, bf16, chunks_with_sums(rows, width));
    float* sa = sums_a.get<float>(size_a * chunks.count);
    float* sb = sums_b.get<float>(size_b * chunks.count);
    float* u = projections.get<float>(size_t(rows) * width);
    auto before = [&](int chunk, int r0, int r1) {
        if (r0 == chunks.begin(chunk)) {
            memset(sa + chunk * size_a, 0, size_a * sizeof(float));
            memset(sb + chunk * size_b, 0, size_b * sizeof(float));
        }
        for (int r = r0; rank && r < r1; r += UPDATE_ROWS) {
            int count = std::min(r + UPDATE_ROWS, r1) - r;
            const float* y = dy + size_t(r) * out;
            project(y, factor_b, count, float(scaling), u + size_t(r) * width);
            accumulate(sb + chunk * size_b, t + size_t(r) * width, y, factor_b, count);
        }
    };
    auto after = [&](int chunk, int r0, int r1) {
        static thread_local Buffer masked;
        for (int r = r0; rank && r < r1; r += UPDATE_ROWS) {
            int end = std::min(r + UPDATE_ROWS, r1);
            accumulate(sa + chunk * size_a, u + size_t(r) * width, dropped(masked, x, drop, in, r, end), factor_a, end - r);
            if (dx) expand(dx + size_t(r) * in, u + size_t(r) * width, factor_a, nullptr, end - r, drop, r);
        }
    };
    if (dx) {
        product({w, storage, bool(bf16), false, out, in}, dy, dx, chunks, before, after);
    } else {
        parallel(chunks.count, [&](int c) {
            before(c, chunks.begin(c), chunks.end(c));
            after(c, chunks.begin(c), chunks.end(c));
        });
    }
    if (rank) {
        reduce(sa, chunks.count, factor_a, da, false);
        reduce(sb, chunks.count, factor_b, db, true);
    }
}
