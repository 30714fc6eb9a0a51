// Plays CUDA's threads on the CPU, so that the logic of kernels can be tested without a GPU: one block after the other,
// its threads as fibers that run until they wait for each other. Includes only what the kernels use.
//
// It stops with a message where a GPU would hang or read at random: barriers that not all threads reach, warp functions
// without all lanes, writing past the end of dynamic shared memory, which holds NaN at first. Warps take turns in
// ascending order, or in another one, `emulator::order()`, and each runs until all its threads are at a barrier of the
// block, so the first is ahead of the last as far as barriers allow; a result that depends on the order has a race.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaError_t = int;
using cudaStream_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }

namespace emulator {

[[noreturn]] inline void stop(const char* why) {
    fprintf(stderr, "CUDA emulator: %s\n", why);
    fflush(stderr);
    abort();
}

// --- fibers ---

constexpr size_t STACK = 128 << 10;

struct Context {
    void* stack_pointer = nullptr;
};

#if defined(__x86_64__)
// Saves the registers that a callee must keep on the stack of `from`, and restores those of `to`.
__attribute__((naked, noinline)) inline void switch_to(Context& /*from*/, Context& /*to*/) {
    __asm__("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
            "movq %rsp, (%rdi); movq (%rsi), %rsp\n"
            "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
            "ret");
}
inline void prepare(Context& context, unsigned char* stack, void (*start)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + STACK) & ~uintptr_t(15));
    *--top = nullptr;  // aligned as after a call
    *--top = reinterpret_cast<void*>(start);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack_pointer = top;
}
#else
#error "the CUDA emulator switches fibers on x86-64 only"
#endif

struct Fiber {
    Context context;
    std::vector<unsigned char> stack = std::vector<unsigned char>(STACK);
    dim3 thread;
    bool ended = false;
};

struct Warp {  // its lanes' arguments of one function, in turns of two sets: a lane may already be at the next one
    alignas(16) unsigned char slots[2][32][64];
    unsigned arrived = 0, turn = 0;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    Context scheduler;
    std::function<void()> kernel;
    dim3 size, grid, index;
    Fiber* now = nullptr;
    unsigned live = 0, waiting = 0, barrier = 0;
    bool moved = false;  // has any fiber of the warp gone on in this turn?
};

inline Block& block() {
    static Block* one = new Block;
    return *one;
}

inline int& order() {  // 0: ascending; 1: descending; else the seed of a shuffle
    static int value = 0;
    return value;
}

constexpr unsigned char GUARD = 0xa5;
constexpr size_t GUARD_BYTES = 256;

inline unsigned char* shared_memory() {
    auto at = reinterpret_cast<uintptr_t>(block().shared.data());
    return reinterpret_cast<unsigned char*>((at + 15) & ~uintptr_t(15));
}

inline void yield() { switch_to(block().now->context, block().scheduler); }

inline void start() {
    Block& b = block();
    b.kernel();
    b.now->ended = b.moved = true;
    b.live--;
    yield();
    stop("a thread that has ended was continued");
}

inline unsigned linear(const dim3& thread) {
    return thread.x + block().size.x * (thread.y + block().size.y * thread.z);
}

inline void synchronize() {
    Block& b = block();
    unsigned number = b.barrier;
    b.moved = true;
    if (++b.waiting == b.size.x * b.size.y * b.size.z)
        b.barrier++, b.waiting = 0;
    else
        while (b.barrier == number) yield();
    b.moved = true;
}

// Gives every lane the arguments of all lanes of its warp.
template <class T>
const T* exchange(unsigned mask, const T& mine, T (&all)[32]) {
    static_assert(sizeof(T) <= 64, "too large for a slot");
    if (mask != 0xffffffffu) stop("warp functions are for all 32 lanes");
    Block& b = block();
    unsigned index = linear(b.now->thread);
    Warp& warp = b.warps[index / 32];
    unsigned turn = warp.turn, lane = index % 32;
    memcpy(warp.slots[turn % 2][lane], &mine, sizeof(T));
    b.moved = true;
    if (++warp.arrived == 32)
        warp.arrived = 0, warp.turn++;
    else
        while (warp.turn == turn) yield();
    b.moved = true;
    for (int i = 0; i < 32; i++) memcpy(&all[i], warp.slots[turn % 2][i], sizeof(T));
    return all;
}

inline unsigned lane() { return linear(block().now->thread) % 32; }

