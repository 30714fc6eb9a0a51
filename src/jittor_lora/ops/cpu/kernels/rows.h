// Cutting the rows of a stream into chunks, and scratch memory. Chunks depend on the number of rows alone, and sums over
// rows are taken chunk by chunk in order, so that a result does not depend on the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "interface.h"

// What is defined with it has to be as interface.h declares it.
#define JL_API extern "C"

namespace jl {

constexpr int MAX_CHUNKS = 128;

struct Chunks {
    int rows, tile, count;

    Chunks(int rows, int tile, int most = MAX_CHUNKS) : rows(rows), tile(tile), count(std::min(most, (rows + tile - 1) / tile)) {}

    // Whole tiles, but for the end of the last chunk.
    int begin(int chunk) const {
        int64_t tiles = (rows + tile - 1) / tile;
        return int(std::min<int64_t>(rows, tiles * chunk / count * tile));
    }
    int end(int chunk) const { return begin(chunk + 1); }
};

// Memory that grows and is kept.
class Buffer {
  public:
    ~Buffer() { free(memory_); }

    template <class T>
    T* get(size_t count) {
        size_t bytes = count * sizeof(T) + 64;
        if (bytes > size_) {
            free(memory_);
            size_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            memory_ = aligned_alloc(4096, size_);
            if (!memory_) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return static_cast<T*>(memory_);
    }

  private:
    void* memory_ = nullptr;
    size_t size_ = 0;
};

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace jl
