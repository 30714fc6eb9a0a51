// A whole network on some rows of tokens: what the files decode*.cu share.
//
// A row's numbers depend on the tokens before it and on nothing else in the call: each sum is added up in an order that
// depends on its length alone, however many rows are read together and however they are cut into tiles.
#pragma once
#include <algorithm>
#include <vector>

#include "device.cuh"

namespace jl::decoding {

constexpr int PANEL = 32;     // keys of a span that lie side by side: (head_dim, PANEL)
constexpr int MATRICES = 3;   // most that share an input: q, k and v
enum { QKV, OUT, UP, DOWN, LINEARS };  // of a layer
enum Activation { GELU_TANH, GELU_ERF, RELU, SILU, QUICK_GELU, TANH };  // as ACTIVATIONS in decoder.py

struct Norm {
    const float *weight, *bias;  // null if there is none
};

struct Matrix {
    const void* weight;  // (outputs, inputs) by rows, float or bf16
    const float* bias;
    int outputs;
};

struct Linear {
    Matrix matrices[MATRICES];
    int count, inputs;

    int outputs() const {
        int sum = 0;
        for (int m = 0; m < count; m++) sum += matrices[m].outputs;
        return sum;
    }
};

struct Layer {
    Norm attention_norm, mlp_norm, q_norm, k_norm;
    Linear linears[LINEARS];
    float scale;  // of attention's scores
};

struct Network {
    std::vector<Layer> layers;
    Norm last_norm;
    Linear head;
    int width, heads, kv_heads, head_dim, inner, activation;
    bool root_mean_square, half;  // half: weights, and what they multiply, are bf16
    float eps;
};

// The low-rank updates of a linear layer, as they begin an adapter's memory, LINEARS per layer: offsets in floats.
struct Update {
    int ranks, a;  // A of all its matrices, (ranks, inputs)
    struct { int rank, at, b; } matrices[MATRICES];  // B (outputs, rank), whose ranks of A begin `at`; rank 0: none
};

// A row of the call.
struct Row {
    float *own, *prefix;    // spans; prefix null if there is none
    const float* adapter;   // null if there is none
    int own_capacity, prefix_capacity;
    int at, prefix_rows;    // where it goes in its own span; how many rows of the prefix it sees
};

// Room for keys and values of `capacity` rows, a multiple of PANEL. By layer and head: keys in panels, then values by rows.
struct Span {
    float *keys, *values;

    __device__ Span(float* memory, int64_t capacity, int layer, int kv_heads, int head, int head_dim) {
        keys = memory + (int64_t(layer) * kv_heads + head) * 2 * capacity * head_dim;
        values = keys + capacity * head_dim;
    }
    __device__ static int64_t key_at(int row, int i, int head_dim) {
        return int64_t(row / PANEL) * PANEL * head_dim + i * PANEL + row % PANEL;
    }
};

// Rows by rows, and the same numbers in bf16 where products multiply those.
struct States {
    float* exact;
    bf16* half;  // null if not
    int width;
};

// h = norm(x)
void normalize(const float* x, Norm norm, States h, int rows, const Network& net);

// y = x · Wᵀ + bias + the update of each row's adapter, and what becomes of it.
struct Product {
    Linear linear;
    States x;
    int rows;
    const int* from;     // row → row of the call, whose adapter it has; null: the same
    const Row* table;    // null: no updates
    int update, ranks;   // its number in an adapter; the most that a row has
    float* projected;    // (rows, ranks): room for x · Aᵀ
    int* counters;       // two that are 0
    const float* sum;    // (rows, width) is added; null: nothing is
    const int* sum_from; // row → row of `sum`; null: the same
    float* y;            // (rows, width)
    int width;           // outputs of all matrices, or of the gate
    bf16* half;          // y in bf16; null: not wanted
    int activation;      // of y, or of the first matrix's outputs, which multiply those of the second; -1: none
};
void multiply(const Product& product);

// Normalises queries and keys head by head if the network does, rotates them by `angles` (cosines, then sines; null: not at
// all), and appends keys and values to the spans. qkv (rows, q, k and v).
void append(const Network& net, int layer, const Row* table, float* qkv, const float* angles, int angles_stride, int rows);

// A query row of attention: its row of the call, and the row its result goes to.
struct Query {
    int row, to;
};

// Neighbouring queries with the same prefix; those that read the same span lie side by side, in its order.
struct Tile {
    int first, count;
};
int tile_queries(const Network& net);  // most per tile

struct Attention {
    const Row* table;
    const Query* queries;
    const Tile* tiles;
    int tile_count, tile_queries, units;  // the most queries, and chunks of keys, of a tile
    const float* qkv;
    States y;                // (queries, heads · head_dim)
    float* partial;          // of `partial_floats`
    int* counters;           // `attention_counters` that are 0
};
void attend(const Network& net, int layer, const Attention& attention);
int chunks_of(int rows);
int64_t partial_floats(const Network& net, int tiles, int units);
int attention_counters(const Network& net, int tiles);

// The first token with the largest logit of each row, unless null; *finite = 0 if a logit is not.
void choose(const float* logits, int rows, int vocabulary, int* tokens, int* finite, int* counters);
constexpr int CHOOSE_SLICES = 16;

// Is this the last of `count` blocks that come here with this counter, which is 0 at first? What the others wrote before is
// then visible. For all threads of a block.
__device__ inline bool is_last(int* counter, int count) {
    __shared__ int before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicAdd(counter, 1);
    __syncthreads();
    bool last = before == count - 1;
    if (last) __threadfence();
    __syncthreads();  // `before` may be written again
    return last;
}

}  // namespace jl::decoding
