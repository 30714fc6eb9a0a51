// Layer norm and RMS norm, forward and backward. Nothing but x is kept for the backward pass.
#include "norms.h"

#include "parallel.h"
#include "rows.h"

namespace jl {

static void forward(const float* x, const float* weight, const float* bias, float* y, int rows, int d, float eps, bool centred) {
    parallel_evenly(rows, [&](int r) { norm_row(x + size_t(r) * d, weight, bias, y + size_t(r) * d, d, eps, centred); });
}

// With x̂ = (x - mean) / σ and g = dy · weight, the gradient of y = x̂ · weight + bias. x̂_j depends on x_i directly,
// through the mean and through σ: ∂x̂_j/∂x_i = (δ_ij - 1/d - x̂_i x̂_j / d) / σ, hence
//     dx = (g - mean(g) - x̂ · mean(g x̂)) / σ.
// RMS norm has no mean: x̂ = x / rms(x), and dx = (g - x̂ · mean(g x̂)) / rms(x).
static void backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, float eps, bool centred) {
    parallel_evenly(rows, [&](int r) {
        const float *from = x + size_t(r) * d, *up = dy + size_t(r) * d;
        const Moments m = moments(from, d, eps, centred);
        vec sum_g{}, sum_gx{};
        each(d, [&](int64_t i, int n) {
            vec g = get(up + i, n) * get(weight + i, n);
            sum_g += g;
            sum_gx += g * (get(from + i, n) - m.mean) * m.inverse;
        });
        float mean_g = centred ? sum(sum_g) / d : 0.f, mean_gx = sum(sum_gx) / d;
        each(d, [&](int64_t i, int n) {
            vec g = get(up + i, n) * get(weight + i, n), normal = (get(from + i, n) - m.mean) * m.inverse;
            put(dx + size_t(r) * d + i, (g - mean_g - normal * mean_gx) * m.inverse, n);
        });
    });
}

// Rows per chunk of a sum over rows; chunks are added in order, and there are few enough for their sums to stay small.
constexpr int SUMMED_ROWS = 16, MOST_SUMS = 64;

// sums (d) = Σ_r of what add(r, to) adds to `to`.
template <class Add>
static void sum_over_rows(float* sums, int rows, int d, Add add) {
    static Buffer memory;
    const Chunks chunks(rows, SUMMED_ROWS, MOST_SUMS);
    float* parts = memory.get<float>(size_t(chunks.count) * d);
    parallel(chunks.count, [&](int c) {
        float* to = parts + size_t(c) * d;
        memset(to, 0, d * sizeof(float));
        for (int r = chunks.begin(c); r < chunks.end(c); r++) add(r, to);
    });
    parallel_pieces(d, [&](int64_t at, int64_t count) {
        each(count, [&](int64_t i, int n) {
            vec total{};
            for (int c = 0; c < chunks.count; c++) total += get(parts + size_t(c) * d + at + i, n);
            put(sums + at + i, total, n);
        });
    });
}

}  // namespace jl

JL_API void jl_layer_norm_forward(const float* x, const float* weight, const float* bias, float* y, int rows, int d, double eps) {
    jl::forward(x, weight, bias, y, rows, d, float(eps), true);
}

JL_API void jl_layer_norm_backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, double eps) {
    jl::backward(x, weight, dy, dx, rows, d, float(eps), true);
}

JL_API void jl_rms_norm_forward(const float* x, const float* weight, float* y, int rows, int d, double eps) {
    jl::forward(x, weight, nullptr, y, rows, d, float(eps), false);
}

JL_API void jl_rms_norm_backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, double eps) {
    jl::backward(x, weight, dy, dx, rows, d, float(eps), false);
}

// The gradient of a norm's weight, Σ_r dy · x̂.
JL_API void jl_norm_weight(const float* x, const float* dy, float* dweight, int rows, int d, double eps, int centred) {
    using namespace jl;
    sum_over_rows(dweight, rows, d, [&](int r, float* to) {
        const float *from = x + size_t(r) * d, *up = dy + size_t(r) * d;
        const Moments m = moments(from, d, float(eps), centred);
        each(d, [&](int64_t i, int n) {
            put(to + i, get(to + i, n) + get(up + i, n) * (get(from + i, n) - m.mean) * m.inverse, n);
        });
    });
}

// The gradient of a bias, Σ_r dy.
JL_API void jl_sum_rows(const float* x, float* sums, int rows, int d) {
    using namespace jl;
    sum_over_rows(sums, rows, d, [&](int r, float* to) {
        each(d, [&](int64_t i, int n) { put(to + i, get(to + i, n) + get(x + size_t(r) * d + i, n), n); });
    });
}
