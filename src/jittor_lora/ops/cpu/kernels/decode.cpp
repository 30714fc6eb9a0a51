// A whole network on some rows of tokens in one parallel region: reads prompts and continues them.
#include <sys/mman.h>
#include <unistd.h>

#include <cfloat>
#include <cstdlib>
#include <memory>

#include "decode_panels.h"
#include "decode_screen.h"
#include "decode_threads.h"
#include "parallel.h"
#include "rows.h"

namespace jl::decoding {
namespace {

struct Free {
    void operator()(void* p) const { free(p); }
};

// Rows of floats, and of the same numbers in bf16 where products take them so. All zeros at the start; what lies
// between the width and the stride stays zero.
struct Rows {
    std::unique_ptr<float, Free> floats;
    std::unique_ptr<bf16, Free> halves;
    int ld = 0, ldh = 0;

    Rows(int rows, int width, bool half = false) : ld(float_stride(width)), ldh(bf16_stride(width)) {
        floats.reset((float*)zeros((size_t)rows * ld * sizeof(float)));
        if (half) halves.reset((bf16*)zeros((size_t)rows * ldh * sizeof(bf16)));
    }

    float* row(int r) const { return floats.get() + (size_t)r * ld; }
    bf16* half(int r) const { return halves ? halves.get() + (size_t)r * ldh : nullptr; }

    // Rewrites `width` values of a row in bf16, from column `at`, a multiple of W.
    void halve(int r, int at, int width) const {
        if (halves)
            for (int i = at; i < at + width; i += W) store(half(r) + i, load(row(r) + i));
    }

  private:
    static void* zeros(size_t bytes) {
        size_t whole = (bytes / 64 + 1) * 64;
        void* p = aligned_alloc(64, whole);
        if (!p) throw std::bad_alloc();
        return memset(p, 0, whole);
    }
};

// y = norm(x) of one row of `width` values; y is written up to a multiple of W.
void normalize(const Network& net, const Norm& norm, const float* x, float* y) {
    int width = net.width;
    vec total{};
    float mean = 0;
    if (!net.root_mean_square) {
        for (int i = 0; i < width; i += W) total += load(x + i);  // zeros beyond the width
        mean = sum(total) / width;
        total = vec{};
    }
    for (int i = 0; i < width; i += W) {
        vec centred = first(load(x + i) - mean, width - i);
        total += centred * centred;
    }
    float scale = 1.f / std::sqrt(sum(total) / width + net.eps);
    for (int i = 0; i < width; i += W) {
        vec value = (load(x + i) - mean) * scale * load(norm.weight + i);
        store(y + i, norm.bias ? value + load(norm.bias + i) : value);
    }
}

vec activate(int activation, vec x) {
    switch (activation) {
        case GELU_TANH:
            return gelu(x);
        case SILU:
            return x * sigmoid(x);
        case RELU:
            return max(x, vec{});
    }
    for (int i = 0; i < W; i++) x[i] *= 0.5f * (1.f + std::erf(x[i] * 0.70710678f));
    return x;
}

// Rotates the pairs (x_i, x_{i + d/2}).
void rotate(float* x, int d, const float* cosines, const float* sines) {
    for (int i = 0; i < d / 2; i++) {
        float a = x[i], b = x[i + d / 2];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + d / 2] = b * cosines[i] + a * sines[i];
    }
}

// A query row of an attention: which row of the call it is, and where its result goes.
struct Query {
    int row, segment, to;
};

// Up to ROWS pairs of query row and query head that share a key head and a prefix. Pair u is of query u / share in
// `queries` and of head u % share of those that use the key head.
struct Task {
    int first, end, key_head;
};

// Where the keys and values of a layer and key head are in a span.
struct Keys {
    float *keys, *values;

    Keys(const Network& net, const Span& span, int layer, int head) {
        size_t d = net.head_dim, wide = padded(net.head_dim, PANEL);
        keys = span.memory + (size_t)(layer * net.kv_heads + head) * span.capacity * (d + wide);
        values = keys + (size_t)span.capacity * d;
    }
};

}  // namespace

// The states of up to `rows` rows, kept from call to call.
struct Workspace {
    Rows x, last, h, qkv, attended, inner, projected, upper;
    mutable Buffer scratch;

