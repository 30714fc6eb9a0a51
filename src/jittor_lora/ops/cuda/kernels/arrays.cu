// Between the layers: sums of arrays, multiples of an array, and gathering rows. Bound by bytes.
#include <algorithm>

#include "packs.cuh"

namespace jl {
namespace {

constexpr int ARRAY_THREADS = 256;
constexpr int TERMS = 16;  // of a sum, added in one launch

struct Terms {
    const float* at[TERMS];
    int count;
};

template <int N>
__global__ void sum(Terms terms, float* y, int64_t count) {
    int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= count) return;
    Pack<N> total = load<N>(terms.at[0] + i);
    for (int term = 1; term < terms.count; term++) {
        Pack<N> more = load<N>(terms.at[term] + i);
#pragma unroll
        for (int k = 0; k < N; k++) total[k] += more[k];
    }
    store(y + i, total);
}

template <int N>
__global__ void scale(const float* x, const float* factor, float* y, int64_t count) {
    int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (i >= count) return;
    Pack<N> values = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; k++) values[k] *= *factor;
    store(y + i, values);
}

// dividend / divisor; the dividend is 1 if null.
__global__ void quotient(const float* dividend, float divisor, float* y) {
    if (threadIdx.x == 0) *y = (dividend ? *dividend : 1.f) / divisor;
}

// y_i = x_{j_i}: a block per row.
template <int N, class T>
__global__ void rows_forward(const T* x, const int* index, float* y, int width) {
    x += int64_t(index[blockIdx.x]) * width, y += int64_t(blockIdx.x) * width;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) store(y + i, load<N>(x + i));
}

// dx_j is the sum of the rows of dy that were taken from x_j, in their order: a block per row of dx, whose warps each
// look for j in the index. It is read, from the cache, as often as dx has rows, but is short: of label rows alone.
template <int N>
__global__ void rows_backward(const float* dy, const int* index, int count, float* dx, int width) {
    int row = blockIdx.x;
    dx += int64_t(row) * width;
    for (int start = 0; start < width; start += blockDim.x * N) {  // whole warps go on, for the votes
        int i = start + threadIdx.x * N;
        Pack<N> total{};
        for (int first = 0; first < count; first += WARP) {
            int source = first + threadIdx.x % WARP;
            unsigned found = __ballot_sync(ALL_LANES, source < count && index[source] == row);
            for (; found; found &= found - 1) {
                int64_t from = first + __ffs(found) - 1;
                if (i >= width) continue;
                Pack<N> more = load<N>(dy + from * width + i);
#pragma unroll
                for (int k = 0; k < N; k++) total[k] += more[k];
            }
        }
        if (i < width) store(dx + i, total);
    }
}

// Elements per row.
inline int width_of(const Array& array) { return array.shape[0] ? int(array.count / array.shape[0]) : 0; }

inline unsigned threads_for(int packs) { return std::min(unsigned(ARRAY_THREADS), blocks_for(packs, WARP) * WARP); }

}  // namespace
}  // namespace jl

using namespace jl;

// The sum of the inputs, added in their order.
JL_OPERATOR(sum) {
    int64_t count = c.outputs[0].count;
    for (int first = 0; first < c.input_count; first += TERMS - 1) {  // from the second launch on to what is there
        Terms terms{};
        bool fours = in_fours(count, {c.out(0)});
        if (first) terms.at[terms.count++] = c.out(0);
        for (int i = first; i < c.input_count && i < first + TERMS - 1; i++) {
            terms.at[terms.count++] = c.in(i);
            fours = fours && in_fours(count, {c.in(i)});
        }
        launch(fours ? jl::sum<4> : jl::sum<1>, blocks_for(count, ARRAY_THREADS * (fours ? 4 : 1)), ARRAY_THREADS, 0,
               terms, c.out(0), count);
    }
}

// The first input times the second, which is one number.
JL_OPERATOR(scale) {
    int64_t count = c.outputs[0].count;
    bool fours = in_fours(count, {c.in(0), c.out(0)});
    launch(fours ? scale<4> : scale<1>, blocks_for(count, ARRAY_THREADS * (fours ? 4 : 1)), ARRAY_THREADS, 0, c.in(0),
           c.in(1), c.out(0), count);
}

// loss / n, and its gradient 1 / n.
JL_OPERATOR(divide) {
    auto& [divisor] = c.numbers<1>();
    launch(quotient, 1, WARP, 0, c.in(0), divisor, c.out(0));
}

JL_OPERATOR(reciprocal) {
    auto& [divisor] = c.numbers<1>();
    launch(quotient, 1, WARP, 0, nullptr, divisor, c.out(0));
}

template <class T>
static void gathered(const Call& c, const T* x) {
    int width = width_of(c.inputs[0]);
    bool fours = in_fours(width, {x, c.out(0)});
    launch(fours ? rows_forward<4, T> : rows_forward<1, T>, unsigned(c.inputs[1].count),
           threads_for(width / (fours ? 4 : 1)), 0, x, c.indices(1), c.out(0), width);
}

JL_OPERATOR(rows_forward) { gathered(c, c.in(0)); }

// A table in float32 or bf16, ids
JL_OPERATOR(embedding) {
    auto& [is_bf16] = c.numbers<1>();
    is_bf16 ? gathered(c, reinterpret_cast<const bf16*>(c.bytes(0))) : gathered(c, c.in(0));
}

// The upstream gradient, indices
JL_OPERATOR(rows_backward) {
    int width = width_of(c.outputs[0]);
    bool fours = in_fours(width, {c.in(0), c.out(0)});
    launch(fours ? rows_backward<4> : rows_backward<1>, unsigned(c.outputs[0].shape[0]),
           threads_for(width / (fours ? 4 : 1)), 0, c.in(0), c.indices(1), int(c.inputs[1].count), c.out(0), width);
}
