// Decoding: what the kernels of products share: the low-rank updates, and what becomes of a sum.
#pragma once
#include "activations.cuh"
#include "decode.cuh"

#ifdef __CUDACC__
#define JL_NOINLINE __noinline__
#else
#define JL_NOINLINE
#endif

namespace jl::decoding {

constexpr int TILE = 4;  // outputs, or ranks, per warp

// `ELEMENTS` neighbours of a row as floats: 16 bytes, or one element of rows that are not aligned for that.
template <class T, bool ALIGNED>
struct Piece {
    static constexpr int ELEMENTS = ALIGNED ? 16 / sizeof(T) : 1;
    float values[ELEMENTS];

    __device__ void load(const float* at) {
        if (ALIGNED) {
            float4 four = *reinterpret_cast<const float4*>(at);
            set(0, four.x), set(1, four.y), set(2, four.z), set(3, four.w);
        } else set(0, *at);
    }
    __device__ void load(const bf16* at) {
        if (ALIGNED) {
            uint4 four = *reinterpret_cast<const uint4*>(at);
            pair(0, four.x), pair(2, four.y), pair(4, four.z), pair(6, four.w);
        } else set(0, from_bf16(*at));
    }

private:
    __device__ void set(int i, float value) { values[i % ELEMENTS] = value; }
    __device__ void pair(int i, uint32_t two) { set(i, from_bf16(bf16(two))), set(i + 1, from_bf16(bf16(two >> 16))); }
};

// This lane's share of the sums of x[r] · w[c] over k.
template <class T, int ROWS, bool ALIGNED>
__device__ void accumulate(const T* const (&x)[ROWS], const T* const (&w)[TILE], int k, float (&sums)[ROWS][TILE]) {
    constexpr int ELEMENTS = Piece<T, ALIGNED>::ELEMENTS;
#pragma unroll 2
    for (int i = threadIdx.x % WARP * ELEMENTS; i < k; i += WARP * ELEMENTS) {
        Piece<T, ALIGNED> weights[TILE], states;
#pragma unroll
        for (int c = 0; c < TILE; c++) weights[c].load(w[c] + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            states.load(x[r] + i);
#pragma unroll
            for (int c = 0; c < TILE; c++)
#pragma unroll
                for (int e = 0; e < ELEMENTS; e++) sums[r][c] = fmaf(states.values[e], weights[c].values[e], sums[r][c]);
        }
    }
}

// Lanes per value of ROWS · TILE.
template <int ROWS>
constexpr int LANES = WARP / (ROWS * TILE);

// One step of `reduce`: a lane keeps one half of COUNT values and gives away the other, as long as there are two.
template <int COUNT, int OFFSET>
__device__ float reduce_from(float* values) {
    if constexpr (OFFSET == 0) {
        return values[0];
    } else if constexpr (COUNT == 1) {
        values[0] += __shfl_xor_sync(ALL_LANES, values[0], OFFSET);
        return reduce_from<1, OFFSET / 2>(values);
    } else {
        const bool upper = threadIdx.x & OFFSET;
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            const float low = values[i], high = values[i + COUNT / 2];
            values[i] = (upper ? high : low) + __shfl_xor_sync(ALL_LANES, upper ? low : high, OFFSET);
        }
        return reduce_from<COUNT / 2, OFFSET / 2>(values);
    }
}

// Adds up each value over the lanes, in the order of `warp_sum`; a lane returns the sum of value lane / LANES<ROWS>.
template <int ROWS>
__device__ float reduce(float (&sums)[ROWS][TILE]) { return reduce_from<ROWS * TILE, WARP / 2>(&sums[0][0]); }

// Not inlined: what the compiler makes of its sums and products must not depend on the kernel.
__device__ JL_NOINLINE inline float activate(int activation, float x) {
    switch (activation) {
        case GELU_TANH: return gelu(x);
        case GELU_ERF: return 0.5f * x * (1.f + erff(x * 0.70710678f));
        case RELU: return x < 0.f ? 0.f : x;
        case SILU: return x * sigmoid(x);
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case TANH: return tanhf(x);
    }
    return x;
}

// How the blocks of a launch share the work: the first ones have x · Aᵀ, the others outputs.
struct Shares {
    int projecting, rank_tiles;  // blocks for x · Aᵀ, and of these per row
    int groups;                  // of rows
    bool gated;                  // the first matrix's outputs are activated and multiply those of the second
    int parts, part;             // the sum over the inputs is cut into parts of this length, see decode_product_bf16.cu
};

inline Shares shares_of(const Product& p, int warps, int rows_per_group) {
    Shares shares{0, 0, int(blocks_for(p.rows, rows_per_group)), p.activation >= 0 && p.linear.count == 2, 1, p.linear.inputs};
    if (p.table && p.ranks) {
        shares.rank_tiles = blocks_for(p.ranks, TILE * warps);
        shares.projecting = p.rows * shares.rank_tiles;
    }
    return shares;
}

