// A whole network on some rows of tokens, in one parallel region: reads prompts and continues them.
//
// Norms, activations, rotary positions and the softmax of attention are the operators' (norms.h, elementwise.h,
// softmax.h). Products are not: one token, or a few, meet all weights, which must be read once at the memory's
// bandwidth (decode_panels.h).
#include <cfloat>
#include <cstdlib>
#include <memory>

#include "decode_panels.h"
#include "decode_screen.h"
#include "decode_stored.h"
#include "decode_threads.h"
#include "elementwise.h"
#include "norms.h"
#include "parallel.h"
#include "rows.h"
#include "softmax.h"

namespace jl::decoding {
namespace {

struct Free {
    void operator()(void* p) const { free(p); }
};

// Rows of floats and, where products multiply bf16, of the same numbers in bf16. Initially zero; the padding between
// width and stride stays zero.
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

    // Refreshes the bf16 copy of `width` values of a row, from column `at`, a multiple of W.
    void halve(int r, int at, int width) const {
        if (halves)
            for (int i = at; i < at + width; i += W) store(half(r) + i, load(row(r) + i));
    }

  private:
    static void* zeros(size_t bytes) {
        size_t whole = (bytes / LINE + 1) * LINE;
        void* p = aligned_alloc(LINE, whole);
        if (!p) throw std::bad_alloc();
        return memset(p, 0, whole);
    }
};

vec activate(int activation, vec x) {
    switch (activation) {
        case GELU_TANH:
            return gelu(x);
        case SILU:
            return silu(x);
        case RELU:
            return max(x, vec{});
        case QUICK_GELU:
            return x * sigmoid(1.702f * x);
        case TANH:
            for (int i = 0; i < W; i++) x[i] = std::tanh(x[i]);
            return x;
    }
    for (int i = 0; i < W; i++) x[i] *= 0.5f * (1.f + std::erf(x[i] * 0.70710678f));
    return x;
}

// A query row of attention: which row of the call it is, and the row its result goes to.
struct Query {
    int row, reading, to;
};

// Up to REGISTER_ROWS pairs of query row and query head that share a key head and a prefix. Pair u is query u / share
// of `queries` and head u % share of those that use the key head.
struct Task {
    int first, end, key_head;
};

// The keys and values of a layer and key head in a span.
struct Keys {
    float *keys, *values;

    Keys(const Network& net, const Span& span, int layer, int head) {
        size_t d = net.head_dim, wide = round_up(net.head_dim, PANEL);
        keys = span.memory + (size_t)(layer * net.kv_heads + head) * span.capacity * (d + wide);
        values = keys + (size_t)span.capacity * d;
    }
};

}  // namespace

// Room for the states of up to `rows` rows and their projections onto the As of updates, reused from call to call.
struct Workspace {
    Rows x, last, h, qkv, attended, inner, projected, upper;
    mutable Buffer scratch, decoded;

    Workspace(const Network& net, int rows, int ranks)
        : x(rows, net.width), last(rows, net.width), h(rows, net.width, halves(net)), qkv(rows, qkv_width(net)),
          attended(rows, net.heads * net.head_dim, halves(net)), inner(rows, net.inner, halves(net)),
          projected(rows, ranks), upper(SCREENS ? std::min(rows, STATES) : 0, net.head.matrices[0].outputs) {}

    static bool halves(const Network& net) { return net.bf16 && BF16_PRODUCTS; }

    static int qkv_width(const Network& net) {
        int width = 0;
        const Linear& qkv = net.layers[0].qkv;
        for (int m = 0; m < qkv.count; m++) width += round_up(qkv.matrices[m].outputs, PANEL);
        return width;
    }
};

