// Decoding: what is done row by row, or head by head. All of it is bound by latency for few rows.
#include "decode.cuh"

namespace jl::decoding {

constexpr int NORM_THREADS = 256;

// A block per row, two-pass statistics.
__global__ void normalize_kernel(const float* x, Norm norm, States h, float eps, bool root_mean_square) {
    __shared__ float room[NORM_THREADS / WARP];
    const int width = h.width;
    const int64_t at = int64_t(blockIdx.x) * width;
    x += at;
    float mean = 0.f;
    if (!root_mean_square) {
        for (int i = threadIdx.x; i < width; i += NORM_THREADS) mean += x[i];
        mean = block_sum(mean, room) / width;
    }
    float square = 0.f;
    for (int i = threadIdx.x; i < width; i += NORM_THREADS) square += (x[i] - mean) * (x[i] - mean);
    const float deviation = sqrtf(block_sum(square, room) / width + eps);
    for (int i = threadIdx.x; i < width; i += NORM_THREADS) {
        float y = (x[i] - mean) / deviation * norm.weight[i] + (norm.bias ? norm.bias[i] : 0.f);
        h.exact[at + i] = y;
        if (h.half) h.half[at + i] = to_bf16(y);
    }
}

void normalize(const float* x, Norm norm, States h, int rows, const Network& net) {
    launch(normalize_kernel, rows, NORM_THREADS, 0, x, norm, h, net.eps, net.root_mean_square);
}

struct Heads {
    int heads, kv_heads, head_dim, layer;
    Norm q_norm, k_norm;
    float eps;
};

constexpr int APPEND_WARPS = 4;

// A warp per row and head of q, k or v.
__global__ void append_kernel(Heads net, const Row* table, float* qkv, const float* angles, int angles_stride, int rows) {
    const int lane = threadIdx.x % WARP, d = net.head_dim, all = net.heads + 2 * net.kv_heads;
    const int64_t item = int64_t(blockIdx.x) * APPEND_WARPS + threadIdx.x / WARP;
    const int r = int(item / all), head = int(item % all);
    if (r >= rows) return;
    float* x = qkv + item * d;
    const Row row = table[r];
    if (head >= net.heads + net.kv_heads) {
        Span to(row.own, row.own_capacity, net.layer, net.kv_heads, head - net.heads - net.kv_heads, d);
        for (int i = lane; i < d; i += WARP) to.values[int64_t(row.at) * d + i] = x[i];
        return;
    }
    const bool is_key = head >= net.heads;
    Span to(row.own, row.own_capacity, net.layer, net.kv_heads, is_key ? head - net.heads : 0, d);
    auto put = [&](int i, float value) {
        if (is_key) to.keys[Span::key_at(row.at, i, d)] = value;
        else x[i] = value;
    };
    const float* weight = is_key ? net.k_norm.weight : net.q_norm.weight;
    float size = 1.f;
    if (weight) {
        float square = 0.f;
        for (int i = lane; i < d; i += WARP) square += x[i] * x[i];
        size = sqrtf(warp_sum(square) / d + net.eps);
    }
    auto value = [&](int i) { return weight ? x[i] / size * weight[i] : x[i]; };
    if (!angles) {
        for (int i = lane; i < d; i += WARP) put(i, value(i));
        return;
    }
    const int half = d / 2;
    const float *cosines = angles + int64_t(r) * angles_stride, *sines = cosines + half;
    for (int i = lane; i < half; i += WARP) {
        float a = value(i), b = value(half + i), c = cosines[i], s = sines[i];
        put(i, a * c - b * s);
        put(half + i, b * c + a * s);
    }
}

void append(const Network& net, int layer, const Row* table, float* qkv, const float* angles, int angles_stride, int rows) {
    const Layer& l = net.layers[layer];
    Heads heads{net.heads, net.kv_heads, net.head_dim, layer, l.q_norm, l.k_norm, net.eps};
    launch(append_kernel, blocks_for(int64_t(rows) * (net.heads + 2 * net.kv_heads), APPEND_WARPS), APPEND_WARPS * WARP, 0,
           heads, table, qkv, angles, angles_stride, rows);
}

// --- the likeliest token ---

constexpr int CHOOSE_THREADS = 256;

struct Best {
    float logit;
    int token;

    // Of equal logits the first token's.
    __device__ void meet(Best other) {
        if (other.logit > logit || (other.logit == logit && other.token < token)) *this = other;
    }
};

// Over a block; the result is the first thread's.
__device__ Best best_of(Best best, Best* room) {
    for (int offset = WARP / 2; offset; offset /= 2)
        best.meet({__shfl_xor_sync(ALL_LANES, best.logit, offset), __shfl_xor_sync(ALL_LANES, best.token, offset)});
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = best;
    __syncthreads();
    for (unsigned warp = 0; threadIdx.x == 0 && warp < blockDim.x / WARP; warp++) best.meet(room[warp]);
    return best;
}

// A block per slice of the vocabulary and row; the last one of a row meets the slices' best. `best` (rows, slices).
__global__ void choose_kernel(const float* logits, int vocabulary, Best* best, int* tokens, int* finite, int* counters) {
    __shared__ Best room[CHOOSE_THREADS / WARP];
    const int row = blockIdx.y, slices = gridDim.x, slice = (vocabulary + slices - 1) / slices;
    const int first = blockIdx.x * slice, end = min(first + slice, vocabulary);
    logits += int64_t(row) * vocabulary;
    Best mine{-INFINITY, INT32_MAX};
    bool is_finite = true;
    for (int i = first + threadIdx.x; i < end; i += CHOOSE_THREADS) {
        float logit = logits[i];
        is_finite &= fabsf(logit) <= 3.402823466e38f;
        mine.meet({logit, i});
    }
    if (!is_finite) *finite = 0;
    mine = best_of(mine, room);
    if (threadIdx.x == 0) best[row * slices + blockIdx.x] = mine;
    if (!is_last(counters + row, slices) || threadIdx.x != 0) return;
    for (int i = 0; i < slices; i++) mine.meet(best[row * slices + i]);
    if (tokens) tokens[row] = mine.token;
}

void choose(const float* logits, int rows, int vocabulary, int* tokens, int* finite, int* counters) {
    Best* best = reinterpret_cast<Best*>(counters + rows);
    launch(choose_kernel, dim3(CHOOSE_SLICES, rows), CHOOSE_THREADS, 0, logits, vocabulary, best, tokens, finite, counters);
}

}  // namespace jl::decoding
