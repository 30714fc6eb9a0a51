// Attention over a layout: cuts it into tasks, gathers each task's rows and adds up the gradients for keys and values.
// What is computed per block, and the formulas, are in attention.h.
#include "attention.h"

#include "parallel.h"

namespace jl {

static void forward(const BlockOfHead& b, bool bf16, const float* x, float* o, float* log_sums) {
    if constexpr (BF16_PRODUCTS)
        if (takes_bf16(bf16, b.d)) return forward_in_bf16(b, x, o, log_sums);
    forward_in_fp32(b, x, o, log_sums);
}

static void backward(const BlockOfHead& b, bool bf16, const float* x, const float* dy, const float* log_sums,
                     const float* deltas, float* dx, float* sums_k, float* sums_v, int first) {
    if constexpr (BF16_PRODUCTS)
        if (takes_bf16(bf16, b.d)) return backward_in_bf16(b, x, dy, log_sums, deltas, dx, sums_k, sums_v, first);
    backward_in_fp32(b, x, dy, log_sums, deltas, dx, sums_k, sums_v, first);
}

// Consecutive blocks of one group, whose gradients for keys and values are summed together. They reach key rows [0,
// keys) of the group, and own as many rows of the memory for sums, from row `at` on.
struct Part {
    int group, keys, at;
    std::vector<Block> blocks;
};

// The backward pass has a task per part and head. With many groups a part is a whole group; few long ones are cut until
// there are this many tasks, so that machines of many cores have work. Each part's sums take 2 · keys · d floats per
// head to zero, write and add, so parts of fewer query rows than PART_ROWS, two blocks, are not worth it.
constexpr int ENOUGH_TASKS = 96;
constexpr int PART_ROWS = 2 * BLOCK_ROWS;

// Depends on the layout and the number of heads alone, since gradients are added part by part.
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
        for (Block& b : blocks_of(segments, groups[g].s0, groups[g].s1)) {
            if (fresh || (!whole && rows + b.rows() > most)) parts.push_back({g, 0, 0, {}}), rows = 0;
            fresh = false;
            Part& part = parts.back();
            b.each_rectangle([&](const Rectangle& r) { part.keys = std::max(part.keys, r.key + r.keys - groups[g].k0); });
            rows += b.rows();
            part.blocks.push_back(std::move(b));
        }
        if (fresh) parts.push_back({g, 0, 0, {}});  // no query rows: the gradients of its keys are zero
    }
    for (Part& part : parts) part.at = at, at += part.keys;
    return parts;
}

// A block's rows of one head, one after the other; `rows` maps query rows to rows of x unless null.
static const float* gathered(Buffer& memory, Heads<const float> x, const int* rows, const Block& b, int head, int d) {
    float* to = memory.get<float>(size_t(BLOCK_ROWS) * d);
    for (int r = b.first; r < b.end; r++) memcpy(to + size_t(r - b.first) * d, x.at(rows ? rows[r] : r, head, d), d * sizeof(float));
    return to;
}

}  // namespace jl

using namespace jl;

// out (rows, heads · d) and lse (rows, heads), the log-sum-exp of each row's scores.
// query_rows: the row of q that holds each query row; null: the row itself.
// scale: of the scores. bf16: products in bf16 where the processor has them. Query head h uses key head h / (heads / kv_heads).
JL_API void jl_attention_forward(const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                                 const int* query_rows, const int* segments, int segment_count, float* out, float* lse,
                                 int heads, int kv_heads, int d, double scale, int bf16) {
    const std::vector<Block> blocks = blocks_of(reinterpret_cast<const Segment*>(segments), 0, segment_count);
    const Heads<const float> keys{k, kv_stride}, values{v, kv_stride}, queries{q, q_stride};
    // Collapses blocks and heads into one loop. Later rows of a text see more keys: the longest tasks go first.
    parallel(int(blocks.size()) * heads, [&](int task) {
        static thread_local Buffer for_queries, for_output;
        const Block& b = blocks[blocks.size() - 1 - task / heads];
        const int head = task % heads, kv_head = head / (heads / kv_heads);
        const float* x = gathered(for_queries, queries, query_rows, b, head, d);
        float* o = for_output.get<float>(size_t(b.rows()) * d);
        float log_sums[BLOCK_ROWS];
        forward({b, keys, values, kv_head, d, float(scale)}, bf16, x, o, log_sums);
        for (int r = 0; r < b.rows(); r++) {
            const size_t at = size_t(b.first + r) * heads + head;
            memcpy(out + at * d, o + size_t(r) * d, d * sizeof(float));
            lse[at] = log_sums[r];
        }
    });
}

