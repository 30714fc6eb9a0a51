// A frozen linear layer with bias and LoRA (Hu et al. 2022), y = x Wᵀ + bias + s · drop(x) Aᵀ Bᵀ, and its gradient.
//
// Forward: t = s · drop(x) Aᵀ, kept for the backward pass; y = bias + t Bᵀ, to which the product adds x Wᵀ. Backward, with
// u = s · dy B: dB = dyᵀ t, dA = uᵀ drop(x), dx = mask ∘ (u A), to which the product adds dy W. The mask, 0 or 1 / (1 - p),
// is drawn again from its seed.
//
// A and B are thin: their products do few operations per number read, and are bound by the bytes of x, y and their
// gradients: t reads x (and writes it rounded to bf16, for the product), y and dx are written, dA and dB read x and dy.
// That is less than the product's time on every GPU as long as the rank is far below the widths. They stay float32. Three
// launches forward, three backward.
#include "dropout.cuh"
#include "product.cuh"
#include "scratch.cuh"

namespace jl {

constexpr int RANKS = 8;  // whose sums or factors a thread holds at a time; projections are padded with zeros to such groups

// A (rank, n), or `transposed`: B (n, rank).
struct Factor {
    const float* memory;
    int rank, n;
    bool transposed, in_fours;

    Factor(const float* memory, int rank, int n, bool transposed)
        : memory(memory), rank(rank), n(n), transposed(transposed),
          in_fours(transposed && rank % 4 == 0 && reinterpret_cast<uintptr_t>(memory) % sizeof(float4) == 0) {}

    // Column c of ranks [g, g + N), zeros beyond the last rank. N and g are multiples of 4.
    template <int N>
    __device__ void get(int g, int c, float (&w)[N]) const {
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            if (in_fours) {
                float4 four = make_float4(0.f, 0.f, 0.f, 0.f);
                if (g + j < rank) four = *reinterpret_cast<const float4*>(memory + int64_t(c) * rank + g + j);
                w[j] = four.x, w[j + 1] = four.y, w[j + 2] = four.z, w[j + 3] = four.w;
            } else {
#pragma unroll
                for (int i = g + j; i < g + j + 4; i++) {
                    const int64_t at = transposed ? int64_t(c) * rank + i : int64_t(i) * n + c;
                    w[i - g] = i < rank ? memory[at] : 0.f;
                }
            }
        }
    }
};

// --- rounding ---

constexpr int ROUND_THREADS = 256;

__global__ void round_to_bf16(const float4* x, uint2* to, int64_t fours, const float* tail_from, bf16* tail_to,
                              int64_t tail) {
    int64_t i = int64_t(blockIdx.x) * ROUND_THREADS + threadIdx.x;
    if (i < fours) {
        float4 v = x[i];
        to[i] = make_uint2(to_bf16(v.x) | uint32_t(to_bf16(v.y)) << 16, to_bf16(v.z) | uint32_t(to_bf16(v.w)) << 16);
    } else if (i - fours < tail) {
        tail_to[i - fours] = to_bf16(tail_from[i - fours]);
    }
}

// --- t = scale · drop(x) · factorᵀ ---

constexpr int PROJECT_ROWS = WARP / RANKS;  // a sum per lane at the end
constexpr int PROJECT_WARPS = 4;            // share the columns of the rows, so that a short stream fills a GPU, too

// x[i] of all lanes are added up; lane i gets the sum of x[i]. 31 shuffles in place of 32 · 5.
template <int HALF = WARP / 2>
__device__ float warp_sums(float (&x)[WARP]) {
    const bool upper = threadIdx.x & HALF;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        float kept = upper ? x[i + HALF] : x[i], given = upper ? x[i] : x[i + HALF];
        x[i] = kept + __shfl_xor_sync(ALL_LANES, given, HALF);
    }
    if constexpr (HALF > 1) return warp_sums<HALF / 2>(x);
    return x[0];
}

