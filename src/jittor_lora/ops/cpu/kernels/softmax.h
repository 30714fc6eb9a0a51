// Softmax of one row of scores, forward and backward: shared by attention in float32 and bf16, decoding and the loss.
#pragma once
#include "vector.h"

namespace jl {

struct Exponentials {
    float highest, sum;  // of scale · score, and of e^(scale · score - highest)

    float log_sum() const { return highest + std::log(sum); }  // log-sum-exp of scale · score
};

// Calls use(i, e) with the vectors e^(scale · score - highest) of a row of `count` scores, a multiple of W. Subtracting
// the highest keeps e in (0, 1]. A score of -∞ gives 0: that is how keys that a row must not see are masked.
template <class Use>
static inline Exponentials exponentials(const float* scores, int count, float scale, Use use) {
    vec top = splat(-INFINITY), total{};
    for (int i = 0; i < count; i += W) top = max(top, load(scores + i));
    const float highest = maximum(top) * scale;
    for (int i = 0; i < count; i += W) {
        vec e = exp(load(scores + i) * scale - highest);
        use(i, e);
        total += e;
    }
    return {highest, sum(total)};
}

// The weights P and scale · dS, the gradient for Q Kᵀ: see attention.h.
struct WeightsAndGradient {
    vec p, ds;
};

static inline WeightsAndGradient softmax_backward(vec scaled_score, float log_sum, vec dp, float delta, float scale) {
    vec p = exp(scaled_score - log_sum);
    return {p, p * (dp - delta) * scale};
}

}  // namespace jl