    Workspace(const Network& net, int rows)
        : x(rows, net.width), last(rows, net.width), h(rows, net.width, halves(net)), qkv(rows, qkv_width(net)),
          attended(rows, net.heads * net.head_dim, halves(net)), inner(rows, net.inner, halves(net)),
          projected(rows, most_ranks(net)), upper(SCREENS ? std::min(rows, STATES) : 0, net.head.matrices[0].outputs) {}

    static bool halves(const Network& net) { return net.bf16 && PAIRS; }

    static int qkv_width(const Network& net) {
        int width = 0;
        const Linear& qkv = net.layers[0].qkv;
        for (int m = 0; m < qkv.count; m++) width += padded(qkv.matrices[m].outputs, PANEL);
        return width;
    }

    static int most_ranks(const Network& net) {
        int most = 0;
        for (int l = 0; l < net.layer_count; l++) {
            const Layer& layer = net.layers[l];
            for (const Linear* linear : {&layer.qkv, &layer.out, &layer.up, &layer.down})
                most = std::max(most, linear->ranks);
        }
        return most;
    }
};

namespace {

class Run {
  public:
    Run(const Network& net, const Workspace& space, int rows, const float* embedded, const int32_t* positions,
        int segments, const Segment* segment, float* logits, int32_t* likeliest)
        : net_(net), rows_(rows), embedded_(embedded), positions_(positions), segments_(segment),
          logits_(logits), likeliest_(likeliest), threads_(omp_get_max_threads()), schedule_(threads_),
          x_(space.x), x_last_(space.last), h_(space.h), qkv_(space.qkv), attended_(space.attended),
          inner_(space.inner), projected_(space.projected), upper_(space.upper) {
        share_ = net.heads / net.kv_heads;
        bool fused = net.layers[0].qkv.count == 1;
        int wide_q = padded(net.heads * net.head_dim, PANEL), wide_k = padded(net.kv_heads * net.head_dim, PANEL);
        k_at_ = fused ? net.heads * net.head_dim : wide_q;
        v_at_ = fused ? k_at_ + net.kv_heads * net.head_dim : wide_q + wide_k;
        for (int s = 0; s < segments; s++) {
            for (int r = 0; r < segment[s].count; r++) {
                owner_.push_back(s);
                queries_.push_back({segment[s].first + r, s, segment[s].first + r});
            }
            if (segment[s].wanted) {
                int row = segment[s].first + segment[s].count - 1;
                last_queries_.push_back({row, s, (int)wanted_.size()});
                wanted_.push_back(row);
            }
        }
        tasks_ = tasks_of(queries_);
        last_tasks_ = tasks_of(last_queries_);
        every_.resize(rows);
        for (int r = 0; r < rows; r++) every_[r] = r;
        scratch_stride_ = padded(std::max(net.width, ROWS * longest_attention()), PANEL) + PANEL;
        scratch_ = space.scratch.get<float>((size_t)threads_ * scratch_stride_);
        best_.resize((size_t)threads_ * wanted_.size());
        if (net.screen && likeliest && !logits && wanted_.size() <= STATES) {
            probes_.resize(wanted_.size());
            probe_bytes_.resize(probes_.size() * Screen(net.width).deep * 2);
            bars_.resize(best_.size(), -INFINITY);
        }
    }

    // Are all logits finite? Threads wait for each other's parts, so that none may throw: all memory is there before.
    bool go() {
#pragma omp parallel num_threads(threads_)
        work(omp_get_thread_num());
        if (likeliest_)
            for (size_t i = 0; i < wanted_.size(); i++) {
                Best best;
                for (int t = 0; t < threads_; t++) best.meet(best_[t * wanted_.size() + i]);
                likeliest_[i] = best.token;
            }
        return finite_;
    }

  private:
    struct Best {
        float logit = -FLT_MAX;
        int token = INT32_MAX;

        void meet(const Best& other) {
            if (other.logit > logit || (other.logit == logit && other.token < token)) *this = other;
        }
    };