inline void run_block() {
    Block& b = block();
    unsigned count = b.size.x * b.size.y * b.size.z;
    std::vector<unsigned> lanes(32), warps(count / 32);  // in the order of their turns
    std::iota(lanes.begin(), lanes.end(), 0);
    std::iota(warps.begin(), warps.end(), 0);
    for (unsigned i = 0; i < count; i++) {
        Fiber& fiber = b.fibers[i];
        fiber.thread = {i % b.size.x, i / b.size.x % b.size.y, i / b.size.x / b.size.y};
        fiber.ended = false;
        prepare(fiber.context, fiber.stack.data(), start);
    }
    for (std::vector<unsigned>* turns : {&lanes, &warps}) {
        if (order() == 1) std::reverse(turns->begin(), turns->end());
        if (order() > 1) std::shuffle(turns->begin(), turns->end(), std::mt19937(order()));
    }
    b.live = count, b.waiting = b.barrier = 0;
    for (Warp& warp : b.warps) warp.arrived = warp.turn = 0;
    while (b.live) {
        bool any = false;
        for (unsigned warp : warps) {
            do {
                b.moved = false;
                for (unsigned lane : lanes) {
                    b.now = &b.fibers[warp * 32 + lane];
                    if (!b.now->ended) switch_to(b.scheduler, b.now->context);
                }
                any = any || b.moved;
            } while (b.moved);
        }
        if (!any) stop("all threads wait: a barrier or a warp function that not all of them reach");
    }
}

template <class Kernel>
void run(dim3 grid, dim3 size, size_t shared, Kernel kernel) {
    Block& b = block();
    unsigned count = size.x * size.y * size.z;
    if (!count || count > 1024) stop("a block has 1 to 1,024 threads");
    if (count % 32) stop("blocks are whole warps here");
    if (shared > (99 << 10)) stop("more shared memory than 99 KiB, which not all GPUs have");
    if (grid.y > 65535 || grid.z > 65535) stop("a grid has at most 65,535 blocks in y and z");
    b.size = size, b.grid = grid, b.kernel = kernel;
    if (b.fibers.size() < count) b.fibers.resize(count);
    b.warps.resize(count / 32);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                b.index = {x, y, z};
                b.shared.assign(shared + GUARD_BYTES + 16, 0xff);
                memset(shared_memory() + shared, GUARD, GUARD_BYTES);
                run_block();
                for (size_t i = 0; i < GUARD_BYTES; i++)
                    if (shared_memory()[shared + i] != GUARD) stop("a kernel wrote past its shared memory");
            }
}

}  // namespace emulator

#define threadIdx (emulator::block().now->thread)
#define blockIdx (emulator::block().index)
#define blockDim (emulator::block().size)
#define gridDim (emulator::block().grid)

// --- the functions of a block and of a warp ---

inline void __threadfence() {}  // blocks run one after the other

inline void __syncthreads() { emulator::synchronize(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    int all[32];
    emulator::exchange(mask, 0, all);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    T all[32];
    int lane = emulator::lane();
    return emulator::exchange(mask, value, all)[lane / width * width + (source & (width - 1))];
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    T all[32];
    int lane = emulator::lane(), source = lane ^ bits;
    emulator::exchange(mask, value, all);
    return source / width == lane / width ? all[source] : value;
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    T all[32];
    int lane = emulator::lane();
    emulator::exchange(mask, value, all);
    return lane % width + int(by) < width ? all[lane + by] : value;
}

inline unsigned __ballot_sync(unsigned mask, int value) {
    int all[32];
    emulator::exchange(mask, value, all);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= unsigned(all[i] != 0) << i;
    return bits;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value) != 0; }

template <class T>
T atomicAdd(T* at, T value) {
    T before = *at;
    *at += value;
    return before;
}

template <class T>
T __ldg(const T* at) { return *at; }
template <class T>
T __ldcg(const T* at) { return *at; }

using std::max;
using std::min;

inline float __fmul_rn(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- memory: that of the CPU; new memory holds NaN ---

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

inline cudaError_t cudaMalloc(void** made, size_t bytes) {
    *made = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*made) return 2;
    memset(*made, 0xff, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
    free(memory);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, int = 0) {
    memset(to, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, int = 0) {
    for (size_t row = 0; row < height; row++) memset(static_cast<char*>(to) + row * pitch, value, width);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, int = 0) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                                     cudaMemcpyKind, int = 0) {
    if (width > to_pitch || width > from_pitch) emulator::stop("rows of a copy are longer than the distance between them");
    for (size_t row = 0; row < height; row++)
        memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
