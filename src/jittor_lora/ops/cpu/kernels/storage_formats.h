// ggml's formats of blocks, as a row of a file has them and as a panel does: the same integers and scales, but those of
// PANEL rows side by side, so that vectors of rows are decoded. Integers of 4 bits lie in words of OCTET successive
// columns, those of 6 bits take 8.
//
// Values are d · q or d · q - m. The products are exact in float32 (11 bits of a half times 6 or 7 of a scale of scales,
// in the formats _K, times those of q), so that it does not matter whether the subtraction is fused with them. All are
// multiples of 2^-24, the smallest half, so that none is denormal in float32.
#pragma once
#include "storage.h"

namespace jl {

constexpr int OCTET = 8;  // columns that are decoded together

// Every format F has
//     F::COLUMNS    columns of a row's block and of a panel's, F
//     F::Block      a row's block, as ggml defines it
//     f.take(r, b)  makes b row r of the panel's block; f was zero
//     F::GROUP      columns with the same scales
//     f.group(g, j)                        group g of vector j of a panel's rows
//     f.group(g, j).octet(o).value(i)      its column o · OCTET + i

// W integers of a byte each. GCC converts vectors of bytes one by one.
template <class Byte>
static inline vec load_bytes(const Byte* p) {
    ivec v;
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
    v = (ivec)(std::is_signed<Byte>() ? _mm512_maskz_cvtepi8_epi32(0xffff, bytes) : _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)p);
    v = (ivec)(std::is_signed<Byte>() ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
    for (int i = 0; i < W; i++) v[i] = p[i];
#endif
    return __builtin_convertvector(v, vec);
}

// d · q
struct Bytes {
    const int8_t* numbers;
    vec d;

    Bytes octet(int o) const { return {numbers + o * OCTET * PANEL, d}; }
    vec value(int i) const { return load_bytes(numbers + i * PANEL) * d; }
};

struct PanelQ8_0 {
    static constexpr int COLUMNS = 32, GROUP = 32;
    struct Block {
        half d;
        int8_t q[COLUMNS];
    };

    int8_t q[COLUMNS][PANEL];
    half d[PANEL];

    void take(int r, const Block& block) {
        d[r] = block.d;
        for (int i = 0; i < COLUMNS; i++) q[i][r] = block.q[i];
    }

    Bytes group(int, int j) const { return {q[0] + j * W, load(d + j * W)}; }
};

// d · scale · q, with 16 scales per block. The lower four bits of q + 32 and the upper two lie apart: of each half of
// the block, in `low` columns 0 to 63 and then 64 to 127, in `high` columns 0 to 31 and so on.
struct PanelQ6_K {
    static constexpr int COLUMNS = 256, GROUP = 16;
    struct Block {
        uint8_t low[2][64], high[2][32];
        int8_t scale[COLUMNS / GROUP];
        half d;
    };

    int8_t q[COLUMNS][PANEL], scale[COLUMNS / GROUP][PANEL];
    half d[PANEL];

    void take(int r, const Block& block) {
        d[r] = block.d;
        for (int g = 0; g < COLUMNS / GROUP; g++) scale[g][r] = block.scale[g];
        for (int i = 0; i < COLUMNS; i++) {
            const int half = i / 128, at = i % 128;
            const int low = block.low[half][at % 64] >> at / 64 * 4 & 15, high = block.high[half][at % 32] >> at / 32 * 2 & 3;
            q[i][r] = (high << 4 | low) - 32;
        }
    }

    Bytes group(int g, int j) const { return {q[g * GROUP] + j * W, load(d + j * W) * load_bytes(scale[g] + j * W)}; }
};

// 32 columns of integers of four bits. A word has OCTET of them, the first in the lowest bits.
struct Nibbles {
    static constexpr int COLUMNS = 32;
    uint32_t words[COLUMNS / OCTET][PANEL];

    // From two columns per byte, columns i and i + 16.
    void take(int r, const uint8_t* bytes, int flipped) {
        for (int i = 0; i < COLUMNS; i++) set(r, i, (bytes[i % 16] >> i / 16 * 4 & 15) ^ flipped);
    }

    void set(int r, int i, uint32_t q) { words[i / OCTET][r] |= q << i % OCTET * 4; }

    static ivec load(const uint32_t* words, int o) {
        ivec v;
        memcpy(&v, words + o * PANEL, sizeof v);
        return v;
    }
};

// d · q, where d was divided by 2^28: with the sign, a nibble at the upper end of a word is q · 2^28.
struct Signed {
    const uint32_t* words;
    vec d;

    struct Octet {
        ivec word;
        vec d;
        vec value(int i) const { return __builtin_convertvector((word << (28 - 4 * i)) & INT32_MIN >> 3, vec) * d; }
    };
    Octet octet(int o) const { return {Nibbles::load(words, o), d}; }
};

struct PanelQ4_0 {
    static constexpr int COLUMNS = 32, GROUP = 32;
    struct Block {
        half d;
        uint8_t q[COLUMNS / 2];
    };

