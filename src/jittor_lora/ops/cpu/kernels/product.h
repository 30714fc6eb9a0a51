// Products of a stream with a frozen matrix W (out, in): x Wᵀ, or dy W for a gradient.
#pragma once
#include "parallel.h"
#include "rows.h"
#include "vector.h"

namespace jl {

// A direction of a frozen matrix: y (rows, n) = x (rows, k) · M, where M is Wᵀ (k = in) or W (k = out).
struct Frozen {
    const void* weights;  // fp32: W itself; bf16: M as `jl_pack` wrote it
    bool bf16;
    bool transposed;  // M is Wᵀ
    int k, n;
};

void gemm(const Frozen& m, const float* x, float* y, int rows);  // fp32, with all threads

// c (m, n) = alpha · op(a) · op(b) + beta · c by oneDNN, in the calling thread if that is in a parallel region.
void sgemm(char ta, char tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb, float beta,
           float* c, int ldc);

// y (rows, n) = x (rows, k) in bf16 · packed weights, in the calling thread.
void gemm_tile(const void* weights, int k, int n, const bf16* x, float* y, int rows);

// Bytes of M (k, n) in bf16, packed, and packing it: w holds it as (n, k) if it is transposed, else as (k, n).
int64_t packed_size(int k, int n);
void pack(const float* w, void* packed, int k, int n, bool transposed);

int tile_rows(int rows);

// The rows of a stream as `product` cuts them, into `most` chunks at most.
static inline Chunks chunks_of(int rows, bool bf16, int most = MAX_CHUNKS) { return Chunks(rows, bf16 ? tile_rows(rows) : 16, most); }

// y = x M. Around it, for each chunk of rows, before(chunk, r0, r1) and after(chunk, r0, r1) are called by whichever
// thread has these rows: `after` finds rows of y that were just written.
template <class Before, class After>
void product(const Frozen& m, const float* x, float* y, const Chunks& chunks, Before before, After after) {
    const int rows = chunks.rows;
    if (!m.bf16) {
        parallel(chunks.count, [&](int c) { before(c, chunks.begin(c), chunks.end(c)); });
        gemm(m, x, y, rows);
        parallel(chunks.count, [&](int c) { after(c, chunks.begin(c), chunks.end(c)); });
        return;
    }
    parallel(chunks.count, [&](int c) {
        static thread_local Buffer narrow, tail;
        for (int r = chunks.begin(c); r < chunks.end(c); r += chunks.tile) {
            int count = std::min(chunks.tile, chunks.end(c) - r), whole = round_up(count, 16);
            before(c, r, r + count);
            bf16* xs = narrow.get<bf16>(size_t(chunks.tile) * m.k);
            const float* from = x + size_t(r) * m.k;
            each(int64_t(count) * m.k, [&](int64_t i, int n) { put(xs + i, get(from + i, n), n); });
            memset(xs + size_t(count) * m.k, 0, size_t(whole - count) * m.k * sizeof(bf16));
            float* to = y + size_t(r) * m.n;
            if (whole == count) {
                gemm_tile(m.weights, m.k, m.n, xs, to, count);
            } else {
                float* ys = tail.get<float>(size_t(whole) * m.n);
                gemm_tile(m.weights, m.k, m.n, xs, ys, whole);
                memcpy(to, ys, size_t(count) * m.n * sizeof(float));
            }
            after(c, r, r + count);
        }
    });
}

}  // namespace jl
