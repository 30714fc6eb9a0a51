// Attention over a layout, cut into blocks of query rows that see the same prefix.
#pragma once
#include <algorithm>
#include <vector>

#include "rows.h"
#include "vector.h"

namespace jl {

constexpr int BLOCK = 64;  // query rows at a time

struct Segment {
    int q0, q1, p0, p1, k0, k1;
};

struct Group {
    int s0, s1, k0, k1;
};

// Consecutive query rows [first, end) of one segment.
struct Piece {
    int first, end;
    const Segment* segment;

    // Own keys that the row sees.
    int own(int row) const { return segment->k1 - segment->k0 - (segment->q1 - 1 - row); }
    int keys() const { return own(end - 1); }
};

// Query rows of pieces that see the same prefix: short branches share the product with it. A row's weights are those of
// the prefix, then those of its own keys.
struct Block {
    int first, end, p0, p1;
    std::vector<Piece> pieces;

    int rows() const { return end - first; }
    int prefix() const { return p1 - p0; }
    int stride() const {
        int own = 0;
        for (const Piece& piece : pieces) own = std::max(own, piece.keys());
        return round_up(prefix() + own, W) + W;
    }
};

// Rows of heads: element (row, head, i) at data[row · stride + head · d + i].
template <class T>
struct Heads {
    T* data;
    int stride;

    T* at(int row, int head, int d) const { return data + size_t(row) * stride + size_t(head) * d; }
};

static inline std::vector<Block> blocks(const Segment* segments, int from, int to) {
    std::vector<Block> made;
    for (int i = from; i < to; i++) {
        const Segment& s = segments[i];
        for (int q = s.q0; q < s.q1;) {
            bool fits = !made.empty() && s.p1 > s.p0 && made.back().p0 == s.p0 && made.back().p1 == s.p1 &&
                        made.back().end == q && made.back().rows() < BLOCK;
            if (!fits) made.push_back({q, q, s.p0, s.p1, {}});
            Block& b = made.back();
            int end = std::min(b.first + BLOCK, s.q1);
            b.pieces.push_back({q, end, &s});
            q = b.end = end;
        }
    }
    return made;
}

// Products of a block in bf16, on processors that multiply it, for heads of a multiple of W elements. x, dy, o, dx are
// (rows, d) of one head.

// o = softmax(scale · x · kᵀ) · v, and the logarithm of each row's sum of exponentials.
void forward_in_bf16(const Block& b, float scale, const float* x, Heads<const float> keys, Heads<const float> values,
                     int head, int d, float* o, float* lse);

// dx, and onto sums_k and sums_v (keys, d), whose row 0 is key row `first`, the gradients for keys and values.
// slope: dy · o of each row.
void backward_in_bf16(const Block& b, float scale, const float* x, const float* dy, Heads<const float> keys,
                      Heads<const float> values, int head, int d, const float* lse, const float* slope, float* dx,
                      float* sums_k, float* sums_v, int first);

#if defined(__AVX512BF16__)
constexpr bool BF16_BLOCKS = true;
#else
constexpr bool BF16_BLOCKS = false;
#endif

}  // namespace jl