// A block has PROJECT_ROWS rows. Further groups of ranks find them in the cache. t (rows, width); rounded (rows, n) or null.
__global__ void __launch_bounds__(PROJECT_WARPS * WARP, 6)
project(const float* x, Factor factor, Dropout drop, float scale, float* t, bf16* rounded, int rows, int width) {
    __shared__ float sums[PROJECT_WARPS][WARP];
    const int first = blockIdx.x * PROJECT_ROWS, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n = factor.n;
    for (int g = 0; g < width; g += RANKS) {
        float acc[WARP] = {};
#pragma unroll 2
        for (int c = threadIdx.x; c < n; c += PROJECT_WARPS * WARP) {
            float w[RANKS];
            factor.get(g, c, w);
#pragma unroll
            for (int r = 0; r < PROJECT_ROWS; r++) {
                const int row = min(first + r, rows - 1);
                const int64_t at = int64_t(row) * n + c;
                float value = x[at];
                if (!g && rounded) rounded[at] = to_bf16(value);
                value = drop(value, uint32_t(at));
#pragma unroll
                for (int j = 0; j < RANKS; j++) acc[r * RANKS + j] += value * w[j];
            }
        }
        sums[warp][lane] = warp_sums(acc);
        __syncthreads();
        const int row = first + lane / RANKS, rank = g + lane % RANKS;
        if (!warp && row < rows) {
            float total = 0.f;
            for (int i = 0; i < PROJECT_WARPS; i++) total += sums[i][lane];
            t[int64_t(row) * width + rank] = rank < factor.rank ? scale * total : 0.f;
        }
        __syncthreads();
    }
}

// --- y = bias + t · factor, masked ---

constexpr int THREADS = 256;
constexpr int EXPAND_ROWS = 16;  // that share a thread's load of the factor
constexpr int TILE_RANKS = 32;   // of the projections, in shared memory

// A block has EXPAND_ROWS rows of THREADS columns. t (rows, width).
struct Expansion {
    const float* t;
    Factor factor;
    const float* bias;
    Dropout drop;
    float* y;
    int rows, width;

    __device__ __host__ int column_blocks() const { return (factor.n + THREADS - 1) / THREADS; }
    int blocks() const { return column_blocks() * int(blocks_for(rows, EXPAND_ROWS)); }

    __device__ void run(int block) const {
        __shared__ float4 tile[EXPAND_ROWS][TILE_RANKS / 4];
        const int n = factor.n, c = block % column_blocks() * THREADS + threadIdx.x;
        const int first = block / column_blocks() * EXPAND_ROWS;
        float acc[EXPAND_ROWS] = {};
        for (int g0 = 0; g0 < width; g0 += TILE_RANKS) {
            if (g0) __syncthreads();
            for (int i = threadIdx.x; i < EXPAND_ROWS * TILE_RANKS / 4; i += THREADS) {
                const int r = i / (TILE_RANKS / 4), at = i % (TILE_RANKS / 4), row = min(first + r, rows - 1);
                if (g0 + at * 4 < width) tile[r][at] = reinterpret_cast<const float4*>(t + int64_t(row) * width + g0)[at];
            }
            __syncthreads();
            for (int g = 0; g < min(TILE_RANKS, width - g0); g += 4) {
                float w[4];
                factor.get(g0 + g, min(c, n - 1), w);
#pragma unroll
                for (int r = 0; r < EXPAND_ROWS; r++) {
                    const float4 s = tile[r][g / 4];
                    acc[r] += s.x * w[0], acc[r] += s.y * w[1], acc[r] += s.z * w[2], acc[r] += s.w * w[3];
                }
            }
        }
        if (c >= n) return;
        const float shift = bias ? bias[c] : 0.f;
        float* to = y + int64_t(first) * n + c;
#pragma unroll
        for (int r = 0; r < EXPAND_ROWS; r++, to += n)
            if (r < rows - first) *to = drop(acc[r], uint32_t(to - y)) + shift;
    }
};

__global__ void __launch_bounds__(THREADS, 3) expand(Expansion y) { y.run(blockIdx.x); }

// --- the gradient of a factor, tᵀ · drop(x) ---

constexpr int SUM_WARPS = THREADS / WARP;  // share the rows of a chunk; as many as RANKS
constexpr int CHUNK_ROWS = 128;            // at least, ...
constexpr int MOST_CHUNKS = 32;            // ... and as many as make at most so many chunks
static_assert(SUM_WARPS == RANKS, "each warp adds up a rank at the end");

// A block has WARP columns, a chunk of rows and a group of ranks. The last block of the chunks adds up all of them, in
// their order: the same bits every time. t (rows, width); out (rank, n), or (n, rank) if `transposed`.
struct Gradient {
    const float *x, *t;
    Dropout drop;
    float *parts, *out;  // parts (chunks, width, n)
    unsigned* arrived;   // zeros, for each group and block of columns
    int rows, width, rank, n, chunks, chunk_rows;
    bool transposed;

