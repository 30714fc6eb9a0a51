// Layer norm and RMS norm of rows, in two passes: the one-pass variance loses its digits on rows with a large mean.
#include "parallel.h"
#include "rows.h"
#include "vector.h"

namespace jl {

struct Moments {
    float mean, inverse;  // inverse: 1 / deviation, or 1 / root mean square
};

static Moments moments(const float* x, int d, float eps, bool centred) {
    float mean = 0;
    if (centred) {
        vec s{};
        each(d, [&](int64_t i, int n) { s += get(x + i, n); });
        mean = sum(s) / d;
    }
    vec s{};
    each(d, [&](int64_t i, int n) {
        vec c = get(x + i, n) - mean;
        if (n < W)
            for (int e = n; e < W; e++) c[e] = 0;
        s += c * c;
    });
    return {mean, 1.f / std::sqrt(sum(s) / d + eps)};
}

static void forward(const float* x, const float* weight, const float* bias, float* y, int rows, int d, float eps) {
    parallel_evenly(rows, [&](int r) {
        const float* from = x + size_t(r) * d;
        Moments m = moments(from, d, eps, bias);
        each(d, [&](int64_t i, int n) {
            vec v = (get(from + i, n) - m.mean) * m.inverse * get(weight + i, n);
            put(y + size_t(r) * d + i, bias ? v + get(bias + i, n) : v, n);
        });
    });
}

static void backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, float eps, bool centred) {
    parallel_evenly(rows, [&](int r) {
        const float *from = x + size_t(r) * d, *up = dy + size_t(r) * d;
        Moments m = moments(from, d, eps, centred);
        vec s1{}, s2{};
        each(d, [&](int64_t i, int n) {
            vec g = get(up + i, n) * get(weight + i, n);
            s1 += g;
            s2 += g * (get(from + i, n) - m.mean) * m.inverse;
        });
        float mean_g = centred ? sum(s1) / d : 0.f, mean_gx = sum(s2) / d;
        each(d, [&](int64_t i, int n) {
            vec g = get(up + i, n) * get(weight + i, n), normal = (get(from + i, n) - m.mean) * m.inverse;
            put(dx + size_t(r) * d + i, (g - mean_g - normal * mean_gx) * m.inverse, n);
        });
    });
}

}  // namespace jl

JL_API void jl_layer_norm_forward(const float* x, const float* weight, const float* bias, float* y, int rows, int d, double eps) {
    jl::forward(x, weight, bias, y, rows, d, float(eps));
}

JL_API void jl_layer_norm_backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, double eps) {
    jl::backward(x, weight, dy, dx, rows, d, float(eps), true);
}

JL_API void jl_rms_norm_forward(const float* x, const float* weight, float* y, int rows, int d, double eps) {
    jl::forward(x, weight, nullptr, y, rows, d, float(eps));
}

JL_API void jl_rms_norm_backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, double eps) {
    jl::backward(x, weight, dy, dx, rows, d, float(eps), false);
}
