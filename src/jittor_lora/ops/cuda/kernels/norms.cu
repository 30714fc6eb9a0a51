// Layer norm and RMS norm, with two-pass statistics. The weights take no gradient.
//
// Bound by bytes. A row is read once: its threads, a warp for up to 1,024 numbers, a block for more, keep up to 32
// numbers each in registers. What is beyond 16,384 is read again in each pass.
#include <algorithm>

#include "packs.cuh"

namespace jl {
namespace {

constexpr int KEPT = 8;            // packs that a thread keeps
constexpr int MAX_THREADS = 512;   // per row, with 128 registers for each: the backward pass keeps two rows
constexpr int ROWS_PER_BLOCK = 4;  // of rows with one warp each

struct Rows {
    int count, width;
    float eps;
};

// A thread's packs of a row, `blockDim.x` apart: calls use(i, j) with the position and the number of each. `j` is KEPT
// for all that are not kept.
template <int N, class Use>
__device__ void each_pack(int width, Use use) {
#pragma unroll
    for (int j = 0; j < KEPT; j++) {
        int i = (threadIdx.x + j * blockDim.x) * N;
        if (i < width) use(i, j);
    }
    for (int i = (threadIdx.x + KEPT * blockDim.x) * N; i < width; i += blockDim.x * N) use(i, KEPT);
}

template <int N>
struct Row {
    const float* memory;
    Pack<N> kept[KEPT];

    __device__ Row(const float* memory, int width) : memory(memory) {
        each_pack<N>(width, [&](int i, int j) {
            if (j < KEPT) kept[j] = load<N>(memory + i);
        });
    }
    __device__ Pack<N> get(int i, int j) const { return j < KEPT ? kept[j] : load<N>(memory + i); }
};

// The sum of term(i, j, k), k within the pack, over a row.
template <int N, class Term>
__device__ float sum_over(int width, Term term) {
    __shared__ float room[MAX_THREADS / WARP];
    float sum = 0.f;
    each_pack<N>(width, [&](int i, int j) {
#pragma unroll
        for (int k = 0; k < N; k++) sum += term(i, j, k);
    });
    return blockDim.x == WARP ? warp_sum(sum) : block_sum(sum, room);
}

struct Moments {
    float mean, inverse;  // inverse: 1 / standard deviation, or 1 / root mean square
};

template <int N, bool CENTRED>
__device__ Moments moments(const Row<N>& x, Rows rows) {
    float mean = 0.f;
    if (CENTRED) mean = sum_over<N>(rows.width, [&](int i, int j, int k) { return x.get(i, j)[k]; }) / rows.width;
    float square = sum_over<N>(rows.width, [&](int i, int j, int k) {
        float centred = x.get(i, j)[k] - mean;
        return centred * centred;
    });
    return {mean, 1.f / sqrtf(square / rows.width + rows.eps)};
}

// This thread's row. One beyond the last is only found where rows have a warp each, which waits for no other.
__device__ inline int64_t row_number() { return int64_t(blockIdx.x) * blockDim.y + threadIdx.y; }

template <int N, bool CENTRED>
__global__ void __launch_bounds__(MAX_THREADS)
norm_forward(const float* x, const float* weight, const float* bias, float* y, Rows rows) {
    int64_t number = row_number();
    if (number >= rows.count) return;
    Row<N> row(x + number * rows.width, rows.width);
    Moments m = moments<N, CENTRED>(row, rows);
    y += number * rows.width;
    each_pack<N>(rows.width, [&](int i, int j) {
        Pack<N> values = row.get(i, j), w = load<N>(weight + i), b{};
        if (CENTRED) b = load<N>(bias + i);
#pragma unroll
        for (int k = 0; k < N; k++) values[k] = (values[k] - m.mean) * m.inverse * w[k] + b[k];
        store(y + i, values);
    });
}

// With n = (x - mean) / deviation and g = dy · weight: dx = (g - mean(g) - n · mean(g n)) / deviation; RMS norm has no
// mean(g).
template <int N, bool CENTRED>
__global__ void __launch_bounds__(MAX_THREADS)
norm_backward(const float* x, const float* weight, const float* dy, float* dx, Rows rows) {
    int64_t number = row_number();
    if (number >= rows.count) return;
    Row<N> row(x + number * rows.width, rows.width), upstream(dy + number * rows.width, rows.width);
    each_pack<N>(rows.width, [&](int i, int j) {
        if (j == KEPT) return;
        Pack<N> w = load<N>(weight + i);
#pragma unroll
        for (int k = 0; k < N; k++) upstream.kept[j][k] *= w[k];
    });
    auto g = [&](int i, int j, int k) {
        return j < KEPT ? upstream.kept[j][k] : upstream.memory[i + k] * weight[i + k];
    };
    Moments m = moments<N, CENTRED>(row, rows);
    auto normal = [&](int i, int j, int k) { return (row.get(i, j)[k] - m.mean) * m.inverse; };
    float average = CENTRED ? sum_over<N>(rows.width, g) / rows.width : 0.f;
    auto product = [&](int i, int j, int k) { return g(i, j, k) * normal(i, j, k); };
    float along = sum_over<N>(rows.width, product) / rows.width;
    dx += number * rows.width;
    each_pack<N>(rows.width, [&](int i, int j) {
        Pack<N> made;
#pragma unroll
        for (int k = 0; k < N; k++) made[k] = (g(i, j, k) - average - normal(i, j, k) * along) * m.inverse;
        store(dx + i, made);
    });
}

using Norm = void (*)(const float*, const float*, const float*, float*, Rows);

void over_rows(const Call& c, Norm in_fours, Norm one_by_one, const float* third) {
    auto& [eps] = c.numbers<1>();
    Rows rows{c.size(0, 0), c.size(0, 1), float(eps)};
    bool fours = jl::in_fours(rows.width, {c.in(0), c.in(1), third, c.out(0)});
    int per_thread = KEPT * (fours ? 4 : 1);
    int threads = std::min(MAX_THREADS, int(blocks_for(rows.width, per_thread * WARP)) * WARP);
    int per_block = threads == WARP ? ROWS_PER_BLOCK : 1;
    launch(fours ? in_fours : one_by_one, blocks_for(rows.count, per_block), dim3(threads, per_block), 0, c.in(0),
           c.in(1), third, c.out(0), rows);
}

}  // namespace
}  // namespace jl

using namespace jl;

// x, weight, bias or upstream gradient; eps
JL_OPERATOR(layer_norm_forward) { over_rows(c, norm_forward<4, true>, norm_forward<1, true>, c.in(2)); }

JL_OPERATOR(layer_norm_backward) { over_rows(c, norm_backward<4, true>, norm_backward<1, true>, c.in(2)); }

JL_OPERATOR(rms_norm_forward) { over_rows(c, norm_forward<4, false>, norm_forward<1, false>, nullptr); }

JL_OPERATOR(rms_norm_backward) { over_rows(c, norm_backward<4, false>, norm_backward<1, false>, c.in(2)); }
