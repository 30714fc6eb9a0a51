// Blocks of attention with products of pairs of bf16 numbers, summed in float32 as everything else is.
//
// A block's keys are columns side by side: those of the prefix, then those of each piece. Where a row does not see a
// column, its weight is zero. These products are superfluous, but one product of the block's height is faster than one
// per piece.
#include "attention.h"

#if defined(__AVX512BF16__)
#include "softmax.h"

namespace jl {

// Two consecutive bf16 numbers along the inner dimension of a product, as VDPBF16PS multiplies them; the first is the
// lower half.
typedef uint32_t pair_t;

static inline uvec paired(vec first, vec second) {
    typedef uint16_t halves __attribute__((vector_size(64)));
    halves apart = (halves)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const halves alternate = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (uvec)__builtin_shuffle(apart, alternate);
}

static inline void store(pair_t* p, uvec v) { memcpy(p, &v, sizeof v); }

// c (R, N · W) = a · b or, with `add`, += a · b. Pair k of row r of a is a[r · a_row + k · a_pair]; row k of b, N
// vectors of pairs, starts at b + k · ldb. The R · N sums stay in registers while k runs.
template <int R, int N>
static void multiply(const pair_t* a, int a_row, int a_pair, const pair_t* b, int ldb, int pairs, float* c, int ldc, bool add) {
    __m512 s[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) s[r][j] = add ? _mm512_loadu_ps(c + size_t(r) * ldc + j * W) : _mm512_setzero_ps();
    for (int k = 0; k < pairs; k++) {
        __m512bh w[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) w[j] = (__m512bh)_mm512_loadu_si512(b + size_t(k) * ldb + j * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            __m512bh in = (__m512bh)_mm512_set1_epi32(a[size_t(r) * a_row + size_t(k) * a_pair]);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) s[r][j] = _mm512_dpbf16_ps(s[r][j], w[j], in);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) _mm512_storeu_ps(c + size_t(r) * ldc + j * W, s[r][j]);
}

// The same for any number of rows, R at a time.
template <int R, int N>
static void multiply_columns(int rows, const pair_t* a, int a_row, int a_pair, const pair_t* b, int ldb, int pairs, float* c, int ldc,
                             bool add) {
    for (int r = 0; r < rows; r += R)
        with_constant<R>(std::min(R, rows - r), [&](auto count) {
            multiply<count.value, N>(a + size_t(r) * a_row, a_row, a_pair, b, ldb, pairs, c + size_t(r) * ldc, ldc, add);
        });
}

// c (rows, columns) = a · b or, with `add`, += a · b; columns are a multiple of W. Of the 32 registers, R · N hold
// sums, N the vectors of b and one the pair of a: 6 · 4 + 4 + 1, 8 · 3 + 3 + 1, 12 · 2 + 2 + 1. A vector of b is thus
// used in 6 to 12 rows per load. One column of vectors has 12 sums, enough to cover the latency of a product.
static void multiply(int rows, int columns, const pair_t* a, int a_row, int a_pair, const pair_t* b, int ldb, int pairs, float* c,
                     int ldc, bool add) {
    int j = 0;
    for (; j + 4 * W <= columns; j += 4 * W) multiply_columns<6, 4>(rows, a, a_row, a_pair, b + j, ldb, pairs, c + j, ldc, add);
    switch ((columns - j) / W) {
        case 3: return multiply_columns<8, 3>(rows, a, a_row, a_pair, b + j, ldb, pairs, c + j, ldc, add);
        case 2: return multiply_columns<12, 2>(rows, a, a_row, a_pair, b + j, ldb, pairs, c + j, ldc, add);
        case 1: return multiply_columns<12, 1>(rows, a, a_row, a_pair, b + j, ldb, pairs, c + j, ldc, add);
    }
}

// The columns of a block.
struct Columns {
    struct Range {
        int at, rows, key;  // columns [at, at + rows) are key rows from `key` on
    };
    int count = 0, padded;  // padded to whole vectors with columns of zeros
    std::vector<Range> ranges;

    explicit Columns(const Block& b) {
        b.each_rectangle([&](const Rectangle& r) {
            ranges.push_back({count, r.keys, r.key});
            count += r.keys;
        });
        padded = round_up(count, W);
    }

    // Calls body(column, row of m or null) for each column.
    template <class Body>
    void each_row(Heads<const float> m, int head, int d, Body body) const {
        for (const Range& range : ranges)
            for (int i = 0; i < range.rows; i++) body(range.at + i, m.at(range.key + i, head, d));
        for (int i = count; i < padded; i++) body(i, static_cast<const float*>(nullptr));
    }

