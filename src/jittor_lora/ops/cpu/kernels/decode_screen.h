// Bounds on all logits from 8-bit copies of the output head's rows, to find the few that can be the largest.
//
// With m the mean of the head's rows w_r, and s the root mean square of each column of w_r - m, a row is kept as the
// bytes q_r of q_r · scale_r ≈ (w_r - m) / s. For a state x and u = x · s ≈ U · step in 16 bits,
//     x · w_r = x · m + step · scale_r · (U · q_r) + rest,
//     |rest| ≤ |u| |(w_r - m) / s - q_r scale_r| + |u - U step| |q_r scale_r|
// by Cauchy and Schwarz; x · m is the same for all rows and left out. What rounding does to the logits themselves and
// to their bounds is added. Bounds hold whatever the weights are; a row that has none has an infinite one.
#pragma once
#include <algorithm>
#include <cfloat>
#include <vector>
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "decode_panels.h"

namespace jl::decoding {

// sum + the products of four bytes at `weights` for each lane, and the four of `x`.
static inline ivec products(ivec sum, const uint8_t* weights, int32_t x) {
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(weights), _mm512_set1_epi32(x));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_loadu_si256((const __m256i*)weights), _mm256_set1_epi32(x));
#else
    int8_t four[4];
    memcpy(four, &x, 4);
    for (int i = 0; i < W; i++)
        for (int j = 0; j < 4; j++) sum[i] += (int32_t)weights[4 * i + j] * four[j];
    return sum;
#endif
}

#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr bool SCREENS = true;
#else
constexpr bool SCREENS = false;  // without instructions for products of bytes all logits are computed
#endif

// Beyond these sizes sums of products of bytes, and sums of logits, might not be finite.
constexpr int MOST_INPUTS = 16384;
constexpr double LEAST_STATE = 1e-15, LARGEST_STATE = 1e15, LARGEST_ROW = 1e15;

// PANEL rows of the head: the bytes, as `deep` / 4 times PANEL groups of four inputs, then these.
struct RowBounds {
    float scale[PANEL];
    float error[PANEL];   // at least |(w - m) / s - q · scale|
    float spread[PANEL];  // at least |q · scale|
    float norm[PANEL];    // at least |w|
};

// The head as bytes: s (deep), then panels.
struct Screen {
    const int inputs, deep;

    explicit Screen(int inputs) : inputs(inputs), deep(padded(inputs, 32)) {}

    size_t panel_size() const { return (size_t)deep * PANEL + sizeof(RowBounds); }
    size_t start() const { return (size_t)deep * sizeof(float); }
    size_t size(int outputs) const { return start() + padded(outputs, PANEL) / PANEL * panel_size(); }

    // `value(r, k)` is the weight that logits are computed with.
    template <class Value>
    void pack(int outputs, Value value, uint8_t* to) const {
        std::vector<uint8_t> usable(outputs);
        std::vector<float> mean(inputs), column(deep, 1.f), norm(outputs);
        std::vector<double> sums(inputs), squares(inputs);
        int count = 0;
        for (int r = 0; r < outputs; r++) {
            double total = 0;
            for (int k = 0; k < inputs; k++) total += (double)value(r, k) * value(r, k);
            norm[r] = raised(std::sqrt(total));
            usable[r] = norm[r] <= LARGEST_ROW;  // NaN is not
            count += usable[r];
            for (int k = 0; usable[r] && k < inputs; k++) sums[k] += value(r, k);
        }
        for (int k = 0; k < inputs; k++) mean[k] = count ? sums[k] / count : 0;
        for (int r = 0; r < outputs; r++)
            for (int k = 0; usable[r] && k < inputs; k++) {
                double centred = (double)value(r, k) - mean[k];
                squares[k] += centred * centred;
            }
        double largest = count ? std::sqrt(*std::max_element(squares.begin(), squares.end()) / count) : 0;
        for (int k = 0; largest > 0 && k < inputs; k++)
            column[k] = std::max(std::max(std::sqrt(squares[k] / count), 1e-6 * largest), (double)FLT_MIN);
        memcpy(to, column.data(), start());
#pragma omp parallel for
        for (int panel = 0; panel < padded(outputs, PANEL) / PANEL; panel++) {
            uint8_t* bytes = to + start() + panel * panel_size();
            RowBounds bounds{};
            memset(bytes, 128, (size_t)deep * PANEL);
            for (int j = 0; j < PANEL && panel * PANEL + j < outputs; j++) {
                int r = panel * PANEL + j;
                if (!usable[r]) {
                    bounds.error[j] = INFINITY;
                    continue;
                }
                auto scaled = [&](int k) { return ((double)value(r, k) - mean[k]) / column[k]; };
                double most = 0, error = 0, spread = 0;
                for (int k = 0; k < inputs; k++) most = std::max(most, std::abs(scaled(k)));
                float scale = most / 127;
                for (int k = 0; k < inputs; k++) {
                    double rounded = scale > 0 ? std::nearbyint(scaled(k) / scale) : 0;
                    int q = std::min(127., std::max(-127., rounded));
                    bytes[(size_t)(k / 4) * 4 * PANEL + 4 * j + k % 4] = 128 + q;
                    double rest = scaled(k) - (double)q * scale;
                    error += rest * rest;
                    spread += (double)q * scale * q * scale;
                }
                bounds.scale[j] = scale;
                bounds.error[j] = raised(std::sqrt(error));
                bounds.spread[j] = raised(std::sqrt(spread));
                bounds.norm[j] = norm[r];
            }
            memcpy(bytes + (size_t)deep * PANEL, &bounds, sizeof bounds);
        }
    }

