// Threads of one parallel region that go through its phases together.
#pragma once
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace jl::decoding {

// Hands out the parts of each phase to whichever thread is free. A phase ends when its parts are done, not when every
// thread has come by: on a busy machine one may not be running, and then it holds nobody up.
//
// Parts are numbered through all phases, so that there may be any number of these: a thread that comes late finds the
// numbers of its phase taken and done.
class Schedule {
  public:
    explicit Schedule(int threads) : threads_(threads) {}

    // Calls work(first, end) until all of `parts` are taken, and waits until all are done. `before` is the thread's own
    // count of the parts of earlier phases; `most` bounds the parts handed out at a time. `work` must not throw: the
    // others would wait for its parts for ever.
    template <class Work>
    void share(int64_t& before, int parts, int most, Work work) {
        const int step = threads_ == 1 ? most : std::max(1, std::min(most, parts / (3 * threads_)));
        const int64_t all = before + parts;
        int64_t first = taken_.load(std::memory_order_relaxed);
        while (first < all) {
            const int64_t end = std::min(first + step, all);
            if (!taken_.compare_exchange_weak(first, end, std::memory_order_relaxed)) continue;
            work(int(first - before), int(end - before));
            done_.fetch_add(end - first, std::memory_order_acq_rel);
            first = taken_.load(std::memory_order_relaxed);
        }
        // A phase of one token takes some ten microseconds, so threads wait for each other awake; but not for long, as
        // the other one may need this processor.
        for (int turn = 0; done_.load(std::memory_order_acquire) < all; turn++)
            if (turn < PATIENCE)
                pause();
            else
                sched_yield();
        before = all;
    }

  private:
    static constexpr int PATIENCE = 1000;  // of some 15 nanoseconds each

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    const int threads_;
    alignas(64) std::atomic<int64_t> taken_{0};
    alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace jl::decoding
