// Chunks of rows, and scratch memory. Chunks depend on the number of rows alone, and sums over rows are added chunk by
// chunk in order: no result depends on the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "interface.h"

// Marks a definition of a function that interface.h declares; the compiler checks one against the other.
#define JL_API extern "C"

namespace jl {

static inline int ceil_div(int n, int d) { return (n + d - 1) / d; }
static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Tasks of a loop over chunks: for as many threads, and few enough that handing one out costs nothing beside its work.
constexpr int MAX_CHUNKS = 128;

struct Chunks {
    int rows, tile, count;

    Chunks(int rows, int tile, int most = MAX_CHUNKS) : rows(rows), tile(tile), count(std::min(most, ceil_div(rows, tile))) {}

    // Chunks are whole tiles, except for the end of the last one.
    int begin(int chunk) const {
        int64_t tiles = ceil_div(rows, tile);
        return int(std::min<int64_t>(rows, tiles * chunk / count * tile));
    }
    int end(int chunk) const { return begin(chunk + 1); }
};

// Grow-only scratch buffer, for one loop or, as thread_local, for one thread. `get` keeps nothing of what it held.
class Buffer {
  public:
    ~Buffer() { free(memory_); }

    template <class T>
    T* get(size_t count) {
        const size_t bytes = count * sizeof(T) + SLACK;
        if (bytes > size_) {
            free(memory_);
            size_ = (bytes + bytes / 4 + PAGE - 1) / PAGE * PAGE;  // a quarter more: batches vary in length
            memory_ = aligned_alloc(PAGE, size_);
            if (!memory_) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return static_cast<T*>(memory_);
    }

  private:
    static constexpr size_t PAGE = 4096;
    static constexpr size_t SLACK = 64;  // bytes of the widest vector, which may be stored over the end

    void* memory_ = nullptr;
    size_t size_ = 0;
};

}  // namespace jl
