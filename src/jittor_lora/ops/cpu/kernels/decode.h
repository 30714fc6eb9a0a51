// What a network is made of when it reads tokens; `ops/cpu/decode.py` has the same structures for ctypes.
#pragma once
#include <cstdint>

namespace jl::decoding {

// y = x · weightᵀ + bias + t · lora_bᵀ, where t are columns [rank_at, rank_at + rank) of the projections onto A.
struct Matrix {
    const void* weight;   // panels of (inputs, PANEL), float or bf16
    const float* bias;    // (outputs padded to PANEL), or null
    const float* lora_b;  // panels of (rank, PANEL), times the scaling, or null
    int32_t outputs, rank, rank_at, unused;
};

// Matrices with the same input.
struct Linear {
    const float* lora_a;  // ranks / W panels of (inputs, W), or null
    int32_t inputs, ranks, count, unused;
    Matrix matrices[3];
};

struct Norm {
    const float* weight;  // (width padded to W)
    const float* bias;    // the same, or null
};

struct Layer {
    Norm attention_norm, mlp_norm;
    Linear qkv, out, up, down;  // qkv is one matrix or three; up is one, or the gate and the one it is for
};

enum Activation { GELU_TANH, GELU_ERF, SILU, RELU };

struct Network {
    const Layer* layers;
    const float *cosines, *sines;  // (positions, head_dim / 2) for rotary positions, or null
    Norm last_norm;
    Linear head;
    const void* screen;  // the head as 8-bit copies, to find the likeliest token without all logits, or null
    int32_t layer_count, width, heads, kv_heads, head_dim, inner, root_mean_square, activation, bf16;
    float eps;
};

// Keys and values of `capacity` rows, a multiple of PANEL, of every layer and key head: keys as panels of
// (head_dim, PANEL) rows, then values as panels of (capacity, PANEL) columns.
struct Span {
    float* memory;
    int32_t capacity, rows;  // `rows`: those that are there already
};

// Rows [first, first + count) of a call: they see the whole prefix and, causally, the rows of their own span, to which
// they are added.
struct Segment {
    Span prefix, own;
    int32_t first, count;
    int32_t wanted, unused;  // is the token after the last row asked for?
};

}  // namespace jl::decoding