    // At least `value`, as a float.
    static float raised(double value) { return value * (1 + 1e-6) + FLT_MIN; }
};

static inline float single(float x) { return x; }

static inline float single(bf16 x) {
    uint32_t u = (uint32_t)x << 16;
    float value;
    memcpy(&value, &u, sizeof value);
    return value;
}

// A state in two bytes a number, U = 128 · high + low, and the factors of a row's bound.
struct Probe {
    std::vector<int8_t> high, low;
    int32_t high_sum, low_sum;  // times 128, which the rows' bytes have too much
    float step, by_error, by_spread, by_norm, constant;

    // Is there a bound? `x` are `inputs` numbers that logits are computed from.
    template <class T>
    bool take(const Screen& screen, const float* column, const T* x) {
        std::vector<float> u(screen.inputs);
        double most = 0, size = 0, state = 0, rest = 0;
        for (int k = 0; k < screen.inputs; k++) {
            float value = single(x[k]);
            u[k] = value * column[k];
            state += (double)value * value;
            size += (double)u[k] * u[k];
            most = std::max(most, (double)std::abs(u[k]));
        }
        state = std::sqrt(state), size = std::sqrt(size);
        auto fits = [](double norm) { return norm >= LEAST_STATE && norm <= LARGEST_STATE; };
        if (!fits(state) || !fits(size)) return false;  // NaN does not
        high.assign(screen.deep, 0), low.assign(screen.deep, 0);
        high_sum = low_sum = 0;
        step = most / (127 * 128);
        for (int k = 0; k < screen.inputs; k++) {
            int whole = std::lrint(u[k] / step), upper = (whole + 64) >> 7;
            upper = std::min(127, std::max(-127, upper));
            int lower = std::min(127, std::max(-127, whole - 128 * upper));
            high[k] = upper, low[k] = lower;
            high_sum += 128 * upper, low_sum += 128 * lower;
            double left = u[k] - (double)step * (128 * upper + lower);
            rest += left * left;
        }
        const double tiny = 1e-30;  // more than all numbers that are too small for a float
        by_error = Screen::raised(size);
        by_spread = Screen::raised(std::sqrt(rest) + 2e-6 * size);  // the second: rounding of the bounds
        by_norm = Screen::raised(2. * (screen.inputs + 8) * 0x1p-24 * state + tiny);  // rounding of the logits
        constant = Screen::raised(tiny * (1 + state));
        return true;
    }
};

// upper[r] and lower (R, 2): bounds on the logits of R states and N · W rows of a panel, from row `first` of it on.
template <int R, int N>
static void bounds_of(const Screen& screen, const uint8_t* panel, int first, const Probe* probes, float* const* upper,
                      vec* lower) {
    ivec high[R][N], low[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) high[r][j] = ivec{} - probes[r].high_sum, low[r][j] = ivec{} - probes[r].low_sum;
    for (int k = 0; k < screen.deep; k += 4) {
        const uint8_t* at = panel + (size_t)k * PANEL + first * 4;
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) prefetch(at + j * 4 * W, 0);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            int32_t high_four, low_four;
            memcpy(&high_four, probes[r].high.data() + k, 4);
            memcpy(&low_four, probes[r].low.data() + k, 4);
#pragma GCC unroll 2
            for (int j = 0; j < N; j++) {
                high[r][j] = products(high[r][j], at + j * 4 * W, high_four);
                low[r][j] = products(low[r][j], at + j * 4 * W, low_four);
            }
        }
    }
    RowBounds rows;
    memcpy(&rows, panel + (size_t)screen.deep * PANEL, sizeof rows);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) {
            const Probe& probe = probes[r];
            const int at = first + j * W;
            vec product = __builtin_convertvector(high[r][j], vec) * 128.f + __builtin_convertvector(low[r][j], vec);
            vec middle = product * (load(rows.scale + at) * probe.step);
            vec radius = load(rows.error + at) * probe.by_error + load(rows.spread + at) * probe.by_spread +
                         load(rows.norm + at) * probe.by_norm + probe.constant;
            radius *= 1.000002f;
            store(upper[r] + at, middle + radius);
            lower[r * 2 + at / W] = middle - radius;
        }
}

// The same for a whole panel and a number of states that is known when it runs, 1 to R.
template <int R>
static void bounds_of_panel(int states, const Screen& screen, const uint8_t* panel, const Probe* probes,
                            float* const* upper, vec* lower) {
    if constexpr (R > 1)
        if (states < R) return bounds_of_panel<R - 1>(states, screen, panel, probes, upper, lower);
    constexpr int N = R <= WIDE_ROWS ? 2 : 1;
    for (int first = 0; first < PANEL; first += N * W)
        bounds_of<R, N>(screen, panel, first, probes, upper, lower);
}

}  // namespace jl::decoding
