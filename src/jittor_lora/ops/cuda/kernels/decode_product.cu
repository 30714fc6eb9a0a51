// Decoding: products of a few rows, or many, with the weights and with each row's low-rank update.
//
// For few rows bound by the bytes of the weights, each of which is read once per GROUP rows: a warp has TILE outputs of up to
// GROUP rows, its lanes 16 bytes each of a row of W at a time. For many rows bound by multiplications in float32. cuBLAS would
// be several times faster at prompts on tensor cores, but its sums depend on the number of rows: a text would depend on its
// company.
#include "decode.cuh"

namespace jl::decoding {
namespace {

constexpr int GROUP = 8, TILE = 4;

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

__device__ float activate(int activation, float x) {
    switch (activation) {
        case GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case GELU_ERF: return 0.5f * x * (1.f + erff(x * 0.70710678f));
        case RELU: return x < 0.f ? 0.f : x;
        case SILU: return x / (1.f + expf(-x));
        case QUICK_GELU: return x / (1.f + expf(-1.702f * x));
        case TANH: return tanhf(x);
    }
    return x;
}

// How the blocks of a launch share the work: first x · Aᵀ, then the outputs.
struct Shares {
    int projecting, rank_tiles;  // blocks for x · Aᵀ, and of these per row
    int groups;                  // of rows
    bool gated;                  // a tile has two outputs of the gate and those that they multiply
};

// TILE ranks of x · Aᵀ of a row.
template <bool ALIGNED>
__device__ void project(const Product& p, int r, int tile) {
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

// A warp has TILE outputs of ROWS rows. Blocks take tickets: those that wait for the projections have started after them, so
// that they cannot keep them from running.
template <class T, int ROWS, bool ALIGNED>
__global__ void product_kernel(Product p, Shares shares) {
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, inputs = p.linear.inputs;
    int *ticket = p.counters, *projected = p.counters + 1, item = blockIdx.x;
    if (shares.projecting) {
        __shared__ int number;
        if (threadIdx.x == 0) number = atomicAdd(ticket, 1);
        __syncthreads();
        item = number;
        if (item < shares.projecting) {
            project<ALIGNED>(p, item / shares.rank_tiles, item % shares.rank_tiles * warps + warp);
            __threadfence();
            __syncwarp();
            if (lane == 0) atomicAdd(projected, 1);
            return;
        }
        item -= shares.projecting;
    }
    // Which outputs: column c of the tile is output[c] of a matrix, `column` outputs after the first matrix's first.
    const int row = item % shares.groups * ROWS;
    int tile = item / shares.groups * warps + warp, matrix = 0, column = 0;
    const int step = shares.gated ? TILE / 2 : TILE;
    for (; !shares.gated && matrix < p.linear.count; matrix++) {
        const int tiles = (p.linear.matrices[matrix].outputs + TILE - 1) / TILE;
        if (tile < tiles) break;
        tile -= tiles, column += p.linear.matrices[matrix].outputs;
    }
    if (matrix == p.linear.count || tile * step >= p.linear.matrices[matrix].outputs) return;
    const int outputs = p.linear.matrices[matrix].outputs;
    auto matrix_of = [&](int c) { return shares.gated ? c % 2 : matrix; };
    auto output_of = [&](int c) { return tile * step + (shares.gated ? c / 2 : c); };
    auto row_of = [&](int r) { return min(row + r, p.rows - 1); };  // of the call's last rows again, which are not used
    const T *x[ROWS], *w[TILE];
    const T* states = sizeof(T) == sizeof(bf16) ? reinterpret_cast<const T*>(p.x.half) : reinterpret_cast<const T*>(p.x.exact);
#pragma unroll
    for (int r = 0; r < ROWS; r++) x[r] = states + int64_t(row_of(r)) * inputs;
#pragma unroll
    for (int c = 0; c < TILE; c++)
        w[c] = static_cast<const T*>(p.linear.matrices[matrix_of(c)].weight) + int64_t(min(output_of(c), outputs - 1)) * inputs;
    float sums[ROWS][TILE] = {};
    accumulate<T, ROWS, ALIGNED>(x, w, inputs, sums);
    if (shares.projecting) {
        if (lane == 0)
            while (atomicAdd(projected, 0) < shares.projecting * warps) {
            }
        __syncwarp();
        __threadfence();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float* adapter = p.table[p.from ? p.from[row_of(r)] : row_of(r)].adapter;
            if (!adapter) continue;
            const Update& update = reinterpret_cast<const Update*>(adapter)[p.update];
            const float* t = p.projected + int64_t(row_of(r)) * p.ranks;
#pragma unroll
            for (int c = 0; c < TILE; c++) {
                const auto& low = update.matrices[matrix_of(c)];
                const float* b = adapter + low.b + int64_t(min(output_of(c), outputs - 1)) * low.rank;
                for (int i = lane; i < low.rank; i += WARP) sums[r][c] = fmaf(t[low.at + i], b[i], sums[r][c]);
            }
        }
    }
    float value = reduce<ROWS>(sums);
    const int r = row + lane / LANES<ROWS> / TILE, c = lane / LANES<ROWS> % TILE, output = output_of(c);
    const bool is_there = r < p.rows && output < outputs;
    const float* bias = p.linear.matrices[matrix_of(c)].bias;
    if (bias && is_there) value += bias[output];
    if (p.activation >= 0 && !(shares.gated && c % 2)) value = activate(p.activation, value);
    if (shares.gated) value *= __shfl_xor_sync(ALL_LANES, value, LANES<ROWS>);
    if (!is_there || lane % LANES<ROWS> || (shares.gated && c % 2)) return;
    const int all = p.width, at = column + output;
    if (p.sum) value += p.sum[int64_t(p.sum_from ? p.sum_from[r] : r) * all + at];
    p.y[int64_t(r) * all + at] = value;
    if (p.half) p.half[int64_t(r) * all + at] = to_bf16(value);
}

template <class T, bool ALIGNED>
void start(const Product& p) {
    const bool gated = p.activation >= 0 && p.linear.count == 2;
    const int rows_per_group = p.rows == 1 ? 1 : p.rows <= 4 ? 4 : GROUP;
    int tiles = 0;
    for (int m = 0; m < p.linear.count; m++) tiles += blocks_for(p.linear.matrices[m].outputs, TILE);
    if (gated) tiles = blocks_for(p.linear.matrices[0].outputs, TILE / 2);
    const int groups = blocks_for(p.rows, rows_per_group);
    const int64_t work = int64_t(tiles) * groups;
    const int warps = work >= 8192 ? 8 : work >= 2048 ? 4 : 2;  // small blocks where there are few, for all multiprocessors
    Shares shares{0, 0, groups, gated};
    if (p.table && p.ranks) {
        shares.rank_tiles = blocks_for(p.ranks, TILE * warps);
        shares.projecting = p.rows * shares.rank_tiles;
    }
    const unsigned blocks = shares.projecting + blocks_for(tiles, warps) * groups;
    auto kernel = rows_per_group == 1   ? product_kernel<T, 1, ALIGNED>
                  : rows_per_group == 4 ? product_kernel<T, 4, ALIGNED>
                                        : product_kernel<T, GROUP, ALIGNED>;
    launch(kernel, blocks, warps * WARP, 0, p, shares);
}

}  // namespace

void multiply(const Product& product) {
    const size_t element = product.x.half ? sizeof(bf16) : sizeof(float);
    bool aligned = product.linear.inputs * element % 16 == 0;
    for (int m = 0; m < product.linear.count; m++)
        aligned &= reinterpret_cast<uintptr_t>(product.linear.matrices[m].weight) % 16 == 0;
    auto run = product.x.half ? (aligned ? start<bf16, true> : start<bf16, false>)
                              : (aligned ? start<float, true> : start<float, false>);
    run(product);
}

}  // namespace jl::decoding
