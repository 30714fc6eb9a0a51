// Products of a few rows with a matrix that is kept in few bits (storage.h), with the sums of the same product in
// float32 (decode_panels.h).
#pragma once
#include "decode_panels.h"
#include "storage.h"

namespace jl::decoding {

// Most rows whose products decode the weights in registers. For more, weights that are decoded to memory once are as
// fast with one block of rows (six rows on AVX2 in Q4_1: 20 ms per 100 million weights either way, four rows 14 against
// 20), and faster with several.
constexpr int FUSED_ROWS = 4;

static inline bool is_fused(int storage, int rows) { return storage == BF16 || storage == F16 || rows <= FUSED_ROWS; }

// `multiply_panels` with `panels` panels of w from `panel` on. Blocks of integers take at most FUSED_ROWS rows.
void multiply_stored(const Stored& w, int panel, int panels, int rows, const float* x, int ldx, float* y, int ldy);

// A panel as `jl_decode_pack` writes it in float32 or, rounded, in bf16.
void decode_panel(const Stored& w, int panel, float* to);
void decode_panel(const Stored& w, int panel, bf16* to);

}  // namespace jl::decoding