namespace {

class Run {
  public:
    Run(const Network& net, const Workspace& space, int rows, const float* embedded, const int32_t* positions,
        int readings, const Reading* reading, float* logits, int32_t* likeliest)
        : net_(net), rows_(rows), embedded_(embedded), positions_(positions), readings_(reading),
          logits_(logits), likeliest_(likeliest), threads_(omp_get_max_threads()), schedule_(threads_),
          x_(space.x), x_last_(space.last), h_(space.h), qkv_(space.qkv), attended_(space.attended),
          inner_(space.inner), projected_(space.projected), upper_(space.upper) {
        share_ = net.heads / net.kv_heads;
        bool fused = net.layers[0].qkv.count == 1;
        int wide_q = round_up(net.heads * net.head_dim, PANEL), wide_k = round_up(net.kv_heads * net.head_dim, PANEL);
        k_at_ = fused ? net.heads * net.head_dim : wide_q;
        v_at_ = fused ? k_at_ + net.kv_heads * net.head_dim : wide_q + wide_k;
        for (int s = 0; s < readings; s++) {
            if (reading[s].updates && (adapters_.empty() || adapters_.back() != reading[s].updates))
                adapters_.push_back(reading[s].updates);
            for (int r = 0; r < reading[s].count; r++) {
                owner_.push_back(s);
                queries_.push_back({reading[s].first + r, s, reading[s].first + r});
            }
            if (reading[s].wanted) {
                int row = reading[s].first + reading[s].count - 1;
                last_queries_.push_back({row, s, (int)wanted_.size()});
                wanted_.push_back(row);
            }
        }
        tasks_ = tasks_of(queries_);
        last_tasks_ = tasks_of(last_queries_);
        every_.resize(rows);
        for (int r = 0; r < rows; r++) every_[r] = r;
        scratch_stride_ = round_up(std::max(net.width, REGISTER_ROWS * longest_attention()), PANEL) + PANEL;
        scratch_ = space.scratch.get<float>((size_t)threads_ * scratch_stride_);
        decoded_stride_ = decoded_floats();
        decoded_ = space.decoded.get<float>((size_t)threads_ * decoded_stride_);
        decoded_panels_.resize(threads_ * DECODED_PANELS);
        best_.resize((size_t)threads_ * wanted_.size());
        if (net.screen && likeliest && !logits && wanted_.size() <= STATES) {
            probes_.resize(wanted_.size());
            probe_bytes_.resize(probes_.size() * Screen(net.width).deep * 2);
            bars_.resize(best_.size(), -INFINITY);
        }
    }

    // Returns whether all logits are finite. Threads wait for each other's parts, so none may throw: all memory is
    // allocated beforehand.
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
    // Most parts of a phase that a thread takes at a time, see Schedule: enough that taking them costs nothing beside
    // the work.
    static constexpr int COPIED_ROWS = 16;      // rows to copy
    static constexpr int ATTENTION_TASKS = 4;   // tasks of attention
    static constexpr int PANEL_PAIRS = 16;      // pairs of panels of a matrix: 1.5 MiB of float32 for 768 inputs on AVX2
    static constexpr int SCREEN_GROUPS = 64;    // groups of W rows of the head's bytes: 384 KiB for 768 inputs on AVX2
    static constexpr int SCREENED_PANELS = 16;  // panels of the head, most of which are skipped

    struct Best {
        float logit = -FLT_MAX;
        int token = INT32_MAX;

        void meet(const Best& other) {
            if (other.logit > logit || (other.logit == logit && other.token < token)) *this = other;
        }
    };

    // Most panels that a thread has decoded: a pair of each of two matrices, the gate and the one it gates.
    static constexpr int DECODED_PANELS = 4;

    // Is the product of `rows` rows with this matrix one with its decoded panels?
    bool is_decoded(const Matrix& matrix, int rows) const {
        return matrix.storage != FLOAT32 && (net_.bf16 || !is_fused(matrix.storage, rows));
    }

    // Floats per thread for decoded panels.
    int decoded_floats() const {
        int most = 0;
        auto meet = [&](const Linear& linear) {
            for (int m = 0; m < linear.count; m++)
                if (is_decoded(linear.matrices[m], rows_))
                    most = std::max(most, 2 * std::min(linear.count, 2) * round_up(linear.inputs, 2) * PANEL);
        };
        for (int l = 0; l < net_.layer_count; l++)
            for (const Linear* linear : {&net_.layers[l].qkv, &net_.layers[l].out, &net_.layers[l].up, &net_.layers[l].down})
                meet(*linear);
        meet(net_.head);
        return most;
    }

