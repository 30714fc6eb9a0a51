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
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "decode_panels.h"
#include "parallel.h"

namespace jl::decoding {

#if defined(__AVX512VNNI__)
// sum + the products of four bytes of `weights` for each lane, and the four of `x`, whose size is at most DIGIT.
static inline ivec products(ivec sum, ivec weights, int32_t x) {
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(x));
}
constexpr int DIGIT = 127;
constexpr bool SCREENS = true;
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
static inline ivec products(ivec sum, ivec weights, int32_t x) {
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, _mm256_set1_epi32(x));
}
constexpr int DIGIT = 127;
constexpr bool SCREENS = true;
#elif defined(__AVX2__) && (!defined(__AVX512F__) || defined(__AVX512BW__))
// Products are added in pairs first, and two of at most 255 · 64 fit 16 bits.
static inline ivec products(ivec sum, ivec weights, int32_t x) {
#if defined(__AVX512BW__)
    __m512i pairs = _mm512_maddubs_epi16((__m512i)weights, _mm512_set1_epi32(x));
    return sum + (ivec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#else
    __m256i pairs = _mm256_maddubs_epi16((__m256i)weights, _mm256_set1_epi32(x));
    return sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}
constexpr int DIGIT = 64;
constexpr bool SCREENS = true;
#else
static inline ivec products(ivec sum, ivec weights, int32_t x) {
    int8_t all[4 * W], four[4];
    memcpy(all, &weights, sizeof all), memcpy(four, &x, 4);
    for (int i = 0; i < W; i++)
        for (int j = 0; j < 4; j++) sum[i] += (int32_t)(uint8_t)all[4 * i + j] * four[j];
    return sum;
}
constexpr int DIGIT = 127;
constexpr bool SCREENS = false;  // without instructions for products of bytes all logits are computed
#endif

// Most states that are asked for at a time, and most that share one reading of the bytes: their sums fit the registers.
constexpr int STATES = 12, STATES_AT_ONCE = W == 16 ? 12 : 6;

// Beyond these sizes sums of products of bytes, and sums of logits, might not be finite.
constexpr int MOST_INPUTS = 16384;
constexpr double LEAST_STATE = 1e-15, LARGEST_STATE = 1e15, LARGEST_ROW = 1e15;

// W rows of the head: the bytes, 128 added to each, as (deep / 4, W, 4), then these.
struct RowBounds {
    float scale[W];
    float error[W];   // at least |(w - m) / s - q · scale|
    float spread[W];  // at least |q · scale|
    float norm[W];    // at least |w|
};

// The head as bytes: s (deep), then groups of W rows.
struct Screen {
    const int inputs, deep;

    explicit Screen(int inputs) : inputs(inputs), deep(padded(inputs, 32)) {}

    size_t group(int index) const { return deep * sizeof(float) + index * (deep * W + sizeof(RowBounds)); }
    size_t size(int outputs) const { return group(padded(outputs, W) / W); }

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
        memcpy(to, column.data(), deep * sizeof(float));
        parallel_evenly(padded(outputs, W) / W, [&](int g) {
            uint8_t* bytes = to + group(g);
            RowBounds bounds{};
            memset(bytes, 128, (size_t)deep * W);
            for (int j = 0; j < W && g * W + j < outputs; j++) {
                int r = g * W + j;
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
                    bytes[k / 4 * 4 * W + 4 * j + k % 4] = 128 + q;
                    double rest = scaled(k) - (double)q * scale;
                    error += rest * rest;
                    spread += (double)q * scale * q * scale;
                }
                bounds.scale[j] = scale;
                bounds.error[j] = raised(std::sqrt(error));
                bounds.spread[j] = raised(std::sqrt(spread));
                bounds.norm[j] = norm[r];
            }
            memcpy(bytes + (size_t)deep * W, &bounds, sizeof bounds);
        });
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

// A state in two bytes per number, U = 128 · high + low with |high|, |low| ≤ DIGIT, and the factors of a row's bound.
// The bytes of all states lie together: (deep / 4, states, high and low, 4).
struct Probe {
    int32_t high_sum, low_sum;  // times 128, which the rows' bytes have too much
    float step, by_error, by_spread, by_norm, constant;

    // Is there a bound? `x` are the numbers that logits are computed from; the bytes are of state r of `states`. `u` is
    // room for as many numbers as x has.
    template <class T>
    bool take(const Screen& screen, const float* column, const T* x, float* u, int8_t* bytes, int r, int states) {
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
        high_sum = low_sum = 0;
        step = most / (DIGIT * 128);
        for (int k = 0; k < screen.inputs; k++) {
            int whole = std::lrint(u[k] / step), upper = (whole + 64) >> 7;
            upper = std::min(DIGIT, std::max(-DIGIT, upper));
            int lower = std::min(DIGIT, std::max(-DIGIT, whole - 128 * upper));
            int8_t* at = bytes + (k / 4 * states + r) * 8 + k % 4;
            at[0] = upper, at[4] = lower;
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

// upper[r] gets upper bounds on the logits of R of `states` states and a group of W rows; lower[r] becomes the largest
// of itself and the lower bounds of the group's first `count` rows. `bytes` are those of the first of the R states.
template <int R>
static void bounds_of(const Screen& screen, const uint8_t* group, const Probe* probes, const int8_t* bytes, int states,
                      int count, float* const* upper, vec* lower) {
    ivec high[R], low[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) high[r] = ivec{} - probes[r].high_sum, low[r] = ivec{} - probes[r].low_sum;
    for (int k = 0; k < screen.deep / 4; k++, bytes += states * 8) {
        ivec weights;
        memcpy(&weights, group + k * 4 * W, sizeof weights);
        prefetch(group + k * 4 * W, 0);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            int32_t high_four, low_four;  // apart, or the compiler loads them together and takes longer to spread them
            memcpy(&high_four, bytes + r * 8, 4);
            memcpy(&low_four, bytes + r * 8 + 4, 4);
            high[r] = products(high[r], weights, high_four);
            low[r] = products(low[r], weights, low_four);
        }
    }
    RowBounds rows;
    memcpy(&rows, group + screen.deep * W, sizeof rows);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        const Probe& probe = probes[r];
        vec product = __builtin_convertvector(high[r], vec) * 128.f + __builtin_convertvector(low[r], vec);
        vec middle = product * (load(rows.scale) * probe.step);
        vec radius = load(rows.error) * probe.by_error + load(rows.spread) * probe.by_spread +
                     load(rows.norm) * probe.by_norm + probe.constant;
        radius *= 1.000002f;
        store(upper[r], middle + radius);
        vec least = middle - radius;
        lower[r] = max(lower[r], count < W ? first(least, count, -INFINITY) : least);
    }
}

// The same for states [first, first + some), of which there are 1 to R.
template <int R>
static void bounds_of(int some, int first, const Screen& screen, const uint8_t* group, const Probe* probes,
                      const int8_t* bytes, int states, int count, float* const* upper, vec* lower) {
    if constexpr (R > 1)
        if (some < R)
            return bounds_of<R - 1>(some, first, screen, group, probes, bytes, states, count, upper, lower);
    bounds_of<R>(screen, group, probes + first, bytes + first * 8, states, count, upper + first, lower + first);
}

// The same for all of up to STATES states.
static inline void bounds_of(const Screen& screen, const uint8_t* group, const Probe* probes, const int8_t* bytes,
                             int states, int count, float* const* upper, vec* lower) {
    const int parts = (states + STATES_AT_ONCE - 1) / STATES_AT_ONCE;
    for (int p = 0; p < parts; p++) {
        const int first = states * p / parts, some = states * (p + 1) / parts - first;
        bounds_of<STATES_AT_ONCE>(some, first, screen, group, probes, bytes, states, count, upper, lower);
    }
}

}  // namespace jl::decoding
