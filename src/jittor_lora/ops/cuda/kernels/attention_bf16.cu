// Attention with products in bf16 on the tensor cores (mma.cuh), summed in float32; scores and softmax are in float32.
//
// Four warps have 16 of a tile's 64 rows each, and sums in registers. Keys and values come from memory as float32 and
// are rounded on their way into shared memory, where a row of d has 16 bytes more than it needs: the eight rows of a
// matrix then lie in different banks.
//
// A pair of tiles takes 4 · 64 · 64 · d FLOPs forward, 6 for dQ and 8 for dK and dV, and reads 2 · 64 · d floats,
// mostly from the L2 cache: 32 FLOPs and more per byte. For d = 64 a warp's forward step is 64 products: of 32 clocks
// each on an RTX 30 or 40, 8 on an A100. Beside them it takes 32 e^x per thread (256 clocks) and 32 loads of four
// matrices (512 clocks for the four warps of a processor). So tensor cores are the bound on the former; on an A100
// shared memory is as slow as they are. None of this was measured.
//
// Blocks per processor, by registers (no spills, sm_80 to sm_120) and shared memory: for d ≤ 64 three forward (18 KiB;
// two on sm_120), two backward (18 and 37 KiB); for d ≤ 128 two (34 KiB), but for dK and dV (69 KiB) one where a
// processor has 100 KiB: RTX 30 to 50.
#include "attention.cuh"
#include "mma.cuh"

namespace jl {

namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP;

template <int D>
constexpr int STRIDE = D + 8;

template <int D>
constexpr int ROOM = TILE * STRIDE<D>;  // bf16 per array in shared memory

#ifdef JL_HAS_MMA

// Rows of d on their way to shared memory, in registers: fetched before they are needed, stored after.
template <int D, int ROWS = TILE>
class Fetched {
public:
    __device__ void fetch(const RowsOfHead& rows, int first = 0) {
#pragma unroll
        for (int i = 0; i < PARTS; i++) parts[i] = rows.four(first + row(i), column(i));
    }

    __device__ void store(bf16* to) const {
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const float4& x = parts[i];
            uint2* at = reinterpret_cast<uint2*>(to + row(i) * STRIDE<D> + column(i));
            *at = make_uint2(rounded(x.x, x.y), rounded(x.z, x.w));
        }
    }

private:
    static constexpr int PARTS = ROWS * D / 4 / THREADS;

    __device__ static int row(int i) { return (threadIdx.x + i * THREADS) / (D / 4); }
    __device__ static int column(int i) { return (threadIdx.x + i * THREADS) % (D / 4) * 4; }

    float4 parts[PARTS];
};

template <int D>
__device__ void stage(bf16* to, const RowsOfHead& rows) {
    constexpr int AT_ONCE = TILE * 64 / D;  // 32 registers
#pragma unroll 1
    for (int first = 0; first < TILE; first += AT_ONCE) {
        Fetched<D, AT_ONCE> some;
        some.fetch(rows, first);
        some.store(to + first * STRIDE<D>);
    }
}

// A warp's 16 rows as left matrices, in registers or, where these hold the sums for dK and dV, in shared memory.
template <int D>
class InRegisters {
public:
    __device__ explicit InRegisters(const bf16* rows) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) load_left(matrices[k], rows + k * 16, STRIDE<D>);
    }
    __device__ void get(uint32_t (&to)[4], int k) const {
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = matrices[k][i];
    }

private:
    uint32_t matrices[D / 16][4];
};

template <int D>
class InSharedMemory {
public:
    __device__ explicit InSharedMemory(const bf16* rows) : rows(rows) {}
    __device__ void get(uint32_t (&to)[4], int k) const { load_left(to, rows + k * 16, STRIDE<D>); }

private:
    const bf16* rows;
};

// A warp's 16 rows by N columns: of each eight columns four sums in each lane.
template <int N>
using Sums = float[N / 8][4];

