// The weighted sum of the labels' negative log-likelihoods under logits = hidden · headᵀ, and its gradient for `hidden`.
// With smoothing a label's loss is (1 - smoothing) times that, and smoothing times the mean over the whole vocabulary.
//
// Some rows at a time; the vocabulary is cut into panels, and panels into parts. A part's sums are taken panel by panel
// in the thread that has the part, for some of the rows, and the parts are added in order: the result does not depend on
// the threads.
#include <vector>

#include "product.h"

namespace jl {

constexpr int ROWS = 256;    // whose logits are held at a time
constexpr int PANEL = 1024;  // entries of the vocabulary
constexpr int TILE = 64;     // rows that a thread takes at a time
constexpr int TASKS = 100;   // of the gradient: tiles of rows and parts; each part has sums of all rows

struct Vocabulary {
    int size, width;
    const float* head;        // (size, width), or
    const char *up, *down;    // panels of it in bf16, packed for the logits and for the gradient
    std::vector<size_t> up_at, down_at;

    int panels() const { return (size + PANEL - 1) / PANEL; }
    int begin(int panel) const { return panel * PANEL; }
    int count(int panel) const { return std::min(PANEL, size - panel * PANEL); }
    // Columns of a panel's logits, and of the panel where it is packed: oneDNN has no fast products of odd sizes, or of
    // rows with a gap between them, so the last panel is filled up with zeros.
    int padded(int panel) const { return round_up(count(panel), 64); }
};

}  // namespace jl

using namespace jl;

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Bytes of panel p of a head, packed for the logits (down = 0) or the gradient (down = 1).
static int64_t panel_size_of(const Vocabulary& v, int p, int down) {
    return aligned(down ? packed_size(v.padded(p), v.width) : packed_size(v.width, v.padded(p)));
}

JL_API int64_t jl_packed_head_size(int size, int width, int down) {
    return status_of([&] {
        Vocabulary v{size, width, nullptr, nullptr, nullptr, {}, {}};
        int64_t total = 0;
        for (int p = 0; p < v.panels(); p++) total += panel_size_of(v, p, down);
        return total;
    });
}

// Packs a head (size, width) by panels.
JL_API int jl_pack_head(const float* head, char* packed, int size, int width, int down) {
    return status_of([&] {
        Vocabulary v{size, width, nullptr, nullptr, nullptr, {}, {}};
        std::vector<float> padded(size_t(PANEL) * width);
        for (int p = 0; p < v.panels(); p++) {
            std::fill(padded.begin(), padded.end(), 0.f);
            memcpy(padded.data(), head + size_t(v.begin(p)) * width, size_t(v.count(p)) * width * sizeof(float));
            down ? pack(padded.data(), packed, v.padded(p), width, false) : pack(padded.data(), packed, width, v.padded(p), true);
            packed += panel_size_of(v, p, down);
        }
        return 0;
    });
}

