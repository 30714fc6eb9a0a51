// Threads of one parallel region that go through its phases together.
#pragma once
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace jl::decoding {

// A phase of a token takes some ten microseconds, so threads wait for each other awake; but not for long, as on a busy
// machine the other one may not be running.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}

    void wait() {
        if (threads_ == 1) return;
        int round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int turn = 0; round_.load(std::memory_order_acquire) == round; turn++)
            if (turn < PATIENCE)
                pause();
            else
                sched_yield();
    }

  private:
    static constexpr int PATIENCE = 2000;  // of some 15 nanoseconds each

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

// Hands out the parts of each phase to whichever thread is free.
class Schedule {
  public:
    Schedule(int phases, int threads) : taken_(phases), barrier_(threads), threads_(threads) {}

    // Calls work(first, end) until all of `parts` are done, and waits for the other threads. `phase` is the thread's own
    // count of phases; `most` bounds the parts handed out at a time.
    template <class Work>
    void share(int& phase, int parts, int most, Work work) {
        std::atomic<int>& taken = taken_[phase++].count;
        int step = std::max(1, std::min(most, parts / (3 * threads_)));
        if (threads_ == 1) step = std::max(1, most);
        for (int first; (first = taken.fetch_add(step, std::memory_order_relaxed)) < parts;)
            work(first, std::min(first + step, parts));
        barrier_.wait();
    }

  private:
    struct alignas(64) Count {
        std::atomic<int> count{0};
    };
    std::vector<Count> taken_;
    Barrier barrier_;
    const int threads_;
};

}  // namespace jl::decoding