    // Cuts the queries, those next to each other with the same prefix together, into tasks.
    std::vector<Task> tasks_of(const std::vector<Query>& queries) const {
        std::vector<Task> tasks;
        int count = queries.size();
        int room = std::max(1, std::min(ROWS, count * net_.heads / (2 * threads_)));
        for (int first = 0, end; first < count; first = end) {
            const float* prefix = segments_[queries[first].segment].prefix.memory;
            for (end = first + 1; end < count; end++) {
                const Segment& next = segments_[queries[end].segment];
                bool same = prefix ? next.prefix.memory == prefix : queries[end].segment == queries[first].segment;
                if (!same) break;
            }
            for (int head = 0; head < net_.kv_heads; head++)
                for (int u = first * share_; u < end * share_; u += room)
                    tasks.push_back({u, std::min(u + room, end * share_), head});
        }
        return tasks;
    }

    void work(int thread) {
        int64_t phase = 0;  // the parts of the phases before, see Schedule
        float* own = scratch(thread);
        const int all = rows_;
        schedule_.share(phase, all, 16, [&](int r0, int r1) { embed(r0, r1); });
        for (int l = 0; l < net_.layer_count; l++) {
            const Layer& layer = net_.layers[l];
            bool last = l == net_.layer_count - 1;
            const std::vector<Query>& queries = last ? last_queries_ : queries_;
            const std::vector<Task>& tasks = last ? last_tasks_ : tasks_;
            const std::vector<int>& from = last ? wanted_ : every_;  // whose rows go on after the attention
            int count = from.size();
            schedule_.share(phase, all, ROWS, [&](int r0, int r1) {
                normalize_rows(layer.attention_norm, x_, r0, r1);
                project(layer.qkv, h_, r0, r1);
            });
            multiply_all(phase, layer.qkv, h_, all, [&](int r, int at, const float* y, int width) {
                memcpy(qkv_.row(r) + at, y, width * sizeof(float));
            });
            schedule_.share(phase, all, 16, [&](int r0, int r1) { keep(l, r0, r1); });
            if (count == 0) return;
            schedule_.share(phase, tasks.size(), 4, [&](int t0, int t1) {
                for (int t = t0; t < t1; t++) attend(l, queries, tasks[t], own);
            });
            if (layer.out.ranks || attended_.halves)
                schedule_.share(phase, count, ROWS, [&](int r0, int r1) {
                    for (int r = r0; r < r1; r++) attended_.halve(r, 0, attended_.ld - W);
                    project(layer.out, attended_, r0, r1);
                });
            const Rows& sum = last ? x_last_ : x_;
            multiply_all(phase, layer.out, attended_, count, [&](int r, int at, const float* y, int width) {
                for (int i = 0; i < width; i += W)
                    store(sum.row(r) + at + i, load(x_.row(from[r]) + at + i) + load(y + i));
            });
            schedule_.share(phase, count, ROWS, [&](int r0, int r1) {
                normalize_rows(layer.mlp_norm, sum, r0, r1);
                project(layer.up, h_, r0, r1);
            });
            multiply_inner(phase, layer.up, count);
            if (layer.down.ranks)
                schedule_.share(phase, count, ROWS, [&](int r0, int r1) { project(layer.down, inner_, r0, r1); });
            multiply_all(phase, layer.down, inner_, count, [&](int r, int at, const float* y, int width) {
                for (int i = 0; i < width; i += W)
                    store(sum.row(r) + at + i, load(sum.row(r) + at + i) + load(y + i));
            });
        }
        choose(phase, thread);
    }

    float* scratch(int thread) const { return scratch_ + (size_t)thread * scratch_stride_; }

    void embed(int r0, int r1) {
        for (int r = r0; r < r1; r++)
            memcpy(x_.row(r), embedded_ + (size_t)r * net_.width, net_.width * sizeof(float));
    }

    // h = norm(x)
    void normalize_rows(const Norm& norm, const Rows& x, int r0, int r1) {
        for (int r = r0; r < r1; r++) {
            normalize(net_, norm, x.row(r), h_.row(r));
            h_.halve(r, 0, padded(net_.width, W));
        }
    }