// dq, dk, dv with the strides of q, k, v. Rows of q without a query are not written: the caller zeroes them.
JL_API void jl_attention_backward(const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                                  const int* query_rows, const int* segments, const int* groups, int group_count,
                                  const float* out, const float* lse, const float* dout, float* dq, float* dk, float* dv,
                                  int key_rows, int heads, int kv_heads, int d, double scale, int bf16) {
    const Segment* all = reinterpret_cast<const Segment*>(segments);
    const Group* gs = reinterpret_cast<const Group*>(groups);
    const Heads<const float> keys{k, kv_stride}, values{v, kv_stride}, queries{q, q_stride};
    const int share = heads / kv_heads;
    // Each part and query head sums the gradients of its keys and values by itself; below they are added in order.
    const std::vector<Part> parts = parts_of(all, gs, group_count, heads);
    static Buffer for_sums;
    const size_t one = parts.empty() ? 0 : size_t(parts.back().at + parts.back().keys) * d;
    float* sums = for_sums.get<float>(2 * one * heads);
    auto sums_of = [&](const Part& part, int head) { return sums + 2 * head * one + size_t(part.at) * d; };
    // Collapses parts and heads, the longest first.
    parallel(int(parts.size()) * heads, [&](int task) {
        static thread_local Buffer for_queries, for_upstream, for_dq;
        const Part& part = parts[parts.size() - 1 - task / heads];
        const int head = task % heads, kv_head = head / share, first = gs[part.group].k0;
        float *sums_k = sums_of(part, head), *sums_v = sums_k + one;
        memset(sums_k, 0, size_t(part.keys) * d * sizeof(float));
        memset(sums_v, 0, size_t(part.keys) * d * sizeof(float));
        for (const Block& b : part.blocks) {
            const float* x = gathered(for_queries, queries, query_rows, b, head, d);
            const float* dy = gathered(for_upstream, {dout, heads * d}, nullptr, b, head, d);
            float* dx = for_dq.get<float>(size_t(b.rows()) * d);
            float log_sums[BLOCK_ROWS], deltas[BLOCK_ROWS];
            for (int r = 0; r < b.rows(); r++) {
                const size_t at = size_t(b.first + r) * heads + head;
                vec product{};
                each(d, [&](int64_t i, int n) { product += get(out + at * d + i, n) * get(dy + size_t(r) * d + i, n); });
                log_sums[r] = lse[at], deltas[r] = sum(product);
            }
            backward({b, keys, values, kv_head, d, float(scale)}, bf16, x, dy, log_sums, deltas, dx, sums_k, sums_v, first);
            for (int r = 0; r < b.rows(); r++) {
                const int row = query_rows ? query_rows[b.first + r] : b.first + r;
                memcpy(dq + size_t(row) * q_stride + size_t(head) * d, dx + size_t(r) * d, d * sizeof(float));
            }
        }
    });
    std::vector<std::pair<int, int>> parts_of_group(group_count, {0, 0});
    for (int i = 0; i < int(parts.size()); i++) {
        auto& found = parts_of_group[parts[i].group];
        found = {found.second ? found.first : i, i + 1};
    }
    std::vector<int> group_of_row(key_rows, -1);
    for (int g = 0; g < group_count; g++) std::fill(group_of_row.begin() + gs[g].k0, group_of_row.begin() + gs[g].k1, g);
    // A key row's gradient sums over the query heads that share its head, and over the parts of its group.
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