// sums (16, N) = left · rightᵀ, from N rows of d.
template <int D, int N, class Left>
__device__ void product(Sums<N>& sums, const Left& left, const bf16* right, int d) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        if (k * 16 >= d) break;
        uint32_t a[4];
        left.get(a, k);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            load_right_transposed(b, right + n * 16 * STRIDE<D> + k * 16, STRIDE<D>);
            multiply_add(sums[2 * n], a, b[0], b[1]);
            multiply_add(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

template <int N>
using Weights = uint32_t[N / 16][4];  // (16, N) as left matrices

template <int N>
__device__ void round(Weights<N>& to, const Sums<N>& from) {
#pragma unroll
    for (int k = 0; k < N / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&two)[4] = from[2 * k + i / 2];
            to[k][i] = rounded(two[i % 2 * 2], two[i % 2 * 2 + 1]);
        }
}

// sums (16, d) += weights · right, which has N rows.
template <int D, int N>
__device__ void add_product(Sums<D>& sums, const Weights<N>& weights, const bf16* right, int d) {
#pragma unroll
    for (int k = 0; k < N / 16; k++)
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            if (n * 16 >= d) break;
            uint32_t b[4];
            load_right(b, right + k * 16 * STRIDE<D> + n * 16, STRIDE<D>);
            multiply_add(sums[2 * n], weights[k], b[0], b[1]);
            multiply_add(sums[2 * n + 1], weights[k], b[2], b[3]);
        }
}

// A lane has two of its warp's rows, and of each eight columns two.
__device__ inline int row_of_lane(int half) {
    return int(threadIdx.x) / WARP * 16 + int(threadIdx.x) % WARP / 4 + half * 8;
}
__device__ inline int column_of_lane(int n) { return n * 8 + int(threadIdx.x) % 4 * 2; }

// Half of the sums · factor into a row of d.
template <int D>
__device__ void write(const Sums<D>& sums, int half, float factor, float* to, const Attention& a) {
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const int column = column_of_lane(n);
        const float first = sums[n][2 * half] * factor, second = sums[n][2 * half + 1] * factor;
        if (column >= a.d) break;
        *reinterpret_cast<float2*>(to + column) = make_float2(first, second);
    }
}

// Bits [first, end) of 64, where these are among them.
__device__ inline uint64_t bits(int first, int end) {
    first = max(first, 0), end = min(end, 64);
    return first < end ? ~uint64_t(0) >> (64 - (end - first)) << first : 0;
}

__device__ inline bf16* rooms() { return reinterpret_cast<bf16*>(shared_memory()); }

#endif

// Keys and values take turns in the registers: while one is multiplied the other is on its way.
template <int D>
__global__ void __launch_bounds__(THREADS) forward(Attention a) {
#ifdef JL_HAS_MMA
    const int head = blockIdx.x, own = int(threadIdx.x) / WARP * 16 * STRIDE<D>;
    const int4 tile = a.by_queries.tiles[blockIdx.y];
    bf16 *k = rooms(), *v = k + ROOM<D>;
    stage<D>(k, queries(a, tile.x, head));
    __syncthreads();
    const InRegisters<D> q(k + own);
    __syncthreads();
    const float factor = a.scale * LOG2_E;  // powers of 2 below
    Sums<D> o = {};
    float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of sums its own columns' part
    Fetched<D> next;
    for (int number = tile.y; number < tile.z; number++) {
        const int4 step = a.by_queries.steps[number];
        if (number == tile.y) next.fetch(keys(a, a.k, step.x, step.y, head));
        next.store(k);
        __syncthreads();
        next.fetch(keys(a, a.v, step.x, step.y, head));
        Sums<TILE> s;
        product<D, TILE>(s, q, k, a.d);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (!step.z) {
                const int4 seen = seen_by(a, tile.x + row_of_lane(half));
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (!sees(seen, step.x + column_of_lane(n) + i)) s[n][2 * half + i] = -INFINITY;
            }
            float top = highest[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            top = maximum_across<4>(top);
            const float base = top == -INFINITY ? 0.f : top;  // no key so far: e^-∞ = 0 below
            const float fade = exp2f((highest[half] - base) * factor);
            highest[half] = top;
            sum[half] *= fade;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) sum[half] += s[n][i] = exp2f((s[n][i] - base) * factor);
#pragma unroll
            for (int n = 0; n < D / 8; n++) o[n][2 * half] *= fade, o[n][2 * half + 1] *= fade;
        }
        Weights<TILE> weights;
        round<TILE>(weights, s);
        next.store(v);
        __syncthreads();
        if (number + 1 < tile.z) {
            const int4 after = a.by_queries.steps[number + 1];
            next.fetch(keys(a, a.k, after.x, after.y, head));
        }
        add_product<D, TILE>(o, weights, v, a.d);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile.x + row_of_lane(half);
        const float total = sum_across<4>(sum[half]);
        if (row >= a.rows) continue;
        const int64_t at = int64_t(row) * a.heads + head;
        write<D>(o, half, 1.f / total, a.out + at * a.d, a);
        if (threadIdx.x % 4 == 0) a.lse[at] = highest[half] * a.scale + logf(total);
    }
