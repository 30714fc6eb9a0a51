// Cross-entropy with label smoothing, and its gradient for the hidden states, without ever holding all logits.
//
// For a row with logits z = hidden · headᵀ over V entries, label y, weight w and smoothing ε:
//     loss = w · (lse(z) - (1 - ε) z_y - ε · mean(z)),  lse(z) = log Σ_j e^{z_j}
// which is 1 - ε of the label's negative log-likelihood plus ε of its mean over the vocabulary. Since ∂lse/∂z =
// softmax(z),
//     dz_j = w · (e^{z_j - lse} - ε / V - (1 - ε) [j = y])
//     dhidden = dz · head,  dhead = dzᵀ · hidden
//
// A batch of rows at a time; the vocabulary is cut into slices, and slices into parts. Each part's sum for the gradient
// is taken slice by slice in one thread, and the parts are added in order: the result is independent of the number of
// threads.
#include <vector>

#include "product.h"
#include "softmax.h"

namespace jl {

// Rows whose logits are held at a time: 256 · 50,257 floats are 49 MiB. 64 rows at a time take 5 to 11 % longer on
// AVX2, as the head is read from memory for each batch, and 512 are no faster.
constexpr int BATCH_ROWS = 256;
// Entries of the vocabulary per slice: logits of TASK_ROWS rows are 256 KiB and stay in an L2 of 512 KiB from the
// product to the exponentials. 512 entries take 9 % longer on AVX2, 2,048 18 to 25 %.
constexpr int SLICE = 1024;
// Rows per task, which share a slice of the head, 3 MiB for 768 inputs. 32 rows take 45 % longer on AVX2 and 16 90 %,
// as the head is read more often; 128 take 11 to 16 % longer, as their logits leave the L2.
constexpr int TASK_ROWS = 64;
// Tasks of the gradient, row tiles times parts, for machines of many cores. Each part has sums for all rows of the
// batch: 25 parts of 256 · 768 floats are 19 MiB.
constexpr int GRADIENT_TASKS = 100;
// Columns of a packed slice are a multiple of this: oneDNN has no fast bf16 products of odd sizes, or of rows with a
// gap.
constexpr int BF16_COLUMN_UNIT = 64;

struct Vocabulary {
    int size, width;
    Stored head;            // (size, width), or if PACKED
    const char *up, *down;  // its slices in bf16, packed for the logits and for the gradient
    bool bf16 = false;      // are products in bf16?
    std::vector<size_t> up_at = {}, down_at = {};

    // Must a slice be decoded or packed before each use? Then one task takes all rows; otherwise each tile of rows is a task.
    bool needs_preparing() const { return head.storage != (bf16 ? PACKED : FLOAT32); }
    int slices() const { return ceil_div(size, SLICE); }
    int begin(int slice) const { return slice * SLICE; }
    int count(int slice) const { return std::min(SLICE, size - slice * SLICE); }
    // Columns of a slice's logits, and of the packed slice, whose missing columns are zeros.
    int padded(int slice) const { return round_up(count(slice), BF16_COLUMN_UNIT); }

    // Slice p in float32, filled up with zeros to `high` rows; in `memory` if it is in blocks or has fewer.
    const float* rows(int p, int high, Buffer& memory) const {
        if (head.storage == FLOAT32 && high == count(p)) return static_cast<const float*>(head.data) + size_t(begin(p)) * width;
        float* to = memory.get<float>(size_t(high) * width);
        memset(to + size_t(count(p)) * width, 0, size_t(high - count(p)) * width * sizeof(float));
        stored_rows(head, begin(p), begin(p) + count(p), 0, width, to, width);
        return to;
    }

    // Slice p in bf16, packed for the logits or, `for_gradient`, for their gradient; packed into `memory` if it is not yet.
    const char* packed(int p, bool for_gradient, Buffer& memory, Buffer& decoded) const {
        if (!needs_preparing()) return for_gradient ? down + down_at[p] : up + up_at[p];
        const int k = for_gradient ? padded(p) : width, n = for_gradient ? width : padded(p);
        char* to = memory.get<char>(packed_size(k, n));
        pack(rows(p, padded(p), decoded), to, k, n, !for_gradient);
        return to;
    }
};

}  // namespace jl

using namespace jl;

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Bytes of slice p of a head, packed for the logits (down = 0) or for the gradient (down = 1).
static int64_t slice_bytes(const Vocabulary& v, int p, int down) {
    return aligned(down ? packed_size(v.padded(p), v.width) : packed_size(v.width, v.padded(p)));
}

