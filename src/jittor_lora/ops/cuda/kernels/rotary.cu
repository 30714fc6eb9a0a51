// Rotary positions, forward and backward. Bound by bytes: a block per row, whose angles stay in the cache for all
// heads.
#include <algorithm>

#include "packs.cuh"

namespace jl {
namespace {

// y = x with each pair (x_i, x_{i + half}) of each head rotated by the row's angle i. The backward pass of a rotation
// is the inverse one, sign -1.
template <int N>
__global__ void rotary(const float* x, const float* cosines, const float* sines, float* y, int heads, int half,
                       float sign) {
    int64_t row = blockIdx.x;
    x += row * heads * half * 2, y += row * heads * half * 2, cosines += row * half, sines += row * half;
    for (int pack = threadIdx.x; pack < heads * half / N; pack += blockDim.x) {
        int head = pack / (half / N), i = pack % (half / N) * N, at = head * half * 2 + i;
        Pack<N> a = load<N>(x + at), b = load<N>(x + at + half), c = load<N>(cosines + i), s = load<N>(sines + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            float first = a[k], second = b[k], sine = s[k] * sign;
            a[k] = first * c[k] - second * sine;
            b[k] = second * c[k] + first * sine;
        }
        store(y + at, a);
        store(y + at + half, b);
    }
}

}  // namespace
}  // namespace jl

// x (rows, heads, d), cosines and sines (rows, d / 2)
JL_OPERATOR(rotary) {
    using namespace jl;
    auto& [sign] = c.numbers<1>();
    int heads = c.size(0, 1), half = c.size(0, 2) / 2;
    bool fours = in_fours(half, {c.in(0), c.in(1), c.in(2), c.out(0)});
    int packs = heads * half / (fours ? 4 : 1);
    unsigned threads = std::min(256u, blocks_for(packs, WARP) * WARP);
    launch(fours ? jl::rotary<4> : jl::rotary<1>, c.size(0, 0), threads, 0, c.in(0), c.in(1), c.in(2), c.out(0), heads,
           half, sign);
}
