// The threads of one parallel region, going through its phases together.
#pragma once
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace jl::decoding {

// Hands out the parts of each phase to whichever thread is free. Unlike at a barrier, a phase ends when its parts are
// done, not when every thread has arrived: on a busy machine one may not be running, and does not hold up the others.
//
// Parts are numbered through all phases: a thread that arrives late finds the numbers of its phase taken and done.
class Schedule {
  public:
    explicit Schedule(int threads) : threads_(threads) {}

    // Calls work(first, end) until all `parts` are taken, and waits until all are done. `before` is the calling
    // thread's count of the parts of earlier phases; at most `most` parts are handed out at a time. `work` must not
    // throw: the others would wait for its parts forever.
    template <class Work>
    void share(int64_t& before, int parts, int most, Work work) {
        // About three helpings per thread even out what other processes take, without many turns at the counter.
        constexpr int HELPINGS = 3;
        const int step = threads_ == 1 ? most : std::max(1, std::min(most, parts / (HELPINGS * threads_)));
        const int64_t all = before + parts;
        int64_t first = taken_.load(std::memory_order_relaxed);
        while (first < all) {
            const int64_t end = std::min(first + step, all);
            if (!taken_.compare_exchange_weak(first, end, std::memory_order_relaxed)) continue;
            work(int(first - before), int(end - before));
            done_.fetch_add(end - first, std::memory_order_acq_rel);
            first = taken_.load(std::memory_order_relaxed);
        }
        // A phase of one token takes some ten microseconds, less than it takes to sleep and wake up, so threads spin;
        // but not for long, as the one they wait for may need this core.
        for (int turn = 0; done_.load(std::memory_order_acquire) < all; turn++)
            if (turn < PATIENCE)
                pause();
            else
                sched_yield();
        before = all;
    }

  private:
    static constexpr int PATIENCE = 1000;  // turns of some 15 ns: longer than most phases of one token

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