    // Masks the scores of row r, of the piece with this index: all but the prefix and the own keys that it sees.
    void mask(const Block& b, const Piece& p, size_t index, int r, float* scores) const {
        const Range& own = ranges[ranges.size() - b.pieces.size() + index];
        std::fill(scores + b.prefix(), scores + own.at, -INFINITY);
        std::fill(scores + own.at + p.own(b.first + r), scores + padded, -INFINITY);
    }
};

// A row of floats as pairs of bf16; n is a multiple of W.
static void to_pairs(const float* x, int n, pair_t* to) {
    bf16* at = reinterpret_cast<bf16*>(to);
    for (int i = 0; i < n; i += W) store(at + i, load(x + i));
}

// x (rows, d) as the left side of a product over d.
static const pair_t* left(Buffer& memory, const float* x, int rows, int d) {
    pair_t* to = memory.get<pair_t>(size_t(rows) * d / 2);
    for (int r = 0; r < rows; r++) to_pairs(x + size_t(r) * d, d, to + size_t(r) * d / 2);
    return to;
}

// x (rows, d) as the right side of a product over rows: (rows / 2, d).
static const pair_t* right(Buffer& memory, const float* x, int rows, int d) {
    pair_t* to = memory.get<pair_t>(size_t(rows + 1) / 2 * d);
    for (int r = 0; r < rows; r += 2)
        for (int i = 0; i < d; i += W)
            store(to + size_t(r / 2) * d + i,
                  paired(load(x + size_t(r) * d + i), r + 1 < rows ? load(x + size_t(r + 1) * d + i) : vec{}));
    return to;
}

// The columns of m as the right side of a product over them: (padded / 2, d).
static const pair_t* right(Buffer& memory, const Columns& c, Heads<const float> m, int head, int d) {
    pair_t* to = memory.get<pair_t>(size_t(c.padded) / 2 * d);
    const float* before = nullptr;
    c.each_row(m, head, d, [&](int column, const float* row) {
        if (column % 2)
            for (int i = 0; i < d; i += W)
                store(to + size_t(column / 2) * d + i, paired(before ? load(before + i) : vec{}, row ? load(row + i) : vec{}));
        before = row;
    });
    return to;
}

// Transposes a square of W by W pairs: log2 W steps, each of which swaps the off-diagonal quarters of squares of 2 ·
// step.
static inline void transpose(uvec (&rows)[W]) {
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
    for (int step = W / 2; step; step /= 2) {
        // In a shuffle the lanes of the second vector are numbered from W on.
        const ivec upper = (lanes & step) != 0;
        const ivec first = (~upper & lanes) | (upper & (lanes - step + W));
        const ivec second = (~upper & (lanes + step)) | (upper & (lanes + W));
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) {
            if (i & step) continue;
            uvec a = rows[i], b = rows[i + step];
            rows[i] = __builtin_shuffle(a, b, (uvec)first);
            rows[i + step] = __builtin_shuffle(a, b, (uvec)second);
        }
    }
}

// The columns of m as the right side of a product over d: (d / 2, padded).
static const pair_t* across(Buffer& memory, const Columns& c, Heads<const float> m, int head, int d) {
    static thread_local Buffer for_rows;
    const int half = d / 2, whole = round_up(half, W);
    pair_t* to = memory.get<pair_t>(size_t(whole) * c.padded);
    pair_t* rows = for_rows.get<pair_t>(size_t(W) * whole);
    c.each_row(m, head, d, [&](int column, const float* row) {
        pair_t* at = rows + size_t(column % W) * whole;
        row ? to_pairs(row, d, at) : void(memset(at, 0, half * sizeof(pair_t)));
        if (column % W < W - 1) return;
        for (int i = 0; i < whole; i += W) {
            uvec square[W];
            for (int r = 0; r < W; r++) memcpy(&square[r], rows + size_t(r) * whole + i, sizeof square[r]);
            transpose(square);
            for (int r = 0; r < std::min(W, half - i); r++) store(to + size_t(i + r) * c.padded + column + 1 - W, square[r]);
        }
    });
    return to;
}

