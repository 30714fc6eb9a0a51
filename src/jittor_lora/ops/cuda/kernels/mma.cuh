// Products of small matrices of bf16 by a warp (mma.sync on the tensor cores of sm_80 and later), summed in float32.
//
// A warp holds a matrix in fragments: each lane some of its elements, two bf16 per register, the first in the lower
// half. Which ones is in PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type". With
// g = lane / 4 and t = lane % 4:
//
//     left, (16, 16)   registers 0 to 3: row g, g + 8, g, g + 8; columns 2 t + {0, 1}, and 8 more in the last two
//     right, (16, 8)   registers 0, 1: rows 2 t + {0, 1}, and 8 more; column g
//     sums, (16, 8)    elements 0 to 3: row g, g, g + 8, g + 8; columns 2 t, 2 t + 1, 2 t, 2 t + 1
//
// So two (16, 8) sums side by side, rounded, are a left matrix as they lie, without an exchange between lanes.
#pragma once
#include "device.cuh"

#ifndef __CUDACC__
#include "mma_emulator.h"
#endif

// Where the kernels may use them. On older GPUs the kernels' bodies are empty, and not started.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define JL_HAS_MMA 1
#endif

namespace jl {

// Does the current GPU have them?
inline bool has_mma() {
#ifdef __CUDACC__
    int device = 0, major = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    return major >= 8;
#else
    return true;
#endif
}

#ifdef JL_HAS_MMA

// sums += left · right
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
#else
    emulator::mma_m16n8k16(sums, left, right0, right1);
#endif
}

// Four matrices of (8, 8) from shared memory, one per register. Lane l gives the address of row l % 8, 16 aligned
// bytes, of matrix l / 8, and gets of each matrix row g, columns 2 t + {0, 1}; transposed: column g, rows 2 t + {0, 1}.
template <bool TRANSPOSED>
__device__ inline void load_matrices(uint32_t (&to)[4], const bf16* row) {
#ifdef __CUDACC__
    unsigned at = unsigned(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
#else
    emulator::ldmatrix_x4<TRANSPOSED>(to, row);
#endif
}

// Rows [0, 16) and columns [0, 16) from `at` on, as a left matrix.
__device__ inline void load_left(uint32_t (&to)[4], const bf16* at, int stride) {
    const int lane = threadIdx.x % WARP;
    load_matrices<false>(to, at + lane % 16 * stride + lane / 16 * 8);
}

// The transpose of rows [0, 16) and columns [0, 16), as two right matrices: rows are columns of the product.
__device__ inline void load_right_transposed(uint32_t (&to)[4], const bf16* at, int stride) {
    const int lane = threadIdx.x % WARP;
    load_matrices<false>(to, at + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
}

// Rows [0, 16) and columns [0, 16) as two right matrices side by side.
__device__ inline void load_right(uint32_t (&to)[4], const bf16* at, int stride) {
    const int lane = threadIdx.x % WARP;
    load_matrices<true>(to, at + lane % 16 * stride + lane / 16 * 8);
}

// Two numbers, rounded to the nearest bf16; the first in the lower half.
__device__ inline uint32_t rounded(float first, float second) {
#ifdef __CUDACC__
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
#else
    return to_bf16(first) | uint32_t(to_bf16(second)) << 16;
#endif
}

#endif

}  // namespace jl
