// Products by cuBLASLt. It takes matrices by columns; memory by rows is that of the transpose by columns, so
// c = a · b becomes cᵀ = bᵀ · aᵀ without a copy.
#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "product.cuh"

namespace jl {

// Large enough for what NVIDIA recommends on Hopper (32 MiB), where sums over k are split among blocks.
constexpr size_t WORKSPACE = size_t(32) << 20;
// What kernels of cuBLASLt want at most. Larger alignments, which differ from run to run, choose no other algorithm.
constexpr size_t ALIGNMENT = 16;
constexpr size_t MOST_PLANS = 4096;  // streams have many lengths

static void check(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw std::runtime_error(std::string("cuBLASLt, ") + what + ": " + cublasLtGetStatusName(status));
}

// The largest power of two up to ALIGNMENT that divides an address and the bytes from one row to the next.
static uint32_t alignment_of(const void* memory, int64_t row_bytes) {
    size_t alignment = ALIGNMENT;
    while ((reinterpret_cast<uintptr_t>(memory) | uintptr_t(row_bytes)) % alignment) alignment /= 2;
    return uint32_t(alignment);
}

// What the choice of an algorithm depends on.
struct Shape {
    int m, n, k;
    int64_t a_stride, b_stride, c_stride;
    bool a_transposed, b_transposed, is_bf16, adds, biased;
    Precision precision;
    uint32_t a_alignment, b_alignment, c_alignment;

    auto all() const {
        return std::tie(m, n, k, a_stride, b_stride, c_stride, a_transposed, b_transposed, is_bf16, adds, biased, precision,
                        a_alignment, b_alignment, c_alignment);
    }
    bool operator<(const Shape& other) const { return all() < other.all(); }
};

// Descriptors and the algorithm for a shape.
class Plan {
public:
    Plan(cublasLtHandle_t handle, const Shape& s, const float* bias) {
        // Float32 is multiplied exactly only where it is asked for.
        auto compute = s.is_bf16 ? CUBLAS_COMPUTE_32F
                       : s.precision == Precision::TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F_PEDANTIC;
        auto type = s.is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
        check(cublasLtMatmulDescCreate(&operation, compute, CUDA_R_32F), "operation");
        set(CUBLASLT_MATMUL_DESC_TRANSA, s.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, s.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
        if (s.biased) {
            set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
            set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);  // its alignment counts for the choice
        }
        layout(first, type, s.b_transposed ? s.k : s.n, s.b_transposed ? s.n : s.k, s.b_stride);
        layout(second, type, s.a_transposed ? s.m : s.k, s.a_transposed ? s.k : s.m, s.a_stride);
        layout(result, CUDA_R_32F, s.n, s.m, s.c_stride);
        choose(handle, s);
    }

    ~Plan() {
        for (auto each : {first, second, result})
            if (each) cublasLtMatrixLayoutDestroy(each);
        if (operation) cublasLtMatmulDescDestroy(operation);
    }

    Plan(const Plan&) = delete;

    void run(cublasLtHandle_t handle, const void* a, const void* b, float* c, float alpha, float beta, const float* bias,
             void* workspace) {
        if (bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        launches()++;
        check(cublasLtMatmul(handle, operation, &alpha, b, first, a, second, &beta, c, result, c, result, &algorithm,
                             workspace, WORKSPACE, 0),
              "product");
    }

private:
    template <class T>
    void set(cublasLtMatmulDescAttributes_t attribute, T value) {
        check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)), "operation");
    }

    static void layout(cublasLtMatrixLayout_t& made, cudaDataType_t type, int rows, int columns, int64_t stride) {
        check(cublasLtMatrixLayoutCreate(&made, type, rows, columns, stride), "layout");
    }

    void choose(cublasLtHandle_t handle, const Shape& s) {
        cublasLtMatmulPreference_t preference = nullptr;
        check(cublasLtMatmulPreferenceCreate(&preference), "preference");
        auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
            check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)), "preference");
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(WORKSPACE));
        // Parts of a sum over k are added in float32 and in one order: the same bits in every run.
        prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.b_alignment);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.a_alignment);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.c_alignment);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.c_alignment);
        int count = 0;
        cublasLtMatmulHeuristicResult_t found{};
        auto status = cublasLtMatmulAlgoGetHeuristic(handle, operation, first, second, result, result, preference, 1, &found,
                                                     &count);
        cublasLtMatmulPreferenceDestroy(preference);
        check(status == CUBLAS_STATUS_SUCCESS && !count ? CUBLAS_STATUS_NOT_SUPPORTED : status, "algorithm");
        algorithm = found.algo;
    }

    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
};

void product(Operand a, Operand b, float* c, int64_t c_stride, int m, int n, int k, float alpha, float beta,
             const float* bias, Precision precision) {
    if (!m || !n) return;
    static cublasLtHandle_t handle = nullptr;
    static void* workspace = nullptr;
    static std::map<Shape, Plan> plans;
    if (!handle) {
        check(cublasLtCreate(&handle), "start");
        check(cudaMalloc(&workspace, WORKSPACE), "memory of the GPU for matrix products");
    }
    int64_t bytes = a.is_bf16 ? sizeof(bf16) : sizeof(float);
    Shape shape{m, n, k, a.stride, b.stride, c_stride, a.transposed, b.transposed, a.is_bf16, beta != 0.f, bias != nullptr,
                a.is_bf16 ? Precision::BF16 : precision, alignment_of(a.memory, a.stride * bytes),
                alignment_of(b.memory, b.stride * bytes), alignment_of(c, c_stride * int64_t(sizeof(float)))};
    auto plan = plans.find(shape);
    if (plan == plans.end()) {
        if (plans.size() >= MOST_PLANS) plans.clear();
        plan = plans.try_emplace(shape, handle, shape, bias).first;
    }
    plan->second.run(handle, a.memory, b.memory, c, alpha, beta, bias, workspace);
}

}  // namespace jl