    __device__ __host__ int column_blocks() const { return (n + WARP - 1) / WARP; }
    int counters() const { return column_blocks() * (width / RANKS); }
    int blocks() const { return counters() * chunks; }

    __device__ void put(int rank_at, int c, float value) const {
        if (rank_at < rank) out[transposed ? int64_t(c) * rank + rank_at : int64_t(rank_at) * n + c] = value;
    }

    __device__ void run(int block) const {
        __shared__ float sums[SUM_WARPS][RANKS][WARP];
        __shared__ bool last;
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        const int column_block = block % column_blocks(), c = column_block * WARP + lane;
        const int chunk = block / column_blocks() % chunks, group = block / column_blocks() / chunks, g = group * RANKS;
        const int begin = chunk * chunk_rows, end = min(begin + chunk_rows, rows);
        float acc[RANKS] = {};
        if (c < n) {
#pragma unroll 4
            for (int row = begin + warp; row < end; row += SUM_WARPS) {
                const int64_t at = int64_t(row) * n + c;
                const float value = drop(x[at], uint32_t(at));
                const float4* s = reinterpret_cast<const float4*>(t + int64_t(row) * width + g);
#pragma unroll
                for (int j = 0; j < RANKS; j += 4) {
                    const float4 four = s[j / 4];
                    acc[j] += four.x * value, acc[j + 1] += four.y * value;
                    acc[j + 2] += four.z * value, acc[j + 3] += four.w * value;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < RANKS; j++) sums[warp][j][lane] = acc[j];
        __syncthreads();
        float total = 0.f;
        for (int i = 0; i < SUM_WARPS; i++) total += sums[i][warp][lane];
        if (chunks == 1) {
            if (c < n) put(g + warp, c, total);
            return;
        }
        float* part = parts + int64_t(g + warp) * n + c;
        const int64_t stride = int64_t(width) * n;
        if (c < n) part[chunk * stride] = total;
        __threadfence();  // the part is there before the block counts as arrived
        __syncthreads();
        if (!threadIdx.x) {
            unsigned& count = arrived[group * column_blocks() + column_block];
            last = atomicAdd(&count, 1u) + 1 == unsigned(chunks);
            if (last) count = 0;  // for the next call
        }
        __syncthreads();
        if (!last || c >= n) return;
        __threadfence();
        total = 0.f;
        for (int i = 0; i < chunks; i++) total += __ldcg(part + i * stride);
        put(g + warp, c, total);
    }
};

__global__ void __launch_bounds__(THREADS, 3)
low_rank_backward(Gradient da, int da_blocks, Gradient db, int db_blocks, Expansion dx) {
    const int block = blockIdx.x;
    if (block < da_blocks)
        da.run(block);
    else if (block < da_blocks + db_blocks)
        db.run(block - da_blocks);
    else
        dx.run(block - da_blocks - db_blocks);
}

// Zeros that kernels leave as zeros.
static unsigned* counters(int count) {
    static unsigned* memory = nullptr;
    static int size = 0;
    if (count > size) {
        check(cudaFree(memory), "memory of the GPU");
        memory = nullptr, size = 0;
        check(cudaMalloc(reinterpret_cast<void**>(&memory), count * sizeof(unsigned)), "memory of the GPU");
        check(cudaMemsetAsync(memory, 0, count * sizeof(unsigned)), "memory of the GPU");
        size = count;
    }
    return memory;
}

// --- a call ---

struct Layer {
    int rows, in, out, rank, width;
    float scaling;
    Dropout drop;
    Precision precision;
    Scratch scratch;

    Layer(const Call& c, const double (&v)[10])
        : rows(c.size(0, 0)), in(c.size(0, 1)), out(int(v[5])), rank(int(v[6])), width((rank + RANKS - 1) / RANKS * RANKS),
          scaling(float(v[0])), drop(v[1], v[2], v[3], v[4], in), precision(Precision(int(v[8]))) {}

    Dropout no_drop() const { return Dropout(0, 0, 0, 0, 0); }

    // Room for x (rows, n) in bf16; null if the product reads x as it is.
    bf16* room(int n) { return precision == Precision::BF16 ? scratch.take<bf16>(int64_t(rows) * n) : nullptr; }

    void rounded(const float* x, bf16* to, int n) const {
        if (!to) return;
        const int64_t count = int64_t(rows) * n, fours = reinterpret_cast<uintptr_t>(x) % sizeof(float4) ? 0 : count / 4;
        const int64_t tail = count - fours * 4;
        launch(round_to_bf16, blocks_for(fours + tail, ROUND_THREADS), ROUND_THREADS, 0, reinterpret_cast<const float4*>(x),
               reinterpret_cast<uint2*>(to), fours, x + fours * 4, to + fours * 4, tail);
    }

    // t (rows, width), and x in bf16.
    void projections(const float* x, const Factor& factor, const Dropout& mask, float* t, bf16* to) const {
        launch(project, blocks_for(rows, PROJECT_ROWS), PROJECT_WARPS * WARP, 0, x, factor, mask, scaling, t, to, rows, width);
    }

    Gradient gradient(const float* x, const float* t, const Dropout& mask, float* to, int n, bool transposed) {
        const int chunk_rows = std::max(CHUNK_ROWS, int(blocks_for(rows, MOST_CHUNKS)));
        const int chunks = int(blocks_for(rows, chunk_rows));
        float* parts = chunks > 1 ? scratch.take<float>(int64_t(chunks) * width * n) : nullptr;
        return {x, t, mask, parts, to, nullptr, rows, width, rank, n, chunks, chunk_rows, transposed};
    }

    // y (+)= x · m, of (rows, k) and (k, n); x_rounded in bf16.
    void times(const float* x, const bf16* x_rounded, Operand m, float* y, int k, int n, bool adds, const float* bias) const {
        Operand left = x_rounded ? rows_of(x_rounded, k) : rows_of(x, k);
        product(left, m, y, n, rows, n, k, 1.f, adds ? 1.f : 0.f, bias, precision);
    }

    Operand weight(const Call& c, int i) const {
        return precision == Precision::BF16 ? rows_of(static_cast<const bf16*>(c.inputs[i].memory), in) : rows_of(c.in(i), in);
    }
};

}  // namespace jl

using namespace jl;

// x, weight, bias, A, B; scaling, dropout, its two keys, its first row, out, rank, 0, precision, whether biased
JL_OPERATOR(linear_forward) {
    auto& numbers = c.numbers<10>();
    Layer layer(c, numbers);
    const float *x = c.in(0), *bias = numbers[9] ? c.in(2) : nullptr;
    float* y = c.out(0);
    bf16* x_rounded = layer.room(layer.in);
    if (layer.rank) {
        float* t = c.out(1);
        layer.projections(x, {c.in(3), layer.rank, layer.in, false}, layer.drop, t, x_rounded);
        Expansion update{t, {c.in(4), layer.rank, layer.out, true}, bias, layer.no_drop(), y, layer.rows, layer.width};
        launch(expand, update.blocks(), THREADS, 0, update);
        bias = nullptr;
    } else {
        layer.rounded(x, x_rounded, layer.in);
    }
    layer.times(x, x_rounded, transpose(layer.weight(c, 1)), y, layer.in, layer.out, layer.rank, bias);
}

// x, its projection onto A, upstream gradient, weight, A, B; as above, and at the end whether dx is wanted
JL_OPERATOR(linear_backward) {
    auto& numbers = c.numbers<10>();
    Layer layer(c, numbers);
    const float *x = c.in(0), *t = c.in(1), *dy = c.in(2);
    float* dx = numbers[9] ? c.out(0) : nullptr;
    bf16* dy_rounded = dx ? layer.room(layer.out) : nullptr;
    if (layer.rank) {
        float* u = layer.scratch.take<float>(int64_t(layer.rows) * layer.width);
        layer.projections(dy, {c.in(5), layer.rank, layer.out, true}, layer.no_drop(), u, dy_rounded);
        Gradient da = layer.gradient(x, u, layer.drop, c.out(1), layer.in, false);
        Gradient db = layer.gradient(dy, t, layer.no_drop(), c.out(2), layer.out, true);
        da.arrived = counters(da.counters() + db.counters()), db.arrived = da.arrived + da.counters();
        Expansion update{u, {c.in(4), layer.rank, layer.in, false}, nullptr, layer.drop, dx, layer.rows, layer.width};
        launch(low_rank_backward, da.blocks() + db.blocks() + (dx ? update.blocks() : 0), THREADS, 0, da, da.blocks(), db,
               db.blocks(), update);
    } else {
        layer.rounded(dy, dy_rounded, layer.out);
    }
    if (dx) layer.times(dy, dy_rounded, layer.weight(c, 3), dx, layer.out, layer.in, layer.rank, nullptr);
}
