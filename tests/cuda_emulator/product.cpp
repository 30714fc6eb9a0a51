// In place of cuBLASLt: the products of product.cuh as loops.
#include "product.cuh"

namespace jl {

static float element(Operand matrix, int64_t row, int64_t column) {
    int64_t at = matrix.transposed ? column * matrix.stride + row : row * matrix.stride + column;
    return matrix.is_bf16 ? from_bf16(static_cast<const bf16*>(matrix.memory)[at]) : static_cast<const float*>(matrix.memory)[at];
}

void product(Operand a, Operand b, float* c, int64_t c_stride, int m, int n, int k, float alpha, float beta,
             const float* bias, Precision) {
    if (a.is_bf16 != b.is_bf16) emulator::stop("the operands of a product are of different types");
    if (!m || !n) return;
    launches()++;
    std::vector<float> row(k), all(size_t(k) * n);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++) all[i * n + j] = element(b, i, j);
    std::vector<float> sums(n);
    for (int64_t i = 0; i < m; i++) {
        std::fill(sums.begin(), sums.end(), 0.f);
        for (int64_t p = 0; p < k; p++) {
            float x = element(a, i, p);
            for (int64_t j = 0; j < n; j++) sums[j] += x * all[p * n + j];
        }
        for (int64_t j = 0; j < n; j++) {
            float& y = c[i * c_stride + j];
            y = alpha * sums[j] + (beta != 0.f ? beta * y : 0.f) + (bias ? bias[j] : 0.f);
        }
    }
}

}  // namespace jl
