// Attention over a layout of shared prefixes and branches, in blocks of query rows; no weights are kept.
//
// A segment (q0, q1, p0, p1, k0, k1) says: query rows [q0, q1) see key rows [p0, p1), and of key rows [k0, k1) row
// q1 - 1 - i sees all but the last i. A group (s0, s1, k0, k1) is segments [s0, s1) that share key rows [k0, k1), which
// no other group sees.
#include "attention.h"
#include "product.h"

namespace jl {

// c (m, n) = alpha · a · op(b) + beta · c, in the calling thread.
static inline void multiply(char ta, char tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                            int ldb, float beta, float* c, int ldc) {
    if (m > 0 && n > 0 && k > 0) sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// out (rows, keys) = alpha · x (rows, d) · mᵀ over the keys that the rows see.
static void against_keys(const Block& b, float alpha, const float* x, Heads<const float> m, int head, int d, float* out,
                         int stride) {
    multiply('N', 'T', b.rows(), b.prefix(), d, alpha, x, d, m.at(b.p0, head, d), m.stride, 0, out, stride);
    for (const Piece& p : b.pieces) {
        int at = p.first - b.first;
        multiply('N', 'T', p.end - p.first, p.keys(), d, alpha, x + size_t(at) * d, d, m.at(p.segment->k0, head, d), m.stride,
                 0, out + size_t(at) * stride + b.prefix(), stride);
    }
}

// out (rows, d) = x (rows, keys) · m
static void over_keys(const Block& b, const float* x, int stride, Heads<const float> m, int head, int d, float* out) {
    multiply('N', 'N', b.rows(), d, b.prefix(), 1, x, stride, m.at(b.p0, head, d), m.stride, 0, out, d);
    for (const Piece& p : b.pieces) {
        int at = p.first - b.first;
        multiply('N', 'N', p.end - p.first, d, p.keys(), 1, x + size_t(at) * stride + b.prefix(), stride,
                 m.at(p.segment->k0, head, d), m.stride, b.prefix() ? 1.f : 0.f, out + size_t(at) * d, d);
    }
}

// m (keys, d) += xᵀ (keys, rows) · y (rows, d); row 0 of m is key row `first`
static void onto_keys(const Block& b, const float* x, int stride, const float* y, float* m, int first, int d) {
    multiply('T', 'N', b.prefix(), d, b.rows(), 1, x, stride, y, d, 1, m + size_t(b.p0 - first) * d, d);
    for (const Piece& p : b.pieces) {
        int at = p.first - b.first;
        multiply('T', 'N', p.keys(), d, p.end - p.first, 1, x + size_t(at) * stride + b.prefix(), stride, y + size_t(at) * d, d,
                 1, m + size_t(p.segment->k0 - first) * d, d);
    }
}

// Consecutive blocks of one group, whose sums for keys and values are taken together. They reach key rows [0, keys) of the
// group, and have as many rows in the memory for sums, from row `at` on.
struct Part {
    int group, keys, at;
    std::vector<Block> blocks;
};

constexpr int ENOUGH_TASKS = 96;  // parts and heads, for machines of many cores: few groups are cut
constexpr int PART_ROWS = 128;    // query rows of a part at least; each has sums of its own, which take memory

// Depends on the layout and the heads alone, as sums are taken part by part.
static std::vector<Part> parts_of(const Segment* segments, const Group* groups, int group_count, int heads) {
    const bool whole = group_count * heads >= ENOUGH_TASKS;
    int queries = 0;
    for (int g = 0; g < group_count; g++)
        for (int s = groups[g].s0; s < groups[g].s1; s++) queries += segments[s].q1 - segments[s].q0;
    const int most = std::max(PART_ROWS, int(int64_t(queries) * heads / ENOUGH_TASKS));  // query rows of a part
    std::vector<Part> parts;
    int rows = 0, at = 0;
    for (int g = 0; g < group_count; g++) {
        bool fresh = true;
        for (Block& b : blocks(segments, groups[g].s0, groups[g].s1)) {
            if (fresh || (!whole && rows + b.rows() > most)) parts.push_back({g, 0, 0, {}}), rows = 0;
            fresh = false;
            Part& part = parts.back();
            part.keys = std::max(part.keys, b.p1 - groups[g].k0);
            for (const Piece& p : b.pieces) part.keys = std::max(part.keys, p.segment->k0 + p.keys() - groups[g].k0);
            rows += b.rows();
            part.blocks.push_back(std::move(b));
        }
        if (fresh) parts.push_back({g, 0, 0, {}});  // no query row, but gradients of zero
    }
    for (Part& part : parts) part.at = at, at += part.keys;
    return parts;
}

// Rows of one head of a block, one after the other.
static const float* gathered(Buffer& memory, Heads<const float> x, const int* rows, const Block& b, int head, int d) {
    float* to = memory.get<float>(size_t(BLOCK) * d);
    for (int r = b.first; r < b.end; r++) memcpy(to + size_t(r - b.first) * d, x.at(rows ? rows[r] : r, head, d), d * sizeof(float));
    return to;
}

}  // namespace jl

using namespace jl;

// out (rows, heads · d) and lse (rows, heads), the logarithm of each row's sum of exponentials.
// query_rows: row of q for each query row; null: the same. Key head of query head h is h / (heads / kv_heads).
// narrow: products in bf16 where the processor has them.
JL_API void jl_attention_forward(const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                                 const int* query_rows, const int* segments, int segment_count, float* out, float* lse,
                                 int heads, int kv_heads, int d, int narrow) {
    auto all = blocks(reinterpret_cast<const Segment*>(segments), 0, segment_count);
    Heads<const float> keys{k, kv_stride}, values{v, kv_stride}, queries{q, q_stride};
    float scale = 1.f / std::sqrt(float(d));
    parallel(int(all.size()) * heads, [&](int task) {
        static thread_local Buffer for_weights, for_queries, for_output;
        // The longest rows tend to stand at the end: they go first.
        const Block& b = all[all.size() - 1 - task / heads];
        int head = task % heads, kv_head = head / (heads / kv_heads), stride = b.stride(), rows = b.rows();
        const float* x = gathered(for_queries, queries, query_rows, b, head, d);
        float* o = for_output.get<float>(size_t(rows) * d);
        if (narrow && BF16_BLOCKS && d % W == 0) {
            float logs[BLOCK];
            forward_in_bf16(b, scale, x, keys, values, kv_head, d, o, logs);
            for (int r = 0; r < rows; r++) {
                size_t at = size_t(b.first + r) * heads + head;
                memcpy(out + at * d, o + size_t(r) * d, d * sizeof(float));
                lse[at] = logs[r];
            }
            return;
        }
        float* weights = for_weights.get<float>(size_t(rows) * stride);
        against_keys(b, scale, x, keys, kv_head, d, weights, stride);
        float norm[BLOCK];
        for (const Piece& p : b.pieces)
            for (int row = p.first; row < p.end; row++) {
                int r = row - b.first, seen = b.prefix() + p.own(row), whole = round_up(seen, W);
                float* w = weights + size_t(r) * stride;
                for (int i = seen; i < whole; i++) w[i] = -INFINITY;
                vec top = splat(-INFINITY), total{};
                for (int i = 0; i < whole; i += W) top = max(top, load(w + i));
                float highest = maximum(top);
                for (int i = 0; i < whole; i += W) {
                    vec e = exp(load(w + i) - highest);
                    store(w + i, e);
                    total += e;
                }
                for (int i = whole; i < b.prefix() + p.keys(); i++) w[i] = 0;
                float sums = sum(total);
                norm[r] = 1.f / sums;
                lse[size_t(row) * heads + head] = highest + std::log(sums);
            }
        over_keys(b, weights, stride, values, kv_head, d, o);
        for (int r = 0; r < rows; r++) {
            float* to = out + (size_t(b.first + r) * heads + head) * d;
            each(d, [&](int64_t i, int n) { put(to + i, get(o + size_t(r) * d + i, n) * norm[r], n); });
        }
    });
}

// dq, dk, dv with the strides of q, k, v. Rows of q that no segment asks about are left alone: give zeros.
JL_API void jl_attention_backward(const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                                  const int* query_rows, const int* segments, const int* groups, int group_count,
                                  const float* out, const float* lse, const float* dout, float* dq, float* dk, float* dv,
                                  int key_rows, int heads, int kv_heads, int d, int narrow) {
    const Segment* all = reinterpret_cast<const Segment*>(segments);
    const Group* gs = reinterpret_cast<const Group*>(groups);
    Heads<const float> keys{k, kv_stride}, values{v, kv_stride}, queries{q, q_stride};
    int share = heads / kv_heads;
    float scale = 1.f / std::sqrt(float(d));
    // Each part and query head has sums of its own, which are added in order afterwards.
    const std::vector<Part> parts = parts_of(all, gs, group_count, heads);
    static Buffer for_sums;
    const size_t one = parts.empty() ? 0 : size_t(parts.back().at + parts.back().keys) * d;
    float* sums = for_sums.get<float>(2 * one * heads);
    auto sums_of = [&](const Part& part, int head) { return sums + 2 * head * one + size_t(part.at) * d; };
    parallel(int(parts.size()) * heads, [&](int task) {
        static thread_local Buffer for_weights, for_slopes, for_queries, for_upstream, for_dq;
        // The longest rows tend to stand at the end: they go first.
        const Part& part = parts[parts.size() - 1 - task / heads];
        int head = task % heads, kv_head = head / share, first = gs[part.group].k0;
        float *sums_k = sums_of(part, head), *sums_v = sums_k + one;
        memset(sums_k, 0, size_t(part.keys) * d * sizeof(float));
        memset(sums_v, 0, size_t(part.keys) * d * sizeof(float));
        for (const Block& b : part.blocks) {
            int stride = b.stride(), rows = b.rows();
            const float* x = gathered(for_queries, queries, query_rows, b, head, d);
            const float* dy = gathered(for_upstream, {dout, heads * d}, nullptr, b, head, d);
            float* dx = for_dq.get<float>(size_t(rows) * d);
            float logs[BLOCK], deltas[BLOCK];
            for (int r = 0; r < rows; r++) {
                size_t at = size_t(b.first + r) * heads + head;
                vec product{};
                each(d, [&](int64_t i, int n) { product += get(out + at * d + i, n) * get(dy + size_t(r) * d + i, n); });
                logs[r] = lse[at], deltas[r] = sum(product);
            }
            auto hand_out = [&] {
                for (int r = 0; r < rows; r++) {
                    int row = query_rows ? query_rows[b.first + r] : b.first + r;
                    memcpy(dq + size_t(row) * q_stride + size_t(head) * d, dx + size_t(r) * d, d * sizeof(float));
                }
            };
            if (narrow && BF16_BLOCKS && d % W == 0) {
                backward_in_bf16(b, scale, x, dy, keys, values, kv_head, d, logs, deltas, dx, sums_k, sums_v, first);
                hand_out();
                continue;
            }
            float* weights = for_weights.get<float>(size_t(rows) * stride);
            float* slopes = for_slopes.get<float>(size_t(rows) * stride);
            against_keys(b, scale, x, keys, kv_head, d, weights, stride);
            against_keys(b, 1, dy, values, kv_head, d, slopes, stride);
            for (const Piece& p : b.pieces)
                for (int row = p.first; row < p.end; row++) {
                    int r = row - b.first, seen = b.prefix() + p.own(row), whole = round_up(seen, W);
                    float *w = weights + size_t(r) * stride, *s = slopes + size_t(r) * stride;
                    float delta = deltas[r], l = logs[r];
                    for (int i = seen; i < whole; i++) w[i] = -INFINITY, s[i] = 0;
                    for (int i = 0; i < whole; i += W) {
                        vec e = exp(load(w + i) - l);
                        store(w + i, e);
                        store(s + i, e * (load(s + i) - delta) * scale);
                    }
                    for (int i = whole; i < b.prefix() + p.keys(); i++) w[i] = s[i] = 0;
                }
            over_keys(b, slopes, stride, keys, kv_head, d, dx);
            hand_out();
            onto_keys(b, slopes, stride, x, sums_k, first, d);
            onto_keys(b, weights, stride, dy, sums_v, first, d);
        }
    });
    std::vector<std::pair<int, int>> parts_of_group(group_count, {0, 0});
    for (int i = 0; i < int(parts.size()); i++) {
        auto& found = parts_of_group[parts[i].group];
        found = {found.second ? found.first : i, i + 1};
    }
    std::vector<int> group_of_row(key_rows, -1);
    for (int g = 0; g < group_count; g++) std::fill(group_of_row.begin() + gs[g].k0, group_of_row.begin() + gs[g].k1, g);
    parallel_evenly(key_rows, [&](int r) {
        if (group_of_row[r] < 0) return;
        const auto [from, to] = parts_of_group[group_of_row[r]];
        const int row = r - gs[group_of_row[r]].k0;
        for (int h = 0; h < kv_heads; h++)
            each(d, [&](int64_t i, int n) {
                vec sum_k{}, sum_v{};
                for (int s = h * share; s < (h + 1) * share; s++)
                    for (int p = from; p < to; p++) {
                        if (row >= parts[p].keys) continue;
                        const float* at = sums_of(parts[p], s) + size_t(row) * d + i;
                        sum_k += get(at, n);
                        sum_v += get(at + one, n);
                    }
                put(dk + size_t(r) * kv_stride + h * d + i, sum_k, n);
                put(dv + size_t(r) * kv_stride + h * d + i, sum_v, n);
            });
    });
}