void forward_in_bf16(const BlockOfHead& b, const float* x, float* o, float* log_sums) {
    static thread_local Buffer for_x, for_keys, for_values, for_scores, for_weights;
    const Columns c(b.block);
    const int rows = b.block.rows(), d = b.d, wide = c.padded;
    float* scores = for_scores.get<float>(size_t(rows) * wide);
    pair_t* weights = for_weights.get<pair_t>(size_t(rows) * wide / 2);
    float sums[BLOCK_ROWS];
    multiply(rows, wide, left(for_x, x, rows, d), d / 2, 1, across(for_keys, c, b.keys, b.head, d), wide, d / 2, scores, wide,
             false);
    b.block.each_row([&](int r, const Piece& p, size_t index) {
        float* s = scores + size_t(r) * wide;
        bf16* w = reinterpret_cast<bf16*>(weights + size_t(r) * wide / 2);
        c.mask(b.block, p, index, r, s);
        const Exponentials e = exponentials(s, wide, b.scale, [&](int i, vec v) { store(w + i, v); });
        sums[r] = e.sum;
        log_sums[r] = e.log_sum();
    });
    multiply(rows, d, weights, wide / 2, 1, right(for_values, c, b.values, b.head, d), d, wide / 2, o, d, false);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < d; i += W) store(o + size_t(r) * d + i, load(o + size_t(r) * d + i) / sums[r]);
}

void backward_in_bf16(const BlockOfHead& b, const float* x, const float* dy, const float* log_sums, const float* deltas,
                      float* dx, float* sums_k, float* sums_v, int first) {
    static thread_local Buffer for_x, for_keys, for_values, for_scores, for_upstream, for_rows, for_weights, for_gradients;
    const Columns c(b.block);
    const int rows = b.block.rows(), d = b.d, wide = c.padded;
    float* scores = for_scores.get<float>(size_t(rows + 1) * wide);
    float* upstream = for_upstream.get<float>(size_t(rows + 1) * wide);                // dP
    pair_t* gradient_rows = for_rows.get<pair_t>(size_t(rows + 1) * wide / 2);         // dS, pairs of columns: for dQ
    pair_t* weights = for_weights.get<pair_t>(size_t(rows + 1) / 2 * wide);            // P, pairs of rows: for dV
    pair_t* gradients = for_gradients.get<pair_t>(size_t(rows + 1) / 2 * wide);        // dS, pairs of rows: for dK
    multiply(rows, wide, left(for_x, x, rows, d), d / 2, 1, across(for_keys, c, b.keys, b.head, d), wide, d / 2, scores, wide,
             false);
    multiply(rows, wide, left(for_x, dy, rows, d), d / 2, 1, across(for_values, c, b.values, b.head, d), wide, d / 2, upstream,
             wide, false);
    b.block.each_row([&](int r, const Piece& p, size_t index) { c.mask(b.block, p, index, r, scores + size_t(r) * wide); });
    if (rows % 2) {  // a row of zeros makes the last pair whole
        std::fill_n(scores + size_t(rows) * wide, wide, -INFINITY);
        std::fill_n(upstream + size_t(rows) * wide, wide, 0.f);
    }
    for (int r = 0; r < rows; r += 2) {
        const int next = std::min(r + 1, rows - 1);
        const float *s0 = scores + size_t(r) * wide, *s1 = s0 + wide, *g0 = upstream + size_t(r) * wide, *g1 = g0 + wide;
        bf16 *to0 = reinterpret_cast<bf16*>(gradient_rows + size_t(r) * wide / 2), *to1 = to0 + wide;
        for (int j = 0; j < wide; j += W) {
            const auto [p0, ds0] = softmax_backward(load(s0 + j) * b.scale, log_sums[r], load(g0 + j), deltas[r], b.scale);
            const auto [p1, ds1] = softmax_backward(load(s1 + j) * b.scale, log_sums[next], load(g1 + j), deltas[next], b.scale);
            store(to0 + j, ds0);
            store(to1 + j, ds1);
            store(weights + size_t(r) / 2 * wide + j, paired(p0, p1));
            store(gradients + size_t(r) / 2 * wide + j, paired(ds0, ds1));
        }
    }
    multiply(rows, d, gradient_rows, wide / 2, 1, right(for_keys, c, b.keys, b.head, d), d, wide / 2, dx, d, false);
    const int pairs = (rows + 1) / 2;
    auto onto = [&](const pair_t* transposed, const pair_t* y, float* sums) {
        for (const Columns::Range& range : c.ranges)
            multiply(range.rows, d, transposed + range.at, 1, wide, y, d, pairs, sums + size_t(range.key - first) * d, d, true);
    };
    onto(gradients, right(for_x, x, rows, d), sums_k);
    onto(weights, right(for_x, dy, rows, d), sums_v);
}

}  // namespace jl

#endif
