// Denormal numbers, too small for a float's full precision, count as zero in every thread.
//
// Jittor links its operators with -Ofast, whose start-up code sets this mode in the thread that loads them: the main
// thread, and through it threads started later, but not those already running. Results would depend on the thread.
#include "rows.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

#if defined(__SSE__)
constexpr unsigned MODE = _MM_FLUSH_ZERO_ON | 0x40;  // 0x40: denormals are zero as operands too

// Returns whether the thread was in another mode.
bool set_mode() {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | MODE);
    return (before & MODE) != MODE;
}
#elif defined(__aarch64__)
constexpr uint64_t MODE = 1 << 24;  // FZ of FPCR

bool set_mode() {
    uint64_t before;
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" ::"r"(before | MODE));
    return (before & MODE) != MODE;
}
#else
bool set_mode() { return false; }
#endif

}  // namespace

// Sets the mode in this thread and in those of its parallel regions; threads started later inherit it. Returns how many
// threads were in another mode.
JL_API int jl_flush_denormals() {
    int changed = 0;
#pragma omp parallel reduction(+ : changed)
    changed += set_mode();
    return changed;
}