#endif
}

template <int D>
__global__ void __launch_bounds__(THREADS, 2) backward_queries(Attention a) {
#ifdef JL_HAS_MMA
    const int head = blockIdx.x, own = int(threadIdx.x) / WARP * 16 * STRIDE<D>;
    const int4 tile = a.by_queries.tiles[blockIdx.y];
    const RowsOfHead output = outputs(a, a.out, tile.x, head), gradient = outputs(a, a.upstream, tile.x, head);
    bf16 *k = rooms(), *v = k + ROOM<D>;
    stage<D>(k, queries(a, tile.x, head));
    stage<D>(v, gradient);
    __syncthreads();
    const InRegisters<D> q(k + own), upstream(v + own);
    const float factor = a.scale * LOG2_E;
    Sums<D> dq = {};
    float log_sum[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile.x + row_of_lane(half);
        const int64_t at = int64_t(row) * a.heads + head;
        delta[half] = dot<4>(output, gradient, row - tile.x);
        log_sum[half] = row < a.rows ? a.lse[at] * LOG2_E : 0.f;
        if (row < a.rows && threadIdx.x % 4 == 0) a.delta[at] = delta[half];
    }
    for (int number = tile.y; number < tile.z; number++) {
        const int4 step = a.by_queries.steps[number];
        __syncthreads();
        stage<D>(k, keys(a, a.k, step.x, step.y, head));
        stage<D>(v, keys(a, a.v, step.x, step.y, head));
        __syncthreads();
        Sums<TILE> s, g;
        product<D, TILE>(s, q, k, a.d);
        product<D, TILE>(g, upstream, v, a.d);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int4 seen = step.z ? make_int4(0, 0, 0, 0) : seen_by(a, tile.x + row_of_lane(half));
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    differentiate(s[n][2 * half + i], g[n][2 * half + i],
                                  step.z || sees(seen, step.x + column_of_lane(n) + i), factor, log_sum[half],
                                  delta[half]);
        }
        Weights<TILE> weights;
        round<TILE>(weights, g);
        add_product<D, TILE>(dq, weights, k, a.d);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile.x + row_of_lane(half);
        if (row >= a.rows) break;
        const int64_t at = int64_t(a.query_rows ? a.query_rows[row] : row) * a.q_stride;
        write<D>(dq, half, a.scale, a.dq + at + head * a.d, a);
    }
#endif
}

// What the columns of a step have in shared memory: of each query row L, D, and which of the 64 keys it sees.
struct Columns {
    float log_sums[TILE], deltas[TILE];
    uint32_t seen[2][TILE];  // the first 32 keys, and the others
};

