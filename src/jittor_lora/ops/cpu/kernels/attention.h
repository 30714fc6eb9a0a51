// Attention over a layout of shared prefixes and branches (model/layout.py), in blocks of query rows.
//
// Per head, with scale = 1 / √d unless the model says otherwise, row by row:
//     S = scale · Q Kᵀ,  P = softmax(S),  O = P V
// Neither S nor P is kept: only O and L, the log-sum-exp of each row of S (one number per row and head). The backward
// pass computes S again and from it P = e^(S - L). Given dO, the gradient of O:
//     dV = Pᵀ dO                                              (O is linear in V)
//     dP = dO Vᵀ                                              (and in P)
//     dS_ij = Σ_k dP_ik ∂P_ik/∂S_ij = P_ij (dP_ij - Σ_k P_ik dP_ik)   (since ∂P_ik/∂S_ij = P_ik (δ_kj - P_ij))
//     dQ = scale · dS K,  dK = scale · dSᵀ Q
// The sum over k takes a whole row of P and dP, but it equals a dot product of two rows that are known already:
//     Σ_k P_ik dP_ik = Σ_k P_ik (dO_i · V_k) = dO_i · O_i = D_i,  so D = rowsum(dO ∘ O)
// and dS = P ∘ (dP - D), element by element. The scheme is FlashAttention's (Dao et al. 2022, algorithm 4 and appendix
// B). Keys are not tiled here: a block's scores are computed for all of its keys, so no running maximum is needed.
#pragma once
#include <algorithm>
#include <vector>

#include "rows.h"
#include "vector.h"

namespace jl {

// Query rows per block. Their scores against 384 keys are 96 KiB, and the backward pass holds two such arrays: both
// stay in an L2 of 512 KiB. Measured on AVX2 with four texts of 384 tokens, 12 heads of 64: 16 rows take 17 % longer,
// 32 rows 5 % and 128 rows 14 %.
constexpr int BLOCK_ROWS = 64;

// As `Segment` in model/layout.py: query rows [q0, q1) see key rows [p0, p1), their prefix, and of key rows [k0, k1),
// their own, row q1 - 1 - i sees all but the last i.
struct Segment {
    int q0, q1, p0, p1, k0, k1;
};

// Segments [s0, s1) that share key rows [k0, k1), which no other group sees.
struct Group {
    int s0, s1, k0, k1;
};

// Consecutive query rows [first, end) of one segment.
struct Piece {
    int first, end;
    const Segment* segment;

    // How many of the segment's own keys a row sees.
    int own(int row) const { return segment->k1 - segment->k0 - (segment->q1 - 1 - row); }
    int keys() const { return own(end - 1); }
};

// Part of a block's scores that is one product: rows [row, row + rows) of the block against key rows [key, key + keys).
struct Rectangle {
    int row, rows, key, keys;
    bool is_prefix;
};

// Up to BLOCK_ROWS query rows, of several branches if these see the same prefix. Branches are short (an answer, a few
// tokens) and prefixes long (a paragraph): the rows of a block together are one product with the prefix, of a height
// that pays off, and each piece is one more product with its own keys. A block with three branches, and what its rows
// see (#) or do not (.):
//
//               keys of the prefix  own keys
//     branch 1  ##################  #..
//               ##################  ##.         One rectangle for all rows and the prefix, one per piece for its own
//               ##################  ###         keys, of which a row sees those up to itself. In float32 scores lie
//     branch 2  ##################  #.          in memory as drawn: own keys follow the prefix, whichever branch
//               ##################  ##          they belong to. In bf16 each branch has columns to itself.
//     branch 3  ##################  #..
//               ##################  ##.
//               ##################  ###
//
// Rows of a prefix, and of texts that share none, see no prefix: their blocks are of one segment.
struct Block {
    int first, end, p0, p1;
    std::vector<Piece> pieces;

    int rows() const { return end - first; }
    int prefix() const { return p1 - p0; }

    template <class Body>
    void each_rectangle(Body body) const {
        if (prefix() > 0) body(Rectangle{0, rows(), p0, prefix(), true});
        for (const Piece& p : pieces) body(Rectangle{p.first - first, p.end - p.first, p.segment->k0, p.keys(), false});
    }

    // Calls body(r, piece, index of the piece) for each row, counted from the block's first.
    template <class Body>
    void each_row(Body body) const {
        for (size_t i = 0; i < pieces.size(); i++)
            for (int row = pieces[i].first; row < pieces[i].end; row++) body(row - first, pieces[i], i);
    }
};

static inline std::vector<Block> blocks_of(const Segment* segments, int from, int to) {
    std::vector<Block> blocks;
    for (int i = from; i < to; i++) {
        const Segment& s = segments[i];
        for (int q = s.q0; q < s.q1;) {
            bool fits = !blocks.empty() && s.p1 > s.p0 && blocks.back().p0 == s.p0 && blocks.back().p1 == s.p1 &&
                        blocks.back().end == q && blocks.back().rows() < BLOCK_ROWS;
            if (!fits) blocks.push_back({q, q, s.p0, s.p1, {}});
            Block& b = blocks.back();
            int end = std::min(b.first + BLOCK_ROWS, s.q1);
            b.pieces.push_back({q, end, &s});
            q = b.end = end;
        }
    }
    return blocks;
}

// Rows of heads: element (row, head, i) at data[row · stride + head · d + i].
template <class T>
struct Heads {
    T* data;
    int stride;

    T* at(int row, int head, int d) const { return data + size_t(row) * stride + size_t(head) * d; }
};

// One block and head: what its two passes share in float32 and in bf16. `head` is that of the keys and values.
struct BlockOfHead {
    const Block& block;
    Heads<const float> keys, values;
    int head, d;
    float scale;
};

// o (rows, d) and log_sums (rows) from queries x (rows, d).
void forward_in_fp32(const BlockOfHead& b, const float* x, float* o, float* log_sums);
void forward_in_bf16(const BlockOfHead& b, const float* x, float* o, float* log_sums);

// dx (rows, d), and the gradients for keys and values added to sums_k and sums_v (keys, d), whose row 0 is key row
// `first`. deltas: D of each row.
void backward_in_fp32(const BlockOfHead& b, const float* x, const float* dy, const float* log_sums, const float* deltas,
                      float* dx, float* sums_k, float* sums_v, int first);
void backward_in_bf16(const BlockOfHead& b, const float* x, const float* dy, const float* log_sums, const float* deltas,
                      float* dx, float* sums_k, float* sums_v, int first);

// Products in bf16 where they are asked for and the processor has them. Odd head sizes stay in float32.
static inline bool takes_bf16(bool asked, int d) { return asked && BF16_PRODUCTS && d % W == 0; }

}  // namespace jl
