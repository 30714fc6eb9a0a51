// Decoding: attention of new rows over a prefix and their own span.
//
// Flash-decoding (Dao et al. 2023): keys are cut into chunks, whose results are folded in their order: by one block per tile
// of queries where there are many tiles, else by the last of the blocks that have a chunk each. Bound by the bytes of the
// keys and values, which are read once per tile: those of a prefix for several branches.
#include "decode.cuh"

namespace jl::decoding {
namespace {

constexpr int WARPS = 4, CHUNK = WARPS * PANEL;  // keys: a panel per warp
constexpr int PAIRS = 8;                         // most pairs of a query and a head that share keys, per block
constexpr int BUSY_TILES = 1024;                 // blocks that keep a GPU busy

struct Shape {
    int heads, kv_heads, head_dim, layer, share, parts;  // share: heads per head of keys; parts: blocks per tile of one
    float scale;
};

// The result of some keys for a query and head: y is the sum of e^(score - most) · value, and `sum` that of the exponentials.
struct Totals {
    float most, sum;
};

// Puts sums so far, relative to e^`so_far`, and those of the next keys together. The same bits wherever it is done.
struct Fold {
    float most, before, next;

    __device__ Fold(float so_far, float with)
        : most(fmaxf(so_far, with)), before(expf(so_far - most)), next(expf(with - most)) {}
    __device__ float operator()(float sum, float with) const { return fmaf(sum, before, __fmul_rn(with, next)); }
};

// The rows of a tile's queries.
struct Rows {
    Row rows[PAIRS];
    Query queries[PAIRS];
    int count;

    __device__ int chunks_before() const { return (rows[0].prefix_rows + CHUNK - 1) / CHUNK; }

    // The end of the queries that read the span of query `first`, of which the last sees most.
    __device__ int end_of(int first) const {
        int end = first + 1;
        while (end < count && rows[end].own == rows[first].own) end++;
        return end;
    }
    __device__ int chunks_of(int end) const { return rows[end - 1].at / CHUNK + 1; }
};

// A chunk of keys that some queries of a tile see: first those of the prefix, which all do, then those of their own spans, one
// span after the other.
struct Unit {
    int chunk, first, end;  // of a span; queries
    bool in_prefix;

