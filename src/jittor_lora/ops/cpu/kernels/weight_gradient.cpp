// The gradient of a matrix that trains: c = aᵀ b, where a is the upstream gradient and b the layer's input, or for an
// output head the logits' gradient and the hidden states.
//
// Tiles of c are independent of each other and sum over all rows, so that no result depends on the number of threads.
#include "product.h"

namespace jl {

// Side of a tile of c in float32.
constexpr int TILE = 256;

static void in_float32(const float* a, int lda, const float* b, int rows, int m, int n, bool add, float* c) {
    const int across = ceil_div(n, TILE);
    parallel(ceil_div(m, TILE) * across, [&](int tile) {
        const int i = tile / across * TILE, j = tile % across * TILE;
        sgemm('T', 'N', std::min(TILE, m - i), std::min(TILE, n - j), rows, 1.f, a + i, lda, b + j, n, add ? 1.f : 0.f,
              c + size_t(i) * n + j, n);
    });
}

// Rows of c per task, and rows of a and b that are multiplied at a time: a's part is 128 KiB in bf16, and with depths in
// multiples of BF16_DEPTH_UNIT oneDNN generates code for 16 of them at most.
constexpr int HEIGHT = 64, DEPTH = 1024;

// to (round_up(columns, BF16_ROW_UNIT), deep) = aᵀ in bf16; what a (rows, columns) lacks of it is zeros.
static void transposed(const float* a, int lda, int rows, int columns, int deep, bf16* to) {
    constexpr int ROWS = 32;  // at a time: a cache line of `to`
    for (int r0 = 0; r0 < deep; r0 += ROWS) {
        bf16 block[ROWS][HEIGHT] = {};
        for (int r = 0; r < std::min(ROWS, rows - r0); r++)
            each(columns, [&](int64_t i, int n) { put(block[r] + i, get(a + size_t(r0 + r) * lda + i, n), n); });
        for (int i = 0; i < round_up(columns, BF16_ROW_UNIT); i++)
            for (int r = 0; r < ROWS; r++) to[size_t(i) * deep + r0 + r] = block[r][i];
    }
}

static void in_bf16(const float* a, int lda, const float* b, int rows, int m, int n, bool add, float* c) {
    static Buffer for_b;
    for (int first = 0; first < rows; first += DEPTH, add = true) {
        const int count = std::min(DEPTH, rows - first), deep = round_up(count, BF16_DEPTH_UNIT);
        char* packed = for_b.get<char>(packed_size(deep, n));
        pack_rows(b + size_t(first) * n, count, packed, deep, n);
        parallel(ceil_div(m, HEIGHT), [&](int tile) {
            static thread_local Buffer for_a, for_product;
            const int i = tile * HEIGHT, high = std::min(HEIGHT, m - i), whole = round_up(high, BF16_ROW_UNIT);
            bf16* turned = for_a.get<bf16>(size_t(HEIGHT) * deep);
            transposed(a + size_t(first) * lda + i, lda, count, high, deep, turned);
            float* to = c + size_t(i) * n;
            float* made = add || whole > high ? for_product.get<float>(size_t(whole) * n) : to;
            gemm_tile(packed, deep, n, turned, made, whole);
            if (made == to) return;
            each(int64_t(high) * n, [&](int64_t k, int w) {
                put(to + k, add ? get(to + k, w) + get(made + k, w) : get(made + k, w), w);
            });
        });
    }
}

void transposed_product(const float* a, int lda, const float* b, int rows, int m, int n, bool bf16, bool add, float* c) {
    bf16 ? in_bf16(a, lda, b, rows, m, n, add, c) : in_float32(a, lda, b, rows, m, n, add, c);
}

}  // namespace jl

// c (m, n) = aᵀ b for a (rows, m) and b (rows, n).
JL_API void jl_transposed_product(const float* a, const float* b, int bf16, float* c, int rows, int m, int n) {
    jl::transposed_product(a, m, b, rows, m, n, bf16, false, c);
}
