// Vectors of floats as wide as the processor's registers, through the vector extension of GCC and Clang: one source
// serves AVX-512, AVX2, SSE and NEON. Sums over a vector's lanes have a fixed order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

namespace jl {

// Lanes of a vector.
#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

// Rows of a matrix that are kept side by side, two vectors of them: 64 bytes per column in float32 on AVX2, 128 on
// AVX-512, which is one or two cache lines.
constexpr int PANEL = 2 * W;

typedef float vec __attribute__((vector_size(4 * W)));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t half_vec __attribute__((vector_size(2 * W)));
typedef uint16_t bf16;  // the upper half of a float
struct half {           // IEEE 754's 16 bits
    uint16_t bits;
};

// Does the processor multiply pairs of bf16 numbers (VDPBF16PS)? Elsewhere bf16 weights become floats as they are
// loaded.
#if defined(__AVX512BF16__)
constexpr bool BF16_PRODUCTS = true;
#else
constexpr bool BF16_PRODUCTS = false;
#endif

static inline float to_float(float x) { return x; }

static inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to nearest, ties to even: adding 0x7fff, and 1 more if the upper half is odd, carries into it from a tie on.
static inline bf16 to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

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

// Rounds as `to_bf16` does.
static inline void store(bf16* p, vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    uvec u = (uvec)v;
    half_vec h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, half_vec);
#endif
    memcpy(p, &h, sizeof h);
}

// The first n < W elements; the other lanes are zero.
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

// Calls body(i, n) for elements [i, i + n) of [0, count). n is the constant W, except for a shorter tail.
template <class Body>
static inline void each(int64_t count, Body body) {
    int64_t i = 0;
    for (; i + W <= count; i += W) body(i, W);
    if (i < count) body(i, int(count - i));
}

// `load` and `store` of n <= W elements; whole vectors go without the detour through memory.
template <class T>
static inline vec get(const T* p, int n) { return n == W ? load(p) : load(p, n); }

template <class T>
static inline void put(T* p, vec v, int n) { n == W ? store(p, v) : store(p, v, n); }

// Calls body(n) for n = count, 1 to Most, as a compile-time constant: loops over n rows unroll, and their sums stay in
// registers.
template <int Most, class Body>
static inline void with_constant(int count, Body body) {
    if constexpr (Most > 1)
        if (count < Most) return with_constant<Most - 1>(count, body);
    body(std::integral_constant<int, Most>{});
}

// x in every lane. The compiler drops the subtraction of 0; an addition would stay, since -0 + 0 is 0.
static inline vec splat(float x) { return x - vec{}; }

// a · b + c, fused (rounded once) where the processor can. Left to itself, GCC fuses in some copies of a loop and not
// in others, and a row's bits would depend on how many rows are processed together.
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

// Numbers too small for a normal `half` are normal floats, and have to survive the mode of denormals.cpp: the
// instruction minds only float32's denormals, and without it they are converted as whole numbers.
static inline vec load(const half* p) {
    half_vec h;
    memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);  // GCC 12 warns of the one without a mask
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps((__m128i)h);
#else
    constexpr int MANTISSA = 10, LARGEST = 0x1f << MANTISSA, SHIFT = 23 - MANTISSA;  // LARGEST: infinities and NaN
    constexpr int BIAS = (127 - 15) << 23;                                           // between the exponents
    ivec bits = (ivec)__builtin_convertvector(h, uvec), size = bits & 0x7fff, exponent = size & LARGEST;
    ivec normal = (size << SHIFT) + BIAS + ((exponent == LARGEST) & BIAS);
    vec tiny = __builtin_convertvector(size, vec) * 0x1p-24f;
    return (vec)(((bits & 0x8000) << 16) | (ivec)select(exponent == 0, tiny, (vec)normal));
#endif
}

#if defined(__AVX__)
// Transposes 8 × 8 floats in registers.
template <class V>
static inline void transpose(V (&v)[8]) {
    static_assert(sizeof(V) == 32, "");
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps((__m256)v[i], (__m256)v[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps((__m256)v[i], (__m256)v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = (V)_mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        v[i + 4] = (V)_mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
    }
}
#endif

static inline vec lanes() {
    vec v;
    for (int i = 0; i < W; i++) v[i] = i;
    return v;
}

// v in the first `count` lanes, `other` in the rest.
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

// e^x within 2 ulp; 0 below -87.3, e^88.3 above 88.3, NaN for NaN. As in Cephes' expf (Moshier): x = n ln 2 + r with a
// whole n and |r| <= ln 2 / 2, a polynomial for e^r, and 2^n put into the exponent's bits.
static inline vec exp(vec x) {
    constexpr float LOWEST = -87.3f, HIGHEST = 88.3f;  // 2^n stays a normal float
    constexpr float LOG2_E = 1.44269504f;
    constexpr float LN_2_HIGH = 0.693359375f, LN_2_LOW = 2.12194440e-4f;  // ln 2 = HIGH - LOW; n · HIGH is exact
    constexpr float TO_WHOLE = 12582912.f;                                // 1.5 · 2^23: adding it leaves no fraction bits
    ivec tiny = x < LOWEST;
    x = select(x > HIGHEST, splat(HIGHEST), x);  // NaN stays
    vec n = (x * LOG2_E + TO_WHOLE) - TO_WHOLE;
    vec r = (x - n * LN_2_HIGH) + n * LN_2_LOW;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + (r + 1.f);
    vec power = (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
    return select(tiny, vec{}, p * power);
}

}  // namespace jl
