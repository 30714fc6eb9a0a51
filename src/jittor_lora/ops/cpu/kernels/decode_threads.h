// Threads of one parallel region that go through its phases together.
#pragma once
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace jl::decoding {

// Hands out the parts of each phase to whichever thread is free. A phase ends when its parts are done, not when every
// thread has come by: on a busy machine one may not be running, and then it holds nobody up.
class Schedule {
  public:
    Schedule(int phases, int threads) : phases_(phases), threads_(threads) {}

    // Calls work(first, end) until all of `parts` are taken, and waits until all are done. `phase` is the thread's own
    // count of phases; `most` bounds the parts handed out at a time.
    template <class Work>
    void share(int& phase, int parts, int most, Work work) {
        Phase& current = phases_[phase++];
        const int step = threads_ == 1 ? most : std::max(1, std::min(most, parts / (3 * threads_)));
        for (int first; (first = current.taken.fetch_add(step, std::memory_order_relaxed)) < parts;) {
            int end = std::min(first + step, parts);
            work(first, end);
            current.done.fetch_add(end - first, std::memory_order_acq_rel);
        }
        // A phase of one token takes some ten microseconds, so threads wait for each other awake; but not for long, as
        // the other one may need this processor.
        for (int turn = 0; current.done.load(std::memory_order_acquire) < parts; turn++)
            if (turn < PATIENCE)
                pause();
            else
                sched_yield();
    }

  private:
    static constexpr int PATIENCE = 1000;  // of some 15 nanoseconds each

    struct alignas(64) Phase {
        std::atomic<int> taken{0}, done{0};
    };

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    std::vector<Phase> phases_;
    const int threads_;
};

}  // namespace jl::decoding
