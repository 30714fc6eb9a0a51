// AdamW, and the squared norms of gradients.
#include <math.h>

#include "call.h"
#include "parallel.h"

namespace jl {

// a · b + c, fused (rounded once) where the processor can.
static inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

struct Step {
    float beta1, rest1, beta2, rest2;  // rest: 1 - beta, computed in double by the caller
    float decay;                       // 1 - learning rate · weight decay
    float rate;                        // learning rate / (1 - beta1^t)
    float correction;                  // √(1 - beta2^t)
    float epsilon, factor;             // factor: of the gradient, for clipping
};

// One step of AdamW (Loshchilov and Hutter, 2019), in one pass over memory:
//     m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
//     p ← p (1 - η λ) - η / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)
// The fused multiply-adds are written out, so that the compiler has no choice of roundings.
static void adamw(Step s, const float* __restrict__ p, const float* __restrict__ g, const float* __restrict__ m,
                  const float* __restrict__ v, float* __restrict__ new_p, float* __restrict__ new_m,
                  float* __restrict__ new_v, int64_t count) {
    float inverse = 1.f / s.correction;
    for (int64_t i = 0; i < count; i++) {
        float gradient = g[i] * s.factor;
        float first = fused(m[i], s.beta1, gradient * s.rest1);
        float second = fused(v[i], s.beta2, gradient * gradient * s.rest2);
        new_p[i] = fused(p[i], s.decay, -(first * s.rate / fused(sqrtf(second), inverse, s.epsilon)));
        new_m[i] = first, new_v[i] = second;
    }
}

// Added in order and rounded after each operation: the sum must not depend on the width of a vector.
__attribute__((optimize("fp-contract=off"))) static float squared(const float* x, int64_t count) {
    float sum = 0.f;
    for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
    return sum;
}

}  // namespace jl

using namespace jl;

// n parameters, their gradients, first and second moments → parameters and moments after the step. The numbers end with
// decay and rate of each parameter.
JL_OPERATOR(adamw) {
    const double* numbers = c.values;
    Step step{};
    step.beta1 = numbers[0], step.rest1 = numbers[1], step.beta2 = numbers[2], step.rest2 = numbers[3];
    step.correction = numbers[4], step.epsilon = numbers[5], step.factor = numbers[6];
    int n = c.input_count / 4;
    for (int i = 0; i < n; i++) {
        step.decay = numbers[7 + 2 * i], step.rate = numbers[8 + 2 * i];
        parallel_pieces(c.outputs[i].count, [&](int64_t at, int64_t count) {
            adamw(step, c.in(i) + at, c.in(n + i) + at, c.in(2 * n + i) + at, c.in(3 * n + i) + at, c.out(i) + at,
                  c.out(n + i) + at, c.out(2 * n + i) + at, count);
        });
    }
}

// The sum of squares of each input: (inputs,).
JL_OPERATOR(squared_norms) {
    parallel_evenly(c.input_count, [&](int i) { c.out(0)[i] = squared(c.in(i), c.inputs[i].count); });
}
