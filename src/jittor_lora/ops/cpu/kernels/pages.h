// Large pages, where the system has them.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace jl {

// Asks for them for memory that is not written yet and will be read straight through: fewer misses of the address
// cache.
static inline void use_large_pages(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = sysconf(_SC_PAGESIZE), start = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
    if (start < end) madvise((void*)start, end - start, MADV_HUGEPAGE);  // a refusal does no harm
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace jl
