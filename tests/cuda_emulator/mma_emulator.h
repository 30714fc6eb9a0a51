// The matrix functions of a warp: mma.sync and ldmatrix, by the tables of the PTX ISA for `mma.m16n8k16` with bf16 and
// for `ldmatrix`. Each lane computes its own elements of the sums from the registers of all lanes.
#pragma once
#include "cuda_emulator.h"

namespace emulator {

inline float bf16_half(uint32_t two, unsigned which) {
    union { uint32_t u; float f; } value{(which ? two >> 16 : two & 0xffff) << 16};
    return value.f;
}

struct Operands {
    uint32_t left[4], right[2];
};

// Element (row, k) of the left matrix: a[i] with row = g or g + 8 and k = 2 t + (i & 1) + (i < 4 ? 0 : 8).
inline float left_element(const Operands (&lanes)[32], unsigned row, unsigned k) {
    unsigned number = (k / 8) * 2 + row / 8;
    return bf16_half(lanes[row % 8 * 4 + k % 8 / 2].left[number], k % 2);
}

// Element (k, column) of the right matrix: b[i] with k = 2 t + (i & 1) + (i < 2 ? 0 : 8) and column = g.
inline float right_element(const Operands (&lanes)[32], unsigned k, unsigned column) {
    return bf16_half(lanes[column * 4 + k % 8 / 2].right[k / 8], k % 2);
}

inline void mma_m16n8k16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    Operands mine{{left[0], left[1], left[2], left[3]}, {right0, right1}}, lanes[32];
    exchange(0xffffffffu, mine, lanes);
    unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = i < 2 ? g : g + 8, column = 2 * t + i % 2;
        for (unsigned k = 0; k < 16; k++) sums[i] += left_element(lanes, row, k) * right_element(lanes, k, column);
    }
}

template <bool TRANSPOSED>
void ldmatrix_x4(uint32_t (&to)[4], const uint16_t* row) {
    const unsigned char *at = reinterpret_cast<const unsigned char*>(row), *begin = shared_memory();
    const size_t size = block().shared.size() - GUARD_BYTES - 16;
    if (reinterpret_cast<uintptr_t>(at) % 16) stop("ldmatrix: a row that is not aligned to 16 bytes");
    if (at < begin || at + 16 > begin + size) stop("ldmatrix: a row outside shared memory");
    const uint16_t* rows[32];
    exchange(0xffffffffu, row, rows);
    unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const uint16_t* const* of = rows + 8 * matrix;
        uint32_t first = TRANSPOSED ? of[2 * t][g] : of[g][2 * t];
        uint32_t second = TRANSPOSED ? of[2 * t + 1][g] : of[g][2 * t + 1];
        to[matrix] = first | second << 16;
    }
}

}  // namespace emulator
