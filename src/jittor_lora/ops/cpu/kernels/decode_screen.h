// Bounds on all logits from 8-bit copies of the output head's rows, to find the few that can be the largest.
//
// Let m be the mean of the head's rows w_r, and s the root mean square of each column of w_r - m. A row is kept as
// bytes q_r with q_r · scale_r ≈ v_r = (w_r - m) / s. For a state x let u = x ∘ s ≈ U · step, with U in 16 bits. Then
//     x · w_r = x · m + u · v_r
//     u · v_r = step · scale_r · (U · q_r) + u · (v_r - q_r scale_r) + (u - U step) · q_r scale_r
// The first term is computed in integers; by Cauchy and Schwarz the others are at most
//     |u| |v_r - q_r scale_r| + |u - U step| |q_r scale_r|
// and the norms of the row's factors are kept with it. x · m is the same for all rows and left out. The rounding errors
// of the logits themselves and of their bounds are added. The bounds hold for any weights; a row whose norm is not
// finite has infinite ones.
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
// sum + the dot product, per lane, of four unsigned bytes of `weights` and the four signed bytes of `x`, at most DIGIT
// in size.
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
// Products are first added in pairs, in 16 bits with saturation: 2 · 255 · 64 = 32,640 fit.
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
constexpr bool SCREENS = false;  // without instructions for products of bytes it is faster to compute all logits
#endif

// Most states that are screened at a time (for more, all logits are computed, by products that share the head's
// weights), and most that share one pass over the bytes: two sums per state, high and low, take 24 of AVX-512's 32
// registers, 12 of AVX2's 16.
constexpr int STATES = 12, STATES_AT_ONCE = W == 16 ? 12 : 6;

// 16,384 products of at most 255 · 127 stay below 2^31. Norms of states and rows within these bounds keep logits and
// their bounds finite.
constexpr int MOST_INPUTS = 16384;
constexpr double LEAST_STATE = 1e-15, LARGEST_STATE = 1e15, LARGEST_ROW = 1e15;

// Inputs are padded to a multiple of this, so that groups of rows start at cache lines.
constexpr int INPUT_UNIT = 32;
// Range of a weight's byte, which is stored with BYTE_OFFSET added, as the products take it unsigned.
constexpr int MOST_BYTE = 127, BYTE_OFFSET = 128;
// A state's 16-bit value is STATE_BASE · high + low.
constexpr int STATE_BASE = 128;

// A group of W rows of the head is their bytes, as (deep / 4, W, 4), followed by these.
struct RowBounds {
    float scale[W];
    float error[W];   // upper bound of |v - q · scale|
    float spread[W];  // upper bound of |q · scale|
    float norm[W];    // upper bound of |w|
};

// The head as bytes: s, `deep` floats, then groups of W rows.
struct Screen {
    const int inputs, deep;

    explicit Screen(int inputs) : inputs(inputs), deep(round_up(inputs, INPUT_UNIT)) {}

    size_t group(int index) const { return deep * sizeof(float) + index * (deep * W + sizeof(RowBounds)); }
    size_t size(int outputs) const { return group(round_up(outputs, W) / W); }