    // The rows' projections onto A.
    void project(const Linear& linear, const Rows& in, int r0, int r1) {
        for (int r = r0; r < r1; r += ROWS) {
            int count = std::min(ROWS, r1 - r);
            for (int i = 0; i < count; i++) memset(projected_.row(r + i), 0, linear.ranks * sizeof(float));
            for (int at = 0; at < linear.ranks; at += W)
                multiply<ROWS, 1, W>(count, linear.lora_a + (size_t)at * linear.inputs, 0, in.row(r), in.ld,
                                     linear.inputs, projected_.row(r) + at, projected_.ld);
        }
    }

    // y (count rows, panels · PANEL): `panels` panels of a matrix from `panel` on, for rows of the input from r on.
    void tile(const Linear& linear, const Matrix& matrix, int panel, int panels, const Rows& in, int r, int count,
              float* y) {
        const int ldy = panels * PANEL;
        for (int i = 0; i < count; i++)
            if (matrix.bias)
                memcpy(y + i * ldy, matrix.bias + panel * PANEL, ldy * sizeof(float));
            else
                memset(y + i * ldy, 0, ldy * sizeof(float));
        size_t size = (size_t)(net_.bf16 && PAIRS ? padded(linear.inputs, 2) : linear.inputs) * PANEL;
        if (net_.bf16)
            multiply_panels(count, panels, (const bf16*)matrix.weight + panel * size, size, in.row(r), in.ld,
                            in.half(r), in.ldh, linear.inputs, y, ldy);
        else
            multiply_panels(count, panels, (const float*)matrix.weight + panel * size, size, in.row(r), in.ld,
                            linear.inputs, y, ldy);
        size = (size_t)matrix.rank * PANEL;
        if (matrix.rank)
            multiply_panels(count, panels, matrix.lora_b + panel * size, size, projected_.row(r) + matrix.rank_at,
                            projected_.ld, matrix.rank, y, ldy);
    }

    // Calls each(r, count, panel, panels) for blocks of rows with the panels from 2 · first to 2 · end.
    template <class Each>
    static void blocks(int first, int end, int all, int rows, Each each) {
        // Blocks are equal if that leaves them enough rows; else whole ones, and the rest with two panels.
        const int left = rows % ROWS, least = rows / (rows / ROWS + 1);  // rows of the smallest of equal blocks
        const int wide = rows <= WIDE_ROWS || (left <= WIDE_ROWS && least < FULL_ROWS) ? left : 0;
        const int narrow = rows - wide, count = (narrow + ROWS - 1) / ROWS;
        for (int part = first; part < end; part++) {
            const int panel = 2 * part, panels = std::min(2, all - panel);
            for (int p = panel; p < panel + panels; p++)
                for (int b = 0; b < count; b++)
                    each(narrow * b / count, narrow * (b + 1) / count - narrow * b / count, p, 1);
            if (wide) each(narrow, wide, panel, panels);
        }
    }

    // take(r, column, y, width) gets the results: values of row r from a column on; columns are counted through the
    // matrices, each padded to whole panels.
    template <class Take>
    void multiply_all(int64_t& phase, const Linear& linear, const Rows& in, int rows, Take take) {
        int parts = 0, ends[3], starts[3];
        for (int m = 0, column = 0; m < linear.count; m++) {
            starts[m] = column;
            column += padded(linear.matrices[m].outputs, PANEL);
            ends[m] = parts += (padded(linear.matrices[m].outputs, PANEL) / PANEL + 1) / 2;
        }
        schedule_.share(phase, parts, 16, [&](int first, int end) {
            alignas(64) float y[ROWS * 2 * PANEL];
            for (int m = 0, before = 0; m < linear.count; before = ends[m++]) {
                const Matrix& matrix = linear.matrices[m];
                blocks(std::max(first, before) - before, std::min(end, ends[m]) - before,
                       padded(matrix.outputs, PANEL) / PANEL, rows, [&](int r, int count, int panel, int panels) {
                           tile(linear, matrix, panel, panels, in, r, count, y);
                           for (int i = 0; i < count; i++)
                               take(r + i, starts[m] + panel * PANEL, y + i * panels * PANEL, panels * PANEL);
                       });
            }
        });
    }

