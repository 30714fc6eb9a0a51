#include "product.h"

#include <dnnl.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "blocked_product.h"

namespace jl {

using dnnl::matmul;
using dnnl::memory;
typedef memory::format_tag tag;
typedef memory::data_type type;

static dnnl::engine& engine() {
    static dnnl::engine e(dnnl::engine::kind::cpu, 0);
    return e;
}

// The tiles of y that float32 products are cut into, one call of sgemm each. oneDNN's own division among threads may
// cut the inner dimension depending on how many there are, which changes the order of sums; tiles never do, and their
// size depends on that of the product alone.
//
// A tile of 256 × 384 floats takes 384 KiB, most of an L2 of 512 KiB; with k in the middle each tile reads (256 + 384)
// · k floats for 256 · 384 · k multiply-adds, 154 per float. Smaller tiles read more: 64 × 96 has 38 per float and
// takes 8 % longer on AVX2, 512 × 768 would take 4 to 9 % less. But 64 tiles are needed for machines of many cores, so
// tiles are halved, down to 64 × 96, until there are as many.
struct Tiling {
    static constexpr int MOST_ROWS = 256, MOST_COLUMNS = 384, LEAST_ROWS = 64, LEAST_COLUMNS = 96, ENOUGH_TILES = 64;
    int rows = MOST_ROWS, columns = MOST_COLUMNS;

    Tiling(int all_rows, int all_columns) {
        while (high(all_rows) * wide(all_columns) < ENOUGH_TILES && (rows > LEAST_ROWS || columns > LEAST_COLUMNS))
            columns > rows || rows == LEAST_ROWS ? columns /= 2 : rows /= 2;
    }

    int high(int all_rows) const { return ceil_div(all_rows, rows); }
    int wide(int all_columns) const { return ceil_div(all_columns, columns); }
};

// Out of memory is std::bad_alloc for our callers too.
static void check(dnnl_status_t status) {
    if (status == dnnl_out_of_memory) throw std::bad_alloc();
    if (status != dnnl_success) throw dnnl::error(status, "oneDNN failed");
}

template <class Body>
static auto checked(Body body) {
    try {
        return body();
    } catch (const dnnl::error& error) {
        check(error.status);
        throw;
    }
}

void sgemm(char ta, char tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb, float beta,
           float* c, int ldc) {
    check(dnnl_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc));
}

// W in float32, whole: oneDNN reads it several times, and its choice of kernel, hence the order of sums, depends on the
// distance of W's rows. One in blocks is decoded into memory that holds it until the next call.
static const float* decoded(const Stored& w) {
    static Buffer memory;
    if (w.storage == FLOAT32) return static_cast<const float*>(w.data);
    float* to = memory.get<float>(size_t(w.out) * w.in);
    parallel_evenly(ceil_div(w.out, PANEL), [&](int panel) {
        const int r = panel * PANEL;
        stored_rows(w, r, std::min(r + PANEL, w.out), 0, w.in, to + size_t(r) * w.in, w.in);
    });
    return to;
}

void gemm(const Frozen& m, const float* x, float* y, int rows) {
    if constexpr (BLOCKED_PRODUCTS)
        if (rows >= BLOCKED_ROWS) return blocked_product(m, x, y, rows);
    const float* w = decoded(m.w);
    const Tiling tiling(rows, m.n);
    const int high = tiling.high(rows);
    // Collapses tiles down and across, so that neighbours in time share their columns of M. Heights differ by a row at
    // most.
    parallel(high * tiling.wide(m.n), [&](int tile) {
        const int r = int64_t(rows) * (tile % high) / high, end = int64_t(rows) * (tile % high + 1) / high;
        const int c = tile / high * tiling.columns;
        sgemm('N', m.transposed ? 'T' : 'N', end - r, std::min(tiling.columns, m.n - c), m.k, 1.f, x + size_t(r) * m.k, m.k,
              m.transposed ? w + size_t(c) * m.k : w + c, m.transposed ? m.k : m.n, 0.f, y + size_t(r) * m.n + c, m.n);
    });
}

