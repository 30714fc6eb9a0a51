// Vectors of floats as wide as the processor's registers, through the vector extension of GCC and Clang, so that one
// text serves AVX-512, AVX2 and NEON. Sums over a vector have a fixed order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

namespace jl {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vec __attribute__((vector_size(4 * W)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t half_vec __attribute__((vector_size(2 * W)));
typedef uint16_t bf16;  // the upper half of a float

static inline vec load(const float* p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vec load(const bf16* p) {
    half_vec h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}

static inline void store(float* p, vec v) { memcpy(p, &v, sizeof v); }

// Rounds to the nearest, ties to even.
static inline void store(bf16* p, vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    uvec u = (uvec)v;
    half_vec h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, half_vec);
#endif
    memcpy(p, &h, sizeof h);
}

// The first n < W elements, zeros behind them.
template <class T>
static inline vec load(const T* p, int n) {
    T first[W] = {};
    memcpy(first, p, n * sizeof(T));
    return load(first);
}

template <class T>
static inline void store(T* p, vec v, int n) {
    T all[W];
    store(all, v);
    memcpy(p, all, n * sizeof(T));
}

// Calls body(i, n) for the elements [i, i + n) of [0, count): n is the constant W but for the last call.
template <class Body>
static inline void each(int64_t count, Body body) {
    int64_t i = 0;
    for (; i + W <= count; i += W) body(i, W);
    if (i < count) body(i, int(count - i));
}

// Whole vectors are loaded and stored without a copy.
template <class T>
static inline vec get(const T* p, int n) { return n == W ? load(p) : load(p, n); }

template <class T>
static inline void put(T* p, vec v, int n) { n == W ? store(p, v) : store(p, v, n); }

// Subtracting 0 is no operation; adding it is one, as it makes 0 of -0.
static inline vec splat(float x) { return x - vec{}; }

// a · b + c, rounded once where the processor can. Left to itself, GCC does so in some copies of a loop and not in others,
// and a row's bits would depend on how many rows are taken together.
static inline vec multiply_add(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

static inline vec select(ivec condition, vec yes, vec no) {
    return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

static inline vec lanes() {
    vec v;
    for (int i = 0; i < W; i++) v[i] = i;
    return v;
}

// The first `count` lanes of v, `other` in the others.
static inline vec first(vec v, int count, float other = 0) { return select(lanes() < (float)count, v, splat(other)); }

static inline vec max(vec a, vec b) { return select(a > b, a, b); }
static inline vec min(vec a, vec b) { return select(a < b, a, b); }

static inline float sum(vec v) {
    float s[W];
    store(s, v);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

static inline float maximum(vec v) {
    float s[W];
    store(s, v);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] = s[i] > s[i + half] ? s[i] : s[i + half];
    return s[0];
}

// exp(x) within 2 units in the last place; 0 below -87.3, e^88.3 above 88.3, NaN of NaN. Range reduction and polynomial as in
// Cephes' expf (Moshier).
static inline vec exp(vec x) {
    ivec tiny = x < -87.3f;
    x = select(x > 88.3f, splat(88.3f), x);  // NaN stays
    vec n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // rounds to a whole number
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + (r + 1.f);
    vec scale = (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
    return select(tiny, vec{}, p * scale);
}

static inline vec sigmoid(vec x) { return 1.f / (1.f + exp(-x)); }

// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x sigmoid(2 √(2/π) (x + 0.044715 x³)) and its derivative.
constexpr float TWICE_ROOT_2_PI = 1.5957691216057308f;

static inline vec gelu_sigmoid(vec x) {
    // Beyond ±12 it is 0 or 1 in float; x³ must not overflow.
    vec y = min(max(x, splat(-12.f)), splat(12.f));
    return sigmoid(TWICE_ROOT_2_PI * (y + 0.044715f * y * y * y));
}

static inline vec gelu(vec x) { return x * gelu_sigmoid(x); }

static inline vec gelu_slope(vec x) {
    vec s = gelu_sigmoid(x);
    vec y = min(max(x, splat(-12.f)), splat(12.f));
    return s + y * s * (1.f - s) * (TWICE_ROOT_2_PI * (1.f + 3 * 0.044715f * y * y));
}

}  // namespace jl