    // inner = activation(x · up), or activation(x · gate) · (x · up).
    void multiply_inner(int64_t& phase, const Linear& linear, int rows) {
        int panels = padded(net_.inner, PANEL) / PANEL;
        schedule_.share(phase, (panels + 1) / 2, 16, [&](int first, int end) {
            alignas(64) float y[ROWS * 2 * PANEL], factor[ROWS * 2 * PANEL];
            blocks(first, end, panels, rows, [&](int r, int count, int panel, int panels) {
                int width = panels * PANEL;
                tile(linear, linear.matrices[0], panel, panels, h_, r, count, y);
                if (linear.count == 2) tile(linear, linear.matrices[1], panel, panels, h_, r, count, factor);
                for (int i = 0; i < count; i++) {
                    for (int j = 0; j < width; j += W) {
                        vec value = activate(net_.activation, load(y + i * width + j));
                        if (linear.count == 2) value *= load(factor + i * width + j);
                        store(inner_.row(r + i) + panel * PANEL + j, value);
                    }
                    inner_.halve(r + i, panel * PANEL, width);
                }
            });
        });
    }

    // Turns queries and keys to their positions, and adds keys and values to their spans.
    void keep(int layer, int r0, int r1) {
        const int d = net_.head_dim;
        for (int r = r0; r < r1; r++) {
            const Segment& segment = segments_[owner_[r]];
            float *q = qkv_.row(r), *k = q + k_at_, *v = q + v_at_;
            if (net_.cosines) {
                size_t at = (size_t)positions_[r] * (d / 2);
                for (int h = 0; h < net_.heads; h++) rotate(q + h * d, d, net_.cosines + at, net_.sines + at);
                for (int h = 0; h < net_.kv_heads; h++) rotate(k + h * d, d, net_.cosines + at, net_.sines + at);
            }
            int row = segment.own.rows + r - segment.first;
            for (int h = 0; h < net_.kv_heads; h++) {
                Keys to(net_, segment.own, layer, h);
                float* key = to.keys + (size_t)(row / PANEL) * d * PANEL + row % PANEL;
                for (int i = 0; i < d; i++) key[(size_t)i * PANEL] = k[h * d + i];
                for (int i = 0; i < d; i += PANEL)
                    memcpy(to.values + (size_t)i * segment.own.capacity + (size_t)row * PANEL, v + h * d + i,
                           std::min(PANEL, d - i) * sizeof(float));
            }
        }
    }

    // Keys of its own span that a query sees.
    int seen(const Query& query) const {
        const Segment& segment = segments_[query.segment];
        return segment.own.rows + query.row - segment.first + 1;
    }

    // Of a pair of query row and head in an attention: query and result, then scores of the prefix and of its own keys.
    static int attention_floats(int wide, int before, int longest) { return 2 * wide + before + padded(longest, PANEL) + W; }

    // At least what any pair needs.
    int longest_attention() const {
        int before = 0, longest = 0;
        for (const Query& query : queries_) {
            const Span& prefix = segments_[query.segment].prefix;
            if (prefix.memory) before = std::max(before, padded(prefix.rows, PANEL));
            longest = std::max(longest, seen(query));
        }
        return attention_floats(padded(net_.head_dim, PANEL), before, longest);
    }