// loss (1); gradient (rows, width) unless null. In bf16 `head` is not read, but `up` and, for the gradient, `down`.
JL_API void jl_cross_entropy(const float* hidden, const float* head, const char* up, const char* down,
                             const int* labels, const float* weights, double smoothing, float* loss,
                             float* gradient, int rows, int width, int size) {
    static Buffer for_logits, for_sums, for_narrow;
    bool narrow = up;
    Vocabulary v{size, width, head, up, down, {}, {}};
    size_t up_at = 0, down_at = 0;
    for (int p = 0; narrow && p < v.panels(); p++) {
        v.up_at.push_back(up_at), v.down_at.push_back(down_at);
        up_at += panel_size_of(v, p, 0), down_at += panel_size_of(v, p, 1);
    }
    double total = 0;
    for (int start = 0; start < rows; start += ROWS) {
        int count = std::min(ROWS, rows - start), whole = narrow ? round_up(count, 16) : count;
        const float* h = hidden + size_t(start) * width;
        const int tiles = (whole + TILE - 1) / TILE;
        bf16* hs = narrow ? for_narrow.get<bf16>(size_t(whole) * width) : nullptr;
        if (narrow)
            parallel_evenly(whole, [&](int r) {
                each(width, [&](int64_t i, int n) { put(hs + size_t(r) * width + i, r < count ? get(h + size_t(r) * width + i, n) : vec{}, n); });
            });
        // Panel p's logits are (whole, padded(p)), panel by panel.
        size_t panel_size = size_t(whole) * PANEL;
        float* logits = for_logits.get<float>(panel_size * v.panels());
        std::vector<float> tops(size_t(v.panels()) * count), totals(size_t(v.panels()) * count);
        std::vector<float> scores(smoothing > 0 ? size_t(v.panels()) * count : 0);
        parallel(v.panels() * tiles, [&](int task) {
            const int p = task / tiles, r0 = task % tiles * TILE, n = v.count(p), wide = v.padded(p);
            const int whole_end = std::min(whole, r0 + TILE), end = std::min(count, r0 + TILE);
            float* l = logits + panel_size * p + size_t(r0) * wide;
            if (narrow)
                gemm_tile(up + v.up_at[p], width, wide, hs + size_t(r0) * width, l, whole_end - r0);
            else
                sgemm('N', 'T', end - r0, n, width, 1.f, h + size_t(r0) * width, width, head + size_t(v.begin(p)) * width, width,
                      0.f, l, wide);
            for (int r = r0; r < end; r++) {
                vec top = splat(-INFINITY), sums{};
                float* x = l + size_t(r - r0) * wide;
                if (smoothing > 0) {
                    vec all{};
                    each(n, [&](int64_t i, int m) { all += get(x + i, m); });
                    scores[size_t(p) * count + r] = sum(all);
                }
                for (int i = n; i < round_up(n, W); i++) x[i] = -INFINITY;
                for (int i = 0; i < n; i += W) top = max(top, load(x + i));
                float highest = maximum(top);
                for (int i = 0; i < n; i += W) sums += exp(load(x + i) - highest);
                tops[size_t(p) * count + r] = highest;
                totals[size_t(p) * count + r] = sum(sums);
            }
        });
        std::vector<float> lse(count);
        std::vector<double> losses(count);
        parallel_evenly(count, [&](int r) {
            float highest = -INFINITY;
            for (int p = 0; p < v.panels(); p++) highest = std::max(highest, tops[size_t(p) * count + r]);
            double sums = 0;
            for (int p = 0; p < v.panels(); p++) sums += double(totals[size_t(p) * count + r]) * std::exp(double(tops[size_t(p) * count + r]) - highest);
            lse[r] = float(highest + std::log(sums));
            int label = labels[start + r];
            int panel = label / PANEL;
            float score = logits[panel_size * panel + size_t(r) * v.padded(panel) + label % PANEL];
            double expected = (1 - smoothing) * score;
            for (int p = 0; smoothing > 0 && p < v.panels(); p++) expected += smoothing / size * scores[size_t(p) * count + r];
            losses[r] = double(weights[start + r]) * (highest + std::log(sums) - expected);
        });
        for (double one : losses) total += one;
        if (!gradient) continue;
        size_t part_size = size_t(whole) * width;
        const int parts = std::min(v.panels(), TASKS / tiles);
        float* sums = for_sums.get<float>(part_size * parts);
        parallel(parts * tiles, [&](int task) {
            static thread_local Buffer for_odds, for_product;
            const int part = task / tiles, r0 = task % tiles * TILE, high = std::min(whole, r0 + TILE) - r0;
            float* to = sums + part_size * part + size_t(r0) * width;
            int first = v.panels() * part / parts, end = v.panels() * (part + 1) / parts;
            for (int p = first; p < end; p++) {
                int n = v.count(p), wide = v.padded(p);
                float* l = logits + panel_size * p + size_t(r0) * wide;
                bf16* odds = narrow ? for_odds.get<bf16>(size_t(high) * wide) : nullptr;
                if (narrow) memset(odds, 0, size_t(high) * wide * sizeof(bf16));
                for (int i = 0; i < high; i++) {
                    const int r = r0 + i;
                    float* x = l + size_t(i) * wide;
                    bool real = r < count;
                    float w = real ? weights[start + r] : 0.f, shift = real ? lse[r] : 0.f;
                    float everywhere = w * float(smoothing / size), there = w * float(1 - smoothing);
                    int label = real ? labels[start + r] - v.begin(p) : -1;
                    each(n, [&](int64_t k, int m) {
                        put(x + k, real ? exp(get(x + k, m) - shift) * w - everywhere : vec{}, m);
                    });
                    if (label >= 0 && label < n) x[label] -= there;
                    if (narrow) each(n, [&](int64_t k, int m) { put(odds + size_t(i) * wide + k, get(x + k, m), m); });
                }
                if (narrow) {
                    float* made = p == first ? to : for_product.get<float>(size_t(high) * width);
                    gemm_tile(down + v.down_at[p], wide, width, odds, made, high);
                    if (p > first)
                        each(int64_t(high) * width, [&](int64_t i, int m) { put(to + i, get(to + i, m) + get(made + i, m), m); });
                } else {
                    sgemm('N', 'N', high, width, n, 1.f, l, wide, head + size_t(v.begin(p)) * width, width, p > first ? 1.f : 0.f, to, width);
                }
            }
        });
        parallel_evenly(count, [&](int r) {
            each(width, [&](int64_t i, int n) {
                size_t at = size_t(r) * width + i;
                vec g{};
                for (int part = 0; part < parts; part++) g += get(sums + part_size * part + at, n);
                put(gradient + size_t(start) * width + at, g, n);
            });
        });
    }
    *loss = float(total);
}
