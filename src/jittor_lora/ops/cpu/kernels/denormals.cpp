// Numbers too small for a float's full precision count as zero, in all threads alike.
//
// Jittor's operators are linked with -Ofast, which sets this mode where their libraries are loaded: in the main thread,
// and so in threads that start later, but not in those that run already. Results would depend on the thread.
#include "rows.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

#if defined(__SSE__)
constexpr unsigned MODE = 0x8040;  // results to zero, operands as zero

bool set_mode() {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | MODE);
    return (before & MODE) != MODE;
}
#elif defined(__aarch64__)
constexpr uint64_t MODE = 1 << 24;

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

// Sets the mode in this thread and in those of its parallel regions; later ones inherit it. Returns how many were in
// another mode.
JL_API int jl_flush_denormals() {
    int changed = 0;
#pragma omp parallel reduction(+ : changed)
    changed += set_mode();
    return changed;
}
