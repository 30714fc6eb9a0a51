// Activations of a number and their derivatives: shared by the operators and decoding.
#pragma once
#include "device.cuh"

namespace jl {

// e^-x is the exact function, not the approximation by __expf. Where it overflows, 1 / ∞ is 0.
__device__ inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// Since (1 + tanh z) / 2 = sigmoid(2z), with u(x) = 2 √(2/π) (x + 0.044715 x³) and s(x) = sigmoid(u(x)):
//     gelu(x) = x s,  gelu'(x) = s + x s (1 - s) u'(x)
// The accuracy of tanh depends on the compiler's flags, that of this form does not.
constexpr float TWICE_ROOT_2_PI = 1.5957691216057308f;
constexpr float GELU_CUBIC = 0.044715f;

// Beyond ±12 the sigmoid is 0 or 1; x³ must not overflow. NaN stays.
__device__ inline float gelu_clamped(float x) { return x > 12.f ? 12.f : x < -12.f ? -12.f : x; }

__device__ inline float gelu_sigmoid(float clamped) {
    return sigmoid(TWICE_ROOT_2_PI * (clamped + GELU_CUBIC * clamped * clamped * clamped));
}

__device__ inline float gelu(float x) { return x * gelu_sigmoid(gelu_clamped(x)); }

__device__ inline float gelu_derivative(float x) {
    float y = gelu_clamped(x), s = gelu_sigmoid(y);
    return s + y * s * (1.f - s) * (TWICE_ROOT_2_PI * (1.f + 3 * GELU_CUBIC * y * y));
}

}  // namespace jl
