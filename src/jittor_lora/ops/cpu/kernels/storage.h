// Frozen matrices kept in few bits: 16-bit floats, or blocks of integers with common scales (ggml's formats).
//
// They are decoded to float32 where they are used, a tile at a time into the cache, to exactly the numbers that ggml
// defines. What is then computed is what is computed with the same matrix in float32, bit for bit.
#pragma once
#include "rows.h"
#include "vector.h"

namespace jl {

// W (out, in). FLOAT32: W itself, row by row; else panels of PANEL rows, as `store` wrote them.
struct Stored {
    const void* data;
    int storage, out, in;
};

// Bytes of W (out, in) in panels; the last panel is filled up with rows of zeros.
int64_t stored_size(int storage, int out, int in);

// Rearranges W (out, in), rows of ggml's blocks, into panels, with all threads.
void store(int storage, const uint8_t* blocks, int out, int in, void* to);

// to (k1 - k0, PANEL): columns [k0, k1) of the rows of a panel, transposed. k0 is a multiple of 8.
void stored_panel(const Stored& w, int panel, int k0, int k1, float* to);

// to (r1 - r0, columns) with rows `ld` floats apart: rows [r0, r1) of a decoded panel (columns, PANEL).
void rows_of_panel(const float* panel, int r0, int r1, int columns, float* to, int ld);

// to (r1 - r0, c1 - c0) with rows `ld` floats apart: W[r0:r1, c0:c1]. c0 is a multiple of 8.
void stored_rows(const Stored& w, int r0, int r1, int c0, int c1, float* to, int ld);

}  // namespace jl
