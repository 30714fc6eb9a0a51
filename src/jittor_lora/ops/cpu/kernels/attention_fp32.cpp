// Blocks of attention with products in float32, by oneDNN's sgemm. Scores of a block are (rows, stride): those of the
// prefix, then those of each row's own keys.
#include "attention.h"
#include "product.h"
#include "softmax.h"

namespace jl {

// Columns of a block's scores, rounded up to whole vectors; one vector more keeps rows out of each other's cache sets
// where their length is a power of two.
static int stride_of(const Block& b) {
    int own = 0;
    for (const Piece& piece : b.pieces) own = std::max(own, piece.keys());
    return round_up(b.prefix() + own, W) + W;
}

// c (m, n) = alpha · op(a) · op(b) + beta · c, in the calling thread.
static inline void multiply(char ta, char tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                            int ldb, float beta, float* c, int ldc) {
    if (m > 0 && n > 0 && k > 0) sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// out (rows, keys) = alpha · x (rows, d) · mᵀ over the keys that the rows see: S from Q and K, dP from dO and V.
static void against_keys(const BlockOfHead& b, float alpha, const float* x, Heads<const float> m, float* out, int stride) {
    b.block.each_rectangle([&](const Rectangle& r) {
        float* to = out + size_t(r.row) * stride + (r.is_prefix ? 0 : b.block.prefix());
        multiply('N', 'T', r.rows, r.keys, b.d, alpha, x + size_t(r.row) * b.d, b.d, m.at(r.key, b.head, b.d), m.stride, 0, to,
                 stride);
    });
}

// out (rows, d) = x (rows, keys) · m: O from P and V, dQ from dS and K.
static void over_keys(const BlockOfHead& b, const float* x, int stride, Heads<const float> m, float* out) {
    b.block.each_rectangle([&](const Rectangle& r) {
        const float* from = x + size_t(r.row) * stride + (r.is_prefix ? 0 : b.block.prefix());
        const float beta = !r.is_prefix && b.block.prefix() > 0;  // own keys are added to the prefix's sums
        multiply('N', 'N', r.rows, b.d, r.keys, 1, from, stride, m.at(r.key, b.head, b.d), m.stride, beta,
                 out + size_t(r.row) * b.d, b.d);
    });
}

// sums (keys, d) += xᵀ (keys, rows) · y (rows, d): dK from dS and Q, dV from P and dO. Row 0 of sums is key row
// `first`.
static void onto_keys(const BlockOfHead& b, const float* x, int stride, const float* y, float* sums, int first) {
    b.block.each_rectangle([&](const Rectangle& r) {
        const float* from = x + size_t(r.row) * stride + (r.is_prefix ? 0 : b.block.prefix());
        multiply('T', 'N', r.keys, b.d, r.rows, 1, from, stride, y + size_t(r.row) * b.d, b.d, 1,
                 sums + size_t(r.key - first) * b.d, b.d);
    });
}

// How many scores a row has, rounded up to whole vectors, and how many its piece's products read or wrote.
struct RowLength {
    int seen, whole, computed;

    RowLength(const Block& b, const Piece& p, int r)
        : seen(b.prefix() + p.own(b.first + r)), whole(round_up(seen, W)), computed(b.prefix() + p.keys()) {}
};

void forward_in_fp32(const BlockOfHead& b, const float* x, float* o, float* log_sums) {
    static thread_local Buffer for_weights;
    const int rows = b.block.rows(), stride = stride_of(b.block);
    float* weights = for_weights.get<float>(size_t(rows) * stride);
    against_keys(b, b.scale, x, b.keys, weights, stride);
    float inverse[BLOCK_ROWS];
    b.block.each_row([&](int r, const Piece& p, size_t) {
        const RowLength length(b.block, p, r);
        float* w = weights + size_t(r) * stride;
        std::fill(w + length.seen, w + length.whole, -INFINITY);
        const Exponentials e = exponentials(w, length.whole, 1.f, [&](int i, vec v) { store(w + i, v); });
        for (int i = length.whole; i < length.computed; i++) w[i] = 0;
        inverse[r] = 1.f / e.sum;
        log_sums[r] = e.log_sum();
    });
    over_keys(b, weights, stride, b.values, o);
    // Weights are normalised here, d numbers per row in place of as many as it has keys.
    for (int r = 0; r < rows; r++) {
        float* row = o + size_t(r) * b.d;
        each(b.d, [&](int64_t i, int n) { put(row + i, get(row + i, n) * inverse[r], n); });
    }
}

void backward_in_fp32(const BlockOfHead& b, const float* x, const float* dy, const float* log_sums, const float* deltas,
                      float* dx, float* sums_k, float* sums_v, int first) {
    static thread_local Buffer for_weights, for_gradients;
    const int rows = b.block.rows(), stride = stride_of(b.block);
    float* weights = for_weights.get<float>(size_t(rows) * stride);
    float* gradients = for_gradients.get<float>(size_t(rows) * stride);
    against_keys(b, b.scale, x, b.keys, weights, stride);
    against_keys(b, 1, dy, b.values, gradients, stride);
    b.block.each_row([&](int r, const Piece& p, size_t) {
        const RowLength length(b.block, p, r);
        float *w = weights + size_t(r) * stride, *g = gradients + size_t(r) * stride;
        for (int i = length.seen; i < length.whole; i++) w[i] = -INFINITY, g[i] = 0;
        for (int i = 0; i < length.whole; i += W) {
            const auto [p, ds] = softmax_backward(load(w + i), log_sums[r], load(g + i), deltas[r], b.scale);
            store(w + i, p);
            store(g + i, ds);
        }
        for (int i = length.whole; i < length.computed; i++) w[i] = g[i] = 0;
    });
    over_keys(b, gradients, stride, b.keys, dx);
    onto_keys(b, gradients, stride, x, sums_k, first);
    onto_keys(b, weights, stride, dy, sums_v, first);
}

}  // namespace jl
