// Layer norm and RMS norm: a warp per row, two-pass statistics. The weights take no gradient.
#include "device.cuh"

namespace jl {

constexpr int ROWS_PER_BLOCK = 4;

struct Rows {
    int count, width;
    float eps;
};

// The row of this warp, or null beyond the last.
__device__ inline int64_t row_of_warp() { return int64_t(blockIdx.x) * ROWS_PER_BLOCK + threadIdx.x / WARP; }

template <class Term>
__device__ float sum_over(int width, Term term) {
    float sum = 0.f;
    for (int i = threadIdx.x % WARP; i < width; i += WARP) sum += term(i);
    return warp_sum(sum);
}

__device__ inline float deviation_of(const float* x, float mean, Rows rows) {
    float square = sum_over(rows.width, [=](int i) { return (x[i] - mean) * (x[i] - mean); });
    return sqrtf(square / rows.width + rows.eps);
}

__global__ void layer_norm_forward(const float* x, const float* weight, const float* bias, float* y, Rows rows) {
    int64_t row = row_of_warp();
    if (row >= rows.count) return;
    x += row * rows.width, y += row * rows.width;
    float mean = sum_over(rows.width, [=](int i) { return x[i]; }) / rows.width;
    float deviation = deviation_of(x, mean, rows);
    for (int i = threadIdx.x % WARP; i < rows.width; i += WARP) y[i] = (x[i] - mean) / deviation * weight[i] + bias[i];
}

// With n = (x - mean) / deviation and g = dy · weight: dx = (g - mean(g) - n · mean(g n)) / deviation.
__global__ void layer_norm_backward(const float* x, const float* weight, const float* dy, float* dx, Rows rows) {
    int64_t row = row_of_warp();
    if (row >= rows.count) return;
    x += row * rows.width, dy += row * rows.width, dx += row * rows.width;
    float mean = sum_over(rows.width, [=](int i) { return x[i]; }) / rows.width;
    float deviation = deviation_of(x, mean, rows);
    float average = sum_over(rows.width, [=](int i) { return dy[i] * weight[i]; }) / rows.width;
    float along = sum_over(rows.width, [=](int i) { return dy[i] * weight[i] * (x[i] - mean); }) / rows.width / deviation;
    for (int i = threadIdx.x % WARP; i < rows.width; i += WARP)
        dx[i] = (dy[i] * weight[i] - average - (x[i] - mean) / deviation * along) / deviation;
}

__global__ void rms_norm_forward(const float* x, const float* weight, float* y, Rows rows) {
    int64_t row = row_of_warp();
    if (row >= rows.count) return;
    x += row * rows.width, y += row * rows.width;
    float size = deviation_of(x, 0.f, rows);
    for (int i = threadIdx.x % WARP; i < rows.width; i += WARP) y[i] = x[i] / size * weight[i];
}

__global__ void rms_norm_backward(const float* x, const float* weight, const float* dy, float* dx, Rows rows) {
    int64_t row = row_of_warp();
    if (row >= rows.count) return;
    x += row * rows.width, dy += row * rows.width, dx += row * rows.width;
    float size = deviation_of(x, 0.f, rows);
    float along = sum_over(rows.width, [=](int i) { return dy[i] * weight[i] * x[i]; }) / rows.width / size;
    for (int i = threadIdx.x % WARP; i < rows.width; i += WARP) dx[i] = (dy[i] * weight[i] - x[i] / size * along) / size;
}

template <class Kernel, class... Arrays>
void over_rows(const Call& c, Kernel kernel, Arrays... arrays) {
    auto& [eps] = c.numbers<1>();
    Rows rows{c.size(0, 0), c.size(0, 1), float(eps)};
    launch(kernel, blocks_for(rows.count, ROWS_PER_BLOCK), ROWS_PER_BLOCK * WARP, 0, arrays..., rows);
}

}  // namespace jl

using namespace jl;

// x, weight, bias or upstream gradient; eps
JL_OPERATOR(layer_norm_forward) { over_rows(c, layer_norm_forward, c.in(0), c.in(1), c.in(2), c.out(0)); }

JL_OPERATOR(layer_norm_backward) { over_rows(c, layer_norm_backward, c.in(0), c.in(1), c.in(2), c.out(0)); }

JL_OPERATOR(rms_norm_forward) { over_rows(c, rms_norm_forward, c.in(0), c.in(1), c.out(0)); }

JL_OPERATOR(rms_norm_backward) { over_rows(c, rms_norm_backward, c.in(0), c.in(1), c.in(2), c.out(0)); }
