// Products of a stream with a matrix W (out, in): x Wᵀ, dy W for a gradient, and dyᵀ x, the gradient of W.
#pragma once
#include "parallel.h"
#include "rows.h"
#include "storage.h"
#include "vector.h"

namespace jl {

// One direction of a matrix: y (rows, n) = x (rows, k) · M, where M is Wᵀ (k = in) or W (k = out).
struct Frozen {
    Stored w;         // if PACKED, `data` is M as `jl_pack` wrote it
    bool bf16;        // of the product
    bool transposed;  // M is Wᵀ
    int k, n;

    Frozen(const void* data, int storage, bool bf16, bool transposed, int out, int in)
        : w{data, storage, out, in}, bf16(bf16), transposed(transposed), k(transposed ? in : out), n(transposed ? out : in) {}
};

// y = x · M in float32, with all threads.
void gemm(const Frozen& m, const float* x, float* y, int rows);

// c (m, n) = alpha · op(a) · op(b) + beta · c by oneDNN; inside a parallel region, in the calling thread.
void sgemm(char ta, char tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb, float beta,
           float* c, int ldc);

// y (rows, n) = x (rows, k) in bf16 · packed weights, in the calling thread.
void gemm_tile(const void* weights, int k, int n, const bf16* x, float* y, int rows);

// Bytes of M (k, n) packed in bf16, and packing it: w holds it as (n, k) if `transposed`, else as (k, n).
int64_t packed_size(int k, int n);
void pack(const float* w, void* packed, int k, int n, bool transposed);

// The same, not transposed, of a w that has only the first `rows` rows; those missing are zeros. `rows` is at least k -
// BF16_DEPTH_UNIT, and k a multiple of that.
void pack_rows(const float* w, int rows, void* packed, int k, int n);

// M packed in bf16. One in blocks, or of a W in float32 that trains, is decoded and packed at each call, into memory that
// holds the result until the next one: no bf16 copies are kept beside it. That is a pass over the decoded and over the
// packed matrix per product: with 1,024 rows about a thousandth of its multiplications, but each of them reads or writes
// memory.
const void* packed(const Frozen& m);

// c (m, n) = aᵀ · b or, with `add`, c + aᵀ · b, for a (rows, m), whose rows are lda apart, and b (rows, n); with all
// threads. In bf16 both are rounded.
void transposed_product(const float* a, int lda, const float* b, int rows, int m, int n, bool bf16, bool add, float* c);

// oneDNN's bf16 products take rows in multiples of this: the height of AMX's tiles.
constexpr int BF16_ROW_UNIT = 16;

// The rows that a transposed product sums over are filled up to multiples of this: oneDNN generates code for each size.
constexpr int BF16_DEPTH_UNIT = 64;

// Rows per tile of a bf16 product: all steps of a linear layer are done on a tile while its rows are in the cache. 64
// rows of 768 inputs are 96 KiB in bf16, and as many outputs 192 KiB in float32: together within an L2 of 1 MiB or
// more, as every processor with bf16 products has. Short streams get tiles of half the height, for twice as many tasks.
static inline int tile_rows(int rows) {
    constexpr int TILE_ROWS = 64, SHORT_STREAM = 8 * TILE_ROWS;
    return rows < SHORT_STREAM ? TILE_ROWS / 2 : TILE_ROWS;
}

// Rows per tile around a float32 product, which is one call for all rows: chunks start at multiples of this, so that
// even short streams have a task per thread.
constexpr int FP32_TILE_ROWS = 16;

// The rows of a stream as `product` cuts them, into `most` chunks at most.
static inline Chunks chunks_of(int rows, bool bf16, int most = MAX_CHUNKS) {
    return Chunks(rows, bf16 ? tile_rows(rows) : FP32_TILE_ROWS, most);
}

// y = x M. Around it, before(chunk, r0, r1) and after(chunk, r0, r1) are called for each chunk of rows by whichever
// thread has them. In bf16 they are called tile by tile, so that `after` finds its rows of y in the cache.
template <class Before, class After>
void product(const Frozen& m, const float* x, float* y, const Chunks& chunks, Before before, After after) {
    const int rows = chunks.rows;
    if (!m.bf16) {
        parallel(chunks.count, [&](int c) { before(c, chunks.begin(c), chunks.end(c)); });
        gemm(m, x, y, rows);
        parallel(chunks.count, [&](int c) { after(c, chunks.begin(c), chunks.end(c)); });
        return;
    }
    const void* weights = packed(m);
    parallel(chunks.count, [&](int c) {
        static thread_local Buffer for_x, for_tail;
        for (int r = chunks.begin(c); r < chunks.end(c); r += chunks.tile) {
            int count = std::min(chunks.tile, chunks.end(c) - r), whole = round_up(count, BF16_ROW_UNIT);
            before(c, r, r + count);
            bf16* xs = for_x.get<bf16>(size_t(chunks.tile) * m.k);
            const float* from = x + size_t(r) * m.k;
            each(int64_t(count) * m.k, [&](int64_t i, int n) { put(xs + i, get(from + i, n), n); });
            memset(xs + size_t(count) * m.k, 0, size_t(whole - count) * m.k * sizeof(bf16));
            float* to = y + size_t(r) * m.n;
            if (whole == count) {
                gemm_tile(weights, m.k, m.n, xs, to, count);
            } else {
                float* ys = for_tail.get<float>(size_t(whole) * m.n);
                gemm_tile(weights, m.k, m.n, xs, ys, whole);
                memcpy(to, ys, size_t(count) * m.n * sizeof(float));
            }
            after(c, r, r + count);
        }
    });
}

}  // namespace jl
