// Activations and rotary positions, forward and backward.
#include "elementwise.h"
#include "parallel.h"
#include "rows.h"

namespace jl {

// Calls body(i, n) as `each` does, with all threads.
template <class Body>
static void parallel_each(int64_t count, Body body) {
    parallel_pieces(count, [&](int64_t at, int64_t size) { each(size, [&](int64_t i, int n) { body(at + i, n); }); });
}

}  // namespace jl

using namespace jl;

JL_API void jl_gelu_forward(const float* x, float* y, int64_t count) {
    parallel_each(count, [=](int64_t i, int n) { put(y + i, gelu(get(x + i, n)), n); });
}

JL_API void jl_gelu_backward(const float* x, const float* dy, float* dx, int64_t count) {
    parallel_each(count, [=](int64_t i, int n) { put(dx + i, get(dy + i, n) * gelu_derivative(get(x + i, n)), n); });
}

// y = silu(gate) · up
JL_API void jl_swiglu_forward(const float* gate, const float* up, float* y, int64_t count) {
    parallel_each(count, [=](int64_t i, int n) { put(y + i, silu(get(gate + i, n)) * get(up + i, n), n); });
}

// With s = sigmoid(g): d silu / dg = s + g s (1 - s) = s (1 + g (1 - s)).
JL_API void jl_swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count) {
    parallel_each(count, [=](int64_t i, int n) {
        vec g = get(gate + i, n), s = sigmoid(g), y = get(dy + i, n);
        put(dgate + i, y * get(up + i, n) * s * (1.f + g * (1.f - s)), n);
        put(dup + i, y * g * s, n);
    });
}

// x (rows, heads, d): each head is rotated by its row's angles. The backward pass of a rotation is the inverse one.
JL_API void jl_rotary(const float* x, const float* cosine, const float* sine, float* y, int rows, int heads, int d, double sign) {
    const int half = d / 2;
    parallel_evenly(rows, [&](int r) {
        for (int h = 0; h < heads; h++) {
            const size_t at = (size_t(r) * heads + h) * d, angle = size_t(r) * half;
            rotate(x + at, cosine + angle, sine + angle, y + at, half, float(sign));
        }
    });
}
