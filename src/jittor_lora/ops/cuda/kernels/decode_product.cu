// Decoding: products of a few rows, or many, with the weights and with each row's low-rank update, in float32; also those of
// bf16 where tensor cores do not take it (sm_75, odd sizes).
//
// For few rows bound by the bytes of the weights, each of which is read once per GROUP rows: a warp has TILE outputs of up to
// GROUP rows, its lanes 16 bytes each of a row of W at a time. For many rows bound by multiplications in float32. cuBLAS is
// faster at prompts, but its sums depend on the number of rows: a text would depend on its company.
#include "decode_product.cuh"

namespace jl::decoding {
namespace {

constexpr int GROUP = 8;

// A warp has TILE outputs of ROWS rows; where gated, every other one is of the gate.
template <class T, int ROWS, bool ALIGNED>
__global__ void product_kernel(Product p, Shares shares) {
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, inputs = p.linear.inputs;
    const int item = share_of_block<ALIGNED>(p, shares);
    if (item < 0) return;
    const int row = item % shares.groups * ROWS;
    const Place place(p, shares.gated, item / shares.groups * warps + warp, TILE);
    if (place.matrix < 0) return;
    const int outputs = p.linear.matrices[place.matrix].outputs;
    auto matrix_of = [&](int c) { return shares.gated ? c % 2 : place.matrix; };
    auto output_of = [&](int c) { return place.first + (shares.gated ? c / 2 : c); };
    const T *x[ROWS], *w[TILE];
    const T* states = sizeof(T) == sizeof(bf16) ? reinterpret_cast<const T*>(p.x.half) : reinterpret_cast<const T*>(p.x.exact);
#pragma unroll
    for (int r = 0; r < ROWS; r++) x[r] = states + int64_t(min(row + r, p.rows - 1)) * inputs;  // beyond: the last again
#pragma unroll
    for (int c = 0; c < TILE; c++)
        w[c] = static_cast<const T*>(p.linear.matrices[matrix_of(c)].weight) + int64_t(min(output_of(c), outputs - 1)) * inputs;
    float sums[ROWS][TILE] = {};
    accumulate<T, ROWS, ALIGNED>(x, w, inputs, sums);
    float value = reduce<ROWS>(sums);
    const int r = row + lane / LANES<ROWS> / TILE, c = lane / LANES<ROWS> % TILE, output = output_of(c);
    const bool has_value = r < p.rows && output < outputs && lane % LANES<ROWS> == 0;
    await_projections(p, shares);
    if (has_value) value = updated(p, shares, matrix_of(c), output, r, value);
    if (p.activation >= 0 && !(shares.gated && c % 2)) value = activate(p.activation, value);
    if (shares.gated) value *= __shfl_xor_sync(ALL_LANES, value, LANES<ROWS>);
    if (has_value && !(shares.gated && c % 2)) put(p, r, place.column + output, value);
}

template <class T, bool ALIGNED>
void start(const Product& p) {
    const bool gated = p.activation >= 0 && p.linear.count == 2;
    const int rows_per_group = p.rows == 1 ? 1 : p.rows <= 4 ? 4 : GROUP, tiles = tiles_of(p, gated, TILE);
    const int64_t work = int64_t(tiles) * blocks_for(p.rows, rows_per_group);
    const int warps = work >= 8192 ? 8 : work >= 2048 ? 4 : 2;  // small blocks where there are few, for all multiprocessors
    const Shares shares = shares_of(p, warps, rows_per_group);
    auto kernel = rows_per_group == 1   ? product_kernel<T, 1, ALIGNED>
                  : rows_per_group == 4 ? product_kernel<T, 4, ALIGNED>
                                        : product_kernel<T, GROUP, ALIGNED>;
    launch(kernel, shares.projecting + blocks_for(tiles, warps) * shares.groups, warps * WARP, 0, p, shares);
}

}  // namespace

void multiply(const Product& product) {
    const size_t element = product.x.half ? sizeof(bf16) : sizeof(float);
    bool aligned = product.linear.inputs * element % 16 == 0;
    for (int m = 0; m < product.linear.count; m++)
        aligned &= reinterpret_cast<uintptr_t>(product.linear.matrices[m].weight) % 16 == 0;
    if (takes_bf16(product)) return multiply_bf16(product);
    auto run = product.x.half ? (aligned ? start<bf16, true> : start<bf16, false>)
                              : (aligned ? start<float, true> : start<float, false>);
    run(product);
}

}  // namespace jl::decoding
