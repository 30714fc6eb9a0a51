// A frozen linear layer with bias and a low-rank update, y = x Wᵀ + bias + s · drop(x) Aᵀ Bᵀ, and its gradient.
#include "dropout.h"
#include "product.h"

namespace jl {

constexpr int RANK = RANKS_AT_A_TIME;  // what is missing is zeros

// The rows of a small matrix (rank, n), or the columns of one (n, rank), padded to whole groups and vectors.
struct Small {
    int rank, n, groups, stride;
    float* rows;

    Small(Buffer& memory, const float* from, int rank, int n, bool columns)
        : rank(rank), n(n), groups((rank + RANK - 1) / RANK), stride(round_up(n, W)) {
        rows = memory.get<float>(size_t(groups) * RANK * stride);
        memset(rows, 0, size_t(groups) * RANK * stride * sizeof(float));
        for (int j = 0; j < rank; j++)
            for (int i = 0; i < n; i++) rows[size_t(j) * stride + i] = columns ? from[size_t(i) * rank + j] : from[size_t(j) * n + i];
    }

    int width() const { return groups * RANK; }
    const float* group(int g) const { return rows + size_t(g) * RANK * stride; }
};

// t (count, width) = scale · x (count, n) · mᵀ
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

static void project(const float* x, const Small& m, int count, float scale, float* t) {
    constexpr int R = W == 16 ? 3 : 1;
    for (int g = 0; g < m.groups; g++) {
        int r = 0;
        for (; r + R <= count; r += R)
            project_rows<R>(x + size_t(r) * m.n, m.group(g), m.n, m.stride, scale, t + size_t(r) * m.width() + g * RANK, m.width());
        for (; r < count; r++)
            project_rows<1>(x + size_t(r) * m.n, m.group(g), m.n, m.stride, scale, t + size_t(r) * m.width() + g * RANK, m.width());
    }
}

constexpr int COLUMNS = 16 * W;  // of a small matrix that stay in the first cache while rows go by

// y (R rows of n) += bias + t · group g of m, in columns [i0, i1), with each addend masked by drop if it is on
template <int R>
static inline void expand_rows(float* y, const float* t, const Small& m, int g, const float* bias, const Dropout& drop, int row,
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

// y (count, n) += bias + t (count, width) · m, with each addend masked by drop if it is on
static void expand(float* y, const float* t, const Small& m, const float* bias, int count, const Dropout& drop, int row) {
    constexpr int R = W == 16 ? 3 : 1;
    for (int i = 0; i < m.n; i += COLUMNS) {
        int end = std::min(i + COLUMNS, m.n);
        for (int g = 0; g < m.groups; g++) {
            int r = 0;
            const float* b = g ? nullptr : bias;
            for (; r + R <= count; r += R)
                expand_rows<R>(y + size_t(r) * m.n, t + size_t(r) * m.width(), m, g, b, drop, row + r, i, end);
            for (; r < count; r++)
                expand_rows<1>(y + size_t(r) * m.n, t + size_t(r) * m.width(), m, g, b, drop, row + r, i, end);
        }
        if (!m.groups && bias)
            for (int r = 0; r < count; r++)
                each(end - i, [&](int64_t k, int n) {
                    float* to = y + size_t(r) * m.n + i + k;
                    put(to, get(to, n) + get(bias + i + k, n), n);
                });
    }
}

// sums (groups · RANK, stride) += tᵀ (width, count) · x (count, n)
static void accumulate(float* sums, const float* t, const float* x, const Small& m, int count) {
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

constexpr int BLOCK = 15;  // rows whose input stays in the cache between the steps of an update

// Chunks that have sums of their own, which take memory and time: of 32 rows or more where there are many, and fewer with
// more projections.
static int chunks_with_sums(int rows, int width) {
    return std::max(32, std::min(rows / 32, MAX_CHUNKS * RANK / std::max(width, RANK)));
}

// The sums of the chunks, in their order, as (rank, n) or (n, rank).
static void reduce(const float* sums, int chunks, const Small& m, float scale, float* out, bool columns) {
    size_t size = size_t(m.width()) * m.stride;
    const int pieces = (m.n + COLUMNS - 1) / COLUMNS;
    parallel_evenly(m.rank * pieces, [&](int task) {
        const int j = task / pieces, start = task % pieces * COLUMNS;
        each(std::min(COLUMNS, m.n - start), [&](int64_t k, int n) {
            const int64_t i = start + k;
            vec total{};
            for (int c = 0; c < chunks; c++) total += load(sums + c * size + size_t(j) * m.stride + i);
            total *= scale;
            if (!columns) return put(out + size_t(j) * m.n + i, total, n);
            for (int e = 0; e < n; e++) out[size_t(i + e) * m.rank + j] = total[e];
        });
    });
}

static Dropout dropout(double p, double first, double second, double row, int columns) {
    // Thresholds and keys as in `dropout_mask`.
    uint32_t threshold = uint32_t(std::min(std::nearbyint(p * 2147483648.0), 2147483647.0));
    return {p > 0, uint32_t(int64_t(first)), uint32_t(int64_t(second)), threshold, float(1.0 / (1.0 - p)),
            uint32_t(row) * uint32_t(columns)};
}

}  // namespace jl

using namespace jl;

// y (rows, out), t (rows, width) = s · drop(x) Aᵀ. Without an update rank is 0 and a, b, t are not read.
JL_API void jl_linear_forward(const float* x, const void* w, int narrow, const float* bias, const float* a, const float* b,
                              int rank, double scaling, double p, double first, double second, double row, float* y, float* t,
                              int rows, int in, int out) {
    static Buffer memory_a, memory_b;
    Small small_a(memory_a, a, rank, in, false), small_b(memory_b, b, rank, out, true);
    Dropout drop = dropout(p, first, second, row, in), none{};
    int width = small_a.width();
    product({w, bool(narrow), true, in, out}, x, y, chunks_of(rows, narrow),
            [&](int, int r0, int r1) {
                static thread_local Buffer masked;
                if (!rank) return;
                for (int r = r0; r < r1; r += BLOCK) {
                    int end = std::min(r + BLOCK, r1);
                    project(dropped(masked, x, drop, in, r, end), small_a, end - r, float(scaling), t + size_t(r) * width);
                }
            },
            [&](int, int r0, int r1) {
                if (rank || bias) expand(y + size_t(r0) * out, t + size_t(r0) * width, small_b, bias, r1 - r0, none, r0);
            });
}

// dx (rows, in) unless null, da (rank, in), db (out, rank) for dy (rows, out). W is packed for this direction.
JL_API void jl_linear_backward(const float* x, const float* t, const float* dy, const void* w, int narrow, const float* a,
                               const float* b, int rank, double scaling, double p, double first, double second, double row,
                               float* dx, float* da, float* db, int rows, int in, int out) {
    static Buffer memory_a, memory_b, sums_a, sums_b, projections;
    Small small_a(memory_a, a, rank, in, false), small_b(memory_b, b, rank, out, true);
    Dropout drop = dropout(p, first, second, row, in);
    int width = small_a.width();
    size_t size_a = size_t(width) * small_a.stride, size_b = size_t(width) * small_b.stride;
    Chunks chunks = chunks_of(rows, narrow, chunks_with_sums(rows, width));
    float* sa = sums_a.get<float>(size_a * chunks.count);
    float* sb = sums_b.get<float>(size_b * chunks.count);
    float* d = projections.get<float>(size_t(rows) * width);  // s · dy B
    auto before = [&](int chunk, int r0, int r1) {
        if (r0 == chunks.begin(chunk)) {
            memset(sa + chunk * size_a, 0, size_a * sizeof(float));
            memset(sb + chunk * size_b, 0, size_b * sizeof(float));
        }
        for (int r = r0; rank && r < r1; r += BLOCK) {
            int count = std::min(r + BLOCK, r1) - r;
            const float* y = dy + size_t(r) * out;
            project(y, small_b, count, float(scaling), d + size_t(r) * width);
            accumulate(sb + chunk * size_b, t + size_t(r) * width, y, small_b, count);
        }
    };
    auto after = [&](int chunk, int r0, int r1) {
        static thread_local Buffer masked;
        for (int r = r0; rank && r < r1; r += BLOCK) {
            int end = std::min(r + BLOCK, r1);
            accumulate(sa + chunk * size_a, d + size_t(r) * width, dropped(masked, x, drop, in, r, end), small_a, end - r);
            if (dx) expand(dx + size_t(r) * in, d + size_t(r) * width, small_a, nullptr, end - r, drop, r);
        }
    };
    if (dx) {
        product({w, bool(narrow), false, out, in}, dy, dx, chunks, before, after);
    } else {
        parallel(chunks.count, [&](int c) {
            before(c, chunks.begin(c), chunks.end(c));
            after(c, chunks.begin(c), chunks.end(c));
        });
    }
    if (rank) {
        reduce(sa, chunks.count, small_a, 1.f, da, false);
        reduce(sb, chunks.count, small_b, 1.f, db, true);
    }
}
