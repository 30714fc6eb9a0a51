// AdamW, and the squared norms of gradients: all arrays of a call in one launch, or two. Bound by bytes, of which a
// step moves 28 per number.
#include <vector>

#include "packs.cuh"
#include "scratch.cuh"

namespace jl {
namespace {

constexpr int OPTIMIZER_THREADS = 256;
constexpr int UPDATED_PER_BLOCK = 2048;   // numbers: two packs per thread
constexpr int SQUARED_PER_BLOCK = 16384;  // numbers: few sums are left to be added

struct Step {
    float beta1, rest1, beta2, rest2;  // rest: 1 - beta, computed in double by the caller
    float inverse;                     // 1 / √(1 - beta2^t)
    float epsilon, factor;             // factor: of the gradient, for clipping
};

struct Parameter {
    const float *value, *gradient, *first, *second;
    float *new_value, *new_first, *new_second;
    int64_t count;
    float decay;  // 1 - learning rate · weight decay
    float rate;   // learning rate / (1 - beta1^t)
    int first_block;
    bool fours;
};

struct Summand {
    const float* memory;
    int64_t count;
    int first_block;
    bool fours;
};

// The entry of a table that a block belongs to: the last one whose first block is not after it.
template <class Entry>
__device__ const Entry& entry_of(const Entry* table, int count, int block) {
    int low = 0;
    while (count - low > 1) {
        int middle = (low + count) / 2;
        (table[middle].first_block <= block ? low : count) = middle;
    }
    return table[low];
}

// A table of pointers may exceed what a launch can pass. Copied from ordinary memory, it has been read when this
// returns.
template <class Entry>
Entry* uploaded(Scratch& scratch, const std::vector<Entry>& table) {
    Entry* to = scratch.take<Entry>(table.size());
    check(cudaMemcpyAsync(to, table.data(), table.size() * sizeof(Entry), cudaMemcpyHostToDevice), "a table of arrays");
    return to;
}

// m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
// p ← p (1 - η λ) - η / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)     (Loshchilov and Hutter, 2019)
// The fused multiply-adds are those of the CPU's kernel, so that the bits are the same.
template <int N>
__device__ void update(const Step& step, const Parameter& p, int64_t i) {
    Pack<N> value = load<N>(p.value + i), gradient = load<N>(p.gradient + i), first = load<N>(p.first + i),
            second = load<N>(p.second + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        float g = gradient[k] * step.factor;
        first[k] = fmaf(first[k], step.beta1, g * step.rest1);
        second[k] = fmaf(second[k], step.beta2, g * g * step.rest2);
        value[k] = fmaf(value[k], p.decay, -(first[k] * p.rate / fmaf(sqrtf(second[k]), step.inverse, step.epsilon)));
    }
    store(p.new_value + i, value);
    store(p.new_first + i, first);
    store(p.new_second + i, second);
}

__global__ void adamw(const Parameter* table, int count, Step step) {
    const Parameter& p = entry_of(table, count, blockIdx.x);
    int64_t start = int64_t(blockIdx.x - p.first_block) * UPDATED_PER_BLOCK;
    int64_t end = start + UPDATED_PER_BLOCK < p.count ? start + UPDATED_PER_BLOCK : p.count;
    if (p.fours)
        for (int64_t i = start + threadIdx.x * 4; i < end; i += OPTIMIZER_THREADS * 4) update<4>(step, p, i);
    else
        for (int64_t i = start + threadIdx.x; i < end; i += OPTIMIZER_THREADS) update<1>(step, p, i);
}

template <int N>
__device__ float squares(const float* x, int64_t start, int64_t end) {
    float sum = 0.f;
#pragma unroll 4
    for (int64_t i = start + threadIdx.x * N; i < end; i += OPTIMIZER_THREADS * N) {
        Pack<N> values = load<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum = fmaf(values[k], values[k], sum);
    }
    return sum;
}

// The sum of squares of a block's numbers.
__global__ void squared_parts(const Summand* table, int count, float* parts) {
    __shared__ float room[OPTIMIZER_THREADS / WARP];
    const Summand& array = entry_of(table, count, blockIdx.x);
    int64_t start = int64_t(blockIdx.x - array.first_block) * SQUARED_PER_BLOCK;
    int64_t end = start + SQUARED_PER_BLOCK < array.count ? start + SQUARED_PER_BLOCK : array.count;
    float sum = array.fours ? squares<4>(array.memory, start, end) : squares<1>(array.memory, start, end);
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// A warp per array.
__global__ void added_parts(const Summand* table, int blocks, const float* parts, float* sums) {
    int array = blockIdx.x, end = array + 1 < int(gridDim.x) ? table[array + 1].first_block : blocks;
    float sum = 0.f;
    for (int i = table[array].first_block + threadIdx.x; i < end; i += WARP) sum += parts[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) sums[array] = sum;
}

}  // namespace
}  // namespace jl

using namespace jl;

// n parameters, their gradients, first and second moments → parameters and moments after the step. The numbers end with
// decay and rate of each parameter.
JL_OPERATOR(adamw) {
    const double* numbers = c.values;
    Step step{float(numbers[0]), float(numbers[1]), float(numbers[2]), float(numbers[3]),
              1.f / float(numbers[4]), float(numbers[5]), float(numbers[6])};
    int n = c.input_count / 4, blocks = 0;
    std::vector<Parameter> table(n);
    for (int i = 0; i < n; i++) {
        Parameter& p = table[i];
        p.value = c.in(i), p.gradient = c.in(n + i), p.first = c.in(2 * n + i), p.second = c.in(3 * n + i);
        p.new_value = c.out(i), p.new_first = c.out(n + i), p.new_second = c.out(2 * n + i);
        p.count = c.outputs[i].count;
        p.decay = float(numbers[7 + 2 * i]), p.rate = float(numbers[8 + 2 * i]);
        p.first_block = blocks;
        p.fours = in_fours(p.count, {p.value, p.gradient, p.first, p.second, p.new_value, p.new_first, p.new_second});
        blocks += blocks_for(p.count, UPDATED_PER_BLOCK);
    }
    Scratch scratch;
    launch(jl::adamw, blocks, OPTIMIZER_THREADS, 0, uploaded(scratch, table), n, step);
}

// The sum of squares of each input: (inputs,).
JL_OPERATOR(squared_norms) {
    std::vector<Summand> table;
    int blocks = 0;
    for (int i = 0; i < c.input_count; i++) {
        int64_t count = c.inputs[i].count;
        table.push_back({c.in(i), count, blocks, in_fours(count, {c.in(i)})});
        blocks += blocks_for(count, SQUARED_PER_BLOCK);
    }
    Scratch scratch;
    const Summand* entries = uploaded(scratch, table);
    float* parts = scratch.take<float>(blocks);
    launch(squared_parts, blocks, OPTIMIZER_THREADS, 0, entries, c.input_count, parts);
    launch(added_parts, c.input_count, WARP, 0, entries, blocks, parts, c.out(0));
}
