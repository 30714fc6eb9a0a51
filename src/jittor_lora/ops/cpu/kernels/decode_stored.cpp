#include "decode_stored.h"

#include "storage_formats.h"

namespace jl::decoding {
namespace {

// `multiply_floats`, the weights decoded in registers.
template <class F, int R, int N>
void multiply_blocks(const F* panel, size_t distance, const float* x, int ldx, int inputs, float* y, int ldy) {
    vec s[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) s[r][j] = load(y + (size_t)r * ldy + j * W);
    constexpr int BYTES = sizeof(F) / (F::COLUMNS / OCTET);  // of an octet, about
    const int near_end = inputs - AHEAD / BYTES * OCTET;
    each_column<N / 2>(panel, distance, 0, inputs, [&](int k, int i, int p, const vec* w) {
        if (i < BYTES / LINE)
            prefetch((const char*)(panel + p * distance) + (size_t)(k / OCTET) * BYTES + i * LINE,
                     k < near_end ? 0 : (N / 2 - 1) * distance * sizeof(F));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vec in = splat(x[(size_t)r * ldx + k + i]);
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) s[r][2 * p + j] = multiply_add(in, w[j], s[r][2 * p + j]);
        }
    });
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) store(y + (size_t)r * ldy + j * W, s[r][j]);
}

// As `to_bf16` does, but the lower half is left.
uvec rounded(vec v) {
    const uvec bits = (uvec)v;
    return bits + 0x7fff + ((bits >> 16) & 1);
}

template <class T>
void multiply_halves(const Stored& w, int panel, int panels, int rows, const float* x, int ldx, float* y, int ldy) {
    const size_t size = (size_t)w.in * PANEL;
    multiply_panels(rows, panels, (const T*)w.data + panel * size, size, x, ldx, w.in, y, ldy);
}

}  // namespace

void multiply_stored(const Stored& w, int panel, int panels, int rows, const float* x, int ldx, float* y, int ldy) {
    if (w.storage == BF16) return multiply_halves<bf16>(w, panel, panels, rows, x, ldx, y, ldy);
    if (w.storage == F16) return multiply_halves<half>(w, panel, panels, rows, x, ldx, y, ldy);
    with_format(w.storage, [&](auto* format) {
        using F = std::remove_pointer_t<decltype(format)>;
        const size_t blocks = w.in / F::COLUMNS;
        const F* from = (const F*)w.data + panel * blocks;
        if (panels == 2)
            with_constant<std::min(FUSED_ROWS, TWO_PANEL_ROWS)>(rows, [&](auto n) {
                multiply_blocks<F, n.value, 4>(from, blocks, x, ldx, w.in, y, ldy);
            });
        else
            with_constant<FUSED_ROWS>(rows, [&](auto n) {
                multiply_blocks<F, n.value, 2>(from, blocks, x, ldx, w.in, y, ldy);
            });
    });
}

void decode_panel(const Stored& w, int panel, float* to) { stored_panel(w, panel, 0, w.in, to); }

void decode_panel(const Stored& w, int panel, bf16* to) {
    constexpr int COLUMNS = 64;  // 4 KiB of floats on AVX2, 8 on AVX-512
    alignas(64) float columns[COLUMNS * PANEL];
    for (int k = 0; k < w.in; k += COLUMNS) {
        const int count = std::min(COLUMNS, w.in - k);
        stored_panel(w, panel, k, k + count, columns);
        bf16* at = to + (size_t)k * PANEL;
        if (!BF16_PRODUCTS) {
            for (int i = 0; i < count * PANEL; i += W) store(at + i, load(columns + i));
            continue;
        }
        if (count % 2) memset(columns + count * PANEL, 0, PANEL * sizeof(float));
        for (int i = 0; i < count; i += 2)
            for (int j = 0; j < PANEL; j += W) {
                const uvec first = rounded(load(columns + i * PANEL + j)), second = rounded(load(columns + (i + 1) * PANEL + j));
                const uvec pairs = first >> 16 | (second & 0xffff0000);
                memcpy(at + i * PANEL + 2 * j, &pairs, sizeof pairs);
            }
    }
}

}  // namespace jl::decoding
