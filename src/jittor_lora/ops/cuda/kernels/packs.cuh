// Floats four at a time, in one access to memory, where addresses and widths allow it; else one at a time.
#pragma once
#include <initializer_list>

#include "device.cuh"

namespace jl {

template <int N>
struct alignas(N * sizeof(float)) Pack {
    float values[N];

    __device__ float& operator[](int i) { return values[i]; }
    __device__ float operator[](int i) const { return values[i]; }
};

template <int N>
__device__ inline Pack<N> load(const float* from) {
    return *reinterpret_cast<const Pack<N>*>(from);
}

template <int N>
__device__ inline Pack<N> load(const bf16* from) {
    struct alignas(N * sizeof(bf16)) Halves {
        bf16 values[N];
    } halves = *reinterpret_cast<const Halves*>(from);
    Pack<N> pack;
#pragma unroll
    for (int k = 0; k < N; k++) pack[k] = from_bf16(halves.values[k]);
    return pack;
}

template <int N>
__device__ inline void store(float* to, const Pack<N>& pack) {
    *reinterpret_cast<Pack<N>*>(to) = pack;
}

// May rows of `width` floats in these arrays be read four at a time? An array that shares memory with another one, such
// as a slice, may begin anywhere.
inline bool in_fours(int64_t width, std::initializer_list<const void*> arrays) {
    for (const void* array : arrays)
        if (reinterpret_cast<uintptr_t>(array) % sizeof(Pack<4>)) return false;
    return width % 4 == 0;
}

}  // namespace jl
