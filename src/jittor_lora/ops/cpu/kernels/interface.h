// The C interface of the kernels, stated once: the kernels and operators.cpp, which calls them for Jittor, include it,
// and ops/cpu/interface.py parses it for ctypes. Keep to its syntax: one declaration per statement, of the types it
// knows.
//
// When out of memory, kernels called by operators throw std::bad_alloc; those called by Python return a negative status
// or a null pointer.
#ifndef JL_INTERFACE_H
#define JL_INTERFACE_H
#include <stdint.h>

#pragma GCC visibility push(default)

namespace jl {

constexpr int RANKS_AT_A_TIME = 8;  // projections onto A are padded to a multiple of this many columns; see linear.cpp
constexpr int NO_MEMORY = -1;
constexpr int FAILED = -2;  // oneDNN failed

// What a matrix is kept in: float32; a number format of GGUF files, see storage.h; or one direction of it in bf16, packed
// for products, see product.h.
enum Storage { FLOAT32, BF16, F16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, PACKED };

}  // namespace jl

namespace jl::decoding {

// y = x · weightᵀ + bias
struct Matrix {
    const void* weight;  // panels: of (inputs, PANEL) floats or bf16, as `jl_decode_pack` writes them, or `jl_store`
    const float* bias;   // (outputs padded to PANEL), or null
    int32_t outputs;
    int32_t storage;  // a `Storage`; FLOAT32 for panels of `jl_decode_pack`
};

// Matrices that share their input.
struct Linear {
    int32_t inputs, count;
    Matrix matrices[3];
};

// y += t · bᵀ, where t is columns [rank_at, rank_at + rank) of the projections onto A.
struct LowRank {
    const float* b;  // panels of (rank, PANEL), times the scaling, or null
    int32_t rank, rank_at;
};

// The update of a Linear.
struct Update {
    const float* a;  // ranks / W panels of (inputs, W), or null
    int32_t ranks, unused;
    LowRank matrices[3];
};

// An adapter: the updates of a layer.
struct LayerUpdates {
    Update qkv, out, up, down;
};

struct Norm {
    const float* weight;  // (width padded to W); null for no norm
    const float* bias;    // the same, or null
};

struct Layer {
    Norm attention_norm, mlp_norm;
    Norm q_norm, k_norm;        // of each head, RMS norms, if any
    Linear qkv, out, up, down;  // qkv is one matrix or three; up is one matrix, or the gate and the matrix it gates
    float scale, unused;        // of attention's scores
};

enum Activation { GELU_TANH, GELU_ERF, SILU, RELU, QUICK_GELU, TANH };

struct Network {
    const Layer* layers;
    const float *cosines, *sines;  // (positions, head_dim / 2) of rotary positions, or null
    Norm last_norm;
    Linear head;
    const void* screen;  // an 8-bit copy of the head that finds the likeliest token without all logits, or null
    int32_t layer_count, width, heads, kv_heads, head_dim, inner, root_mean_square, activation, bf16;
    float eps;
};

// A key-value cache with room for `capacity` rows, a multiple of PANEL. Per layer and key head: the keys, transposed,
// in panels (head_dim, PANEL) of PANEL rows each, then the values in panels (capacity, PANEL) of PANEL columns each.
struct Span {
    float* memory;
    int32_t capacity, rows;  // `rows`: how many are filled
};

// Rows [first, first + count) of a call. They see the whole prefix and, causally, the rows of their own span, which
// they are appended to.
struct Reading {
    Span prefix, own;
    const LayerUpdates* updates;  // of each layer, or null
    int32_t first, count;
    int32_t wanted, unused;  // wanted: whether to predict the token after the last row
};

struct Workspace;

}  // namespace jl::decoding

extern "C" {

// --- called by operators ---

void jl_layer_norm_forward(const float* x, const float* weight, const float* bias, float* y, int rows, int d, double eps);
void jl_layer_norm_backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, double eps);
void jl_rms_norm_forward(const float* x, const float* weight, float* y, int rows, int d, double eps);
void jl_rms_norm_backward(const float* x, const float* weight, const float* dy, float* dx, int rows, int d, double eps);
void jl_norm_weight(const float* x, const float* dy, float* dweight, int rows, int d, double eps, int centred);
void jl_sum_rows(const float* x, float* sums, int rows, int d);
void jl_gelu_forward(const float* x, float* y, int64_t count);
void jl_gelu_backward(const float* x, const float* dy, float* dx, int64_t count);
void jl_swiglu_forward(const float* gate, const float* up, float* y, int64_t count);
void jl_swiglu_backward(const float* gate, const float* up, const float* dy, float* dgate, float* dup, int64_t count);
void jl_rotary(const float* x, const float* cosine, const float* sine, float* y, int rows, int heads, int d, double sign);
void jl_linear_forward(const float* x, const void* w, int storage, int bf16, const float* bias, const float* a, const float* b,
                       int rank, double scaling, double p, double key1, double key2, double row, float* y, float* t,
                       int rows, int in, int out);
void jl_linear_backward(const float* x, const float* t, const float* dy, const void* w, int storage, int bf16, const float* a,
                        const float* b, int rank, double scaling, double p, double key1, double key2, double row,
                        float* dx, float* da, float* db, int rows, int in, int out);
void jl_transposed_product(const float* a, const float* b, int bf16, float* c, int rows, int m, int n);
void jl_attention_forward(const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                          const int* query_rows, const int* segments, int segment_count, float* out, float* lse,
                          int heads, int kv_heads, int d, double scale, int bf16);
void jl_attention_backward(const float* q, int q_stride, const float* k, const float* v, int kv_stride,
                           const int* query_rows, const int* segments, const int* groups, int group_count,
                           const float* out, const float* lse, const float* dout, float* dq, float* dk, float* dv,
                           int key_rows, int heads, int kv_heads, int d, double scale, int bf16);
void jl_cross_entropy(const float* hidden, const void* head, int storage, int bf16, const char* up, const char* down,
                      const int* labels, const float* weights, double smoothing, float* loss, float* gradient,
                      float* head_gradient, int rows, int width, int size);

// --- called by Python ---

int jl_interface_sizes(int64_t* sizes, int room);
int jl_flush_denormals();
int64_t jl_packed_size(int k, int n);
int jl_pack(const float* w, void* packed, int k, int n, int transposed);
int64_t jl_packed_head_size(int size, int width, int down);
int jl_pack_head(const float* head, char* packed, int size, int width, int down);
int64_t jl_stored_size(int storage, int out, int in);
int jl_store(int storage, const void* blocks, int out, int in, void* to);
int jl_stored_panel(const void* data, int storage, int out, int in, int panel, int k0, int k1, float* to);
int jl_stored_rows(const void* data, int storage, int out, int in, int r0, int r1, int c0, int c1, float* to, int ld);
int jl_decode_panel();
int jl_decode_vector();
int64_t jl_decode_packed_size(int outputs, int inputs, int bf16);
int jl_decode_pack(const float* weight, int outputs, int inputs, int bf16, void* to);
int64_t jl_decode_screen_size(int outputs, int inputs);
int jl_decode_pack_screen(const float* weight, int outputs, int inputs, int bf16, void* to);
jl::decoding::Workspace* jl_decode_workspace(const jl::decoding::Network* net, int rows, int ranks);
void jl_decode_free(jl::decoding::Workspace* space);
int jl_decode(const jl::decoding::Network* net, const jl::decoding::Workspace* space, int rows, const float* embedded,
              const int32_t* positions, int readings, const jl::decoding::Reading* reading, float* logits,
              int32_t* likeliest);
}

#pragma GCC visibility pop
#endif
