// Products of float matrices for processors with AVX2 and no AVX-512, where oneDNN's sgemm reaches half to three quarters of
// the peak on the sizes of training.
#pragma once
#include "product.h"

namespace jl {

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
constexpr bool BLOCKED_PRODUCTS = true;
#else
constexpr bool BLOCKED_PRODUCTS = false;
#endif

constexpr int BLOCKED_ROWS = 128;  // with fewer, copying M into panels takes more than it gives

// y (rows, n) = x (rows, k) · M with all threads. An element's bits depend on its row of x, its column of M and k alone.
void blocked_product(const Frozen& m, const float* x, float* y, int rows);

}  // namespace jl
