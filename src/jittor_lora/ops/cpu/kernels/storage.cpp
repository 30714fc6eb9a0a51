#include "storage.h"

#include "pages.h"
#include "parallel.h"
#include "storage_formats.h"

namespace jl {
namespace {

static_assert(sizeof(PanelQ8_0::Block) == 34 && sizeof(PanelQ4_0::Block) == 18 && sizeof(PanelQ4_1::Block) == 20 &&
                  sizeof(PanelQ4_K::Block) == 144 && sizeof(PanelQ6_K::Block) == 210,
              "as in ggml");

int panels_of(int out) { return ceil_div(out, PANEL); }

template <class F>
void store_blocks(const uint8_t* rows, int out, int in, F* to) {
    const int blocks = in / F::COLUMNS;
    parallel_evenly(panels_of(out), [=](int panel) {
        F* at = to + (size_t)panel * blocks;
        memset((void*)at, 0, blocks * sizeof(F));
        for (int r = 0; r < PANEL && panel * PANEL + r < out; r++)
            for (int b = 0; b < blocks; b++) {
                typename F::Block block;
                memcpy(&block, rows + ((size_t)(panel * PANEL + r) * blocks + b) * sizeof block, sizeof block);
                at[b].take(r, block);
            }
    });
}

// 16-bit floats: panels (in, PANEL).
void store_halves(const uint8_t* rows, int out, int in, uint16_t* to) {
    parallel_evenly(panels_of(out), [=](int panel) {
        uint16_t* at = to + (size_t)panel * in * PANEL;
        for (int k = 0; k < in; k++)
            for (int r = 0; r < PANEL; r++) {
                const int row = panel * PANEL + r;
                at[(size_t)k * PANEL + r] = 0;
                if (row < out) memcpy(at + (size_t)k * PANEL + r, rows + ((size_t)row * in + k) * 2, 2);
            }
    });
}

template <class T>
void widen(const Stored& w, int panel, int k0, int k1, float* to) {
    const T* from = (const T*)w.data + ((size_t)panel * w.in + k0) * PANEL;
    for (int i = 0; i < (k1 - k0) * PANEL; i += W) store(to + i, load(from + i));
}

template <class F>
void decode(const Stored& w, int panel, int k0, int k1, float* to) {
    each_column<1>((const F*)w.data + (size_t)panel * (w.in / F::COLUMNS), 0, k0, k1, [&](int k, int i, int, const vec* values) {
        for (int j = 0; j < 2; j++) store(to + (k - k0 + i) * PANEL + j * W, values[j]);
    });
}

}  // namespace

int64_t stored_size(int storage, int out, int in) {
    int64_t size = (int64_t)panels_of(out) * PANEL * in * (storage == FLOAT32 ? 4 : 2);
    with_format(storage, [&](auto* format) {
        size = (int64_t)panels_of(out) * (in / format->COLUMNS) * sizeof *format;
    });
    return size;
}

void store(int storage, const uint8_t* blocks, int out, int in, void* to) {
    use_large_pages(to, stored_size(storage, out, in));
    auto with_blocks = [&](auto* format) { store_blocks(blocks, out, in, (decltype(format))to); };
    if (!with_format(storage, with_blocks)) store_halves(blocks, out, in, (uint16_t*)to);
}

void stored_panel(const Stored& w, int panel, int k0, int k1, float* to) {
    if (w.storage == FLOAT32) {
        for (int r = 0; r < PANEL; r++)
            for (int k = k0; k < k1; k++) {
                const int row = panel * PANEL + r;
                to[(k - k0) * PANEL + r] = row < w.out ? ((const float*)w.data)[(size_t)row * w.in + k] : 0;
            }
        return;
    }
    if (w.storage == BF16) return widen<bf16>(w, panel, k0, k1, to);
    if (w.storage == F16) return widen<half>(w, panel, k0, k1, to);
    with_format(w.storage, [&](auto* format) {
        using F = std::remove_pointer_t<decltype(format)>;
        const int whole = (k1 - k0) / OCTET * OCTET;
        decode<F>(w, panel, k0, k0 + whole, to);
        if (k0 + whole == k1) return;
        float octet[OCTET * PANEL];
        decode<F>(w, panel, k0 + whole, k0 + whole + OCTET, octet);
        memcpy(to + whole * PANEL, octet, (k1 - k0 - whole) * PANEL * sizeof(float));
    });
}

void rows_of_panel(const float* panel, int r0, int r1, int columns, float* to, int ld) {
#if defined(__AVX__)
    constexpr int SIDE = 8;
    const int whole = columns / SIDE * SIDE;
    for (; r0 + SIDE <= r1; r0 += SIDE, to += (size_t)SIDE * ld) {
        for (int c = 0; c < whole; c += SIDE) {
            __m256 v[SIDE];
            for (int e = 0; e < SIDE; e++) v[e] = _mm256_loadu_ps(panel + (c + e) * PANEL + r0);
            transpose(v);
            for (int e = 0; e < SIDE; e++) _mm256_storeu_ps(to + (size_t)e * ld + c, v[e]);
        }
        for (int c = whole; c < columns; c++)
            for (int e = 0; e < SIDE; e++) to[(size_t)e * ld + c] = panel[c * PANEL + r0 + e];
    }
#endif
    for (int r = r0; r < r1; r++)
        for (int c = 0; c < columns; c++) to[(size_t)(r - r0) * ld + c] = panel[c * PANEL + r];
}

void stored_rows(const Stored& w, int r0, int r1, int c0, int c1, float* to, int ld) {
    if (w.storage == FLOAT32) {
        for (int r = r0; r < r1; r++)
            memcpy(to + (size_t)(r - r0) * ld, (const float*)w.data + (size_t)r * w.in + c0, (c1 - c0) * sizeof(float));
        return;
    }
    constexpr int COLUMNS = 64;  // with those of a panel 4 KiB on AVX2, 8 on AVX-512
    alignas(64) float columns[COLUMNS * PANEL];
    for (int panel = r0 / PANEL; panel * PANEL < r1; panel++)
        for (int c = c0; c < c1; c += COLUMNS) {
            const int count = std::min(COLUMNS, c1 - c);
            stored_panel(w, panel, c, c + count, columns);
            const int first = std::max(r0, panel * PANEL), end = std::min(r1, (panel + 1) * PANEL);
            rows_of_panel(columns, first - panel * PANEL, end - panel * PANEL, count, to + (size_t)(first - r0) * ld + c - c0, ld);
        }
}

}  // namespace jl

// Bytes of a matrix (out, in) as `jl_store` writes it.
JL_API int64_t jl_stored_size(int storage, int out, int in) { return jl::stored_size(storage, out, in); }

JL_API int jl_store(int storage, const void* blocks, int out, int in, void* to) {
    return jl::status_of([&] {
        jl::store(storage, (const uint8_t*)blocks, out, in, to);
        return 0;
    });
}

JL_API int jl_stored_panel(const void* data, int storage, int out, int in, int panel, int k0, int k1, float* to) {
    jl::stored_panel({data, storage, out, in}, panel, k0, k1, to);
    return 0;
}

JL_API int jl_stored_rows(const void* data, int storage, int out, int in, int r0, int r1, int c0, int c1, float* to, int ld) {
    jl::stored_rows({data, storage, out, in}, r0, r1, c0, c1, to, ld);
    return 0;
}
