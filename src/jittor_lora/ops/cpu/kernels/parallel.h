// Loops over independent tasks, in all threads. An exception that leaves a parallel region ends the process, so what a
// task throws is kept and thrown again when the region is over; tasks that have not begun by then are left out.
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

// Threads to have tasks for.
static inline int threads_to_feed() {
#if defined(JL_TRACE_TASKS)
    return 128;  // whose tasks are counted, with one thread
#else
    return omp_get_max_threads();
#endif
}

#if defined(JL_TRACE_TASKS)
// A line of standard error for each loop, which benchmarks/many_cores.py reads: where, tasks, seconds.
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

// Calls body(task) for each task from 0 to count; a thread that is free takes the next.
template <class Body>
static inline void parallel(int count, Body body, const char* where = __builtin_FUNCTION(), int line = __builtin_LINE()) {
    Trace trace(where, line, count);
    Failure failure;
#pragma omp parallel for schedule(dynamic, 1)
    for (int task = 0; task < count; task++) failure.keep([&] { body(task); });
    failure.pass_on();
}

// The same where tasks take equally long: each thread has a run of them.
template <class Body>
static inline void parallel_evenly(int count, Body body, const char* where = __builtin_FUNCTION(), int line = __builtin_LINE()) {
    Trace trace(where, line, count);
    Failure failure;
#pragma omp parallel for schedule(static) if (count > 1)
    for (int task = 0; task < count; task++) failure.keep([&] { body(task); });
    failure.pass_on();
}

// Calls body(at, n) for elements [at, at + n) of `count`.
template <class Body>
static inline void parallel_pieces(int64_t count, Body body, const char* where = __builtin_FUNCTION(),
                                   int line = __builtin_LINE()) {
    constexpr int64_t PIECE = 1 << 14;  // elements a thread takes at a time
    parallel_evenly(int((count + PIECE - 1) / PIECE), [&](int p) {
        int64_t at = p * PIECE;
        body(at, count - at < PIECE ? count - at : PIECE);
    }, where, line);
}

// What `body` returns; a negative number, for Python, if it throws.
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
