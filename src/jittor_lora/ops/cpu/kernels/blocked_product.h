// Products of float32 matrices for processors with AVX2 and no AVX-512, where oneDNN's sgemm reaches half to three
// quarters of the peak on the sizes of training.
#pragma once
#include "product.h"

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define JL_BLOCKED_PRODUCTS 1
#else
#define JL_BLOCKED_PRODUCTS 0
#endif

namespace jl {

constexpr bool BLOCKED_PRODUCTS = JL_BLOCKED_PRODUCTS;

// With fewer rows, copying M into strips costs what the faster kernel gains. Measured with one thread, 768 inputs and
// 3,072 outputs, forward and backward: as fast as oneDNN with 96 and 128 rows, 11 % less time with 192; with 1,536
// rows, 3,072 inputs and 768 outputs 38 % less.
constexpr int BLOCKED_ROWS = 128;

// y (rows, n) = x (rows, k) · M with all threads. The bits of an element depend on its row of x, its column of M and k
// alone.
void blocked_product(const Frozen& m, const float* x, float* y, int rows);

}  // namespace jl
