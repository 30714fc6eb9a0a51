// The scheme of Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008): x is copied once into
// blocks of six rows, M panel by panel as it is needed; a panel stays in the first cache while blocks of x pass by from
// the second.
#include "blocked_product.h"

namespace jl {

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)

namespace {

constexpr int ROWS = 6, PANEL = 2 * W;  // 12 of 16 registers hold the sums of ROWS · PANEL elements
constexpr int DEPTH = 256;              // products that are summed in registers; a panel takes 16 KB
constexpr int MOST_ROWS = 480, MOST_COLUMNS = 96, LEAST_ROWS = 60;  // of a task

// In the registers.
inline void transpose(vec (&v)[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps((__m256)v[i], (__m256)v[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps((__m256)v[i], (__m256)v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = (vec)_mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        v[i + 4] = (vec)_mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
    }
}

// Columns [0, deep) of `count` rows of x as (deep, ROWS); rows that are missing are zeros.
void pack_rows(const float* x, int ldx, int count, int deep, float* to) {
    for (int i = 0; i < deep; i += W) {
        const int columns = std::min(W, deep - i);
        vec v[8] = {};
        for (int r = 0; r < count; r++) v[r] = get(x + size_t(r) * ldx + i, columns);
        transpose(v);
        for (int c = 0; c < columns; c++)  // a store reaches into the next place, which is written after it
            i + c + 1 < deep ? store(to + (i + c) * ROWS, v[c]) : store(to + (i + c) * ROWS, v[c], ROWS);
    }
}

// `deep` rows and `wide` columns of M as (deep, PANEL); columns that are missing are zeros.
void pack_panel(const Frozen& m, int row, int column, int deep, int wide, float* to) {
    const float* w = static_cast<const float*>(m.weights);
    for (int j = 0; j < PANEL; j += W) {
        const int columns = std::max(0, std::min(W, wide - j));
        if (!m.transposed) {
            const float* from = w + size_t(row) * m.n + column + j;
            for (int i = 0; i < deep; i++) store(to + i * PANEL + j, columns ? get(from + size_t(i) * m.n, columns) : vec{});
            continue;
        }
        const float* from = w + size_t(column + j) * m.k + row;
        for (int i = 0; i < deep; i += W) {
            const int rows = std::min(W, deep - i);
            vec v[8] = {};
            for (int c = 0; c < columns; c++) v[c] = get(from + size_t(c) * m.k + i, rows);
            transpose(v);
            for (int e = 0; e < rows; e++) store(to + (i + e) * PANEL + j, v[e]);
        }
    }
}

// y (ROWS, PANEL) = or, with `add`, += x · panel.
void multiply(const float* x, const float* panel, int deep, float* y, int ldy, bool add) {
    vec s[ROWS][2] = {};
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) __builtin_prefetch(y + size_t(r) * ldy, 1);
#pragma GCC unroll 4
    for (int i = 0; i < deep; i++) {
        const vec left = load(panel + i * PANEL), right = load(panel + i * PANEL + W);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            const vec in = splat(x[i * ROWS + r]);
            s[r][0] = multiply_add(in, left, s[r][0]);
            s[r][1] = multiply_add(in, right, s[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
        float* to = y + size_t(r) * ldy;
        store(to, add ? load(to) + s[r][0] : s[r][0]);
        store(to + W, add ? load(to + W) + s[r][1] : s[r][1]);
    }
}

// The same for part of a block and of a panel.
void multiply_part(const float* x, const float* panel, int deep, float* y, int ldy, bool add, int rows, int columns) {
    alignas(32) float all[ROWS * PANEL];
    multiply(x, panel, deep, all, PANEL, false);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float& to = y[size_t(r) * ldy + c];
            to = add ? to + all[r * PANEL + c] : all[r * PANEL + c];
        }
}

// k is cut into equal parts, multiples of W but for the last.
struct Depths {
    int k, count;
    explicit Depths(int k) : k(k), count((k + DEPTH - 1) / DEPTH) {}
    int begin(int part) const { return std::min<int64_t>(k, int64_t(round_up(k, W) / W) * part / count * W); }
};

}  // namespace

void blocked_product(const Frozen& m, const float* x, float* y, int rows) {
    static thread_local Buffer for_x;
    const Depths depths(m.k);
    const int blocks = (rows + ROWS - 1) / ROWS;
    float* packed = for_x.get<float>(size_t(blocks) * ROWS * m.k);  // part of k, block, row of M, row of x
    parallel_evenly(blocks, [&](int b) {
        for (int d = 0; d < depths.count; d++) {
            const int from = depths.begin(d), deep = depths.begin(d + 1) - from;
            pack_rows(x + size_t(b) * ROWS * m.k + from, m.k, std::min(ROWS, rows - b * ROWS), deep,
                      packed + size_t(blocks) * ROWS * from + size_t(b) * ROWS * deep);
        }
    });
    int high = MOST_ROWS / ROWS, wide = MOST_COLUMNS;  // of a task: blocks, and columns
    auto across = [&] { return (m.n + wide - 1) / wide; };
    auto down = [&] { return (blocks + high - 1) / high; };
    while (across() * down() < 4 * threads_to_feed() && (wide > PANEL || high > LEAST_ROWS / ROWS))
        wide > PANEL ? wide = round_up(wide / 2, PANEL) : high /= 2;
    const int chunks = down();
    parallel(across() * chunks, [&](int task) {
        alignas(64) float panel[DEPTH * PANEL];
        const int chunk = task % chunks, left = task / chunks * wide;
        const int first = int64_t(blocks) * chunk / chunks, last = int64_t(blocks) * (chunk + 1) / chunks;
        for (int d = 0; d < depths.count; d++) {
            const int from = depths.begin(d), deep = depths.begin(d + 1) - from;
            const float* xs = packed + size_t(blocks) * ROWS * from;
            for (int c = left; c < std::min(left + wide, m.n); c += PANEL) {
                const int columns = std::min(PANEL, m.n - c);
                pack_panel(m, from, c, deep, columns, panel);
                for (int b = first; b < last; b++) {
                    const int count = std::min(ROWS, rows - b * ROWS);
                    float* to = y + size_t(b) * ROWS * m.n + c;
                    if (count == ROWS && columns == PANEL)
                        multiply(xs + size_t(b) * ROWS * deep, panel, deep, to, m.n, d > 0);
                    else
                        multiply_part(xs + size_t(b) * ROWS * deep, panel, deep, to, m.n, d > 0, count, columns);
                }
            }
        }
    });
}

#else

void blocked_product(const Frozen&, const float*, float*, int) {}

#endif

}  // namespace jl
