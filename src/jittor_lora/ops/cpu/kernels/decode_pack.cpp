// Weights in the layouts that decoding reads: panels (decode_panels.h), and the head's 8-bit copy (decode_screen.h).
#include "decode_panels.h"
#include "decode_screen.h"
#include "pages.h"
#include "parallel.h"
#include "rows.h"

namespace jl::decoding {
namespace {

// Inputs of a packed matrix: an even number where they are multiplied in pairs.
int packed_inputs(int inputs, bool bf16) { return bf16 && BF16_PRODUCTS ? round_up(inputs, 2) : inputs; }

int64_t packed_bytes(int outputs, int inputs, bool bf16) {
    return int64_t(packed_inputs(inputs, bf16)) * round_up(outputs, PANEL) * (bf16 ? 2 : 4);
}

// Weights (outputs, inputs) in panels; what is missing from the last panel, or from a pair, is zero.
template <class T>
void pack(const float* weight, int outputs, int inputs, T* to) {
    constexpr bool half = sizeof(T) == 2, pairs = half && BF16_PRODUCTS;
    const int deep = packed_inputs(inputs, half);
    parallel_evenly(ceil_div(outputs, PANEL), [=](int panel) {
        T* p = to + (size_t)panel * deep * PANEL;
        for (int k = 0; k < deep; k++)
            for (int j = 0; j < PANEL; j++) {
                int n = panel * PANEL + j;
                float value = n < outputs && k < inputs ? weight[(size_t)n * inputs + k] : 0.f;
                T* at = pairs ? p + (size_t)(k / 2) * 2 * PANEL + 2 * j + k % 2 : p + (size_t)k * PANEL + j;
                if constexpr (half)
                    *at = to_bf16(value);
                else
                    *at = value;
            }
    });
}

}  // namespace
}  // namespace jl::decoding

using namespace jl;
using namespace jl::decoding;

// Columns per panel, and lanes per vector: what Python pads arrays to.
JL_API int jl_decode_panel() { return PANEL; }
JL_API int jl_decode_vector() { return W; }

// Bytes of a packed weight (outputs, inputs).
JL_API int64_t jl_decode_packed_size(int outputs, int inputs, int bf16) { return packed_bytes(outputs, inputs, bf16); }

JL_API int jl_decode_pack(const float* weight, int outputs, int inputs, int bf16, void* to) {
    return status_of([&] {
        use_large_pages(to, packed_bytes(outputs, inputs, bf16));
        bf16 ? pack(weight, outputs, inputs, (jl::bf16*)to) : pack(weight, outputs, inputs, (float*)to);
        return 0;
    });
}

// Bytes of a head (outputs, inputs) as `jl_decode_pack_screen` writes it; 0 where all logits are computed instead.
JL_API int64_t jl_decode_screen_size(int outputs, int inputs) {
    return SCREENS && inputs <= MOST_INPUTS ? Screen(inputs).size(outputs) : 0;
}

JL_API int jl_decode_pack_screen(const float* weight, int outputs, int inputs, int bf16, void* to) {
    return status_of([&] {
        use_large_pages(to, Screen(inputs).size(outputs));
        auto value = [&](int r, int k) { return weight[(size_t)r * inputs + k]; };
        if (bf16)
            Screen(inputs).pack(outputs, [&](int r, int k) { return to_float(to_bf16(value(r, k))); }, (uint8_t*)to);
        else
            Screen(inputs).pack(outputs, value, (uint8_t*)to);
        return 0;
    });
}
