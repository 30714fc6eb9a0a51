// Activations and the rotation of queries and keys.
#include "parallel.h"
#include "rows.h"
#include "vector.h"

namespace jl {

// Calls body(i, n) as `each` does, in all threads.
template <class Body>
static void spread(int64_t count, Body body) {
    parallel_pieces(count, [&](int64_t at, int64_t size) { each(size, [&](int64_t i, int n) { body(at + i, n); }); });
}

}  // namespace jl

using namespace jl;

JL_API void jl_gelu_forward(const float* x, float* y, int64_t count) {
    spread(count, [=](int64_t i, int n) { put(y + i, gelu(get(x + i, n)), n); });
}

JL_API void jl_gelu_backward(const float* x, const float* dy, float* dx, int64_t count) {
    spread(count, [=](int64_t i, int n) { put(dx + i, get(dy + i, n) * gelu_slope(get(x + i, n)), n); });
}

// silu(gate) · up
JL_API void jl_swiglu_forward(const float* gate, const float* up, float* y, int64_t count) {
    spread(count, [=](int64_t i, int n) {
        vec g = get(gate + i, n);
        put(y + i, g * sigmoid(g) * get(up + i, n), n);
    });
}

JL_API void jl_swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count) {
    spread(count, [=](int64_t i, int n) {
        vec g = get(gate + i, n), s = sigmoid(g), y = get(dy + i, n);
        put(dgate + i, y * get(up + i, n) * s * (1.f + g * (1.f - s)), n);
        put(dup + i, y * g * s, n);
    });
}

// Pairs (x_i, x_{i + d/2}) of each head turned by the angles of the row; sign -1 turns them back.
JL_API void jl_rotary(const float* x, const float* cosine, const float* sine, float* y, int rows, int heads, int d, double sign) {
    int half = d / 2;
    parallel_evenly(rows, [&](int r) {
        for (int h = 0; h < heads; h++) {
            const float *first = x + (size_t(r) * heads + h) * d, *second = first + half;
            float* to = y + (size_t(r) * heads + h) * d;
            each(half, [&](int64_t i, int n) {
                vec a = get(first + i, n), b = get(second + i, n);
                vec c = get(cosine + size_t(r) * half + i, n), s = get(sine + size_t(r) * half + i, n) * float(sign);
                put(to + i, a * c - b * s, n);
                put(to + half + i, b * c + a * s, n);
            });
        }
    });
}
