// GELU in its tanh form and SwiGLU, forward and backward. Bound by bytes: each number is read and written once.
#include "activations.cuh"
#include "packs.cuh"

namespace jl {
namespace {

constexpr int ELEMENTWISE_THREADS = 256;

// The first of a thread's N numbers.
template <int N>
__device__ int64_t place() {
    return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
}

template <int N>
__global__ void gelu_forward(const float* x, float* y, int64_t count) {
    int64_t i = place<N>();
    if (i >= count) return;
    Pack<N> values = load<N>(x + i);
#pragma unroll
    for (int k = 0; k < N; k++) values[k] = gelu(values[k]);
    store(y + i, values);
}

template <int N>
__global__ void gelu_backward(const float* x, const float* dy, float* dx, int64_t count) {
    int64_t i = place<N>();
    if (i >= count) return;
    Pack<N> values = load<N>(x + i), upstream = load<N>(dy + i);
#pragma unroll
    for (int k = 0; k < N; k++) values[k] = upstream[k] * gelu_derivative(values[k]);
    store(dx + i, values);
}

// y = silu(gate) · up
template <int N>
__global__ void swiglu_forward(const float* gate, const float* up, float* y, int64_t count) {
    int64_t i = place<N>();
    if (i >= count) return;
    Pack<N> g = load<N>(gate + i), u = load<N>(up + i);
#pragma unroll
    for (int k = 0; k < N; k++) g[k] = g[k] * sigmoid(g[k]) * u[k];
    store(y + i, g);
}

// With s = sigmoid(g): d silu / dg = s (1 + g (1 - s)).
template <int N>
__global__ void swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                                int64_t count) {
    int64_t i = place<N>();
    if (i >= count) return;
    Pack<N> g = load<N>(gate + i), u = load<N>(up + i), upstream = load<N>(dy + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float s = sigmoid(g[k]), to_up = upstream[k] * g[k] * s;
        g[k] = upstream[k] * u[k] * s * (1.f + g[k] * (1.f - s));
        u[k] = to_up;
    }
    store(dgate + i, g);
    store(dup + i, u);
}

template <class Kernel, class... Arrays>
void over_numbers(int64_t count, Kernel* fours, Kernel* ones, Arrays... arrays) {
    bool wide = in_fours(count, {arrays...});
    launch(wide ? fours : ones, blocks_for(count, ELEMENTWISE_THREADS * (wide ? 4 : 1)), ELEMENTWISE_THREADS, 0,
           arrays..., count);
}

}  // namespace
}  // namespace jl

using namespace jl;

JL_OPERATOR(gelu_forward) { over_numbers(c.inputs[0].count, gelu_forward<4>, gelu_forward<1>, c.in(0), c.out(0)); }

JL_OPERATOR(gelu_backward) {
    over_numbers(c.inputs[0].count, gelu_backward<4>, gelu_backward<1>, c.in(0), c.in(1), c.out(0));
}

JL_OPERATOR(swiglu_forward) {
    over_numbers(c.inputs[0].count, swiglu_forward<4>, swiglu_forward<1>, c.in(0), c.in(1), c.out(0));
}

JL_OPERATOR(swiglu_backward) {
    over_numbers(c.inputs[0].count, swiglu_backward<4>, swiglu_backward<1>, c.in(0), c.in(1), c.in(2), c.out(0),
                 c.out(1));
}
