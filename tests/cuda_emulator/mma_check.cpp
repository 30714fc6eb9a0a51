// The matrix functions as they are, for a test of their tables (test_mma.py), and a product by way of mma.cuh.
#include "mma.cuh"

namespace jl {

struct Lanes {
    uint32_t *left, *right;
    float* sums;
};

static void raw_product(Lanes lanes) {
    const int lane = threadIdx.x;
    uint32_t left[4];
    memcpy(left, lanes.left + lane * 4, sizeof left);
    float sums[4];
    memcpy(sums, lanes.sums + lane * 4, sizeof sums);
    multiply_add(sums, left, lanes.right[lane * 2], lanes.right[lane * 2 + 1]);
    memcpy(lanes.sums + lane * 4, sums, sizeof sums);
}

static void raw_load(const bf16* memory, int bytes, const int* rows, bool transposed, uint32_t* to) {
    bf16* shared = reinterpret_cast<bf16*>(shared_memory());
    if (threadIdx.x == 0) memcpy(shared, memory, bytes);
    __syncthreads();
    uint32_t found[4];
    const bf16* row = shared + rows[threadIdx.x];
    transposed ? load_matrices<true>(found, row) : load_matrices<false>(found, row);
    memcpy(to + threadIdx.x * 4, found, sizeof found);
}

constexpr int STRIDE = 24;

// sums (16, 16) = x (16, 16) · y, or · yᵀ; both by rows.
static void whole_product(const float* x, const float* y, bool transposed, float* to) {
    bf16* left = reinterpret_cast<bf16*>(shared_memory());
    bf16* right = left + 16 * STRIDE;
    const int lane = threadIdx.x;
    for (int i = lane; i < 128; i += 32) {
        const int at = i / 8 * STRIDE + i % 8 * 2;
        *reinterpret_cast<uint32_t*>(left + at) = rounded(x[2 * i], x[2 * i + 1]);
        *reinterpret_cast<uint32_t*>(right + at) = rounded(y[2 * i], y[2 * i + 1]);
    }
    __syncthreads();
    uint32_t a[4], b[4];
    load_left(a, left, STRIDE);
    transposed ? load_right_transposed(b, right, STRIDE) : load_right(b, right, STRIDE);
    float sums[2][4] = {};
    multiply_add(sums[0], a, b[0], b[1]);
    multiply_add(sums[1], a, b[2], b[3]);
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 4; i++) to[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = sums[half][i];
}

}  // namespace jl

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void jl_emulator_mma(uint32_t* left, uint32_t* right, float* sums) {
    jl::launch(jl::raw_product, 1, 32, 0, jl::Lanes{left, right, sums});
}

EXPORTED void jl_emulator_ldmatrix(const uint16_t* memory, int bytes, const int* rows, int transposed, uint32_t* to) {
    jl::launch(jl::raw_load, 1, 32, bytes, memory, bytes, rows, bool(transposed), to);
}

EXPORTED void jl_emulator_product(const float* x, const float* y, int transposed, float* to) {
    jl::launch(jl::whole_product, 1, 32, 2 * 16 * jl::STRIDE * sizeof(uint16_t), x, y, bool(transposed), to);
}
