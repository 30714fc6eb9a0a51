// Attention in float32: products by FMA from shared memory, each thread with a tile of sums in registers.
//
// A pair of tiles takes 2 · 64 · 64 · d multiplications forward, 3 for dQ and 4 for dK and dV, and reads 3 · 64 · d
// floats or more, mostly from the L2 cache, as Q is staged again for each pair: 10 multiplications per byte, so the FMA
// units are the bound. Per four columns a thread reads 12 float4 for 128 FMA (d ≤ 64): 16 clocks of shared memory
// beside 32 of FMA.
//
// 26 KiB of shared memory and at most 255 registers without spills (sm_75 to sm_120): for d ≤ 64 two blocks of four
// warps per processor, three forward on sm_80 to sm_90; above one block of eight warps, two forward for d ≤ 128.
#include "attention.cuh"

namespace jl {

namespace {

constexpr int CHUNK = 32, CHUNK_STRIDE = CHUNK + 4;  // columns of d that are staged at once for S; 4 more: other banks
constexpr int WIDE = 64, WIDE_ROWS = 32;             // columns and rows for products with P or dS
constexpr int WEIGHTS_STRIDE = TILE + 4;

// Threads are 16 wide: thread (y, x) has rows y + HEIGHT · i and columns x + 16 · j of S, 4 x + j of each 64 of d.
template <int D>
struct Shape {
    static constexpr int THREADS = D <= 64 ? 128 : 256;  // 256 where sums over d would not fit into registers
    static constexpr int BLOCKS = D <= 64 ? 2 : 1;
    static constexpr int HEIGHT = THREADS / 16, ROWS = TILE / HEIGHT, PARTS = D / WIDE;
};

struct Room {
    float* left;     // (64, CHUNK)
    float* right;    // (64, CHUNK)
    float* weights;  // P or dS: (64, 64), in place of left and right
    float* wide;     // (WIDE_ROWS, WIDE)
};
constexpr size_t ROOM_BYTES = (2 * TILE * CHUNK_STRIDE + WIDE_ROWS * WIDE) * sizeof(float);
static_assert(WEIGHTS_STRIDE <= 2 * CHUNK_STRIDE, "weights take the place of left and right");

__device__ inline Room room() {
    float* memory = reinterpret_cast<float*>(shared_memory());
    return {memory, memory + TILE * CHUNK_STRIDE, memory, memory + 2 * TILE * CHUNK_STRIDE};
}

// ROWS rows from `first` on, WIDTH columns from `column` on.
template <int THREADS, int ROWS, int WIDTH>
__device__ void stage(float* to, int stride, const RowsOfHead& rows, int first, int column) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * WIDTH / 4; i += THREADS) {
        const int row = i / (WIDTH / 4), at = i % (WIDTH / 4) * 4;
        *reinterpret_cast<float4*>(to + row * stride + at) = rows.four(first + row, column + at);
    }
}

__device__ inline const float4& four(const float* at) { return *reinterpret_cast<const float4*>(at); }

template <int R>
__device__ void clear(float (&sums)[R][4]) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = 0.f;
}

// sums = left · rightᵀ, (64, 64) from rows of d.
template <int D>
__device__ void product(float (&sums)[Shape<D>::ROWS][4], const RowsOfHead& left, const RowsOfHead& right,
                        const Room& room) {
    using S = Shape<D>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    clear(sums);
    for (int column = 0; column < left.d; column += CHUNK) {
        __syncthreads();
        stage<S::THREADS, TILE, CHUNK>(room.left, CHUNK_STRIDE, left, 0, column);
        stage<S::THREADS, TILE, CHUNK>(room.right, CHUNK_STRIDE, right, 0, column);
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < CHUNK; c += 4) {
            float4 b[4];
#pragma unroll
            for (int j = 0; j < 4; j++) b[j] = four(room.right + (x + 16 * j) * CHUNK_STRIDE + c);
#pragma unroll
            for (int i = 0; i < S::ROWS; i++) {
                float4 a = four(room.left + (y + S::HEIGHT * i) * CHUNK_STRIDE + c);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float sum = sums[i][j];
                    sum += a.x * b[j].x, sum += a.y * b[j].y, sum += a.z * b[j].z, sum += a.w * b[j].w;
                    sums[i][j] = sum;
                }
            }
        }
    }
}