// The layout that oneDNN prefers for the weights of a tile; products of tiles of any height use it.
static const memory::desc& packed_layout(int k, int n) {
    static std::mutex lock;
    static std::map<std::pair<int, int>, memory::desc> known;
    std::lock_guard<std::mutex> hold(lock);
    auto found = known.find({k, n});
    if (found == known.end()) {
        constexpr int ASKED_ROWS = 64;  // the height of most tiles
        matmul::desc d(memory::desc({ASKED_ROWS, k}, type::bf16, tag::ab), memory::desc({k, n}, type::bf16, tag::any),
                       memory::desc({ASKED_ROWS, n}, type::f32, tag::ab));
        found = known.emplace(std::make_pair(k, n), matmul::primitive_desc(d, engine()).weights_desc()).first;
    }
    return found->second;
}

// A product of one size; oneDNN generates its code on creation.
struct TileProduct {
    matmul primitive;
    memory::desc x, y, scratch;
};

static const TileProduct& tile_product(int rows, int k, int n) {
    static std::mutex lock;
    static std::map<std::tuple<int, int, int>, std::unique_ptr<TileProduct>> known;
    std::lock_guard<std::mutex> hold(lock);
    auto& product = known[std::make_tuple(rows, k, n)];
    if (!product) {
        memory::desc x({rows, k}, type::bf16, tag::ab), y({rows, n}, type::f32, tag::ab);
        dnnl::primitive_attr attributes;
        attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        matmul::primitive_desc d(matmul::desc(x, packed_layout(k, n), y), attributes, engine());
        product.reset(new TileProduct{matmul(d), x, y, d.scratchpad_desc()});
    }
    return *product;
}

void gemm_tile(const void* weights, int k, int n, const bf16* x, float* y, int rows) {
    checked([&] {
        static thread_local Buffer scratch;
        static thread_local dnnl::stream stream(engine());
        const TileProduct& t = tile_product(rows, k, n);
        memory mx(t.x, engine(), const_cast<bf16*>(x)), my(t.y, engine(), y);
        memory mw(packed_layout(k, n), engine(), const_cast<void*>(weights));
        memory ms(t.scratch, engine(), scratch.get<char>(t.scratch.get_size()));
        t.primitive.execute(stream, {{DNNL_ARG_SRC, mx}, {DNNL_ARG_WEIGHTS, mw}, {DNNL_ARG_DST, my},
                                     {DNNL_ARG_SCRATCHPAD, ms}});
    });
}

}  // namespace jl

// Bytes of a (k, n) matrix in bf16, packed for this processor's products.
int64_t jl::packed_size(int k, int n) {
    return checked([&] { return packed_layout(k, n).get_size(); });
}

JL_API int64_t jl_packed_size(int k, int n) {
    return jl::status_of([&] { return jl::packed_size(k, n); });
}

void jl::pack(const float* w, void* packed, int k, int n, bool transposed) {
    checked([&] {
        dnnl::stream stream(engine());
        memory from(memory::desc({k, n}, type::f32, transposed ? tag::ba : tag::ab), engine(), const_cast<float*>(w));
        memory to(packed_layout(k, n), engine(), packed);
        dnnl::reorder(from, to).execute(stream, from, to);
        stream.wait();
    });
}

void jl::pack_rows(const float* w, int rows, void* packed, int k, int n) {
    static Buffer for_rest;
    checked([&] {
        dnnl::stream stream(engine());
        auto part = [&](const float* rows_from, int first, int count) {
            if (!count) return;
            memory from(memory::desc({count, n}, type::f32, tag::ab), engine(), const_cast<float*>(rows_from));
            memory to(packed_layout(k, n).submemory_desc({count, n}, {first, 0}), engine(), packed);
            dnnl::reorder(from, to).execute(stream, from, to);
            stream.wait();
        };
        const int whole = rows / BF16_DEPTH_UNIT * BF16_DEPTH_UNIT;
        part(w, 0, whole);
        if (whole == k) return;
        float* rest = for_rest.get<float>(size_t(BF16_DEPTH_UNIT) * n);
        memset(rest, 0, size_t(BF16_DEPTH_UNIT) * n * sizeof(float));
        memcpy(rest, w + size_t(whole) * n, size_t(rows - whole) * n * sizeof(float));
        part(rest, whole, BF16_DEPTH_UNIT);
    });
}

const void* jl::packed(const Frozen& m) {
    static Buffer memory;
    if (m.w.storage == PACKED) return m.w.data;
    char* to = memory.get<char>(packed_size(m.k, m.n));
    pack(decoded(m.w), to, m.k, m.n, m.transposed);
    return to;
}

JL_API int jl_pack(const float* w, void* packed, int k, int n, int transposed) {
    return jl::status_of([&] {
        jl::pack(w, packed, k, n, transposed);
        return 0;
    });
}