// Rows are keys here, and columns queries.
template <int D>
__global__ void __launch_bounds__(THREADS) backward_keys(Attention a) {
#ifdef JL_HAS_MMA
    constexpr int N = D <= 64 ? 64 : 32;  // columns at a time: sums for 64 do not fit beside those for dK and dV
    const int head = blockIdx.x, own = int(threadIdx.x) / WARP * 16 * STRIDE<D>;
    const int4 tile = a.by_keys.tiles[blockIdx.y];
    const int end = min(tile.x + TILE, a.key_rows);
    bf16 *q = rooms(), *upstream = q + ROOM<D>, *k = upstream + ROOM<D>, *v = k + ROOM<D>;
    Columns& columns = *reinterpret_cast<Columns*>(v + ROOM<D>);
    stage<D>(k, keys(a, a.k, tile.x, end, head));
    stage<D>(v, keys(a, a.v, tile.x, end, head));
    const float factor = a.scale * LOG2_E;
    Sums<D> dk = {}, dv = {};
    for (int number = tile.y; number < tile.z; number++) {
        const int4 step = a.by_keys.steps[number];
        RowsOfHead query_rows = queries(a, step.x, head), upstream_rows = outputs(a, a.upstream, step.x, head);
        query_rows.count = upstream_rows.count = step.y - step.x;
        __syncthreads();
        stage<D>(q, query_rows);
        stage<D>(upstream, upstream_rows);
        if (threadIdx.x < TILE) {
            const int row = step.x + threadIdx.x;
            const int64_t at = int64_t(row) * a.heads + head;
            const bool known = row < step.y;
            const int4 seen = known ? a.seen[row] : make_int4(0, 0, 0, 0);
            const uint64_t keys_seen = bits(seen.x - tile.x, seen.y - tile.x) | bits(seen.z - tile.x, seen.w - tile.x);
            columns.log_sums[threadIdx.x] = known ? a.lse[at] * LOG2_E : 0.f;
            columns.deltas[threadIdx.x] = known ? a.delta[at] : 0.f;
            columns.seen[0][threadIdx.x] = uint32_t(keys_seen);
            columns.seen[1][threadIdx.x] = uint32_t(keys_seen >> 32);
        }
        __syncthreads();
#pragma unroll 1
        for (int first = 0; first < TILE; first += N) {
            Sums<N> s, g;
            product<D, N>(s, InSharedMemory<D>(k + own), q + first * STRIDE<D>, a.d);
            product<D, N>(g, InSharedMemory<D>(v + own), upstream + first * STRIDE<D>, a.d);
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int column = first + column_of_lane(n) + i;
                    const uint32_t seen = columns.seen[row_of_lane(0) / 32][column];
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        differentiate(s[n][2 * half + i], g[n][2 * half + i], seen >> row_of_lane(half) % 32 & 1,
                                      factor, columns.log_sums[column], columns.deltas[column]);
                }
            Weights<N> weights;
            round<N>(weights, s);
            add_product<D, N>(dv, weights, upstream + first * STRIDE<D>, a.d);
            round<N>(weights, g);
            add_product<D, N>(dk, weights, q + first * STRIDE<D>, a.d);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile.x + row_of_lane(half);
        if (row >= a.key_rows) break;
        const int64_t at = int64_t(row) * a.dkv_stride + head * a.d;
        write<D>(dk, half, a.scale, a.dk + at, a);
        write<D>(dv, half, 1.f, a.dv + at, a);
    }
#endif
}

template <int D>
void run(const Attention& a, void (*kernel)(Attention), const Tiles& tiles, int arrays, int more = 0) {
    launch(kernel, dim3(a.heads, tiles.count), THREADS, size_t(arrays) * ROOM<D> * sizeof(bf16) + more, a);
}

template <int D>
void run_backward(const Attention& a) {
    run<D>(a, backward_queries<D>, a.by_queries, 2);
    run<D>(a, backward_keys<D>, a.by_keys, 4, sizeof(Columns));
}

}  // namespace

bool attention_takes_bf16(const Attention& a) { return a.d % 16 == 0 && a.d <= 128 && a.vectors && has_mma(); }

void attention_forward_in_bf16(const Attention& a) {
    if (a.d <= 64) return run<64>(a, forward<64>, a.by_queries, 2);
    run<128>(a, forward<128>, a.by_queries, 2);
}

void attention_backward_in_bf16(const Attention& a) {
    if (a.d <= 64) return run_backward<64>(a);
    run_backward<128>(a);
}

}  // namespace jl
