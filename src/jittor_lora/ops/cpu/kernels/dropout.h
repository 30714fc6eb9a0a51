// The mask of `dropout_mask` in ops/portable.py: a hash of the element's index and two keys, so that the backward pass
// can compute it again.
#pragma once
#include "vector.h"

namespace jl {

struct Dropout {
    bool on;
    uint32_t key1, key2, threshold;  // elements whose 31-bit hash is below the threshold, p · 2^31, are dropped
    float scale;                     // 1 / (1 - p)
    uint32_t offset;                 // index of the first element

    // Wellons' "lowbias32", a bijection of 32 bits that flips about half of them for each bit of its argument.
    static inline uvec mix(uvec h) {
        h = (h ^ (h >> 16)) * 0x7feb352du;
        h = (h ^ (h >> 15)) * 0x846ca68bu;
        return h ^ (h >> 16);
    }

    // 0 or 1 / (1 - p) for W elements from index `start` on.
    inline vec mask(uint32_t start) const {
        uvec counter;
        for (int i = 0; i < W; i++) counter[i] = i;
        uvec bits = mix(mix((counter + (start + offset)) ^ key1) ^ key2) & 0x7fffffffu;
        return (vec)((uvec)(bits >= threshold) & (uvec)splat(scale));
    }
};

}  // namespace jl