    Nibbles q;
    half d[PANEL];

    void take(int r, const Block& block) {
        d[r] = block.d;
        q.take(r, block.q, 8);  // q - 8 in two's complement
    }

    Signed group(int, int j) const { return {q.words[0] + j * W, load(d + j * W) * 0x1p-28f}; }
};

// d · q + m
struct Shifted {
    const uint32_t* words;
    vec d, m;

    struct Octet {
        ivec word;
        vec d, m;
        vec value(int i) const { return multiply_add(__builtin_convertvector((word >> 4 * i) & 15, vec), d, m); }
    };
    Octet octet(int o) const { return {Nibbles::load(words, o), d, m}; }
};

struct PanelQ4_1 {
    static constexpr int COLUMNS = 32, GROUP = 32;
    struct Block {
        half d, m;
        uint8_t q[COLUMNS / 2];
    };

    Nibbles q;
    half d[PANEL], m[PANEL];

    void take(int r, const Block& block) {
        d[r] = block.d, m[r] = block.m;
        q.take(r, block.q, 0);
    }

    Shifted group(int, int j) const { return {q.words[0] + j * W, load(d + j * W), load(m + j * W)}; }
};

// d · scale · q - least · m, with eight scales of six bits and as many m. Those of the first four groups are the lower
// bits of a byte each; those of the last four are a nibble and the upper two bits of the first ones' bytes.
struct PanelQ4_K {
    static constexpr int COLUMNS = 256, GROUP = 32, GROUPS = COLUMNS / GROUP;
    struct Block {
        half d, least;
        uint8_t scale[4], m[4], both[4];
        uint8_t q[COLUMNS / 2];
    };

    Nibbles q[GROUPS];
    uint8_t scale[GROUPS][PANEL], m[GROUPS][PANEL];
    half d[PANEL], least[PANEL];

    void take(int r, const Block& block) {
        d[r] = block.d, least[r] = block.least;
        for (int g = 0; g < 4; g++) {
            scale[g][r] = block.scale[g] & 63, m[g][r] = block.m[g] & 63;
            scale[g + 4][r] = (block.both[g] & 15) | (block.scale[g] >> 6 << 4);
            m[g + 4][r] = block.both[g] >> 4 | (block.m[g] >> 6 << 4);
        }
        for (int g = 0; g < GROUPS; g++)  // two groups per 32 bytes
            for (int i = 0; i < GROUP; i++) q[g].set(r, i, block.q[g / 2 * 32 + i] >> g % 2 * 4 & 15);
    }

    Shifted group(int g, int j) const {
        return {q[g].words[0] + j * W, load(d + j * W) * load_bytes(scale[g] + j * W), -(load(least + j * W) * load_bytes(m[g] + j * W))};
    }
};

// Calls use(F*) with the format of blocks that `storage` is; false for the other ones.
template <class Use>
static inline bool with_format(int storage, Use use) {
    switch (storage) {
        case Q8_0: return use((PanelQ8_0*)nullptr), true;
        case Q4_0: return use((PanelQ4_0*)nullptr), true;
        case Q4_1: return use((PanelQ4_1*)nullptr), true;
        case Q4_K: return use((PanelQ4_K*)nullptr), true;
        case Q6_K: return use((PanelQ6_K*)nullptr), true;
    }
    return false;
}

// Columns [k0, k1), multiples of OCTET, of the first vectors of P panels, `distance` blocks apart. Calls
// use(k, i, p, values) for columns k + i of panel p, where k is a multiple of OCTET: the next OCTET columns of one panel,
// then those of the next one, so that the scales of only one have to be in registers, and with those of two panels
// enough independent sums are under way.
template <int P, class F, class Use>
__attribute__((always_inline)) static inline void each_column(const F* panel, size_t distance, int k0, int k1, Use use) {
    for (int k = k0, end; k < k1; k = end) {
        const int column = k % F::COLUMNS, g = column / F::GROUP;
        end = std::min(k1, k - column + (g + 1) * F::GROUP);
        decltype(panel->group(0, 0)) groups[P][2];
#pragma GCC unroll 2
        for (int p = 0; p < P; p++)
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) groups[p][j] = panel[k / F::COLUMNS + p * distance].group(g, j);
        for (; k < end; k += OCTET)
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) {
                const int o = (k % F::GROUP) / OCTET;
                const auto left = groups[p][0].octet(o), right = groups[p][1].octet(o);
#pragma GCC unroll 8
                for (int i = 0; i < OCTET; i++) {
                    const vec values[2] = {left.value(i), right.value(i)};
                    use(k, i, p, values);
                }
            }
    }
}

}  // namespace jl