// sums += weights · rows, (64, d): column 4 x + j of part p is sums[p][i][j]. The weights are written before.
template <int D>
__device__ void add_product(float (&sums)[Shape<D>::PARTS][Shape<D>::ROWS][4], const RowsOfHead& rows,
                            const Room& room) {
    using S = Shape<D>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
    for (int part = 0; part < S::PARTS; part++) {
        if (part * WIDE >= rows.d) break;
#pragma unroll 1
        for (int first = 0; first < TILE; first += WIDE_ROWS) {
            __syncthreads();
            stage<S::THREADS, WIDE_ROWS, WIDE>(room.wide, WIDE, rows, first, part * WIDE);
            __syncthreads();
#pragma unroll 1
            for (int k = 0; k < WIDE_ROWS; k += 4) {
                float4 b[4];
#pragma unroll
                for (int j = 0; j < 4; j++) b[j] = four(room.wide + (k + j) * WIDE + 4 * x);
#pragma unroll
                for (int i = 0; i < S::ROWS; i++) {
                    const float4 w = four(room.weights + (y + S::HEIGHT * i) * WEIGHTS_STRIDE + first + k);
                    const float each[4] = {w.x, w.y, w.z, w.w};
                    float(&sum)[4] = sums[part][i];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        sum[0] += each[j] * b[j].x, sum[1] += each[j] * b[j].y;
                        sum[2] += each[j] * b[j].z, sum[3] += each[j] * b[j].w;
                    }
                }
            }
        }
    }
}

// When all threads have gone past their last product.
template <int D>
__device__ void keep_weights(const float (&weights)[Shape<D>::ROWS][4], const Room& room) {
    using S = Shape<D>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::ROWS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) room.weights[(y + S::HEIGHT * i) * WEIGHTS_STRIDE + x + 16 * j] = weights[i][j];
}

// sums · factor into a row of d.
template <int D>
__device__ void write(const float (&sums)[Shape<D>::PARTS][Shape<D>::ROWS][4], int i, float factor, float* to,
                      const Attention& a) {
#pragma unroll
    for (int part = 0; part < Shape<D>::PARTS; part++) {
        int column = part * WIDE + threadIdx.x % 16 * 4;
        const float(&sum)[4] = sums[part][i];
        if (column >= a.d) break;
        if (a.vectors) {
            *reinterpret_cast<float4*>(to + column) =
                make_float4(sum[0] * factor, sum[1] * factor, sum[2] * factor, sum[3] * factor);
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (column + j < a.d) to[column + j] = sum[j] * factor;
        }
    }
}

template <int D>
__global__ void __launch_bounds__(Shape<D>::THREADS, Shape<D>::BLOCKS) forward(Attention a) {
    using S = Shape<D>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, head = blockIdx.x;
    const int4 tile = a.by_queries.tiles[blockIdx.y];
    const Room memory = room();
    const RowsOfHead q = queries(a, tile.x, head);
    const float factor = a.scale * LOG2_E;  // powers of 2 below
    float o[S::PARTS][S::ROWS][4] = {}, highest[S::ROWS], sum[S::ROWS];
#pragma unroll
    for (int i = 0; i < S::ROWS; i++) highest[i] = -INFINITY, sum[i] = 0.f;
    for (int number = tile.y; number < tile.z; number++) {
        const int4 step = a.by_queries.steps[number];
        float s[S::ROWS][4];
        product<D>(s, q, keys(a, a.k, step.x, step.y, head), memory);
#pragma unroll
        for (int i = 0; i < S::ROWS; i++) {
            if (!step.z) {
                const int4 seen = seen_by(a, tile.x + y + S::HEIGHT * i);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (!sees(seen, step.x + x + 16 * j)) s[i][j] = -INFINITY;
            }
            float top = highest[i];
#pragma unroll
            for (int j = 0; j < 4; j++)
                top = fmaxf(top, s[i][j]);
            top = maximum_across<16>(top);
            const float base = top == -INFINITY ? 0.f : top;  // no key so far: e^-∞ = 0 below
            const float fade = exp2f((highest[i] - base) * factor);
            highest[i] = top;
            float added = 0.f;
#pragma unroll
            for (int j = 0; j < 4; j++) added += s[i][j] = exp2f((s[i][j] - base) * factor);
            sum[i] = sum[i] * fade + added;
#pragma unroll
            for (int part = 0; part < S::PARTS; part++)
#pragma unroll
                for (int j = 0; j < 4; j++) o[part][i][j] *= fade;
        }
        keep_weights<D>(s, memory);
        add_product<D>(o, keys(a, a.v, step.x, step.y, head), memory);
    }
#pragma unroll
    for (int i = 0; i < S::ROWS; i++) {
        const int row = tile.x + y + S::HEIGHT * i;
        const float total = sum_across<16>(sum[i]);
        if (row >= a.rows) continue;
        const int64_t at = int64_t(row) * a.heads + head;
        write<D>(o, i, 1.f / total, a.out + at * a.d, a);
        if (x == 0) a.lse[at] = highest[i] * a.scale + logf(total);
    }
}