    // value(r, k): the weight as the exact logits use it.
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
        // Not zero, as (w - m) / s must stay finite: columns that hardly vary have bytes of about zero either way.
        for (int k = 0; largest > 0 && k < inputs; k++)
            column[k] = std::max(std::max(std::sqrt(squares[k] / count), 1e-6 * largest), (double)FLT_MIN);
        memcpy(to, column.data(), deep * sizeof(float));
        parallel_evenly(round_up(outputs, W) / W, [&](int g) {
            uint8_t* bytes = to + group(g);
            RowBounds bounds{};
            memset(bytes, BYTE_OFFSET, (size_t)deep * W);
            for (int j = 0; j < W && g * W + j < outputs; j++) {
                int r = g * W + j;
                if (!usable[r]) {
                    bounds.error[j] = INFINITY;
                    continue;
                }
                auto scaled = [&](int k) { return ((double)value(r, k) - mean[k]) / column[k]; };
                double most = 0, error = 0, spread = 0;
                for (int k = 0; k < inputs; k++) most = std::max(most, std::abs(scaled(k)));
                float scale = most / MOST_BYTE;
                for (int k = 0; k < inputs; k++) {
                    double rounded = scale > 0 ? std::nearbyint(scaled(k) / scale) : 0;
                    int q = std::min<double>(MOST_BYTE, std::max<double>(-MOST_BYTE, rounded));
                    bytes[k / 4 * 4 * W + 4 * j + k % 4] = BYTE_OFFSET + q;
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

    // A float that is at least `value`: 1e-6 is more than float's rounding, 2^-24, and the errors of the sums of
    // doubles behind it.
    static float raised(double value) { return value * (1 + 1e-6) + FLT_MIN; }
};

// A state in two bytes per number, U = STATE_BASE · high + low with |high|, |low| ≤ DIGIT, and its factors of the
// bounds. The bytes of all states lie together: (deep / 4, states, high and low, 4).
struct Probe {
    int32_t high_sum, low_sum;  // times BYTE_OFFSET: what the offset of the rows' bytes adds to a dot product
    float step, by_error, by_spread, by_norm, constant;

    // Fills in state r of `states`; returns false if it has no bound. x: the state as the exact logits use it; u:
    // scratch of its length.
    template <class T>
    bool take(const Screen& screen, const float* column, const T* x, float* u, int8_t* bytes, int r, int states) {
        double most = 0, size = 0, state = 0, rest = 0;
        for (int k = 0; k < screen.inputs; k++) {
            float value = to_float(x[k]);
            u[k] = value * column[k];
            state += (double)value * value;
            size += (double)u[k] * u[k];
            most = std::max(most, (double)std::abs(u[k]));
        }
        state = std::sqrt(state), size = std::sqrt(size);
        auto fits = [](double norm) { return norm >= LEAST_STATE && norm <= LARGEST_STATE; };
        if (!fits(state) || !fits(size)) return false;  // NaN does not
        high_sum = low_sum = 0;
        step = most / (DIGIT * STATE_BASE);
        for (int k = 0; k < screen.inputs; k++) {
            // The division rounds to the nearest, so that |low| ≤ 64.
            int whole = std::lrint(u[k] / step), upper = (whole + STATE_BASE / 2) >> 7;
            upper = std::min(DIGIT, std::max(-DIGIT, upper));
            int lower = std::min(DIGIT, std::max(-DIGIT, whole - STATE_BASE * upper));
            int8_t* at = bytes + (k / 4 * states + r) * 8 + k % 4;
            at[0] = upper, at[4] = lower;
            high_sum += BYTE_OFFSET * upper, low_sum += BYTE_OFFSET * lower;
            double left = u[k] - (double)step * (STATE_BASE * upper + lower);
            rest += left * left;
        }
        const double tiny = 1e-30;  // more than all denormal products lose, which count as zero
        by_error = Screen::raised(size);
        by_spread = Screen::raised(std::sqrt(rest) + 2e-6 * size);  // 2e-6: rounding of the bounds
        // A sum of n products in float is off by at most about n · 2^-24 · Σ |x_k w_k| ≤ n · 2^-24 · |x| |w|; twice
        // that is safe.
        by_norm = Screen::raised(2. * (screen.inputs + 8) * 0x1p-24 * state + tiny);
        constant = Screen::raised(tiny * (1 + state));
        return true;
    }
};

// For R of `states` states and a group of W rows: upper[r] receives the upper bounds of their logits, and lower[r]
// becomes the largest of itself and the lower bounds of the group's first `count` rows. `bytes` are those of the first
// of the R states.
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
            int32_t high_four, low_four;  // two copies: loaded as one, they take the compiler longer to broadcast
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
        vec product = __builtin_convertvector(high[r], vec) * float(STATE_BASE) + __builtin_convertvector(low[r], vec);
        vec middle = product * (load(rows.scale) * probe.step);
        vec radius = load(rows.error) * probe.by_error + load(rows.spread) * probe.by_spread +
                     load(rows.norm) * probe.by_norm + probe.constant;
        radius *= 1.000002f;  // the roundings of this sum
        store(upper[r], middle + radius);
        vec least = middle - radius;
        lower[r] = max(lower[r], count < W ? first(least, count, -INFINITY) : least);
    }
}

// For all of up to STATES states, in equal parts.
static inline void bounds_of(const Screen& screen, const uint8_t* group, const Probe* probes, const int8_t* bytes,
                             int states, int count, float* const* upper, vec* lower) {
    const int parts = ceil_div(states, STATES_AT_ONCE);
    for (int p = 0; p < parts; p++) {
        const int first = states * p / parts, some = states * (p + 1) / parts - first;
        with_constant<STATES_AT_ONCE>(some, [&](auto n) {
            bounds_of<n.value>(screen, group, probes + first, bytes + first * 8, states, count, upper + first, lower + first);
        });
    }
}

}  // namespace jl::decoding
