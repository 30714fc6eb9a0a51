// Products with weights packed in panels. A panel is PANEL columns of the transposed weight: PANEL consecutive values
// per input, so that a product reads its weights once, straight through.
//
// Every sum runs over the inputs in order, in one accumulator per output. A row's bits are therefore independent of the
// rows multiplied with it and of the number of threads.
#pragma once
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "rows.h"
#include "vector.h"

namespace jl::decoding {

// Rows whose sums fit the registers beside the weights' vectors and an input: with one panel 6 · 2 + 2 + 1 of AVX2's
// 16, and 12 · 2 + 2 + 1 of AVX-512's 32; with two panels half as many rows have as many
// sums, and each input is loaded for twice the weights.
constexpr int REGISTER_ROWS = W == 16 ? 12 : 6;
constexpr int TWO_PANEL_ROWS = REGISTER_ROWS / 2;
// Fewest rows with one panel that keep both units for multiply-adds busy: each starts one per cycle and takes 4, on
// some processors 5, so 10 sums have to be under way, two per row.
constexpr int BUSY_ROWS = 5;

// Distance of rows of this width, so that they do not fall into the same set of the first cache.
static inline int float_stride(int width) { return round_up(width, PANEL) + W; }
static inline int bf16_stride(int width) { return round_up(width, PANEL) + PANEL; }

// How far ahead weights are fetched, in bytes: about the memory's latency times one core's bandwidth (100 ns at 20
// GB/s). On AVX2 in bf16, fetching 0 or 512 bytes ahead takes 12 to 28 % longer; from 1,024 to 8,192 bytes no
// difference exceeds the noise of 10 %. In float32 hardware prefetching does as well.
constexpr int AHEAD = 2048;
constexpr int LINE = 64;  // bytes of a cache line

// Fetches the weights AHEAD bytes after `at`. Beyond the end of a panel these are the next one's or, where that is read
// at the same time, those of the one after it: `skipped` bytes further on.
static inline void prefetch(const void* at, size_t skipped) {
    __builtin_prefetch((const char*)at + AHEAD + skipped, 0, 3);
}

// y (R, N · W) += x (R, inputs) · weights. Vector j of an input's weights is in panel j / 2; a panel has STEP values
// per input, and panels are `panel` values apart. The R · N sums stay in registers while k runs.
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
// The same for bf16, whose panels hold the values of two inputs side by side, as VDPBF16PS multiplies them; the last
// pair of an odd number of inputs is filled up with zeros.
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

// For any number of rows up to R.
template <int R, int N, int STEP, class T>
static inline void multiply(int rows, const T* weights, size_t panel, const float* x, int ldx, int inputs, float* y,
                            int ldy) {
    with_constant<R>(rows, [&](auto count) {
        multiply_floats<T, count.value, N, STEP>(weights, panel, x, ldx, inputs, y, ldy);
    });
}

// Up to REGISTER_ROWS rows with one panel, or up to TWO_PANEL_ROWS with two. Weights in bf16 become floats as they are
// loaded.
template <class T>
static inline void multiply_panels(int rows, int panels, const T* weights, size_t panel, const float* x, int ldx, int inputs,
                                   float* y, int ldy) {
    if (panels == 2)
        multiply<TWO_PANEL_ROWS, 4, PANEL>(rows, weights, panel, x, ldx, inputs, y, ldy);
    else
        multiply<REGISTER_ROWS, 2, PANEL>(rows, weights, panel, x, ldx, inputs, y, ldy);
}

#if defined(__AVX512BF16__)
// The same for inputs in bf16.
static inline void multiply_panels(int rows, int panels, const bf16* weights, size_t panel, const bf16* x, int ldx, int inputs,
                                   float* y, int ldy) {
    if (panels == 2)
        with_constant<TWO_PANEL_ROWS>(rows, [&](auto n) {
            multiply_pairs<n.value, 4>(weights, panel, x, ldx, inputs, y, ldy);
        });
    else
        with_constant<REGISTER_ROWS>(rows, [&](auto n) {
            multiply_pairs<n.value, 2>(weights, panel, x, ldx, inputs, y, ldy);
        });
}
#endif

}  // namespace jl::decoding
