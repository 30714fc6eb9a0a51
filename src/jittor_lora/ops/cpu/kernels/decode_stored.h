// Products of a few rows with a matrix that is kept in few bits (storage.h), with the sums of the same product in
// float32 (decode_panels.h).
#pragma once
#include "decode_panels.h"
#include "storage.h"

namespace jl::decoding {

// Most rows whose products decode the weights in registers. On AVX2 (Zen 3) and from the second cache, 100 million
// weights in Q4_1 take 7 ms of one thread with one row (6 in float32, 8 with one panel at a time), 12 with three (10)
// and 14 with four (14). Decoded to memory first, a panel at a time, four rows take 20 ms and six as long as in
// registers, 20; with several blocks of rows each panel is decoded only once.
constexpr int FUSED_ROWS = 4;
// Most rows that are multiplied so, in blocks: the second one finds a panel in the first cache. On AVX2 a step
// of eight texts of SmolLM2's 4-bit file takes 48 ms of one thread, and 55 with decoded panels.
constexpr int MOST_FUSED_ROWS = 2 * FUSED_ROWS;

static inline bool is_half(int storage) { return storage == BF16 || storage == F16; }
static inline bool is_fused(int storage, int rows) { return is_half(storage) || rows <= MOST_FUSED_ROWS; }

// `multiply_panels` with `panels` panels of w from `panel` on. Blocks of integers take at most FUSED_ROWS rows.
void multiply_stored(const Stored& w, int panel, int panels, int rows, const float* x, int ldx, float* y, int ldy);

// A panel as `jl_decode_pack` writes it in float32 or, rounded, in bf16.
void decode_panel(const Stored& w, int panel, float* to);
void decode_panel(const Stored& w, int panel, bf16* to);

}  // namespace jl::decoding