    void attend(int layer, const std::vector<Query>& queries, const Task& task, float* memory) {
        const int d = net_.head_dim, wide = padded(d, PANEL), count = task.end - task.first;
        const Query* of[ROWS];
        int longest = 0;
        for (int u = 0; u < count; u++) {
            of[u] = &queries[(task.first + u) / share_];
            longest = std::max(longest, seen(*of[u]));
        }
        const Span& prefix = segments_[of[0]->segment].prefix;
        const int before = prefix.memory ? padded(prefix.rows, PANEL) : 0, ld = before + padded(longest, PANEL) + W;
        memset(memory, 0, (size_t)count * attention_floats(wide, before, longest) * sizeof(float));
        float *q = memory, *y = q + count * wide, *scores = y + count * wide;
        const float scale = 1.f / std::sqrt((float)d);
        auto head = [&](int u) { return task.key_head * share_ + (task.first + u) % share_; };
        for (int u = 0; u < count; u++) {
            const float* from = qkv_.row(of[u]->row) + head(u) * d;
            for (int i = 0; i < d; i++) q[u * wide + i] = from[i] * scale;
        }
        auto score = [&](const Keys& keys, int rows, int u, int u1, int at) {
            int step = u1 - u <= WIDE_ROWS ? 2 : 1, panels = padded(rows, PANEL) / PANEL;
            for (int p = 0; p < panels; p += step)
                multiply_panels(u1 - u, std::min(step, panels - p), keys.keys + (size_t)p * d * PANEL,
                                (size_t)d * PANEL, q + u * wide, wide, d, scores + u * ld + at + p * PANEL, ld);
        };
        auto gather = [&](const Keys& keys, int capacity, int rows, int u, int u1, int at) {
            int step = u1 - u <= WIDE_ROWS ? 2 : 1, panels = wide / PANEL;
            for (int p = 0; p < panels; p += step)
                multiply_panels(u1 - u, std::min(step, panels - p), keys.values + (size_t)p * capacity * PANEL,
                                (size_t)capacity * PANEL, scores + u * ld + at, ld, rows, y + u * wide + p * PANEL,
                                wide);
        };
        // Pairs of one segment share its span; the last of them sees most of it.
        auto by_segment = [&](auto use) {
            for (int u = 0, end; u < count; u = end) {
                for (end = u + 1; end < count && of[end]->segment == of[u]->segment; end++) {
                }
                const Span& own = segments_[of[u]->segment].own;
                use(Keys(net_, own, layer, task.key_head), own.capacity, seen(*of[end - 1]), u, end);
            }
        };
        if (before) score(Keys(net_, prefix, layer, task.key_head), prefix.rows, 0, count, 0);
        by_segment([&](const Keys& keys, int, int rows, int u, int end) { score(keys, rows, u, end, before); });
        float totals[ROWS];
        for (int u = 0; u < count; u++) totals[u] = exponentials(scores + u * ld, before ? prefix.rows : 0, before,
                                                                 seen(*of[u]), ld - W);
        if (before) gather(Keys(net_, prefix, layer, task.key_head), prefix.capacity, prefix.rows, 0, count, 0);
        by_segment([&](const Keys& keys, int capacity, int rows, int u, int end) {
            gather(keys, capacity, rows, u, end, before);
        });
        for (int u = 0; u < count; u++) {
            float* to = attended_.row(of[u]->to) + head(u) * d;
            for (int i = 0; i < d; i++) to[i] = y[u * wide + i] / totals[u];
        }
    }

    // Replaces scores [0, shared) and [before, before + own) by exp(score - largest), the others to `end` by 0; returns
    // the sum.
    static float exponentials(float* scores, int shared, int before, int own, int end) {
        auto count = [&](int i) { return (float)(i < before ? shared - i : before + own - i); };
        vec lane = lanes(), most = splat(-FLT_MAX), total{};
        for (int i = 0; i < end; i += W) {
            vec s = select(lane < count(i), load(scores + i), splat(-FLT_MAX));
            store(scores + i, s);
            most = max(most, s);
        }
        float largest = maximum(most);
        for (int i = 0; i < end; i += W) {
            vec odds = select(lane < count(i), exp(load(scores + i) - largest), vec{});
            store(scores + i, odds);
            total += odds;
        }
        return sum(total);
    }

    // The likeliest tokens, or all logits, of the wanted rows.
    void choose(int64_t& phase, int thread) {
        const int count = wanted_.size();
        schedule_.share(phase, count, ROWS, [&](int r0, int r1) {
            normalize_rows(net_.last_norm, x_last_, r0, r1);
            for (int r = r0; r < r1 && !probes_.empty(); r++) probe(r, scratch(thread));
        });
        if (!probes_.empty() && bounded_) return choose_screened(phase, thread);
        multiply_all(phase, net_.head, h_, count, [&](int r, int column, const float* y, int width) {
            score(thread, r, column, y, width);
        });
    }