    // Cuts the queries into tasks, neighbours with the same prefix together.
    std::vector<Task> tasks_of(const std::vector<Query>& queries) const {
        std::vector<Task> tasks;
        int count = queries.size();
        constexpr int TASKS_PER_THREAD = 2;  // smaller tasks where there are few
        int room = std::max(1, std::min(REGISTER_ROWS, count * net_.heads / (TASKS_PER_THREAD * threads_)));
        for (int first = 0, end; first < count; first = end) {
            const float* prefix = readings_[queries[first].reading].prefix.memory;
            for (end = first + 1; end < count; end++) {
                const Reading& next = readings_[queries[end].reading];
                bool same = prefix ? next.prefix.memory == prefix : queries[end].reading == queries[first].reading;
                if (!same) break;
            }
            for (int head = 0; head < net_.kv_heads; head++)
                for (int u = first * share_; u < end * share_; u += room)
                    tasks.push_back({u, std::min(u + room, end * share_), head});
        }
        return tasks;
    }

    // The network, layer by layer, as each thread goes through it: every `share` is a phase whose parts the threads
    // take turns at. Products are phases over panels of the weight, all rows at once; the rest are phases over rows.
    void work(int thread) {
        int64_t phase = 0;  // the parts of earlier phases, see Schedule
        float* own = scratch(thread);
        const int all = rows_;
        schedule_.share(phase, all, COPIED_ROWS, [&](int r0, int r1) { embed(r0, r1); });
        for (int l = 0; l < net_.layer_count; l++) {
            const Layer& layer = net_.layers[l];
            bool last = l == net_.layer_count - 1;
            const std::vector<Query>& queries = last ? last_queries_ : queries_;
            const std::vector<Task>& tasks = last ? last_tasks_ : tasks_;
            const std::vector<int>& from = last ? wanted_ : every_;  // rows that go on after attention
            int count = from.size();
            // h = norm(x), and its projections onto A; then q, k and v.
            const Product qkv{layer.qkv, &LayerUpdates::qkv, l, every_};
            schedule_.share(phase, all, REGISTER_ROWS, [&](int r0, int r1) {
                normalize_rows(layer.attention_norm, x_, r0, r1);
                project(qkv, h_, r0, r1);
            });
            multiply_all(phase, qkv, h_, all, [&](int r, int at, const float* y, int width) {
                memcpy(qkv_.row(r) + at, y, width * sizeof(float));
            });
            schedule_.share(phase, all, COPIED_ROWS, [&](int r0, int r1) { append(l, r0, r1); });
            if (count == 0) return;  // the last layer, and no token is wanted: keys and values were all
            // attended = attention(q, k, v); x += attended · outᵀ
            schedule_.share(phase, tasks.size(), ATTENTION_TASKS, [&](int t0, int t1) {
                for (int t = t0; t < t1; t++) attend(l, queries, tasks[t], own);
            });
            const Product out{layer.out, &LayerUpdates::out, l, from}, up{layer.up, &LayerUpdates::up, l, from},
                down{layer.down, &LayerUpdates::down, l, from};
            if (is_adapted(out) || attended_.halves)
                schedule_.share(phase, count, REGISTER_ROWS, [&](int r0, int r1) {
                    for (int r = r0; r < r1; r++) attended_.halve(r, 0, attended_.ld - W);
                    project(out, attended_, r0, r1);
                });
            const Rows& sum = last ? x_last_ : x_;
            multiply_all(phase, out, attended_, count, [&](int r, int at, const float* y, int width) {
                for (int i = 0; i < width; i += W)
                    store(sum.row(r) + at + i, load(x_.row(from[r]) + at + i) + load(y + i));
            });
            // h = norm(x); inner = activation(h · upᵀ), gated or not; x += inner · downᵀ
            schedule_.share(phase, count, REGISTER_ROWS, [&](int r0, int r1) {
                normalize_rows(layer.mlp_norm, sum, r0, r1);
                project(up, h_, r0, r1);
            });
            multiply_inner(phase, up, count);
            if (is_adapted(down))
                schedule_.share(phase, count, REGISTER_ROWS, [&](int r0, int r1) { project(down, inner_, r0, r1); });
            multiply_all(phase, down, inner_, count, [&](int r, int at, const float* y, int width) {
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
            norm_row(x.row(r), norm.weight, norm.bias, h_.row(r), net_.width, net_.eps, !net_.root_mean_square);
            h_.halve(r, 0, round_up(net_.width, W));
        }
    }

    // A product of some rows with a linear layer, each row with its own adapter's update.
    struct Product {
        const Linear& linear;
        Update LayerUpdates::*part;
        int layer;
        const std::vector<int>& rows;  // which row of the call each is
    };

    const Update* update_of(const Product& product, const LayerUpdates* adapter) const {
        if (!product.part || !adapter) return nullptr;
        const Update& update = adapter[product.layer].*product.part;
        return update.ranks ? &update : nullptr;
    }

    bool is_adapted(const Product& product) const {
        return std::any_of(adapters_.begin(), adapters_.end(), [&](auto* adapter) { return update_of(product, adapter); });
    }

    // Calls each(update, r, count) for `count` neighbours from row r on with the same update, within [r0, r1).
    template <class Each>
    void by_update(const Product& product, int r0, int r1, Each each) const {
        if (adapters_.empty()) return;
        auto adapter = [&](int r) { return readings_[owner_[product.rows[r]]].updates; };
        for (int r = r0, end; r < r1; r = end) {
            for (end = r + 1; end < r1 && adapter(end) == adapter(r); end++) {
            }
            if (const Update* update = update_of(product, adapter(r))) each(*update, r, end - r);
        }
    }

    // The projections of rows onto A.
    void project(const Product& product, const Rows& in, int r0, int r1) {
        const int inputs = product.linear.inputs;
        by_update(product, r0, r1, [&](const Update& update, int first, int rows) {
            for (int r = first; r < first + rows; r += REGISTER_ROWS) {
                int count = std::min(REGISTER_ROWS, first + rows - r);
                for (int i = 0; i < count; i++) memset(projected_.row(r + i), 0, update.ranks * sizeof(float));
                for (int at = 0; at < update.ranks; at += W)
                    multiply<REGISTER_ROWS, 1, W>(count, update.a + (size_t)at * inputs, 0, in.row(r), in.ld, inputs,
                                                  projected_.row(r) + at, projected_.ld);
            }
        });
    }

    // `panels` panels of a matrix, from `panel` on, and their distance. Those of a matrix that is kept in few bits are
    // decoded, unless that was done for the block of rows before.
    template <class T>
    std::pair<const T*, size_t> weights(const Product& product, int m, int panel, int panels) {
        const Linear& linear = product.linear;
        const Matrix& matrix = linear.matrices[m];
        const bool pairs = sizeof(T) == sizeof(bf16) && BF16_PRODUCTS;
        const size_t size = (size_t)(pairs ? round_up(linear.inputs, 2) : linear.inputs) * PANEL;
        if (matrix.storage == FLOAT32) return {(const T*)matrix.weight + panel * size, size};
        const int thread = omp_get_thread_num(), slot = m % 2 * 2;
        T* slots = (T*)(decoded_ + (size_t)thread * decoded_stride_) + slot * size;
        for (int p = panel; p < panel + panels; p++) {
            auto& there = decoded_panels_[thread * DECODED_PANELS + slot + p % 2];
            if (there.first == &matrix && there.second == p) continue;
            decode_panel({matrix.weight, matrix.storage, matrix.outputs, linear.inputs}, p, slots + p % 2 * size);
            there = {&matrix, p};
        }
        return {slots + panel % 2 * size, size};
    }

    // y (count, panels · PANEL): the outputs of `panels` panels, from `panel` on, for `count` rows of the input from
    // row r on, of `rows` in all.
    void tile(const Product& product, int m, int panel, int panels, const Rows& in, int rows, int r, int count, float* y) {
        const Linear& linear = product.linear;
        const Matrix& matrix = linear.matrices[m];
        const int ldy = panels * PANEL;
        for (int i = 0; i < count; i++)
            if (matrix.bias)
                memcpy(y + i * ldy, matrix.bias + panel * PANEL, ldy * sizeof(float));
            else
                memset(y + i * ldy, 0, ldy * sizeof(float));
        if (matrix.storage != FLOAT32 && !is_decoded(matrix, rows)) {
            multiply_stored({matrix.weight, matrix.storage, matrix.outputs, linear.inputs}, panel, panels, count, in.row(r),
                            in.ld, y, ldy);
        } else if (!net_.bf16) {
            auto [weight, size] = weights<float>(product, m, panel, panels);
            multiply_panels(count, panels, weight, size, in.row(r), in.ld, linear.inputs, y, ldy);
        } else {
            auto [weight, size] = weights<bf16>(product, m, panel, panels);
#if defined(__AVX512BF16__)
            multiply_panels(count, panels, weight, size, in.half(r), in.ldh, linear.inputs, y, ldy);
#else
            multiply_panels(count, panels, weight, size, in.row(r), in.ld, linear.inputs, y, ldy);
#endif
        }
        by_update(product, r, r + count, [&](const Update& update, int first, int rows) {
            const LowRank& low = update.matrices[m];
            const size_t size = (size_t)low.rank * PANEL;
            if (low.rank)
                multiply_panels(rows, panels, low.b + panel * size, size, projected_.row(first) + low.rank_at,
                                projected_.ld, low.rank, y + (first - r) * ldy, ldy);
        });
    }

    // Most rows per product with this matrix: few where it is decoded in registers.
    int most_rows(const Matrix& matrix, int rows) const {
        const bool in_registers = matrix.storage != FLOAT32 && !is_half(matrix.storage) && !is_decoded(matrix, rows);
        return in_registers ? FUSED_ROWS : REGISTER_ROWS;
    }

    // Calls each(r, count, panel, panels) for blocks of rows, at most `most`, and the panels from 2 · first to 2 · end.
    template <class Each>
    static void blocks(int first, int end, int all, int rows, int most, Each each) {
        // Rows are cut into equal blocks, each multiplied with one panel at a time, if that leaves the blocks enough
        // rows; else into whole blocks and a rest, which is multiplied with two panels at a time.
        const int left = rows % REGISTER_ROWS, least = rows / (rows / REGISTER_ROWS + 1);  // rows of the smallest equal block
        const bool split = most == REGISTER_ROWS && left <= TWO_PANEL_ROWS && least < BUSY_ROWS;
        const int rest = rows <= std::min(most, TWO_PANEL_ROWS) || split ? left : 0;
        const int even = rows - rest, count = ceil_div(even, most);
        // Panels outside, blocks inside: a panel is read from memory once and stays in the cache for the other blocks.
        for (int part = first; part < end; part++) {
            const int panel = 2 * part, panels = std::min(2, all - panel);
            for (int p = panel; p < panel + panels; p++)
                for (int b = 0; b < count; b++)
                    each(even * b / count, even * (b + 1) / count - even * b / count, p, 1);
            if (rest) each(even, rest, panel, panels);
        }
    }

    // Multiplies rows of `in` with the matrices of a linear layer. take(r, column, y, width) receives the results: `width`
    // values of row r from a column on; columns are counted through all matrices, each padded to whole panels.
    template <class Take>
    void multiply_all(int64_t& phase, const Product& product, const Rows& in, int rows, Take take) {
        const Linear& linear = product.linear;
        int parts = 0, ends[3], starts[3];
        for (int m = 0, column = 0; m < linear.count; m++) {
            starts[m] = column;
            column += round_up(linear.matrices[m].outputs, PANEL);
            ends[m] = parts += ceil_div(ceil_div(linear.matrices[m].outputs, PANEL), 2);
        }
        schedule_.share(phase, parts, PANEL_PAIRS, [&](int first, int end) {
            alignas(64) float y[REGISTER_ROWS * 2 * PANEL];
            for (int m = 0, before = 0; m < linear.count; before = ends[m++]) {
                const Matrix& matrix = linear.matrices[m];
                const int panels = round_up(matrix.outputs, PANEL) / PANEL, most = most_rows(matrix, rows);
                blocks(std::max(first, before) - before, std::min(end, ends[m]) - before, panels, rows, most,
                       [&](int r, int count, int panel, int panels) {
                           tile(product, m, panel, panels, in, rows, r, count, y);
                           for (int i = 0; i < count; i++)
                               take(r + i, starts[m] + panel * PANEL, y + i * panels * PANEL, panels * PANEL);
                       });
            }
        });
    }

    // inner = activation(x · up), or activation(x · gate) · (x · up).
    void multiply_inner(int64_t& phase, const Product& product, int rows) {
        const bool gated = product.linear.count == 2;
        const Matrix* matrices = product.linear.matrices;
        const int most = std::min(most_rows(matrices[0], rows), gated ? most_rows(matrices[1], rows) : REGISTER_ROWS);
        int panels = round_up(net_.inner, PANEL) / PANEL;
        schedule_.share(phase, ceil_div(panels, 2), PANEL_PAIRS, [&](int first, int end) {
            alignas(64) float y[REGISTER_ROWS * 2 * PANEL], factor[REGISTER_ROWS * 2 * PANEL];
            blocks(first, end, panels, rows, most, [&](int r, int count, int panel, int panels) {
                int width = panels * PANEL;
                tile(product, 0, panel, panels, h_, rows, r, count, y);
                if (gated) tile(product, 1, panel, panels, h_, rows, r, count, factor);
                for (int i = 0; i < count; i++) {
                    for (int j = 0; j < width; j += W) {
                        vec value = activate(net_.activation, load(y + i * width + j));
                        if (gated) value *= load(factor + i * width + j);
                        store(inner_.row(r + i) + panel * PANEL + j, value);
                    }
                    inner_.halve(r + i, panel * PANEL, width);
                }
            });
        });
    }

    // Normalises queries and keys head by head if the network does, rotates them to their positions, and appends keys
    // and values to their spans.
    void append(int layer, int r0, int r1) {
        const int d = net_.head_dim;
        for (int r = r0; r < r1; r++) {
            const Reading& reading = readings_[owner_[r]];
            float *q = qkv_.row(r), *k = q + k_at_, *v = q + v_at_;
            const size_t at = (size_t)positions_[r] * (d / 2);
            auto finish = [&](float* x, int heads, const Norm& norm) {
                for (float* end = x + heads * d; x < end; x += d) {
                    if (norm.weight) norm_row(x, norm.weight, nullptr, x, d, net_.eps, false);
                    if (net_.cosines) rotate(x, net_.cosines + at, net_.sines + at, x, d / 2, 1.f);
                }
            };
            finish(q, net_.heads, net_.layers[layer].q_norm);
            finish(k, net_.kv_heads, net_.layers[layer].k_norm);
            int row = reading.own.rows + r - reading.first;
            for (int h = 0; h < net_.kv_heads; h++) {
                Keys to(net_, reading.own, layer, h);
                float* key = to.keys + (size_t)(row / PANEL) * d * PANEL + row % PANEL;
                for (int i = 0; i < d; i++) key[(size_t)i * PANEL] = k[h * d + i];
                for (int i = 0; i < d; i += PANEL)
                    memcpy(to.values + (size_t)i * reading.own.capacity + (size_t)row * PANEL, v + h * d + i,
                           std::min(PANEL, d - i) * sizeof(float));
            }
        }
    }

    // How many keys of its own span a query sees.
    int seen(const Query& query) const {
        const Reading& reading = readings_[query.reading];
        return reading.own.rows + query.row - reading.first + 1;
    }

    // Floats per pair of query row and head in attention: query and result, then the scores of the prefix and of its
    // own keys.
    static int attention_floats(int wide, int before, int longest) { return 2 * wide + before + round_up(longest, PANEL) + W; }

    // An upper bound of what any pair needs.
    int longest_attention() const {
        int before = 0, longest = 0;
        for (const Query& query : queries_) {
            const Span& prefix = readings_[query.reading].prefix;
            if (prefix.memory) before = std::max(before, round_up(prefix.rows, PANEL));
            longest = std::max(longest, seen(query));
        }
        return attention_floats(round_up(net_.head_dim, PANEL), before, longest);
    }

    // Attention of one task, as in attention.h: scores of all pairs against the prefix, and of the pairs of each
    // reading against its own span; softmax; then the weighted sums of values in the same two steps.
    void attend(int layer, const std::vector<Query>& queries, const Task& task, float* memory) {
        const int d = net_.head_dim, wide = round_up(d, PANEL), count = task.end - task.first;
        const Query* of[REGISTER_ROWS];
        int longest = 0;
        for (int u = 0; u < count; u++) {
            of[u] = &queries[(task.first + u) / share_];
            longest = std::max(longest, seen(*of[u]));
        }
        const Span& prefix = readings_[of[0]->reading].prefix;
        const int before = prefix.memory ? round_up(prefix.rows, PANEL) : 0, ld = before + round_up(longest, PANEL) + W;
        memset(memory, 0, (size_t)count * attention_floats(wide, before, longest) * sizeof(float));
        float *q = memory, *y = q + count * wide, *scores = y + count * wide;
        const float scale = net_.layers[layer].scale;
        auto head = [&](int u) { return task.key_head * share_ + (task.first + u) % share_; };
        for (int u = 0; u < count; u++) {
            const float* from = qkv_.row(of[u]->row) + head(u) * d;
            for (int i = 0; i < d; i++) q[u * wide + i] = from[i] * scale;
        }
        auto score = [&](const Keys& keys, int rows, int u, int u1, int at) {
            int step = u1 - u <= TWO_PANEL_ROWS ? 2 : 1, panels = round_up(rows, PANEL) / PANEL;
            for (int p = 0; p < panels; p += step)
                multiply_panels(u1 - u, std::min(step, panels - p), keys.keys + (size_t)p * d * PANEL,
                                (size_t)d * PANEL, q + u * wide, wide, d, scores + u * ld + at + p * PANEL, ld);
        };
        auto gather = [&](const Keys& keys, int capacity, int rows, int u, int u1, int at) {
            int step = u1 - u <= TWO_PANEL_ROWS ? 2 : 1, panels = wide / PANEL;
            for (int p = 0; p < panels; p += step)
                multiply_panels(u1 - u, std::min(step, panels - p), keys.values + (size_t)p * capacity * PANEL,
                                (size_t)capacity * PANEL, scores + u * ld + at, ld, rows, y + u * wide + p * PANEL,
                                wide);
        };
        // Pairs of one reading share its span, of which the last pair sees most.
        auto by_reading = [&](auto use) {
            for (int u = 0, end; u < count; u = end) {
                for (end = u + 1; end < count && of[end]->reading == of[u]->reading; end++) {
                }
                const Span& own = readings_[of[u]->reading].own;
                use(Keys(net_, own, layer, task.key_head), own.capacity, seen(*of[end - 1]), u, end);
            }
        };
        if (before) score(Keys(net_, prefix, layer, task.key_head), prefix.rows, 0, count, 0);
        by_reading([&](const Keys& keys, int, int rows, int u, int end) { score(keys, rows, u, end, before); });
        float totals[REGISTER_ROWS];
        for (int u = 0; u < count; u++)
            totals[u] = weigh(scores + u * ld, before ? prefix.rows : 0, before, seen(*of[u]), ld - W);
        if (before) gather(Keys(net_, prefix, layer, task.key_head), prefix.capacity, prefix.rows, 0, count, 0);
        by_reading([&](const Keys& keys, int capacity, int rows, int u, int end) {
            gather(keys, capacity, rows, u, end, before);
        });
        for (int u = 0; u < count; u++) {
            float* to = attended_.row(of[u]->to) + head(u) * d;
            for (int i = 0; i < d; i++) to[i] = y[u * wide + i] / totals[u];
        }
    }

    // Replaces scores [0, shared) and [before, before + own) by e^(score - highest), and the others up to `end` by 0.
    // Returns the sum.
    static float weigh(float* scores, int shared, int before, int own, int end) {
        std::fill(scores + shared, scores + before, -INFINITY);
        std::fill(scores + before + own, scores + end, -INFINITY);
        return exponentials(scores, end, 1.f, [&](int i, vec e) { store(scores + i, e); }).sum;
    }

    // The likeliest tokens of the wanted rows, or all their logits.
    void choose(int64_t& phase, int thread) {
        const int count = wanted_.size();
        schedule_.share(phase, count, REGISTER_ROWS, [&](int r0, int r1) {
            normalize_rows(net_.last_norm, x_last_, r0, r1);
            for (int r = r0; r < r1 && !probes_.empty(); r++) probe(r, scratch(thread));
        });
        if (!probes_.empty() && bounded_) return choose_screened(phase, thread);
        multiply_all(phase, head(), h_, count, [&](int r, int column, const float* y, int width) {
            score(thread, r, column, y, width);
        });
    }

    // Takes in `width` logits of wanted row r from a column on.
    void score(int thread, int r, int column, const float* y, int width) {
        const int vocabulary = net_.head.matrices[0].outputs;
        width = std::min(width, vocabulary - column);
        vec wrong{}, most = splat(-FLT_MAX);
        for (int i = 0; i < width; i += W) {
            vec v = load(y + i);
            wrong += v - v;  // NaN where v is not finite
            most = max(most, width - i < W ? first(v, width - i, -FLT_MAX) : v);
        }
        if (!(sum(wrong) == 0.f)) finite_ = false;
        if (logits_) memcpy(logits_ + (size_t)r * vocabulary + column, y, width * sizeof(float));
        float largest = maximum(most);
        Best& best = best_[thread * wanted_.size() + r];
        if (likeliest_ && (largest > best.logit || best.token == INT32_MAX))
            best.meet({largest, column + (int)(std::find(y, y + width, largest) - y)});
    }

    Product head() const { return {net_.head, nullptr, 0, wanted_}; }

    void probe(int r, float* scaled) {
        Screen screen(net_.width);
        auto take = [&](auto* x) {
            return probes_[r].take(screen, (const float*)net_.screen, x, scaled, probe_bytes_.data(), r, probes_.size());
        };
        if (!(h_.halves ? take(h_.half(r)) : take(h_.row(r)))) bounded_ = false;
    }

    // Bounds on all logits, then the exact logits of those panels where an upper bound reaches the highest lower bound:
    // the token is the one that all logits would give.
    void choose_screened(int64_t& phase, int thread) {
        const Screen screen(net_.width);
        const int count = wanted_.size(), vocabulary = net_.head.matrices[0].outputs;
        float bar[STATES];  // with more rows there are no probes
        std::fill_n(bar, count, -INFINITY);
        schedule_.share(phase, ceil_div(vocabulary, W), SCREEN_GROUPS, [&](int begin, int end) {
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
        schedule_.share(phase, ceil_div(vocabulary, PANEL), SCREENED_PANELS, [&](int begin, int end) {
            alignas(64) float y[REGISTER_ROWS * PANEL];
            for (int panel = begin; panel < end; panel++) {
                ivec reaches{};
                for (int r = 0; r < count; r++)
                    for (int j = 0; j < PANEL; j += W) reaches |= load(upper_.row(r) + panel * PANEL + j) >= bar[r];
                if (maximum(select(reaches, splat(1.f), vec{})) == 0) continue;
                for (int r = 0, some; r < count; r += some) {
                    some = std::min(REGISTER_ROWS, count - r);
                    tile(head(), 0, panel, 1, h_, count, r, some, y);
                    for (int i = 0; i < some; i++) score(thread, r + i, panel * PANEL, y + i * PANEL, PANEL);
                }
            }
        });
    }

    const Network& net_;
    const int rows_;
    const float* embedded_;
    const int32_t* positions_;
    const Reading* readings_;
    float* logits_;
    int32_t* likeliest_;
    const int threads_;
    Schedule schedule_;
    int share_, k_at_, v_at_;
    std::vector<const LayerUpdates*> adapters_;  // of the readings, neighbours once
    std::vector<int> owner_;   // reading of each row
    std::vector<int> wanted_;  // rows whose next token is predicted
    std::vector<int> every_;
    std::vector<Query> queries_, last_queries_;  // of all rows; of the wanted ones, the only ones to leave the last layer
    std::vector<Task> tasks_, last_tasks_;
    float* scratch_;  // `scratch_stride_` floats per thread
    int scratch_stride_;
    float* decoded_;  // `decoded_stride_` floats per thread: panels of matrices that are kept in few bits
    int decoded_stride_;
    std::vector<std::pair<const Matrix*, int>> decoded_panels_;  // which these are
    std::vector<Best> best_;  // per thread and wanted row
    std::vector<Probe> probes_;  // per wanted row, if the screen is used
    std::vector<int8_t> probe_bytes_;
    std::vector<float> bars_;  // per thread and wanted row: a lower bound of the largest logit
    std::atomic<bool> bounded_{true};
    std::atomic<bool> finite_{true};
    const Rows &x_, &x_last_, &h_, &qkv_, &attended_, &inner_, &projected_, &upper_;
};

}  // namespace
}  // namespace jl::decoding

// Room for calls of up to `rows` rows whose updates have up to `ranks` ranks, to be freed with jl_decode_free; null if out of memory.
JL_API jl::decoding::Workspace* jl_decode_workspace(const jl::decoding::Network* net, int rows, int ranks) try {
    return new jl::decoding::Workspace(*net, rows, ranks);
} catch (const std::bad_alloc&) {
    return nullptr;
}

JL_API void jl_decode_free(jl::decoding::Workspace* space) { delete space; }

// Reads rows of tokens whose embeddings are `embedded` (rows, width), and appends their keys and values to the
// readings' spans. Writes `logits` (wanted, vocabulary) and `likeliest` (wanted,) of the wanted readings in their
// order, unless null. Returns 0 if a logit is not finite, else 1.
JL_API int jl_decode(const jl::decoding::Network* net, const jl::decoding::Workspace* space, int rows,
                     const float* embedded, const int32_t* positions, int readings,
                     const jl::decoding::Reading* reading, float* logits, int32_t* likeliest) {
    return jl::status_of([&] {
        return int(jl::decoding::Run(*net, *space, rows, embedded, positions, readings, reading, logits, likeliest).go());
    });
}
