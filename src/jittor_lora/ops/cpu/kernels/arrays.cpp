// Between the layers: sums of arrays, multiples of an array, and gathering rows.
#include <string.h>

#include "call.h"
#include "parallel.h"

namespace jl {

// Elements per row.
static int64_t width(const Array& array) { return array.shape[0] ? array.count / array.shape[0] : 0; }

}  // namespace jl

using namespace jl;

// The sum of the inputs, added in their order.
JL_OPERATOR(sum) {
    float* y = c.out(0);
    parallel_pieces(c.outputs[0].count, [&](int64_t at, int64_t n) {
        const float *a = c.in(0), *b = c.in(1);
        for (int64_t i = at; i < at + n; i++) y[i] = a[i] + b[i];
        for (int term = 2; term < c.input_count; term++) {
            const float* more = c.in(term);
            for (int64_t i = at; i < at + n; i++) y[i] += more[i];
        }
    });
}

// The first input times the second, which is one number.
JL_OPERATOR(scale) {
    const float *x = c.in(0), factor = *c.in(1);
    float* y = c.out(0);
    parallel_pieces(c.outputs[0].count, [=](int64_t at, int64_t n) {
        for (int64_t i = at; i < at + n; i++) y[i] = x[i] * factor;
    });
}

// loss / n, and its gradient 1 / n.
JL_OPERATOR(divide) {
    auto& [divisor] = c.numbers<1>();
    *c.out(0) = *c.in(0) / float(divisor);
}

JL_OPERATOR(reciprocal) {
    auto& [divisor] = c.numbers<1>();
    *c.out(0) = 1.f / float(divisor);
}

// y_i = x_{j_i} for the row numbers j of the second input. Copying is bound by memory: one thread is enough.
JL_OPERATOR(rows_forward) {
    int64_t size = width(c.inputs[0]);
    for (int64_t i = 0; i < c.inputs[1].count; i++)
        memcpy(c.out(0) + i * size, c.in(0) + c.indices(1)[i] * size, size * sizeof(float));
}

// The gradient for x: each row of the upstream gradient, the first input, is added to the row it was taken from. In one
// thread, since rows may repeat.
JL_OPERATOR(rows_backward) {
    int64_t size = width(c.outputs[0]);
    memset(c.out(0), 0, c.outputs[0].count * sizeof(float));
    for (int64_t i = 0; i < c.inputs[1].count; i++) {
        const float* from = c.in(0) + i * size;
        float* to = c.out(0) + c.indices(1)[i] * size;
        for (int64_t k = 0; k < size; k++) to[k] += from[k];
    }
}
