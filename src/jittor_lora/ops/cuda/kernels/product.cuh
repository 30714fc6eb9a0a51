// Products of matrices: cuBLASLt on a GPU (product.cu), loops in the emulator (tests/cuda_emulator/product.cpp).
#pragma once
#include "device.cuh"

namespace jl {

enum class Precision { FP32, BF16, TF32 };  // the numbers are those of `PRECISIONS` in ops/precision.py

// A matrix by rows: `stride` elements from one row to the next. `transposed`: it stands for its transpose.
struct Operand {
    const void* memory;
    int64_t stride;
    bool transposed, is_bf16;
};

inline Operand rows_of(const float* memory, int64_t stride) { return {memory, stride, false, false}; }
inline Operand rows_of(const bf16* memory, int64_t stride) { return {memory, stride, false, true}; }
inline Operand transpose(Operand matrix) { return {matrix.memory, matrix.stride, !matrix.transposed, matrix.is_bf16}; }

// c = alpha · a · b + beta · c + bias, of (m, k) and (k, n); c (m, n) by rows. Accumulated in float32; float32 operands are
// multiplied exactly, or in TF32 where `precision` says so. Both operands are of one type. bias (n,) or null.
void product(Operand a, Operand b, float* c, int64_t c_stride, int m, int n, int k, float alpha = 1.f, float beta = 0.f,
             const float* bias = nullptr, Precision precision = Precision::FP32);

}  // namespace jl
