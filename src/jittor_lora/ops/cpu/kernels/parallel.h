// Loops over independent tasks, with all threads. An exception that leaves a parallel region would end the process, so
// what a task throws is kept and rethrown after the region; tasks that have not started by then are skipped.
#pragma once
#include <omp.h>

#include <atomic>
#include <exception>
#include <new>

#include "interface.h"
#if defined(JL_TRACE_TASKS)
#include <cstdio>
#endif

namespace jl {

#if defined(JL_TRACE_TASKS)
// benchmarks/many_cores.py counts in one thread the tasks that a machine with this many would get; its tables end here.
constexpr int TRACED_THREADS = 128;
#endif

// How many threads a loop should have tasks for.
static inline int threads_to_feed() {
#if defined(JL_TRACE_TASKS)
    return TRACED_THREADS;
#else
    return omp_get_max_threads();
#endif
}

#if defined(JL_TRACE_TASKS)
// Writes a line per loop to standard error, for benchmarks/many_cores.py: where, tasks, seconds.
class Trace {
  public:
    Trace(const char* function, int line, int tasks) : function_(function), line_(line), tasks_(tasks) {}
    ~Trace() { fprintf(stderr, "TASKS %s:%d %d %.9f\n", function_, line_, tasks_, omp_get_wtime() - start_); }

  private:
    const char* function_;
    int line_, tasks_;
    double start_ = omp_get_wtime();
};
#else
struct Trace {
    Trace(const char*, int, int) {}
    ~Trace() {}
};
#endif

// The first exception of a loop's tasks.
class Failure {
  public:
    template <class Body>
    void keep(Body body) noexcept {
        if (failed_.load(std::memory_order_relaxed)) return;
        try {
            body();
        } catch (...) {
            if (!failed_.exchange(true)) first_ = std::current_exception();
        }
    }

    void pass_on() const {
        if (first_) std::rethrow_exception(first_);
    }

  private:
    std::atomic<bool> failed_{false};
    std::exception_ptr first_;
};

// Calls body(task) for each task in [0, count), one at a time to whichever thread is free: for tasks of unequal length.
template <class Body>
static inline void parallel(int count, Body body, const char* where = __builtin_FUNCTION(), int line = __builtin_LINE()) {
    Trace trace(where, line, count);
    Failure failure;
#pragma omp parallel for schedule(dynamic, 1)
    for (int task = 0; task < count; task++) failure.keep([&] { body(task); });
    failure.pass_on();
}

// The same for tasks of equal length: each thread gets one run of consecutive tasks, without handing out.
template <class Body>
static inline void parallel_evenly(int count, Body body, const char* where = __builtin_FUNCTION(), int line = __builtin_LINE()) {
    Trace trace(where, line, count);
    Failure failure;
#pragma omp parallel for schedule(static) if (count > 1)
    for (int task = 0; task < count; task++) failure.keep([&] { body(task); });
    failure.pass_on();
}

// Calls body(at, n) for pieces [at, at + n) of `count` elements.
template <class Body>
static inline void parallel_pieces(int64_t count, Body body, const char* where = __builtin_FUNCTION(),
                                   int line = __builtin_LINE()) {
    // 64 KiB per array: far more work than starting a task, and a few arrays fit the second cache. 2^12 and 2^16 are as
    // fast.
    constexpr int64_t PIECE = 1 << 14;
    parallel_evenly(int((count + PIECE - 1) / PIECE), [&](int p) {
        int64_t at = p * PIECE;
        body(at, count - at < PIECE ? count - at : PIECE);
    }, where, line);
}

// Returns what `body` returns or, if it throws, the negative status that ops/cpu/interface.py raises an error for.
template <class Body>
static inline auto status_of(Body body) noexcept -> decltype(body()) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (...) {
        return FAILED;
    }
}

}  // namespace jl
