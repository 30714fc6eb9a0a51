// Products with weights packed in panels. A panel is PANEL columns of the transposed weight: for each input, PANEL
// values that follow each other in memory, so that a product reads its weights once, straight through.
//
// Every sum runs over the inputs in their order, one accumulator an output. A row's result is therefore the same bits
// whatever other rows are multiplied with it and however many threads share the work.
#pragma once
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vector.h"

namespace jl::decoding {

constexpr int PANEL = 2 * W;
// Most rows, and most rows with two panels at once, whose sums fit the registers.
constexpr int ROWS = W == 16 ? 12 : 6;
constexpr int WIDE_ROWS = ROWS / 2;
// Fewest rows with one panel that keep the processor's units for products busy while sums wait for each other.
constexpr int FULL_ROWS = 5;

#if defined(__AVX512BF16__)
// In bf16 the values of two inputs lie side by side, as the processor's product of pairs takes them; inputs are bf16.
constexpr bool PAIRS = true;
#else
// In bf16 weights become floats as they are loaded; inputs are floats.
constexpr bool PAIRS = false;
#endif

static inline int padded(int count, int unit) { return (count + unit - 1) / unit * unit; }

// Rows of these many values apart, so that they do not fall into the same set of the first cache.
static inline int float_stride(int width) { return padded(width, PANEL) + W; }
static inline int bf16_stride(int width) { return padded(width, PANEL) + PANEL; }

// How far ahead weights are fetched, in bytes: the memory's latency at its bandwidth.
constexpr int AHEAD = 2048;
constexpr int LINE = 64;  // bytes that are fetched together

// Fetches the weights that will be needed after AHEAD more bytes of their panel, from address `at` on. Beyond the end
// of the panel that is the beginning of the next one that is not read at the same time.
static inline void prefetch(const void* at, size_t skipped) {
    __builtin_prefetch((const char*)at + AHEAD + skipped, 0, 3);
}

// y (R, N · W) += x (R, inputs) · weights. Vector j of the weights is in panel j / 2, of which each input has `STEP`
// values; panels are `panel` values apart.
template <class T, int R, int N, int STEP>
static void multiply_floats(const T* weights, size_t panel, const float* x, int ldx, int inputs, float* y, int ldy) {
    vec s[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) s[r][j] = load(y + (size_t)r * ldy + j * W);
    const int near_end = inputs - AHEAD / (STEP * (int)sizeof(T));
    for (int k = 0; k < inputs; k++) {
        const T* at = weights + (size_t)k * STEP;
        const size_t skipped = k < near_end ? 0 : (N / 2 - 1) * panel * sizeof(T);
        vec w[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            const T* from = at + (j / 2) * panel + (j % 2) * W;
            w[j] = load(from);
            if (j % 2 == 0 || W * sizeof(T) >= LINE) prefetch(from, skipped);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vec in = splat(x[(size_t)r * ldx + k]);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) s[r][j] = multiply_add(in, w[j], s[r][j]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) store(y + (size_t)r * ldy + j * W, s[r][j]);
}

#if defined(__AVX512BF16__)
// The same for bf16 in pairs; with an odd number of inputs the last pair is filled up with zeros.
template <int R, int N>
static void multiply_pairs(const bf16* weights, size_t panel, const bf16* x, int ldx, int inputs, float* y, int ldy) {
    __m512 s[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) s[r][j] = _mm512_loadu_ps(y + (size_t)r * ldy + j * W);
    const int near_end = inputs - AHEAD / (PANEL * (int)sizeof(bf16));
    for (int k = 0; k < inputs; k += 2) {
        const bf16* at = weights + (size_t)k * PANEL;
        const size_t skipped = k < near_end ? 0 : (N / 2 - 1) * panel * sizeof(bf16);
        __m512bh w[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            const bf16* p = at + (j / 2) * panel + (j % 2) * 2 * W;
            w[j] = (__m512bh)_mm512_loadu_si512(p);
            prefetch(p, skipped);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, x + (size_t)r * ldx + k, sizeof pair);
            __m512bh in = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) s[r][j] = _mm512_dpbf16_ps(s[r][j], w[j], in);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) _mm512_storeu_ps(y + (size_t)r * ldy + j * W, s[r][j]);
}
#endif

// One of the functions above for a number of rows that is known when it runs, 1 to R.
template <int R, int N, int STEP, class T>
static inline void multiply(int rows, const T* weights, size_t panel, const float* x, int ldx, int inputs, float* y,
                            int ldy) {
    if constexpr (R > 1)
        if (rows < R) return multiply<R - 1, N, STEP>(rows, weights, panel, x, ldx, inputs, y, ldy);
    multiply_floats<T, R, N, STEP>(weights, panel, x, ldx, inputs, y, ldy);
}

#if defined(__AVX512BF16__)
template <int R, int N>
static inline void multiply(int rows, const bf16* weights, size_t panel, const bf16* x, int ldx, int inputs, float* y,
                            int ldy) {
    if constexpr (R > 1)
        if (rows < R) return multiply<R - 1, N>(rows, weights, panel, x, ldx, inputs, y, ldy);
    multiply_pairs<R, N>(weights, panel, x, ldx, inputs, y, ldy);
}
#endif

// Up to ROWS rows with one panel, or up to WIDE_ROWS with two panels, of floats.
static inline void multiply_panels(int rows, int panels, const float* weights, size_t panel, const float* x, int ldx,
                                   int inputs, float* y, int ldy) {
    if (panels == 2)
        multiply<WIDE_ROWS, 4, PANEL>(rows, weights, panel, x, ldx, inputs, y, ldy);
    else
        multiply<ROWS, 2, PANEL>(rows, weights, panel, x, ldx, inputs, y, ldy);
}

// The same for bf16, of which the inputs are given in both forms.
static inline void multiply_panels(int rows, int panels, const bf16* weights, size_t panel, const float* x, int ldx,
                                   const bf16* half, int ldh, int inputs, float* y, int ldy) {
#if defined(__AVX512BF16__)
    (void)x, (void)ldx;
    if (panels == 2)
        multiply<WIDE_ROWS, 4>(rows, weights, panel, half, ldh, inputs, y, ldy);
    else
        multiply<ROWS, 2>(rows, weights, panel, half, ldh, inputs, y, ldy);
#else
    (void)half, (void)ldh;
    if (panels == 2)
        multiply<WIDE_ROWS, 4, PANEL>(rows, weights, panel, x, ldx, inputs, y, ldy);
    else
        multiply<ROWS, 2, PANEL>(rows, weights, panel, x, ldx, inputs, y, ldy);
#endif
}

}  // namespace jl::decoding