    // Logits of row r from a column on.
    void score(int thread, int r, int column, const float* y, int width) {
        const int vocabulary = net_.head.matrices[0].outputs;
        width = std::min(width, vocabulary - column);
        vec wrong{}, most = splat(-FLT_MAX);
        for (int i = 0; i < width; i += W) {
            vec v = load(y + i);
            wrong += v - v;  // not zero where v is not finite
            most = max(most, width - i < W ? first(v, width - i, -FLT_MAX) : v);
        }
        if (!(sum(wrong) == 0.f)) finite_ = false;
        if (logits_) memcpy(logits_ + (size_t)r * vocabulary + column, y, width * sizeof(float));
        float largest = maximum(most);
        Best& best = best_[thread * wanted_.size() + r];
        if (likeliest_ && (largest > best.logit || best.token == INT32_MAX))
            best.meet({largest, column + (int)(std::find(y, y + width, largest) - y)});
    }

    void probe(int r, float* scaled) {
        Screen screen(net_.width);
        auto take = [&](auto* x) {
            return probes_[r].take(screen, (const float*)net_.screen, x, scaled, probe_bytes_.data(), r, probes_.size());
        };
        if (!(h_.halves ? take(h_.half(r)) : take(h_.row(r)))) bounded_ = false;
    }

    // Bounds on all logits, then the logits of the panels where a bound reaches the best token's: the token is the one
    // that all logits give.
    void choose_screened(int64_t& phase, int thread) {
        const Screen screen(net_.width);
        const int count = wanted_.size(), vocabulary = net_.head.matrices[0].outputs;
        float bar[STATES];  // there are no probes of more rows
        std::fill_n(bar, count, -INFINITY);
        schedule_.share(phase, padded(vocabulary, W) / W, 64, [&](int begin, int end) {
            vec lower[STATES];
            float* upper[STATES];
            std::fill_n(lower, count, splat(-INFINITY));
            for (int g = begin; g < end; g++) {
                for (int r = 0; r < count; r++) upper[r] = upper_.row(r) + g * W;
                bounds_of(screen, (const uint8_t*)net_.screen + screen.group(g), probes_.data(), probe_bytes_.data(),
                          count, std::min(W, vocabulary - g * W), upper, lower);
            }
            for (int r = 0; r < count; r++) {
                float& known = bars_[thread * count + r];
                known = std::max(known, maximum(lower[r]));
            }
        });
        for (int r = 0; r < count; r++)
            for (int t = 0; t < threads_; t++) bar[r] = std::max(bar[r], bars_[t * count + r]);
        schedule_.share(phase, padded(vocabulary, PANEL) / PANEL, 16, [&](int begin, int end) {
            alignas(64) float y[ROWS * PANEL];
            for (int panel = begin; panel < end; panel++) {
                ivec reaches{};
                for (int r = 0; r < count; r++)
                    for (int j = 0; j < PANEL; j += W) reaches |= load(upper_.row(r) + panel * PANEL + j) >= bar[r];
                if (maximum(select(reaches, splat(1.f), vec{})) == 0) continue;
                for (int r = 0, some; r < count; r += some) {
                    some = std::min(ROWS, count - r);
                    tile(net_.head, net_.head.matrices[0], panel, 1, h_, r, some, y);
                    for (int i = 0; i < some; i++) score(thread, r + i, panel * PANEL, y + i * PANEL, PANEL);
                }
            }
        });
    }

