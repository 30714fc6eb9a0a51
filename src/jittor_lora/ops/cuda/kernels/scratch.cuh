// Memory of the GPU for the length of one operator call. All kernels run one after the other on one stream, so the next
// call may use the same memory again.
#pragma once
#include <vector>

#include "device.cuh"

namespace jl {

class Scratch {
public:
    Scratch() { used() = 0; }

    template <class T>
    T* take(int64_t count) {
        size_t bytes = (size_t(count) * sizeof(T) + 255) / 256 * 256;
        size_t at = used();
        used() += bytes;
        if (at + bytes > size()) grow(at, bytes);
        return reinterpret_cast<T*>(memory() + at);
    }

private:
    // What was taken before in this call stays valid until the next call.
    static void grow(size_t at, size_t bytes) {
        void* made = nullptr;
        size_t wanted = (at + bytes) * 5 / 4;
        check(cudaMalloc(&made, wanted), "memory of the GPU");
        if (memory()) old().push_back(memory());
        memory() = static_cast<unsigned char*>(made), size() = wanted;
    }

    static unsigned char*& memory() { static unsigned char* at = nullptr; return at; }
    static size_t& size() { static size_t bytes = 0; return bytes; }
    static size_t& used() { static size_t bytes = 0; return bytes; }
    static std::vector<void*>& old() { static std::vector<void*> kept; return kept; }

public:
    ~Scratch() {
        for (void* each : old()) cudaFree(each);  // waits for the kernels that use it
        old().clear();
    }
};

}  // namespace jl
