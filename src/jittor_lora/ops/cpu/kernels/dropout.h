// The mask of `dropout_mask` in ops/portable.py: a hash of the element's number and two keys.
#pragma once
#include "vector.h"

namespace jl {

struct Dropout {
    bool on;
    uint32_t first, second, threshold;
    float scale;
    uint32_t offset;  // number of the first element

    static inline uvec mix(uvec h) {
        h = (h ^ (h >> 16)) * 0x7feb352du;
        h = (h ^ (h >> 15)) * 0x846ca68bu;
        return h ^ (h >> 16);
    }

    // 0 or 1 / (1 - p) for the elements that follow number `start`.
    inline vec mask(uint32_t start) const {
        uvec counter;
        for (int i = 0; i < W; i++) counter[i] = i;
        uvec bits = mix(mix((counter + (start + offset)) ^ first) ^ second) & 0x7fffffffu;
        return (vec)((uvec)(bits >= threshold) & (uvec)splat(scale));
    }
};

}  // namespace jl