    __device__ Unit(const Rows& tile, int number) : chunk(number), first(0), end(tile.count), in_prefix(true) {
        const int before = tile.chunks_before();
        if (number < before) return;
        in_prefix = false, chunk -= before;
        for (end = tile.end_of(0); chunk >= tile.chunks_of(end); end = tile.end_of(first))
            chunk -= tile.chunks_of(end), first = end;
    }
};

// Pairs of one tile and head of keys: pair u is query u / share and head u % share of those that use it.
template <int COUNT>
__global__ void attention_kernel(Shape shape, Attention a, bool split) {
    constexpr int LOADS = COUNT == 1 ? PANEL : 8;  // at a time: a single query waits for memory, not for its products
    __shared__ Rows tile;
    const int d = shape.head_dim, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int part = blockIdx.x % shape.parts, head = blockIdx.x / shape.parts % shape.kv_heads;
    const Tile cut = a.tiles[blockIdx.x / shape.parts / shape.kv_heads];
    const int first_pair = part * PAIRS, count = min(cut.count * shape.share - first_pair, COUNT);
    if (count <= 0) return;
    if (int(threadIdx.x) < cut.count) {
        tile.queries[threadIdx.x] = a.queries[cut.first + threadIdx.x];
        tile.rows[threadIdx.x] = a.table[tile.queries[threadIdx.x].row];
    }
    if (threadIdx.x == 0) tile.count = cut.count;
    __syncthreads();
    int units = tile.chunks_before();
    for (int first = 0, end; first < tile.count; first = end) end = tile.end_of(first), units += tile.chunks_of(end);
    if (split && int(blockIdx.y) >= units) return;
    // Is this the first unit of its queries?
    auto is_first = [&](const Unit& unit) { return unit.chunk == 0 && (unit.in_prefix || !tile.chunks_before()); };
    auto query = [&](int u) { return (first_pair + u) / shape.share; };
    auto column = [&](int u) { return (head * shape.share + (first_pair + u) % shape.share) * d; };

    float* q = reinterpret_cast<float*>(shared_memory());  // (COUNT, d)
    float* y = q + COUNT * d;                              // (WARPS, COUNT, d)
    float* p = y + WARPS * COUNT * d;                      // (WARPS, COUNT, PANEL)
    float* total = p + WARPS * COUNT * PANEL;              // (COUNT, d): so far
    Totals* totals = reinterpret_cast<Totals*>(total + COUNT * d);  // (WARPS, COUNT)
    Totals* so_far = totals + WARPS * COUNT;               // (COUNT)
    const int64_t stride = (shape.heads + 2 * shape.kv_heads) * d;
    for (int i = threadIdx.x; i < COUNT * d; i += blockDim.x) {
        const int u = min(i / d, count - 1);
        q[i] = a.qkv[tile.queries[query(u)].row * stride + column(u) + i % d] * shape.scale;
    }
    __syncthreads();

    float* partial = a.partial + int64_t(blockIdx.x) * a.units * PAIRS * (d + 2);  // (units, PAIRS, d + 2)
    for (int number = split ? blockIdx.y : 0; number < (split ? int(blockIdx.y) + 1 : units); number++) {
        const Unit unit(tile, number);
        const Row& last = tile.rows[unit.end - 1];
        const int first = unit.chunk * CHUNK + warp * PANEL;
        const int rows = min((unit.in_prefix ? last.prefix_rows : last.at + 1) - first, PANEL);  // for any of the queries
        const Span span(unit.in_prefix ? last.prefix : last.own, unit.in_prefix ? last.prefix_capacity : last.own_capacity,
                        shape.layer, shape.kv_heads, head, d);
        auto is_in = [&](int u) { return u < count && query(u) >= unit.first && query(u) < unit.end; };
        // Scores: a key per lane.
        float scores[COUNT] = {};
        if (rows > 0) {
            const float* keys = span.keys + int64_t(first) * d + lane;
            for (int i = 0; i < d; i += LOADS) {
                float some[LOADS];
#pragma unroll
                for (int j = 0; j < LOADS; j++) some[j] = __ldg(keys + min(i + j, d - 1) * PANEL);
#pragma unroll
                for (int j = 0; j < LOADS; j++)
#pragma unroll
                    for (int u = 0; u < COUNT; u++)
                        if (i + j < d) scores[u] = fmaf(q[u * d + i + j], some[j], scores[u]);
            }
        }
#pragma unroll
        for (int u = 0; u < COUNT; u++) {
            if (!is_in(u) || lane >= rows || (!unit.in_prefix && first + lane > tile.rows[query(u)].at)) scores[u] = -INFINITY;
            const float most = warp_max(scores[u]);
            if (lane == 0) totals[warp * COUNT + u].most = most;
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < COUNT; u++) {
            float most = totals[u].most;
            for (int w = 1; w < WARPS; w++) most = fmaxf(most, totals[w * COUNT + u].most);
            const float e = scores[u] == -INFINITY ? 0.f : expf(scores[u] - most);
            p[(warp * COUNT + u) * PANEL + lane] = e;
            const float sum = warp_sum(e);
            if (lane == 0) totals[warp * COUNT + u].sum = sum;
        }
        __syncwarp();
        // Sums of values: an element per lane.
        for (int i = lane; i < d; i += WARP) {
            float sums[COUNT] = {};
            const float* values = span.values + int64_t(first) * d + i;
            for (int key = 0; key < rows; key += LOADS) {
                float some[LOADS];
#pragma unroll
                for (int j = 0; j < LOADS; j++) some[j] = __ldg(values + int64_t(min(key + j, rows - 1)) * d);
#pragma unroll
                for (int j = 0; j < LOADS; j++)  // beyond the last key p is 0
#pragma unroll
                    for (int u = 0; u < COUNT; u++)
                        sums[u] = fmaf(p[(warp * COUNT + u) * PANEL + key + j], some[j], sums[u]);
            }
#pragma unroll
            for (int u = 0; u < COUNT; u++) y[(warp * COUNT + u) * d + i] = sums[u];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < count * d; i += blockDim.x) {
            const int u = i / d;
            if (!is_in(u)) continue;
            Totals here{totals[u].most, totals[u].sum};
            float sum = y[i];
            for (int w = 1; w < WARPS; w++) {
                here.most = fmaxf(here.most, totals[w * COUNT + u].most);
                here.sum += totals[w * COUNT + u].sum;
                sum += y[w * COUNT * d + i];
            }
            if (split) {
                float* to = partial + (int64_t(number) * PAIRS + u) * (d + 2);
                to[i % d] = sum;
                if (i % d == 0) to[d] = here.most, to[d + 1] = here.sum;
            } else if (is_first(unit)) {
                total[i] = sum;
            } else {
                const Fold fold(so_far[u].most, here.most);
                total[i] = fold(total[i], sum);
            }
        }
        __syncthreads();
        if (const int u = threadIdx.x; !split && is_in(u)) {
            Totals here{totals[u].most, totals[u].sum};
            for (int w = 1; w < WARPS; w++) {
                here.most = fmaxf(here.most, totals[w * COUNT + u].most);
                here.sum += totals[w * COUNT + u].sum;
            }
            const Fold fold(so_far[u].most, here.most);
            so_far[u] = is_first(unit) ? here : Totals{fold.most, fold(so_far[u].sum, here.sum)};
        }
        __syncthreads();
    }
    if (split && !is_last(a.counters + blockIdx.x, units)) return;
    for (int i = threadIdx.x; i < count * d; i += blockDim.x) {
        const int u = i / d;
        float sum = total[i];
        Totals all = so_far[u];
        for (int number = 0; split && number < units; number++) {
            const Unit unit(tile, number);
            if (query(u) < unit.first || query(u) >= unit.end) continue;
            const float* from = partial + (int64_t(number) * PAIRS + u) * (d + 2);
            const Totals here{from[d], from[d + 1]};
            if (is_first(unit)) {
                sum = from[i % d], all = here;
            } else {
                const Fold fold(all.most, here.most);
                sum = fold(sum, from[i % d]);
                all = {fold.most, fold(all.sum, here.sum)};
            }
        }
        const int64_t to = int64_t(tile.queries[query(u)].to) * a.y.width + column(u) + i % d;
        const float result = sum / all.sum;
        a.y.exact[to] = result;
        if (a.y.half) a.y.half[to] = to_bf16(result);
    }
}

int parts_of(const Network& net) { return blocks_for(tile_queries(net) * (net.heads / net.kv_heads), PAIRS); }

template <int COUNT>
void start(const Shape& shape, const Attention& a) {
    const int tiles = a.tile_count * shape.kv_heads * shape.parts, d = shape.head_dim;
    const bool split = tiles < BUSY_TILES && a.units > 1;
    const size_t floats = COUNT * d * (2 + WARPS) + WARPS * COUNT * PANEL + 2 * (WARPS + 1) * COUNT;
    launch(attention_kernel<COUNT>, dim3(tiles, split ? a.units : 1), WARPS * WARP, floats * sizeof(float), shape, a, split);
}

}  // namespace

int tile_queries(const Network& net) { return std::max(1, PAIRS / (net.heads / net.kv_heads)); }

int chunks_of(int rows) { return blocks_for(rows, CHUNK); }

int64_t partial_floats(const Network& net, int tiles, int units) {
    const int64_t blocks = int64_t(tiles) * net.kv_heads * parts_of(net);
    return blocks < BUSY_TILES && units > 1 ? blocks * units * PAIRS * (net.head_dim + 2) : 0;
}

int attention_counters(const Network& net, int tiles) { return tiles * net.kv_heads * parts_of(net); }

void attend(const Network& net, int layer, const Attention& a) {
    const int share = net.heads / net.kv_heads;
    Shape shape{net.heads, net.kv_heads, net.head_dim, layer, share, parts_of(net), net.layers[layer].scale};
    if (share * a.tile_queries == 1) start<1>(shape, a);
    else if (share * a.tile_queries <= 4) start<4>(shape, a);
    else start<PAIRS>(shape, a);
}

}  // namespace jl::decoding
