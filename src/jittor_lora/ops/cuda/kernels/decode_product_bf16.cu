// Decoding: products of bf16 on tensor cores.
//
// The weights are the left matrix, (16 outputs, 16 inputs), and up to 8 rows the right one: an mma gives each row of the
// product its own sums, so a row is independent of the others. For few rows bound by the bytes of the weights, of which each
// lane loads 16 at a time from global memory; for many rows by loads from the L1 cache.
//
// The inputs are cut into parts, which depend on the weight alone: where it has few outputs, their sums are the work of
// several warps. They are added up in order, by whoever has them.
#include "decode_product.cuh"
#include "mma.cuh"

namespace jl::decoding {
namespace {

constexpr int OUTPUTS = 16, ROWS = 8, INPUTS = 32;  // of two mma
constexpr int MOST_PARTS = 8, LEAST_PART = 4 * INPUTS, BUSY_WARPS = 1024;
constexpr int FEW_ROWS = 4 * ROWS;       // most of a block that keeps few rows
constexpr int WIDE = 2 * OUTPUTS, TALL = 4 * ROWS, WIDE_WARPS = 2, TALL_WARPS = 2;  // of a warp, and of a block, with many

#ifdef JL_HAS_MMA

// sums += w · xᵀ over the inputs [first, end), multiples of INPUTS, STEPS times as many at a time. A lane has inputs 8 t to
// 8 t + 7 of each INPUTS: the first four for one mma, the others for another. Which inputs meet in a column of the fragments
// does not matter, if they are the same on both sides.
template <int STEPS, int M, int N>
__device__ void accumulate(const bf16* const (&w)[M][2], const bf16* const (&x)[N], int& first, int end,
                           float (&sums)[M][N][4]) {
    for (; first + STEPS * INPUTS <= end; first += STEPS * INPUTS) {
        uint4 left[STEPS][M][2], right[STEPS][N];
        auto load = [&](const bf16* row, int step) {
            return *reinterpret_cast<const uint4*>(row + first + step * INPUTS + threadIdx.x % 4 * 8);
        };
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
#pragma unroll
            for (int m = 0; m < M; m++) left[s][m][0] = load(w[m][0], s), left[s][m][1] = load(w[m][1], s);
#pragma unroll
            for (int n = 0; n < N; n++) right[s][n] = load(x[n], s);
        }
#pragma unroll
        for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int m = 0; m < M; m++) {
                const uint4(&l)[2] = left[s][m];
                const uint32_t one[4] = {l[0].x, l[1].x, l[0].y, l[1].y}, two[4] = {l[0].z, l[1].z, l[0].w, l[1].w};
#pragma unroll
                for (int n = 0; n < N; n++) {
                    multiply_add(sums[m][n], one, right[s][n].x, right[s][n].y);
                    multiply_add(sums[m][n], two, right[s][n].z, right[s][n].w);
                }
            }
    }
}

// The rows of w for this lane: outputs g and g + 8 of a tile, or, gated, output g of both matrices. Beyond the last: the last.
__device__ inline void rows_of_weight(const Product& p, const Shares& shares, const Place& place, int at, const bf16* (&w)[2]) {
    const int g = threadIdx.x % WARP / 4;
    for (int i = 0; i < 2; i++) {
        const Matrix& matrix = p.linear.matrices[shares.gated ? i : place.matrix];
        const int output = place.first + (shares.gated ? at / 2 + g : at + 8 * i + g);
        w[i] = static_cast<const bf16*>(matrix.weight) + int64_t(min(output, matrix.outputs - 1)) * p.linear.inputs;
    }
}

// Outputs `at` and `at` + 8 of a tile, or, gated, the one output that they are of both matrices, of row r.
__device__ inline void finish(const Product& p, const Shares& shares, const Place& place, int at, int r, float first,
                              float second) {
    const int outputs = p.linear.matrices[place.matrix].outputs;
    if (r >= p.rows) return;
    if (shares.gated) {
        const int output = place.first + at / 16 * 8 + at % 16;
        if (output >= outputs) return;
        const float gate = activate(p.activation, updated(p, shares, 0, output, r, first));
        put(p, r, output, gate * updated(p, shares, 1, output, r, second));
        return;
    }
    for (int i = 0; i < 2; i++) {
        const int output = place.first + at + 8 * i;
        if (output >= outputs) return;
        const float value = updated(p, shares, place.matrix, output, r, i ? second : first);
        put(p, r, place.column + output, p.activation < 0 ? value : activate(p.activation, value));
    }
}

#endif