    const Network& net_;
    const int rows_;
    const float* embedded_;
    const int32_t* positions_;
    const Segment* segments_;
    float* logits_;
    int32_t* likeliest_;
    const int threads_;
    Schedule schedule_;
    int share_, k_at_, v_at_;
    std::vector<int> owner_;   // the segment of each row
    std::vector<int> wanted_;  // rows whose next token is asked for
    std::vector<int> every_;
    std::vector<Query> queries_, last_queries_;  // of all rows; of the wanted ones, which alone leave the last layer
    std::vector<Task> tasks_, last_tasks_;
    float* scratch_;  // of all threads, each `scratch_stride_` numbers
    int scratch_stride_;
    std::vector<Best> best_;  // of each thread and wanted row
    std::vector<Probe> probes_;  // of each wanted row, if tokens are found with the screen
    std::vector<int8_t> probe_bytes_;
    std::vector<float> bars_;  // of each thread and wanted row: what the largest logit reaches at least
    std::atomic<bool> bounded_{true};
    std::atomic<bool> finite_{true};
    const Rows &x_, &x_last_, &h_, &qkv_, &attended_, &inner_, &projected_, &upper_;
};

bf16 to_bf16(float value) {
    uint32_t u;
    memcpy(&u, &value, 4);
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

template <class T>
void pack(const float* weight, int outputs, int inputs, T* to) {
    const bool pairs = sizeof(T) == 2 && PAIRS;
    const int deep = pairs ? padded(inputs, 2) : inputs;
    parallel_evenly(padded(outputs, PANEL) / PANEL, [=](int panel) {
        T* p = to + (size_t)panel * deep * PANEL;
        for (int k = 0; k < deep; k++)
            for (int j = 0; j < PANEL; j++) {
                int n = panel * PANEL + j;
                float value = n < outputs && k < inputs ? weight[(size_t)n * inputs + k] : 0.f;
                T* at = pairs ? p + (size_t)(k / 2) * 2 * PANEL + 2 * j + k % 2 : p + (size_t)k * PANEL + j;
                if constexpr (sizeof(T) == 2)
                    *at = to_bf16(value);
                else
                    *at = value;
            }
    });
}

// Memory that is read straight through, and not written yet, takes large pages where the system has them.
void in_large_pages(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = sysconf(_SC_PAGESIZE), start = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
    if (start < end) madvise((void*)start, end - start, MADV_HUGEPAGE);  // it is good without, too
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace
}  // namespace jl::decoding

JL_API int jl_decode_panel() { return jl::decoding::PANEL; }

JL_API int jl_decode_vector() { return jl::W; }

// Bytes of a packed weight (outputs, inputs).
JL_API int64_t jl_decode_packed_size(int outputs, int inputs, int bf16) {
    using namespace jl::decoding;
    int64_t deep = bf16 && PAIRS ? padded(inputs, 2) : inputs;
    return deep * padded(outputs, PANEL) * (bf16 ? 2 : 4);
}

JL_API int jl_decode_pack(const float* weight, int outputs, int inputs, int bf16, void* to) {
    using namespace jl::decoding;
    return jl::status_of([&] {
        in_large_pages(to, jl_decode_packed_size(outputs, inputs, bf16));
        bf16 ? pack(weight, outputs, inputs, (jl::bf16*)to) : pack(weight, outputs, inputs, (float*)to);
        return 0;
    });
}

// Bytes of a head (outputs, inputs) as `jl_decode_pack_screen` writes it; 0 if tokens are found without one here.
JL_API int64_t jl_decode_screen_size(int outputs, int inputs) {
    using namespace jl::decoding;
    return SCREENS && inputs <= MOST_INPUTS ? Screen(inputs).size(outputs) : 0;
}

JL_API int jl_decode_pack_screen(const float* weight, int outputs, int inputs, int bf16, void* to) {
    using namespace jl::decoding;
    return jl::status_of([&] {
        in_large_pages(to, Screen(inputs).size(outputs));
        auto value = [&](int r, int k) { return weight[(size_t)r * inputs + k]; };
        if (bf16)
            Screen(inputs).pack(outputs, [&](int r, int k) { return single(to_bf16(value(r, k))); }, (uint8_t*)to);
        else
            Screen(inputs).pack(outputs, value, (uint8_t*)to);
        return 0;
    });
}

// Room for calls of up to `rows` rows; to be freed with jl_decode_free. Null if there is no memory.
JL_API jl::decoding::Workspace* jl_decode_workspace(const jl::decoding::Network* net, int rows) try {
    return new jl::decoding::Workspace(*net, rows);
} catch (const std::bad_alloc&) {
    return nullptr;
}

JL_API void jl_decode_free(jl::decoding::Workspace* space) { delete space; }

// Reads rows of tokens, of which `embedded` (rows, width) are the first states; their keys and values are added to the
// segments' spans. Of the wanted segments, in their order, `logits` (wanted, vocabulary) and `likeliest` (wanted,) are
// written if they are not null. Returns 0 if a logit is not finite, else 1.
JL_API int jl_decode(const jl::decoding::Network* net, const jl::decoding::Workspace* space, int rows,
                     const float* embedded, const int32_t* positions, int segments,
                     const jl::decoding::Segment* segment, float* logits, int32_t* likeliest) {
    return jl::status_of([&] {
        return int(jl::decoding::Run(*net, *space, rows, embedded, positions, segments, segment, logits, likeliest).go());
    });
}
