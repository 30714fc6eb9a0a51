// The mask of `dropout_mask` in ops/portable.py: a hash of the element's index and two keys, so that the backward pass
// can draw it again.
#pragma once
#include <algorithm>

#include "device.cuh"

namespace jl {

struct Dropout {
    bool on;
    uint32_t key1, key2, threshold;  // elements whose 31-bit hash is below the threshold, p · 2^31, are dropped
    float scale;                     // 1 / (1 - p)
    uint32_t offset;                 // index of the first element

    // `row`: the mask's row for the first row of `columns` elements. Indices wrap around at 2^32.
    Dropout(double p, double key1, double key2, double row, int columns)
        : on(p > 0), key1(uint32_t(int64_t(key1))), key2(uint32_t(int64_t(key2))),
          threshold(uint32_t(std::min(nearbyint(p * 0x1p31), 0x1p31 - 1))), scale(float(1.0 / (1.0 - p))),
          offset(uint32_t(int64_t(row)) * uint32_t(columns)) {}

    // Wellons' "lowbias32", a bijection of 32 bits that flips about half of them for each bit of its argument.
    __device__ static uint32_t mix(uint32_t h) {
        h = (h ^ (h >> 16)) * 0x7feb352du;
        h = (h ^ (h >> 15)) * 0x846ca68bu;
        return h ^ (h >> 16);
    }

    // x times the mask, 0 or 1 / (1 - p): NaN stays NaN.
    __device__ float operator()(float x, uint32_t index) const {
        if (!on) return x;
        uint32_t bits = mix(mix((index + offset) ^ key1) ^ key2) & 0x7fffffffu;
        return x * (bits >= threshold ? scale : 0.f);
    }
};

}  // namespace jl