// Few rows: each warp has a part of the inputs for OUTPUTS outputs and N · ROWS rows; a block has all parts of some tiles.
template <int N>
__global__ void few_rows_kernel(Product p, Shares shares) {
#ifdef JL_HAS_MMA
    const int item = share_of_block<true>(p, shares);
    if (item < 0) return;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, tiles = blockDim.x / WARP / shares.parts;
    const int row = item % shares.groups * (N * ROWS), part = warp % shares.parts;
    auto place_of = [&](int tile) { return Place(p, shares.gated, item / shares.groups * tiles + tile, OUTPUTS); };
    const Place place = place_of(warp / shares.parts);
    float* partial = reinterpret_cast<float*>(shared_memory());  // (warps, OUTPUTS, N · ROWS)
    if (place.matrix >= 0) {
        const bf16 *w[1][2], *x[N];
        rows_of_weight(p, shares, place, 0, w[0]);
#pragma unroll
        for (int n = 0; n < N; n++) x[n] = p.x.half + int64_t(min(row + n * ROWS + lane / 4, p.rows - 1)) * p.linear.inputs;
        float sums[1][N][4] = {};
        int first = part * shares.part;
        const int end = min(first + shares.part, p.linear.inputs);
        accumulate<LEAST_PART / INPUTS, 1, N>(w, x, first, end, sums);  // loads of several steps on their way at once
        accumulate<1, 1, N>(w, x, first, end, sums);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                partial[(warp * OUTPUTS + lane / 4 + i / 2 * 8) * (N * ROWS) + n * ROWS + lane % 4 * 2 + i % 2] = sums[0][n][i];
    }
    await_projections(p, shares);
    __syncthreads();
    for (int i = threadIdx.x; i < tiles * 8 * N * ROWS; i += blockDim.x) {
        const int at = i % 8, r = i / 8 % (N * ROWS), tile = i / 8 / (N * ROWS);
        const Place place = place_of(tile);
        if (place.matrix < 0) continue;
        const float* from = partial + (tile * shares.parts * OUTPUTS + at) * (N * ROWS) + r;
        float first = from[0], second = from[8 * N * ROWS];
        for (int part = 1; part < shares.parts; part++) {
            from += OUTPUTS * N * ROWS;
            first += from[0], second += from[8 * N * ROWS];
        }
        finish(p, shares, place, at, row + r, first, second);
    }
#endif
}

// Many rows: a warp has WIDE outputs and TALL rows, and all parts of the inputs.
__global__ void many_rows_kernel(Product p, Shares shares) {
#ifdef JL_HAS_MMA
    const int item = share_of_block<true>(p, shares);
    if (item < 0) return;
    constexpr int M = WIDE / OUTPUTS, N = TALL / ROWS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row = (item % shares.groups * TALL_WARPS + warp / WIDE_WARPS) * TALL;
    const Place place(p, shares.gated, item / shares.groups * WIDE_WARPS + warp % WIDE_WARPS, WIDE);
    if (place.matrix < 0 || row >= p.rows) return;
    const bf16 *w[M][2], *x[N];
#pragma unroll
    for (int m = 0; m < M; m++) rows_of_weight(p, shares, place, m * OUTPUTS, w[m]);
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = p.x.half + int64_t(min(row + n * ROWS + lane / 4, p.rows - 1)) * p.linear.inputs;
    float totals[M][N][4];
    for (int part = 0; part < shares.parts; part++) {
        float sums[M][N][4] = {};
        int first = part * shares.part;
        accumulate<1, M, N>(w, x, first, min(first + shares.part, p.linear.inputs), sums);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) totals[m][n][i] = part ? totals[m][n][i] + sums[m][n][i] : sums[m][n][i];
    }
    await_projections(p, shares);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                finish(p, shares, place, m * OUTPUTS + lane / 4, row + n * ROWS + lane % 4 * 2 + i, totals[m][n][i],
                       totals[m][n][2 + i]);
#endif
}

}  // namespace

bool takes_bf16(const Product& p) {
    bool aligned = p.linear.inputs % INPUTS == 0;
    for (int m = 0; m < p.linear.count; m++) aligned &= reinterpret_cast<uintptr_t>(p.linear.matrices[m].weight) % 16 == 0;
    return p.x.half && aligned && has_mma();
}

void multiply_bf16(const Product& p) {
    const bool gated = p.activation >= 0 && p.linear.count == 2;
    const int inputs = p.linear.inputs, tiles = tiles_of(p, gated, OUTPUTS);
    const int parts = std::max(1, std::min(MOST_PARTS, BUSY_WARPS / tiles));
    const int part = int(blocks_for(inputs, parts * LEAST_PART)) * LEAST_PART;
    auto begin = [&](int warps, int rows) {
        Shares shares = shares_of(p, warps, rows);
        shares.part = part, shares.parts = blocks_for(inputs, part);
        return shares;
    };
    const int64_t large = int64_t(tiles_of(p, gated, WIDE * WIDE_WARPS)) * blocks_for(p.rows, TALL * TALL_WARPS);
    if (p.rows > FEW_ROWS && large >= 64) {
        const Shares shares = begin(WIDE_WARPS * TALL_WARPS, TALL * TALL_WARPS);
        const unsigned blocks = blocks_for(tiles_of(p, gated, WIDE), WIDE_WARPS) * shares.groups;
        return launch(many_rows_kernel, shares.projecting + blocks, WIDE_WARPS * TALL_WARPS * WARP, 0, p, shares);
    }
    const int n = p.rows <= ROWS ? 1 : p.rows <= 2 * ROWS ? 2 : 4;
    const int parts_in_use = blocks_for(inputs, part), block_tiles = std::max(1, 4 / parts_in_use);
    const int warps = parts_in_use * block_tiles;
    const Shares shares = begin(warps, n * ROWS);
    launch(n == 1 ? few_rows_kernel<1> : n == 2 ? few_rows_kernel<2> : few_rows_kernel<4>,
           shares.projecting + blocks_for(tiles, block_tiles) * shares.groups, warps * WARP,
           size_t(warps) * OUTPUTS * n * ROWS * sizeof(float), p, shares);
}

}  // namespace jl::decoding
