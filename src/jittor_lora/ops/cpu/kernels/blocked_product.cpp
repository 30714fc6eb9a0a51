// The scheme of Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008), with its names as in
// BLIS: x is copied once into strips of MR rows, M strip by strip of NR columns as it is needed. A strip of M stays in
// the first cache while strips of x stream by from the second, and MR · NR sums stay in registers while k runs.
#include "blocked_product.h"

#if JL_BLOCKED_PRODUCTS

namespace jl {
namespace {

// 6 · 16 sums take 12 of the 16 registers; two more hold a row of M's strip and one an element of x, in every lane.
// Each step of k then has 12 multiply-adds for 8 loads, and 12 sums cover the latency of a multiply-add (4 cycles, two
// per cycle).
constexpr int MR = 6, NR = 2 * W;
// Steps of k that are summed in registers at a time. A strip of M is KC · NR floats, 16 KiB: half of an L1 of 32 KiB.
// 128 steps take 6 to 9 % longer with 3,072 inputs, as y is read and written twice as often; 512 are no faster.
constexpr int KC = 256;
// Rows and columns of y per task, at most. MC rows of x are MC · KC floats, 480 KiB, and stay in an L2 of 512 KiB while
// the strips of M pass: 240 rows take 4 to 6 % longer, as each strip is copied twice as often, 960 are no faster. The
// rows of x are read again for each of NC / NR strips: 16 columns take 13 % longer, 48 up to 12 %, 192 are no faster
// and leave fewer tasks. LEAST_MC rows use a strip's copy ten times.
constexpr int MC = 480, NC = 96, LEAST_MC = 60;
constexpr int STRIP = KC * NR;  // floats from one strip of M to the next

// Columns [0, deep) of `count` rows of x as (deep, MR); missing rows become zeros.
void pack_rows(const float* x, int ldx, int count, int deep, float* to) {
    for (int i = 0; i < deep; i += W) {
        const int columns = std::min(W, deep - i);
        vec v[8] = {};
        for (int r = 0; r < count; r++) v[r] = get(x + size_t(r) * ldx + i, columns);
        transpose(v);
        for (int c = 0; c < columns; c++)  // a store of W > MR values reaches into the next column, which is written after it
            i + c + 1 < deep ? store(to + (i + c) * MR, v[c]) : store(to + (i + c) * MR, v[c], MR);
    }
}

// `deep` rows and `wide` <= NR columns of M as (deep, NR); missing columns become zeros.
void pack_strip(const Frozen& m, int row, int column, int deep, int wide, float* to) {
    const float* w = static_cast<const float*>(m.w.data);
    for (int j = 0; j < NR; j += W) {
        const int columns = std::max(0, std::min(W, wide - j));
        if (!m.transposed) {
            const float* from = w + size_t(row) * m.n + column + j;
            for (int i = 0; i < deep; i++) store(to + i * NR + j, columns ? get(from + size_t(i) * m.n, columns) : vec{});
            continue;
        }
        const float* from = w + size_t(column + j) * m.k + row;
        for (int i = 0; i < deep; i += W) {
            const int rows = std::min(W, deep - i);
            vec v[8] = {};
            for (int c = 0; c < columns; c++) v[c] = get(from + size_t(c) * m.k + i, rows);
            transpose(v);
            for (int e = 0; e < rows; e++) store(to + (i + e) * NR + j, v[e]);
        }
    }
}

// The same for M = W in blocks and as many columns as a task has, strip by strip. A panel's rows are decoded as columns
// of its transpose, and turned.
void decode_strips(const Stored& w, int row, int column, int deep, int wide, float* to) {
    static_assert(PANEL == NR, "the strips of Wᵀ are W's panels");
    alignas(64) float turned[NC * PANEL];
    const int whole = round_up(wide, NR);
    memset(turned + wide * PANEL, 0, (whole - wide) * PANEL * sizeof(float));
    for (int panel = row / PANEL; panel * PANEL < row + deep; panel++) {
        stored_panel(w, panel, column, column + wide, turned);
        const int first = std::max(row, panel * PANEL), end = std::min(row + deep, (panel + 1) * PANEL);
        for (int c = 0; c < whole; c += NR)
            rows_of_panel(turned + c * PANEL, first - panel * PANEL, end - panel * PANEL, NR, to + c / NR * STRIP + (first - row) * NR, NR);
    }
}

// `deep` rows and `wide` <= NC columns of M as strips; missing columns become zeros.
void pack_strips(const Frozen& m, int row, int column, int deep, int wide, float* to) {
    if (m.w.storage != FLOAT32 && !m.transposed) return decode_strips(m.w, row, column, deep, wide, to);
    for (int c = 0; c < wide; c += NR, to += STRIP)
        if (m.w.storage != FLOAT32)
            stored_panel(m.w, (column + c) / PANEL, row, row + deep, to);
        else
            pack_strip(m, row, column + c, deep, std::min(NR, wide - c), to);
}

// y (MR, NR) = x · strip or, with `add`, += x · strip. The micro-kernel: loops over rows and vectors are unrolled, so
// that s is registers; k is unrolled by 4, which leaves one branch per 48 multiply-adds.
void multiply(const float* x, const float* strip, int deep, float* y, int ldy, bool add) {
    vec s[MR][2] = {};
#pragma GCC unroll 6
    for (int r = 0; r < MR; r++) __builtin_prefetch(y + size_t(r) * ldy, 1);
#pragma GCC unroll 4
    for (int i = 0; i < deep; i++) {
        const vec left = load(strip + i * NR), right = load(strip + i * NR + W);
#pragma GCC unroll 6
        for (int r = 0; r < MR; r++) {
            const vec in = splat(x[i * MR + r]);
            s[r][0] = multiply_add(in, left, s[r][0]);
            s[r][1] = multiply_add(in, right, s[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; r++) {
        float* to = y + size_t(r) * ldy;
        store(to, add ? load(to) + s[r][0] : s[r][0]);
        store(to + W, add ? load(to + W) + s[r][1] : s[r][1]);
    }
}

// The same at the edges of y, for fewer rows or columns.
void multiply_part(const float* x, const float* strip, int deep, float* y, int ldy, bool add, int rows, int columns) {
    alignas(32) float all[MR * NR];
    multiply(x, strip, deep, all, NR, false);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float& to = y[size_t(r) * ldy + c];
            to = add ? to + all[r * NR + c] : all[r * NR + c];
        }
}

// k in equal parts of at most KC, which start at multiples of W.
struct Depths {
    int k, count;
    explicit Depths(int k) : k(k), count(ceil_div(k, KC)) {}
    int begin(int part) const { return std::min<int64_t>(k, int64_t(round_up(k, W) / W) * part / count * W); }
};

}  // namespace

void blocked_product(const Frozen& m, const float* x, float* y, int rows) {
    static thread_local Buffer for_x;
    const Depths depths(m.k);
    const int strips = ceil_div(rows, MR);
    float* packed = for_x.get<float>(size_t(strips) * MR * m.k);  // (part of k, strip, row of M, row of x)
    parallel_evenly(strips, [&](int b) {
        for (int d = 0; d < depths.count; d++) {
            const int from = depths.begin(d), deep = depths.begin(d + 1) - from;
            pack_rows(x + size_t(b) * MR * m.k + from, m.k, std::min(MR, rows - b * MR), deep,
                      packed + size_t(strips) * MR * from + size_t(b) * MR * deep);
        }
    });
    int high = strips, wide = NC;  // strips and columns of a task
    auto across = [&] { return ceil_div(m.n, wide); };
    auto down = [&] { return ceil_div(strips, high); };
    // Smaller tasks where there are few per thread: the last ones to finish leave threads idle for up to a task. The
    // division does not touch k, so it may depend on the number of threads. Rows are divided first: that only has strips
    // of M copied, or decoded, more often.
    constexpr int TASKS_PER_THREAD = 4, HIGH = MC / MR, LEAST_HIGH = LEAST_MC / MR;
    while (across() * down() < TASKS_PER_THREAD * threads_to_feed() && (wide > NR || high > LEAST_HIGH))
        high > HIGH || wide == NR ? high = ceil_div(high, 2) : wide = round_up(wide / 2, NR);
    const int chunks = down();
    // Collapses chunks of strips and columns. Within a task: part of k, MC rows of x, strip of M, strip of x.
    parallel(across() * chunks, [&](int task) {
        alignas(64) float copies[NC / NR * STRIP];
        const int chunk = task % chunks, left = task / chunks * wide, right = std::min(left + wide, m.n);
        const int first = int64_t(strips) * chunk / chunks, last = int64_t(strips) * (chunk + 1) / chunks;
        for (int d = 0; d < depths.count; d++) {
            const int from = depths.begin(d), deep = depths.begin(d + 1) - from;
            const float* xs = packed + size_t(strips) * MR * from;
            pack_strips(m, from, left, deep, right - left, copies);
            for (int b0 = first; b0 < last; b0 += HIGH)
                for (int c = left; c < right; c += NR) {
                    const float* strip = copies + (c - left) / NR * STRIP;
                    const int columns = std::min(NR, m.n - c);
                    for (int b = b0; b < std::min(b0 + HIGH, last); b++) {
                        const int count = std::min(MR, rows - b * MR);
                        float* to = y + size_t(b) * MR * m.n + c;
                        if (count == MR && columns == NR)
                            multiply(xs + size_t(b) * MR * deep, strip, deep, to, m.n, d > 0);
                        else
                            multiply_part(xs + size_t(b) * MR * deep, strip, deep, to, m.n, d > 0, count, columns);
                    }
                }
        }
    });
}

}  // namespace jl

#endif