// Tiles of `width` outputs of all matrices; of two that are gated, of half as many of each.
inline int tiles_of(const Product& p, bool gated, int width) {
    if (gated) return blocks_for(p.linear.matrices[0].outputs, width / 2);
    int tiles = 0;
    for (int m = 0; m < p.linear.count; m++) tiles += blocks_for(p.linear.matrices[m].outputs, width);
    return tiles;
}

// TILE ranks of x · Aᵀ of a row.
template <bool ALIGNED>
__device__ inline void project(const Product& p, int r, int tile) {
    const float* adapter = p.table[p.from ? p.from[r] : r].adapter;
    const Update* update = reinterpret_cast<const Update*>(adapter) + p.update;
    const int first = tile * TILE, ranks = adapter ? update->ranks : 0, inputs = p.linear.inputs;
    if (first >= ranks) return;
    const float *x[1] = {p.x.exact + int64_t(r) * inputs}, *a[TILE];
    for (int c = 0; c < TILE; c++) a[c] = adapter + update->a + int64_t(min(first + c, ranks - 1)) * inputs;
    float sums[1][TILE] = {};
    accumulate<float, 1, ALIGNED>(x, a, inputs, sums);
    const float sum = reduce<1>(sums);
    const int lane = threadIdx.x % WARP, rank = first + lane / LANES<1>;
    if (lane % LANES<1> == 0 && rank < ranks) p.projected[int64_t(r) * p.ranks + rank] = sum;
}

// The number of this block among those that have outputs; -1 if it had a share of x · Aᵀ, which is done then. Blocks take
// tickets: those that wait for x · Aᵀ start after those that compute it, and so cannot keep them from running.
template <bool ALIGNED>
__device__ int share_of_block(const Product& p, const Shares& shares) {
    if (!shares.projecting) return blockIdx.x;
    const int warps = blockDim.x / WARP;
    __shared__ int ticket;
    if (threadIdx.x == 0) ticket = atomicAdd(p.counters, 1);
    __syncthreads();
    if (ticket >= shares.projecting) return ticket - shares.projecting;
    project<ALIGNED>(p, ticket / shares.rank_tiles, ticket % shares.rank_tiles * warps + threadIdx.x / WARP);
    __threadfence();
    __syncwarp();
    if (threadIdx.x % WARP == 0) atomicAdd(p.counters + 1, 1);
    return -1;
}

// A warp's wait for all of x · Aᵀ.
__device__ inline void await_projections(const Product& p, const Shares& shares) {
    if (!shares.projecting) return;
    const int warps = shares.projecting * (blockDim.x / WARP);
    if (threadIdx.x % WARP == 0)
        while (atomicAdd(p.counters + 1, 0) < warps) {
        }
    __syncwarp();
    __threadfence();
}

// Which outputs a tile has: from `first` on of a matrix, whose first output is number `column` of all. Without any left,
// `matrix` is -1.
struct Place {
    int matrix, column, first;

    __device__ Place(const Product& p, bool gated, int tile, int width) : matrix(0), column(0), first(0) {
        if (gated) {
            first = tile * (width / 2);
        } else {
            for (; matrix < p.linear.count; matrix++) {
                const int outputs = p.linear.matrices[matrix].outputs, tiles = (outputs + width - 1) / width;
                if (tile < tiles) break;
                tile -= tiles, column += outputs;
            }
            first = tile * width;
        }
        if (matrix == p.linear.count || first >= p.linear.matrices[matrix].outputs) matrix = -1;
    }
};

// An output, given its x · w: with bias and update.
__device__ inline float updated(const Product& p, const Shares& shares, int matrix, int output, int r, float sum) {
    const float* bias = p.linear.matrices[matrix].bias;
    if (bias) sum += bias[output];
    if (!shares.projecting) return sum;
    const float* adapter = p.table[p.from ? p.from[r] : r].adapter;
    if (!adapter) return sum;
    const auto& low = reinterpret_cast<const Update*>(adapter)[p.update].matrices[matrix];
    const float *t = p.projected + int64_t(r) * p.ranks + low.at, *b = adapter + low.b + int64_t(output) * low.rank;
    float update = 0.f;
#pragma unroll 4
    for (int i = 0; i < low.rank; i++) update = fmaf(t[i], b[i], update);
    return sum + update;
}

// Output `at` of all, complete: activated and gated.
__device__ inline void put(const Product& p, int r, int at, float value) {
    if (p.sum) value += p.sum[int64_t(p.sum_from ? p.sum_from[r] : r) * p.width + at];
    p.y[int64_t(r) * p.width + at] = value;
    if (p.half) p.half[int64_t(r) * p.width + at] = to_bf16(value);
}

// On tensor cores, decode_product_bf16.cu, where these take it.
bool takes_bf16(const Product& product);
void multiply_bf16(const Product& product);

}  // namespace jl::decoding
