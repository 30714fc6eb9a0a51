// The kernels as Jittor's operator calls them: arrays and numbers in the order in which ops/cpu/functions.py passes
// them.
#include <string.h>

#include "call.h"
#include "interface.h"

using jl::Call;

// --- norms: x, weight, bias or upstream gradient; eps ---

JL_OPERATOR(layer_norm_forward) {
    auto& [eps] = c.numbers<1>();
    jl_layer_norm_forward(c.in(0), c.in(1), c.in(2), c.out(0), c.size(0, 0), c.size(0, 1), eps);
}

JL_OPERATOR(layer_norm_backward) {
    auto& [eps] = c.numbers<1>();
    jl_layer_norm_backward(c.in(0), c.in(1), c.in(2), c.out(0), c.size(0, 0), c.size(0, 1), eps);
}

JL_OPERATOR(rms_norm_forward) {
    auto& [eps] = c.numbers<1>();
    jl_rms_norm_forward(c.in(0), c.in(1), c.out(0), c.size(0, 0), c.size(0, 1), eps);
}

JL_OPERATOR(rms_norm_backward) {
    auto& [eps] = c.numbers<1>();
    jl_rms_norm_backward(c.in(0), c.in(1), c.in(2), c.out(0), c.size(0, 0), c.size(0, 1), eps);
}

// x, upstream gradient → gradient of the weight

JL_OPERATOR(layer_norm_weight) {
    auto& [eps] = c.numbers<1>();
    jl_norm_weight(c.in(0), c.in(1), c.out(0), c.size(0, 0), c.size(0, 1), eps, true);
}

JL_OPERATOR(rms_norm_weight) {
    auto& [eps] = c.numbers<1>();
    jl_norm_weight(c.in(0), c.in(1), c.out(0), c.size(0, 0), c.size(0, 1), eps, false);
}

// upstream gradient → gradient of a bias
JL_OPERATOR(sum_rows) { jl_sum_rows(c.in(0), c.out(0), c.size(0, 0), c.size(0, 1)); }

// --- elementwise ---

JL_OPERATOR(gelu_forward) { jl_gelu_forward(c.in(0), c.out(0), c.inputs[0].count); }

JL_OPERATOR(gelu_backward) { jl_gelu_backward(c.in(0), c.in(1), c.out(0), c.inputs[0].count); }

JL_OPERATOR(swiglu_forward) { jl_swiglu_forward(c.in(0), c.in(1), c.out(0), c.inputs[0].count); }

JL_OPERATOR(swiglu_backward) {
    jl_swiglu_backward(c.in(0), c.in(1), c.in(2), c.out(0), c.out(1), c.inputs[0].count);
}

JL_OPERATOR(rotary) {
    auto& [sign] = c.numbers<1>();
    jl_rotary(c.in(0), c.in(1), c.in(2), c.out(0), c.size(0, 0), c.size(0, 1), c.size(0, 2), sign);
}

// --- linear layer: x, weight, bias, A, B ---

JL_OPERATOR(linear_forward) {
    auto& [scaling, p, key1, key2, row, out, rank, storage, bf16, biased] = c.numbers<10>();
    jl_linear_forward(c.in(0), c.bytes(1), int(storage), int(bf16), biased ? c.in(2) : nullptr, c.in(3), c.in(4),
                      int(rank), scaling, p, key1, key2, row, c.out(0), c.out(1), c.size(0, 0), c.size(0, 1), int(out));
}

// x, its projection onto A, upstream gradient, weight, A, B
JL_OPERATOR(linear_backward) {
    auto& [scaling, p, key1, key2, row, out, rank, storage, bf16, wanted] = c.numbers<10>();
    jl_linear_backward(c.in(0), c.in(1), c.in(2), c.bytes(3), int(storage), int(bf16), c.in(4), c.in(5), int(rank),
                       scaling, p, key1, key2, row, wanted ? c.out(0) : nullptr, c.out(1), c.out(2), c.size(0, 0),
                       c.size(0, 1), int(out));
}

// upstream gradient, x → gradient of the weight
JL_OPERATOR(transposed_product) {
    auto& [bf16] = c.numbers<1>();
    jl_transposed_product(c.in(0), c.in(1), int(bf16), c.out(0), c.size(0, 0), c.size(0, 1), c.size(1, 1));
}

// --- attention: q, k, v, segments; fused: q, k and v side by side in one array, segments, rows that have a query ---

JL_OPERATOR(attention_forward) {
    auto& [scale, bf16] = c.numbers<2>();
    int heads = c.size(0, 1), kv_heads = c.size(1, 1), d = c.size(0, 2);
    jl_attention_forward(c.in(0), heads * d, c.in(1), c.in(2), kv_heads * d, nullptr, c.indices(3), c.size(3, 0), c.out(0),
                         c.out(1), heads, kv_heads, d, scale, int(bf16));
}

// q, k, v, segments, groups, output, log-sum-exp, upstream gradient
JL_OPERATOR(attention_backward) {
    auto& [scale, bf16] = c.numbers<2>();
    int heads = c.size(0, 1), kv_heads = c.size(1, 1), d = c.size(0, 2);
    jl_attention_backward(c.in(0), heads * d, c.in(1), c.in(2), kv_heads * d, nullptr, c.indices(3), c.indices(4),
                          c.size(4, 0), c.in(5), c.in(6), c.in(7), c.out(0), c.out(1), c.out(2), c.size(1, 0), heads,
                          kv_heads, d, scale, int(bf16));
}

JL_OPERATOR(fused_attention_forward) {
    auto& [heads, chosen, scale, bf16] = c.numbers<4>();
    int h = int(heads), width = c.size(0, 1) / 3;
    const float* qkv = c.in(0);
    jl_attention_forward(qkv, 3 * width, qkv + width, qkv + 2 * width, 3 * width, chosen ? c.indices(2) : nullptr,
                         c.indices(1), c.size(1, 0), c.out(0), c.out(1), h, h, width / h, scale, int(bf16));
}

// q, k and v side by side, segments, groups, rows, output, log-sum-exp, upstream gradient
JL_OPERATOR(fused_attention_backward) {
    auto& [heads, chosen, scale, bf16] = c.numbers<4>();
    int h = int(heads), width = c.size(0, 1) / 3;
    const float* qkv = c.in(0);
    float* gradient = c.out(0);
    if (chosen) memset(gradient, 0, size_t(c.outputs[0].count) * sizeof(float));
    jl_attention_backward(qkv, 3 * width, qkv + width, qkv + 2 * width, 3 * width, chosen ? c.indices(3) : nullptr,
                          c.indices(1), c.indices(2), c.size(2, 0), c.in(4), c.in(5), c.in(6), gradient, gradient + width,
                          gradient + 2 * width, c.size(0, 0), h, h, width / h, scale, int(bf16));
}

// --- loss: hidden states; the head as it is stored, or packed in bf16 for logits and for their gradient; labels,
// weights → loss, and gradients of the hidden states and, if there is a third output, of the head ---

JL_OPERATOR(cross_entropy) {
    auto& [wanted, storage, bf16, size, smoothing] = c.numbers<5>();
    jl_cross_entropy(c.in(0), c.bytes(1), int(storage), int(bf16), c.bytes(2), c.bytes(3), c.indices(4), c.in(5),
                     smoothing, c.out(0), wanted ? c.out(1) : nullptr, c.output_count > 2 ? c.out(2) : nullptr, c.size(0, 0),
                     c.size(0, 1), int(size));
}
