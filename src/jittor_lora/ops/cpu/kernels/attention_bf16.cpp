// Blocks of attention with products of pairs of bf16 numbers; sums, and all else, are floats.
//
// A block's keys are taken as columns side by side: those of the prefix, then those of each piece. A row's weight is
// zero where it does not see a column.
#include "attention.h"

#if defined(__AVX512BF16__)

namespace jl {

// Two bf16 numbers that follow each other along the inner dimension of a product; the first is the lower half.
typedef uint32_t pair_t;

static inline uvec paired(vec first, vec second) {
    typedef uint16_t halves __attribute__((vector_size(64)));
    halves apart = (halves)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const halves alternate = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (uvec)__builtin_shuffle(apart, alternate);
}

static inline void store(pair_t* p, uvec v) { memcpy(p, &v, sizeof v); }

// c (R, N · W) = a · b, or += it. Pair k of a's row r is a[r · a_row + k · a_pair]; of b it is the vectors at b + k · ldb.
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

// The same for `rows` of 1 to R rows.
template <int R, int N>
static inline void multiply_rows(int rows, const pair_t* a, int a_row, int a_pair, const pair_t* b, int ldb, int pairs, float* c,
                                 int ldc, bool add) {
    if constexpr (R > 1)
        if (rows < R) return multiply_rows<R - 1, N>(rows, a, a_row, a_pair, b, ldb, pairs, c, ldc, add);
    multiply<R, N>(a, a_row, a_pair, b, ldb, pairs, c, ldc, add);
}

// As many sums as fit the registers beside b's vectors.
template <int R, int N>
static void multiply_columns(int rows, const pair_t* a, int a_row, int a_pair, const pair_t* b, int ldb, int pairs, float* c, int ldc,
                             bool add) {
    for (int r = 0; r < rows; r += R)
        multiply_rows<R, N>(std::min(R, rows - r), a + size_t(r) * a_row, a_row, a_pair, b, ldb, pairs, c + size_t(r) * ldc, ldc, add);
}

// c (rows, columns) = a · b or += it; columns are a multiple of W.
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
    struct Span {
        int at, rows, key;  // columns [at, at + rows) are key rows from `key` on
    };
    int count, padded;  // `padded`: to whole vectors; what is beyond `count` are zeros
    std::vector<Span> spans;

    explicit Columns(const Block& b) : count(b.prefix()) {
        if (count) spans.push_back({0, count, b.p0});
        for (const Piece& p : b.pieces) {
            spans.push_back({count, p.keys(), p.segment->k0});
            count += p.keys();
        }
        padded = round_up(count, W);
    }

    // Calls body(column, row of m or null) for each column.
    template <class Body>
    void each_row(Heads<const float> m, int head, int d, Body body) const {
        for (const Span& s : spans)
            for (int i = 0; i < s.rows; i++) body(s.at + i, m.at(s.key + i, head, d));
        for (int i = count; i < padded; i++) body(i, static_cast<const float*>(nullptr));
    }

    // Elements that a row sees are set apart from the others, which become `other`.
    void mask(const Block& b, const Piece& p, size_t index, int row, float* x, float other) const {
        const Span& own = spans[spans.size() - b.pieces.size() + index];
        std::fill(x + b.prefix(), x + own.at, other);
        std::fill(x + own.at + p.own(row), x + padded, other);
    }
};

// A row of floats as pairs; n is a multiple of W.
static void narrowed(const float* x, int n, pair_t* to) {
    bf16* at = reinterpret_cast<bf16*>(to);
    for (int i = 0; i < n; i += W) store(at + i, load(x + i));
}

// x (rows, d) as the left side of a product over d.
static const pair_t* left(Buffer& memory, const float* x, int rows, int d) {
    pair_t* to = memory.get<pair_t>(size_t(rows) * d / 2);
    for (int r = 0; r < rows; r++) narrowed(x + size_t(r) * d, d, to + size_t(r) * d / 2);
    return to;
}