JL_API int64_t jl_packed_head_size(int size, int width, int down) {
    return status_of([&] {
        Vocabulary v{size, width, {}, nullptr, nullptr};
        int64_t total = 0;
        for (int p = 0; p < v.slices(); p++) total += slice_bytes(v, p, down);
        return total;
    });
}

// Packs a head (size, width) slice by slice.
JL_API int jl_pack_head(const float* head, char* packed, int size, int width, int down) {
    return status_of([&] {
        Vocabulary v{size, width, {}, nullptr, nullptr};
        std::vector<float> padded(size_t(SLICE) * width);
        for (int p = 0; p < v.slices(); p++) {
            std::fill(padded.begin(), padded.end(), 0.f);
            memcpy(padded.data(), head + size_t(v.begin(p)) * width, size_t(v.count(p)) * width * sizeof(float));
            down ? pack(padded.data(), packed, v.padded(p), width, false) : pack(padded.data(), packed, width, v.padded(p), true);
            packed += slice_bytes(v, p, down);
        }
        return 0;
    });
}

// loss (1); gradient (rows, width) unless null, head_gradient (size, width) unless either is null. In place of a head that
// is PACKED, `up` and, for the gradient, `down` are read.
JL_API void jl_cross_entropy(const float* hidden, const void* head, int storage, int bf16_head, const char* up,
                             const char* down, const int* labels, const float* weights, double smoothing, float* loss,
                             float* gradient, float* head_gradient, int rows, int width, int size) {
    static Buffer for_logits, for_sums, for_hidden;
    Vocabulary v{size, width, {head, storage, size, width}, up, down, bool(bf16_head)};
    size_t up_at = 0, down_at = 0;
    for (int p = 0; storage == PACKED && p < v.slices(); p++) {
        v.up_at.push_back(up_at), v.down_at.push_back(down_at);
        up_at += slice_bytes(v, p, 0), down_at += slice_bytes(v, p, 1);
    }
    double total = 0;
    for (int start = 0; start < rows; start += BATCH_ROWS) {
        int count = std::min(BATCH_ROWS, rows - start), whole = bf16_head ? round_up(count, BF16_ROW_UNIT) : count;
        const float* h = hidden + size_t(start) * width;
        const int tiles = ceil_div(whole, TASK_ROWS), tasks = v.needs_preparing() ? 1 : tiles;  // of rows
        bf16* hs = bf16_head ? for_hidden.get<bf16>(size_t(whole) * width) : nullptr;
        if (bf16_head)
            parallel_evenly(whole, [&](int r) {
                each(width, [&](int64_t i, int n) {
                    put(hs + size_t(r) * width + i, r < count ? get(h + size_t(r) * width + i, n) : vec{}, n);
                });
            });
        // Slice p's logits are (whole, padded(p)), slice by slice.
        size_t slice_size = size_t(whole) * SLICE;
        float* logits = for_logits.get<float>(slice_size * v.slices());
        std::vector<float> tops(size_t(v.slices()) * count), totals(size_t(v.slices()) * count);
        std::vector<float> scores(smoothing > 0 ? size_t(v.slices()) * count : 0);
        // Collapses slices and tasks of rows: logits, and of each row the highest and the sum of exponentials within
        // the slice.
        parallel(v.slices() * tasks, [&](int task) {
            static thread_local Buffer for_head, for_packed;
            const int p = task / tasks, n = v.count(p), wide = v.padded(p);
            const char* packed = bf16_head ? v.packed(p, false, for_packed, for_head) : nullptr;
            const float* head_rows = bf16_head ? nullptr : v.rows(p, v.count(p), for_head);
            for (int r0 = task % tasks * TASK_ROWS; r0 < whole; r0 += tasks * TASK_ROWS) {
                const int whole_end = std::min(whole, r0 + TASK_ROWS), end = std::min(count, r0 + TASK_ROWS);
                float* l = logits + slice_size * p + size_t(r0) * wide;
                if (bf16_head)
                    gemm_tile(packed, width, wide, hs + size_t(r0) * width, l, whole_end - r0);
                else
                    sgemm('N', 'T', end - r0, n, width, 1.f, h + size_t(r0) * width, width, head_rows, width, 0.f, l, wide);
                for (int r = r0; r < end; r++) {
                    float* x = l + size_t(r - r0) * wide;
                    if (smoothing > 0) {
                        vec all{};
                        each(n, [&](int64_t i, int m) { all += get(x + i, m); });
                        scores[size_t(p) * count + r] = sum(all);
                    }
                    for (int i = n; i < round_up(n, W); i++) x[i] = -INFINITY;
                    const Exponentials e = exponentials(x, round_up(n, W), 1.f, [](int, vec) {});
                    tops[size_t(p) * count + r] = e.highest;
                    totals[size_t(p) * count + r] = e.sum;
                }
            }
        });
        std::vector<float> lse(count);
        std::vector<double> losses(count);
        // Log-sum-exp over the slices, and the losses, in double.
        parallel_evenly(count, [&](int r) {
            float highest = -INFINITY;
            for (int p = 0; p < v.slices(); p++) highest = std::max(highest, tops[size_t(p) * count + r]);
            double sums = 0;
            for (int p = 0; p < v.slices(); p++)
                sums += double(totals[size_t(p) * count + r]) * std::exp(double(tops[size_t(p) * count + r]) - highest);
            lse[r] = float(highest + std::log(sums));
            int label = labels[start + r];
            int slice = label / SLICE;
            float score = logits[slice_size * slice + size_t(r) * v.padded(slice) + label % SLICE];
            double expected = (1 - smoothing) * score;
            for (int p = 0; smoothing > 0 && p < v.slices(); p++) expected += smoothing / size * scores[size_t(p) * count + r];
            losses[r] = double(weights[start + r]) * (highest + std::log(sums) - expected);
        });
        for (double one : losses) total += one;
        if (!gradient) continue;
        size_t part_size = size_t(whole) * width;
        const int parts = std::min(v.slices(), GRADIENT_TASKS / tiles);
        float* sums = for_sums.get<float>(part_size * parts);
        // Collapses parts and tasks of rows: dz in place of the logits, and its product with the head.
        parallel(parts * tasks, [&](int task) {
            static thread_local Buffer for_dz, for_product, for_head, for_packed;
            const int part = task / tasks;
            int first = v.slices() * part / parts, end = v.slices() * (part + 1) / parts;
            for (int p = first; p < end; p++) {
                int n = v.count(p), wide = v.padded(p);
                const char* packed = bf16_head ? v.packed(p, true, for_packed, for_head) : nullptr;
                const float* head_rows = bf16_head ? nullptr : v.rows(p, v.count(p), for_head);
                for (int r0 = task % tasks * TASK_ROWS; r0 < whole; r0 += tasks * TASK_ROWS) {
                    const int high = std::min(whole, r0 + TASK_ROWS) - r0;
                    float* to = sums + part_size * part + size_t(r0) * width;
                    float* l = logits + slice_size * p + size_t(r0) * wide;
                    bf16* dz = bf16_head ? for_dz.get<bf16>(size_t(high) * wide) : nullptr;
                    if (bf16_head) memset(dz, 0, size_t(high) * wide * sizeof(bf16));
                    for (int i = 0; i < high; i++) {
                        const int r = r0 + i;
                        float* x = l + size_t(i) * wide;
                        bool real = r < count;
                        float w = real ? weights[start + r] : 0.f, shift = real ? lse[r] : 0.f;
                        float for_all = w * float(smoothing / size), for_label = w * float(1 - smoothing);
                        int label = real ? labels[start + r] - v.begin(p) : -1;
                        each(n, [&](int64_t k, int m) {
                            put(x + k, real ? exp(get(x + k, m) - shift) * w - for_all : vec{}, m);
                        });
                        if (label >= 0 && label < n) x[label] -= for_label;
                        if (bf16_head) each(n, [&](int64_t k, int m) { put(dz + size_t(i) * wide + k, get(x + k, m), m); });
                    }
                    if (bf16_head) {
                        float* product = p == first ? to : for_product.get<float>(size_t(high) * width);
                        gemm_tile(packed, wide, width, dz, product, high);
                        if (p > first)
                            each(int64_t(high) * width, [&](int64_t i, int m) {
                                put(to + i, get(to + i, m) + get(product + i, m), m);
                            });
                    } else {
                        sgemm('N', 'N', high, width, n, 1.f, l, wide, head_rows, width, p > first ? 1.f : 0.f, to, width);
                    }
                }
            }
        });
        for (int p = 0; head_gradient && p < v.slices(); p++)
            transposed_product(logits + slice_size * p, v.padded(p), h, count, v.count(p), width, bf16_head, start > 0,
                               head_gradient + size_t(v.begin(p)) * width);
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
