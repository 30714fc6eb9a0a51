// Activations of a vector, their derivatives, and rotary positions: shared by the operators and decoding.
#pragma once
#include "vector.h"

namespace jl {

static inline vec sigmoid(vec x) { return 1.f / (1.f + exp(-x)); }

// GELU in its tanh form: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))). Since (1 + tanh z) / 2 = sigmoid(2z), that is
//     gelu(x)  = x s(x),              s(x) = sigmoid(u(x)),  u(x) = 2 √(2/π) (x + 0.044715 x³)
//     gelu'(x) = s + x s (1 - s) u',  u'(x) = 2 √(2/π) (1 + 3 · 0.044715 x²)
constexpr float TWICE_ROOT_2_PI = 1.5957691216057308f;
constexpr float GELU_CUBIC = 0.044715f;

// Beyond ±12 the sigmoid is 0 or 1 in float; x³ must not overflow.
static inline vec gelu_clamped(vec x) { return min(max(x, splat(-12.f)), splat(12.f)); }

static inline vec gelu_sigmoid(vec x) {
    vec y = gelu_clamped(x);
    return sigmoid(TWICE_ROOT_2_PI * (y + GELU_CUBIC * y * y * y));
}

static inline vec gelu(vec x) { return x * gelu_sigmoid(x); }

static inline vec gelu_derivative(vec x) {
    vec s = gelu_sigmoid(x);
    vec y = gelu_clamped(x);
    return s + y * s * (1.f - s) * (TWICE_ROOT_2_PI * (1.f + 3 * GELU_CUBIC * y * y));
}

static inline vec silu(vec x) { return x * sigmoid(x); }

// y = x with each pair (x_i, x_{i + half}) rotated by the angle of cosine i and sine i; sign -1 rotates back. y may be
// x.
static inline void rotate(const float* x, const float* cosines, const float* sines, float* y, int half, float sign) {
    each(half, [&](int64_t i, int n) {
        vec a = get(x + i, n), b = get(x + half + i, n);
        vec c = get(cosines + i, n), s = get(sines + i, n) * sign;
        put(y + i, a * c - b * s, n);
        put(y + half + i, b * c + a * s, n);
    });
}

}  // namespace jl