// x (rows, d) as the right side of a product over rows: (rows / 2, d).
static const pair_t* right(Buffer& memory, const float* x, int rows, int d) {
    pair_t* to = memory.get<pair_t>(size_t(rows + 1) / 2 * d);
    for (int r = 0; r < rows; r += 2)
        for (int i = 0; i < d; i += W)
            store(to + size_t(r / 2) * d + i, paired(load(x + size_t(r) * d + i), r + 1 < rows ? load(x + size_t(r + 1) * d + i) : vec{}));
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

// Transposes a square of W by W pairs.
static inline void transpose(uvec (&rows)[W]) {
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
    for (int step = W / 2; step; step /= 2) {
        // Lanes of the second vector are counted from W on.
        const ivec upper = (lanes & step) != 0;
        const ivec first = (~upper & lanes) | (upper & (lanes - step + W)), second = (~upper & (lanes + step)) | (upper & (lanes + W));
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
        row ? narrowed(row, d, at) : void(memset(at, 0, half * sizeof(pair_t)));
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

void forward_in_bf16(const Block& b, float scale, const float* x, Heads<const float> keys, Heads<const float> values,
                     int head, int d, float* o, float* lse) {
    static thread_local Buffer for_x, for_keys, for_values, for_scores, for_weights;
    Columns c(b);
    const int rows = b.rows(), wide = c.padded;
    float* scores = for_scores.get<float>(size_t(rows) * wide);
    pair_t* weights = for_weights.get<pair_t>(size_t(rows) * wide / 2);
    float sums[BLOCK];
    multiply(rows, wide, left(for_x, x, rows, d), d / 2, 1, across(for_keys, c, keys, head, d), wide, d / 2, scores, wide, false);
    for (size_t i = 0; i < b.pieces.size(); i++)
        for (int row = b.pieces[i].first; row < b.pieces[i].end; row++) {
            int r = row - b.first;
            float* s = scores + size_t(r) * wide;
            bf16* w = reinterpret_cast<bf16*>(weights + size_t(r) * wide / 2);
            c.mask(b, b.pieces[i], i, row, s, -INFINITY);
            vec top = splat(-INFINITY), total{};
            for (int j = 0; j < wide; j += W) top = max(top, load(s + j));
            float highest = maximum(top) * scale;
            for (int j = 0; j < wide; j += W) {
                vec e = exp(load(s + j) * scale - highest);
                store(w + j, e);
                total += e;
            }
            sums[r] = sum(total);
            lse[r] = highest + std::log(sums[r]);
        }
    multiply(rows, d, weights, wide / 2, 1, right(for_values, c, values, head, d), d, wide / 2, o, d, false);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < d; i += W) store(o + size_t(r) * d + i, load(o + size_t(r) * d + i) / sums[r]);
}

void backward_in_bf16(const Block& b, float scale, const float* x, const float* dy, Heads<const float> keys,
                      Heads<const float> values, int head, int d, const float* lse, const float* slope, float* dx,
                      float* sums_k, float* sums_v, int first) {
    static thread_local Buffer for_x, for_keys, for_values, for_scores, for_slopes, for_slope_rows, for_weight_pairs, for_slope_pairs;
    Columns c(b);
    const int rows = b.rows(), wide = c.padded;
    float* scores = for_scores.get<float>(size_t(rows + 1) * wide);
    float* slopes = for_slopes.get<float>(size_t(rows + 1) * wide);
    pair_t* slope_rows = for_slope_rows.get<pair_t>(size_t(rows + 1) * wide / 2);
    pair_t* weight_pairs = for_weight_pairs.get<pair_t>(size_t(rows + 1) / 2 * wide);
    pair_t* slope_pairs = for_slope_pairs.get<pair_t>(size_t(rows + 1) / 2 * wide);
    multiply(rows, wide, left(for_x, x, rows, d), d / 2, 1, across(for_keys, c, keys, head, d), wide, d / 2, scores, wide, false);
    multiply(rows, wide, left(for_x, dy, rows, d), d / 2, 1, across(for_values, c, values, head, d), wide, d / 2, slopes, wide, false);
    for (size_t i = 0; i < b.pieces.size(); i++)
        for (int row = b.pieces[i].first; row < b.pieces[i].end; row++)
            c.mask(b, b.pieces[i], i, row, scores + size_t(row - b.first) * wide, -INFINITY);
    // An odd number of rows is filled up with one of zeros.
    if (rows % 2) std::fill(scores + size_t(rows) * wide, scores + size_t(rows + 1) * wide, -INFINITY);
    if (rows % 2) std::fill(slopes + size_t(rows) * wide, slopes + size_t(rows + 1) * wide, 0.f);
    for (int r = 0; r < rows; r += 2) {
        const int next = std::min(r + 1, rows - 1);
        const float *s0 = scores + size_t(r) * wide, *s1 = s0 + wide, *g0 = slopes + size_t(r) * wide, *g1 = g0 + wide;
        bf16 *to0 = reinterpret_cast<bf16*>(slope_rows + size_t(r) * wide / 2), *to1 = to0 + wide;
        for (int j = 0; j < wide; j += W) {
            vec w0 = exp(load(s0 + j) * scale - lse[r]), w1 = exp(load(s1 + j) * scale - lse[next]);
            vec v0 = w0 * (load(g0 + j) - slope[r]) * scale, v1 = w1 * (load(g1 + j) - slope[next]) * scale;
            store(to0 + j, v0);
            store(to1 + j, v1);
            store(weight_pairs + size_t(r) / 2 * wide + j, paired(w0, w1));
            store(slope_pairs + size_t(r) / 2 * wide + j, paired(v0, v1));
        }
    }
    multiply(rows, d, slope_rows, wide / 2, 1, right(for_keys, c, keys, head, d), d, wide / 2, dx, d, false);
    const int pairs = (rows + 1) / 2;
    auto onto = [&](const pair_t* transposed, const pair_t* y, float* sums) {
        for (const Columns::Span& s : c.spans)
            multiply(s.rows, d, transposed + s.at, 1, wide, y, d, pairs, sums + size_t(s.key - first) * d, d, true);
    };
    onto(slope_pairs, right(for_x, x, rows, d), sums_k);
    onto(weight_pairs, right(for_x, dy, rows, d), sums_v);
}

}  // namespace jl

#else

namespace jl {

// Never called: see BF16_BLOCKS.
void forward_in_bf16(const Block&, float, const float*, Heads<const float>, Heads<const float>, int, int, float*, float*) {}
void backward_in_bf16(const Block&, float, const float*, const float*, Heads<const float>, Heads<const float>, int, int,
                      const float*, const float*, float*, float*, float*, int) {}

}  // namespace jl

#endif
