// Plays cuBLASLt for product.cu: matrices by columns, multiplied by loops. It stops where cuBLASLt would refuse the
// call or read at random: shapes that do not go together, columns closer than their length, an algorithm that was chosen
// for something else or for a stricter alignment than that of the arrays.
#pragma once
#include "cuda_emulator.h"

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_PEDANTIC = 69, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum cublasLtReductionScheme_t { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};

struct EmulatedOperation {
    cublasComputeType_t compute;
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    const float* bias;
};
struct EmulatedLayout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t stride;
    bool operator==(const EmulatedLayout& o) const {
        return type == o.type && rows == o.rows && columns == o.columns && stride == o.stride;
    }
};
struct EmulatedPreference {
    uint64_t workspace;
    uint32_t scheme, a, b, c, d;
};
struct cublasLtMatmulAlgo_t {  // what it was chosen for
    EmulatedOperation operation;
    EmulatedLayout a, b, c;
    EmulatedPreference preference;
};
struct cublasLtMatmulHeuristicResult_t { cublasLtMatmulAlgo_t algo; };
using cublasLtHandle_t = int*;
using cublasLtMatmulDesc_t = EmulatedOperation*;
using cublasLtMatrixLayout_t = EmulatedLayout*;
using cublasLtMatmulPreference_t = EmulatedPreference*;

inline const char* cublasLtGetStatusName(cublasStatus_t) { return "CUBLAS_STATUS_NOT_SUPPORTED"; }

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* made) {
    *made = new int(1);
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute, cudaDataType_t scale) {
    if (scale != CUDA_R_32F) emulator::stop("factors of a product are float32");
    *made = new EmulatedOperation{compute, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t made) {
    delete made;
    return CUBLAS_STATUS_SUCCESS;
}

namespace emulator {
template <class T>
cublasStatus_t set(T& field, const void* value, size_t size) {
    if (size != sizeof(T)) stop("an attribute of another size");
    memcpy(&field, value, size);
    return CUBLAS_STATUS_SUCCESS;
}
}  // namespace emulator

inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t to, cublasLtMatmulDescAttributes_t which,
                                                     const void* value, size_t size) {
    switch (which) {
        case CUBLASLT_MATMUL_DESC_TRANSA: return emulator::set(to->a, value, size);
        case CUBLASLT_MATMUL_DESC_TRANSB: return emulator::set(to->b, value, size);
        case CUBLASLT_MATMUL_DESC_EPILOGUE: return emulator::set(to->epilogue, value, size);
        case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return emulator::set(to->bias, value, size);
    }
    emulator::stop("an unknown attribute of a product");
}

inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType_t type, uint64_t rows,
                                                 uint64_t columns, int64_t stride) {
    if (stride < int64_t(rows)) emulator::stop("columns of a matrix overlap");
    *made = new EmulatedLayout{type, rows, columns, stride};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t made) {
    delete made;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
    *made = new EmulatedPreference{0, 7, 256, 256, 256, 256};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t made) {
    delete made;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t to,
                                                           cublasLtMatmulPreferenceAttributes_t which, const void* value,
                                                           size_t size) {
    switch (which) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return emulator::set(to->workspace, value, size);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return emulator::set(to->scheme, value, size);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return emulator::set(to->a, value, size);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return emulator::set(to->b, value, size);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return emulator::set(to->c, value, size);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return emulator::set(to->d, value, size);
    }
    emulator::stop("an unknown preference");
}

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t operation,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int,
                                                     cublasLtMatmulHeuristicResult_t* found, int* count) {
    if (!(*c == *d)) emulator::stop("the result of a product has another layout than what it is added to");
    if (operation->epilogue == CUBLASLT_EPILOGUE_BIAS && reinterpret_cast<uintptr_t>(operation->bias) % 16)
        emulator::stop("the bias of a product is not aligned to 16 bytes");
    found->algo = {*operation, *a, *b, *c, *preference};
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t operation, const float* alpha, const void* a,
                                     cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                                     const float* beta, const float* c, cublasLtMatrixLayout_t c_layout, float* d,
                                     cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t* chosen, void* workspace,
                                     size_t workspace_bytes, int) {
    auto fits = [](const void* memory, const EmulatedLayout& layout, uint32_t alignment) {
        size_t bytes = layout.type == CUDA_R_16BF ? 2 : 4;
        return reinterpret_cast<uintptr_t>(memory) % alignment == 0 && layout.stride * bytes % alignment == 0;
    };
    bool same = chosen->operation.a == operation->a && chosen->operation.b == operation->b && chosen->a == *a_layout &&
                chosen->operation.compute == operation->compute && chosen->b == *b_layout && chosen->c == *c_layout &&
                chosen->operation.epilogue == operation->epilogue;
    if (!same) emulator::stop("a product by an algorithm that was chosen for another one");
    if (!fits(a, *a_layout, chosen->preference.a) || !fits(b, *b_layout, chosen->preference.b) ||
        !fits(c, *c_layout, chosen->preference.c) || !fits(d, *c_layout, chosen->preference.d))
        emulator::stop("an operand is not aligned as its algorithm was told");
    if (chosen->preference.workspace > workspace_bytes || !workspace) emulator::stop("a product without its workspace");
    auto rows = [](const EmulatedLayout& of, cublasOperation_t how) { return how == CUBLAS_OP_T ? of.columns : of.rows; };
    auto columns = [](const EmulatedLayout& of, cublasOperation_t how) { return how == CUBLAS_OP_T ? of.rows : of.columns; };
    uint64_t m = c_layout->rows, n = c_layout->columns, k = columns(*a_layout, operation->a);
    if (rows(*a_layout, operation->a) != m || columns(*b_layout, operation->b) != n || rows(*b_layout, operation->b) != k)
        emulator::stop("the operands of a product do not go together");
    if (a_layout->type != b_layout->type || c_layout->type != CUDA_R_32F)
        emulator::stop("the operands of a product are of different types");
    if ((a_layout->type == CUDA_R_16BF) != (operation->compute == CUBLAS_COMPUTE_32F))
        emulator::stop("bf16 is multiplied as such, float32 exactly or in TF32");

    auto whole = [](const void* memory, const EmulatedLayout& of, cublasOperation_t how, uint64_t rows, uint64_t columns) {
        std::vector<float> made(rows * columns);  // by rows
        for (uint64_t i = 0; i < rows; i++)
            for (uint64_t j = 0; j < columns; j++) {
                uint64_t at = how == CUBLAS_OP_T ? j + i * of.stride : i + j * of.stride;
                uint32_t bits = of.type == CUDA_R_16BF ? uint32_t(static_cast<const uint16_t*>(memory)[at]) << 16
                                                       : static_cast<const uint32_t*>(memory)[at];
                memcpy(&made[i * columns + j], &bits, sizeof(bits));
            }
        return made;
    };
    std::vector<float> left = whole(b, *b_layout, operation->b, k, n), right = whole(a, *a_layout, operation->a, m, k);
    std::vector<float> sums(m);
    for (uint64_t j = 0; j < n; j++) {
        std::fill(sums.begin(), sums.end(), 0.f);
        for (uint64_t p = 0; p < k; p++)
            for (uint64_t i = 0; i < m; i++) sums[i] += right[i * k + p] * left[p * n + j];
        for (uint64_t i = 0; i < m; i++) {
            float bias = operation->epilogue == CUBLASLT_EPILOGUE_BIAS ? operation->bias[i] : 0.f;
            uint64_t at = i + j * c_layout->stride;
            d[at] = *alpha * sums[i] + (*beta != 0.f ? *beta * c[at] : 0.f) + bias;
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}