template <int D>
__global__ void __launch_bounds__(Shape<D>::THREADS, Shape<D>::BLOCKS) backward_queries(Attention a) {
    using S = Shape<D>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, head = blockIdx.x;
    const int4 tile = a.by_queries.tiles[blockIdx.y];
    const Room memory = room();
    const RowsOfHead q = queries(a, tile.x, head), upstream = outputs(a, a.upstream, tile.x, head);
    const RowsOfHead output = outputs(a, a.out, tile.x, head);
    const float factor = a.scale * LOG2_E;
    float dq[S::PARTS][S::ROWS][4] = {}, log_sum[S::ROWS], delta[S::ROWS];
#pragma unroll
    for (int i = 0; i < S::ROWS; i++) {
        const int row = tile.x + y + S::HEIGHT * i;
        const int64_t at = int64_t(row) * a.heads + head;
        delta[i] = dot<16>(output, upstream, row - tile.x);
        log_sum[i] = row < a.rows ? a.lse[at] * LOG2_E : 0.f;
        if (row < a.rows && x == 0) a.delta[at] = delta[i];
    }
    for (int number = tile.y; number < tile.z; number++) {
        const int4 step = a.by_queries.steps[number];
        const RowsOfHead k = keys(a, a.k, step.x, step.y, head);
        float s[S::ROWS][4], g[S::ROWS][4];
        product<D>(s, q, k, memory);
        product<D>(g, upstream, keys(a, a.v, step.x, step.y, head), memory);
#pragma unroll
        for (int i = 0; i < S::ROWS; i++) {
            const int4 seen = step.z ? make_int4(0, 0, 0, 0) : seen_by(a, tile.x + y + S::HEIGHT * i);
#pragma unroll
            for (int j = 0; j < 4; j++)
                differentiate(s[i][j], g[i][j], step.z || sees(seen, step.x + x + 16 * j), factor, log_sum[i],
                              delta[i]);
        }
        keep_weights<D>(g, memory);
        add_product<D>(dq, k, memory);
    }
#pragma unroll
    for (int i = 0; i < S::ROWS; i++) {
        const int row = tile.x + y + S::HEIGHT * i;
        if (row >= a.rows) break;
        write<D>(dq, i, a.scale, a.dq + (a.query_rows ? a.query_rows[row] : row) * int64_t(a.q_stride) + head * a.d, a);
    }
}

// Rows are keys here, and columns queries.
template <int D>
__global__ void __launch_bounds__(Shape<D>::THREADS, Shape<D>::BLOCKS) backward_keys(Attention a) {
    using S = Shape<D>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, head = blockIdx.x;
    const int4 tile = a.by_keys.tiles[blockIdx.y];
    const int end = min(tile.x + TILE, a.key_rows);
    const Room memory = room();
    const RowsOfHead k = keys(a, a.k, tile.x, end, head), v = keys(a, a.v, tile.x, end, head);
    const float factor = a.scale * LOG2_E;
    float dk[S::PARTS][S::ROWS][4] = {}, dv[S::PARTS][S::ROWS][4] = {};
    for (int number = tile.y; number < tile.z; number++) {
        const int4 step = a.by_keys.steps[number];
        RowsOfHead q = queries(a, step.x, head), upstream = outputs(a, a.upstream, step.x, head);
        q.count = upstream.count = step.y - step.x;
        float s[S::ROWS][4], g[S::ROWS][4];
        product<D>(s, k, q, memory);
        product<D>(g, v, upstream, memory);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = step.x + x + 16 * j;
            const bool known = row < step.y;
            const int64_t at = int64_t(row) * a.heads + head;
            const int4 seen = known && !step.z ? a.seen[row] : make_int4(0, 0, 0, 0);
            const float log_sum = known ? a.lse[at] * LOG2_E : 0.f, delta = known ? a.delta[at] : 0.f;
#pragma unroll
            for (int i = 0; i < S::ROWS; i++)
                differentiate(s[i][j], g[i][j], step.z || sees(seen, tile.x + y + S::HEIGHT * i), factor, log_sum,
                              delta);
        }
        keep_weights<D>(s, memory);
        add_product<D>(dv, upstream, memory);
        keep_weights<D>(g, memory);
        add_product<D>(dk, q, memory);
    }
#pragma unroll
    for (int i = 0; i < S::ROWS; i++) {
        const int row = tile.x + y + S::HEIGHT * i;
        if (row >= a.key_rows) break;
        const int64_t at = int64_t(row) * a.dkv_stride + head * a.d;
        write<D>(dk, i, a.scale, a.dk + at, a);
        write<D>(dv, i, 1.f, a.dv + at, a);
    }
}

template <int D>
void run(const Attention& a, void (*kernel)(Attention), const Tiles& tiles) {
    launch(kernel, dim3(a.heads, tiles.count), Shape<D>::THREADS, ROOM_BYTES, a);
}

template <int D>
void run_backward(const Attention& a) {
    run<D>(a, backward_queries<D>, a.by_queries);
    run<D>(a, backward_keys<D>, a.by_keys);
}

}  // namespace

void attention_forward_in_fp32(const Attention& a) {
    if (a.d <= 64) return run<64>(a, forward<64>, a.by_queries);
    if (a.d <= 128) return run<128>(a, forward<128>, a.by_queries);
    run<256>(a, forward<256>, a.by_queries);
}

void attention_backward_in_fp32(const Attention& a) {
    if (a.d <= 64) return run_backward<64>(a);
    if (a.d <= 128) return run_backward<128>(a);
    run_backward<256>(a);
}

}  // namespace jl
