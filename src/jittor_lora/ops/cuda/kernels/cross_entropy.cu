// Cross-entropy with label smoothing, and its gradient for the hidden states, with the logits of PANEL_ROWS rows at a
// time.
//
// For a row with logits z = hidden · headᵀ over V entries, label y, weight w and smoothing ε:
//     loss = w · (lse(z) - (1 - ε) z_y - ε · mean(z)),  lse(z) = log Σ_j e^{z_j}
//     dz_j = w · (e^{z_j - lse} - ε / V - (1 - ε) [j = y]),  dhidden = dz · head
//
// Bound by the two products; for a few rows, by reading the head twice. In between, the logits are read and dz is
// written by a block per row, from the L2 cache where that holds a panel.
#include <algorithm>

#include "packs.cuh"
#include "product.cuh"
#include "scratch.cuh"

namespace jl {
namespace {

constexpr int PANEL_ROWS = 256;      // 256 · 50,257 logits are 49 MiB
constexpr int LOSS_THREADS = 1024;   // of a row: there may be few rows
constexpr int LOGITS_UNIT = 64;      // a row of logits begins at a multiple of this
constexpr float LOWEST = -3.402823466e38f;  // below every finite logit; unlike -∞, e^(-∞ - LOWEST) is 0

// A sum of exponentials, relative to the highest exponent so far.
struct Exponentials {
    float highest, sum;
};

// NaN is no maximum: it goes into the sum, and stays.
__device__ inline void include(Exponentials& e, const Pack<4>& z, int count) {
    float highest = e.highest;
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (k < count) highest = fmaxf(highest, z[k]);
    if (highest > e.highest) e.sum *= expf(e.highest - highest), e.highest = highest;
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (k < count) e.sum += expf(z[k] - highest);
}

// Of all threads of the block; `room`: a float per warp.
__device__ Exponentials combined(Exponentials e, float* room) {
    float highest = warp_max(e.highest);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = highest;
    __syncthreads();
    for (int warp = 0; warp < LOSS_THREADS / WARP; warp++) highest = fmaxf(highest, room[warp]);
    __syncthreads();
    return {highest, block_sum(e.sum * expf(e.highest - highest), room)};
}

struct Softmax {
    const float* logits;  // (rows, stride)
    float* gradient;      // (rows, stride), may be the logits; or
    bf16* gradient_bf16;  // its place in bf16, the same; both null if none is wanted. Zeros from `size` to `padded`
    double* losses;       // (rows,)
    const int* labels;
    const float* weights;
    int size, padded;
    int64_t stride;
    float smoothing;
};

// A block per row: its loss, and dz. Logits are read twice.
__global__ void __launch_bounds__(LOSS_THREADS) softmax_of_rows(Softmax of) {
    __shared__ float room[LOSS_THREADS / WARP];
    int64_t row = blockIdx.x;
    const float* logits = of.logits + row * of.stride;
    Exponentials e{LOWEST, 0.f};
    float all = 0.f;
    for (int first = threadIdx.x * 4; first < of.size; first += LOSS_THREADS * 4) {
        Pack<4> z = load<4>(logits + first);
        int count = of.size - first;
        include(e, z, count);
        for (int k = 0; k < 4 && k < count; k++) all += z[k];
    }
    e = combined(e, room);
    if (of.smoothing > 0.f) all = block_sum(all, room);
    float w = of.weights[row];
    int label = of.labels[row];
    if (threadIdx.x == 0) {
        double lse = double(e.highest) + log(double(e.sum)), smoothing = of.smoothing;
        double expected = (1 - smoothing) * logits[label];
        if (of.smoothing > 0.f) expected += smoothing / of.size * all;
        of.losses[row] = w * (lse - expected);
    }
    if (!of.gradient && !of.gradient_bf16) return;
    __syncthreads();  // the label's logit has been read: dz may take its place
    float lse = e.highest + logf(e.sum), for_all = w * (of.smoothing / of.size), for_label = w * (1.f - of.smoothing);
    for (int first = threadIdx.x * 4; first < of.padded; first += LOSS_THREADS * 4) {
        Pack<4> z = load<4>(logits + first);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int j = first + k;
            z[k] = j < of.size ? expf(z[k] - lse) * w - for_all - (j == label ? for_label : 0.f) : 0.f;
        }
        if (of.gradient) {
            store(of.gradient + row * of.stride + first, z);
        } else {
            uint2 halves{to_bf16(z[0]) | uint32_t(to_bf16(z[1])) << 16, to_bf16(z[2]) | uint32_t(to_bf16(z[3])) << 16};
            *reinterpret_cast<uint2*>(of.gradient_bf16 + row * of.stride + first) = halves;
        }
    }
}

__global__ void rounded(const float* from, bf16* to, int64_t count) {
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = to_bf16(from[i]);
}

// In one block: the loss of a batch.
__global__ void __launch_bounds__(LOSS_THREADS) summed(const double* losses, int count, float* sum) {
    __shared__ double sums[LOSS_THREADS];
    double mine = 0;
    for (int i = threadIdx.x; i < count; i += LOSS_THREADS) mine += losses[i];
    sums[threadIdx.x] = mine;
    for (unsigned half = LOSS_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *sum = float(sums[0]);
}

// The products of a panel: of float32 with float32, or bf16 with bf16.
template <class T>
void panels(const Call& c, const T* hidden, const T* head, Scratch& scratch, double* losses) {
    auto& [wanted, storage, precision, size, smoothing] = c.numbers<5>();
    constexpr bool IS_BF16 = sizeof(T) == sizeof(bf16);
    const int rows = c.size(0, 0), width = c.size(0, 1), padded = c.size(1, 0);
    const int panels = int(blocks_for(rows, PANEL_ROWS)), height = int(blocks_for(rows, std::max(panels, 1)));
    const int64_t stride = int64_t(blocks_for(padded, LOGITS_UNIT)) * LOGITS_UNIT;
    float* logits = scratch.take<float>(height * stride);
    bf16* halves = IS_BF16 && wanted ? scratch.take<bf16>(height * stride) : nullptr;
    for (int start = 0; start < rows; start += height) {
        const int count = std::min(height, rows - start);
        product(rows_of(hidden + int64_t(start) * width, width), transpose(rows_of(head, width)), logits, stride, count,
                padded, width, 1.f, 0.f, nullptr, Precision(int(precision)));
        Softmax of{logits, wanted && !IS_BF16 ? logits : nullptr, halves, losses + start, c.indices(4) + start,
                   c.in(5) + start, int(size), padded, stride, float(smoothing)};
        launch(softmax_of_rows, count, LOSS_THREADS, 0, of);
        if (!wanted) continue;
        float* gradient = c.out(1) + int64_t(start) * width;
        if constexpr (IS_BF16)
            product(rows_of(halves, stride), rows_of(head, width), gradient, width, count, width, padded);
        else
            product(rows_of(logits, stride), rows_of(head, width), gradient, width, count, width, padded, 1.f, 0.f,
                    nullptr, Precision(int(precision)));
    }
}

}  // namespace
}  // namespace jl

using namespace jl;

// hidden (M, D); head (V, D) in float32, or in bf16 with rows of zeros up to a multiple; two inputs that are not read;
// labels, weights
JL_OPERATOR(cross_entropy) {
    Scratch scratch;
    const int rows = c.size(0, 0), width = c.size(0, 1);
    double* losses = scratch.take<double>(rows);
    if (Precision(int(c.values[2])) == Precision::BF16) {
        int64_t count = int64_t(rows) * width;
        bf16* hidden = scratch.take<bf16>(count);
        launch(rounded, blocks_for(count, 256), 256, 0, c.in(0), hidden, count);
        panels(c, hidden, reinterpret_cast<const bf16*>(c.bytes(1)), scratch, losses);
    } else {
        panels(c, c.in(0), c.in(1), scratch, losses);
    }
    launch(summed, 1, LOSS_THREADS, 0, losses, rows, c.out(0));
}
