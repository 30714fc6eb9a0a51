// Layer norm and RMS norm of one row: shared by the operators and decoding.
#pragma once
#include "vector.h"

namespace jl {

struct Moments {
    float mean, inverse;  // inverse: 1 / standard deviation, or 1 / root mean square
};

// Two passes: the one-pass variance, mean(x²) - mean(x)², loses its digits on rows with a large mean. `centred`: layer
// norm; else RMS norm, whose mean is 0.
static inline Moments moments(const float* x, int d, float eps, bool centred) {
    float mean = 0;
    if (centred) {
        vec s{};
        each(d, [&](int64_t i, int n) { s += get(x + i, n); });
        mean = sum(s) / d;
    }
    vec s{};
    each(d, [&](int64_t i, int n) {
        vec c = get(x + i, n) - mean;
        if (n < W) c = first(c, n);  // the lanes beyond hold -mean
        s += c * c;
    });
    return {mean, 1.f / std::sqrt(sum(s) / d + eps)};
}

// y = (x - mean) / deviation · weight + bias; without a bias RMS norm, y = x / root mean square · weight.
static inline void norm_row(const float* x, const float* weight, const float* bias, float* y, int d, float eps, bool centred) {
    const Moments m = moments(x, d, eps, centred);
    each(d, [&](int64_t i, int n) { put(y + i, (get(x + i, n) - m.mean) * m.inverse * get(weight + i, n), n); });
    // In a separate loop, so that it rounds separately: whether a compiler fuses it into the product would show in the
    // bits.
    if (bias) each(d, [&](int64_t i, int n) { put(y + i, get(y + i, n) + get(bias + i, n), n); });
}

}  // namespace jl
