// What every kernel of this folder includes. nvcc compiles the kernels for a GPU; g++ compiles them a second time
// against tests/cuda_emulator/cuda_emulator.h, which plays a block of threads on the CPU, to test their logic.
#pragma once
#include <math.h>
#include <stdint.h>

#include <stdexcept>
#include <string>

#include "call.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "cuda_emulator.h"
#endif

namespace jl {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int64_t& launches() {  // kernels and products started so far, for tests
    static int64_t count = 0;
    return count;
}

// Where kernels are started: Jittor's stream, or one that records them (decode_graph.cuh).
inline cudaStream_t& stream() {
    static cudaStream_t current = 0;
    return current;
}

// Start a kernel on `stream()`. `shared`: bytes of dynamic shared memory, see `shared_memory`.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Arguments... arguments) {
    if (!grid.x || !grid.y || !grid.z) return;
    launches()++;
#ifdef __CUDACC__
    if (shared > 48 * 1024) // more must be asked for
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "shared memory");
    kernel<<<grid, block, shared, stream()>>>(Parameters(arguments)...);
    check(cudaGetLastError(), "kernel launch");
#else
    emulator::run(grid, block, shared, [&] { kernel(Parameters(arguments)...); });
#endif
}

inline unsigned blocks_for(int64_t count, int per_block) { return unsigned((count + per_block - 1) / per_block); }

// The block's dynamic shared memory, aligned to 16 bytes. A kernel divides it up itself.
__device__ inline unsigned char* shared_memory() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char jl_shared[];
    return jl_shared;
#else
    return emulator::shared_memory();
#endif
}

// --- bfloat16: the upper half of a float32 ---

using bf16 = uint16_t;

__device__ __host__ inline float from_bf16(bf16 bits) {
    union { uint32_t u; float f; } value{uint32_t(bits) << 16};
    return value.f;
}

// Rounds to nearest, ties to even; NaN stays NaN.
__device__ __host__ inline bf16 to_bf16(float x) {
    union { float f; uint32_t u; } value{x};
    if ((value.u & 0x7fffffffu) > 0x7f800000u) return bf16(value.u >> 16 | 0x40);
    return bf16((value.u + 0x7fff + (value.u >> 16 & 1)) >> 16);
}

// --- reductions: every lane, or thread, gets the result; always added in the same order ---

__device__ inline float warp_sum(float x) {
    for (int offset = WARP / 2; offset; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int offset = WARP / 2; offset; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// Over a block of `blockDim.x` threads, a multiple of WARP; `room`: shared memory for a float per warp.
__device__ inline float block_sum(float x, float* room) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) total += room[warp];
    __syncthreads();
    return total;
}

}  // namespace jl
