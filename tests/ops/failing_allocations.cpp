// Makes allocations of the kernels fail: test_no_memory.py links these in place of the real ones.
#include <dnnl.h>

#include <atomic>
#include <cstddef>
#include <new>

namespace {

enum Kind { BUFFERS, OBJECTS, PRODUCTS, KINDS };  // aligned_alloc, operator new, and what oneDNN's products allocate

std::atomic<int> failing{KINDS}, room{0}, failed{0};

bool fails(Kind kind) {
    if (failing != kind || room.fetch_sub(1) > 0) return false;
    failed++;
    return true;
}

}  // namespace

extern "C" {

// From now on all allocations of this kind fail, except for the next `after`.
__attribute__((visibility("default"))) void jl_test_fail(int kind, int after) {
    room = after, failed = 0;
    failing = kind;
}

// No allocation fails from now on. Returns how many did.
__attribute__((visibility("default"))) int jl_test_recover() {
    failing = KINDS;
    return failed;
}

void* __real_aligned_alloc(size_t alignment, size_t size);
void* __real__Znwm(size_t size);

void* __wrap_aligned_alloc(size_t alignment, size_t size) {
    return fails(BUFFERS) ? nullptr : __real_aligned_alloc(alignment, size);
}

void* __wrap__Znwm(size_t size) {
    if (fails(OBJECTS)) throw std::bad_alloc();
    return __real__Znwm(size);
}

dnnl_status_t __real_dnnl_sgemm(char ta, char tb, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k, float alpha, const float* a,
                                dnnl_dim_t lda, const float* b, dnnl_dim_t ldb, float beta, float* c, dnnl_dim_t ldc);

dnnl_status_t __wrap_dnnl_sgemm(char ta, char tb, dnnl_dim_t m, dnnl_dim_t n, dnnl_dim_t k, float alpha, const float* a,
                                dnnl_dim_t lda, const float* b, dnnl_dim_t ldb, float beta, float* c, dnnl_dim_t ldc) {
    if (fails(PRODUCTS)) return dnnl_out_of_memory;
    return __real_dnnl_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
}
