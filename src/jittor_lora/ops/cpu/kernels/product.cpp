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

// oneDNN's own division among threads may cut the sums, by the number of threads: tiles do not. Their size depends on that
// of the product alone: as large as leaves 64 of them, for machines of many cores, but not too small for oneDNN's speed.
struct Tiling {
    int rows = 256, columns = 384;

    Tiling(int all_rows, int all_columns) {
        while (high(all_rows) * wide(all_columns) < 64 && (rows > 64 || columns > 96))
            columns > rows || rows == 64 ? columns /= 2 : rows /= 2;
    }

    int high(int all_rows) const { return (all_rows + rows - 1) / rows; }
    int wide(int all_columns) const { return (all_columns + columns - 1) / columns; }
};

// oneDNN's errors, as what they are for its callers here.
static void check(dnnl_status_t status) {
    if (status == dnnl_out_of_memory) throw std::bad_alloc();
    if (status != dnnl_success) throw dnnl::error(status, "oneDNN fails");
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

void gemm(const Frozen& m, const float* x, float* y, int rows) {
    if (BLOCKED_PRODUCTS && rows >= BLOCKED_ROWS) return blocked_product(m, x, y, rows);
    const float* w = static_cast<const float*>(m.weights);
    const Tiling tiling(rows, m.n);
    const int high = tiling.high(rows);
    parallel(high * tiling.wide(m.n), [&](int tile) {
        const int r = int64_t(rows) * (tile % high) / high, end = int64_t(rows) * (tile % high + 1) / high;
        const int c = tile / high * tiling.columns;
        sgemm('N', m.transposed ? 'T' : 'N', end - r, std::min(tiling.columns, m.n - c), m.k, 1.f, x + size_t(r) * m.k,
                   m.k, m.transposed ? w + size_t(c) * m.k : w + c, m.transposed ? m.k : m.n, 0.f, y + size_t(r) * m.n + c, m.n);
    });
}

int tile_rows(int rows) { return rows < 512 ? 32 : 64; }

// Weights are laid out once, for tiles of any height.
static const memory::desc& packed_layout(int k, int n) {
    static std::mutex lock;
    static std::map<std::pair<int, int>, memory::desc> known;
    std::lock_guard<std::mutex> hold(lock);
    auto found = known.find({k, n});
    if (found == known.end()) {
        matmul::desc d(memory::desc({64, k}, type::bf16, tag::ab), memory::desc({k, n}, type::bf16, tag::any),
                       memory::desc({64, n}, type::f32, tag::ab));
        found = known.emplace(std::make_pair(k, n), matmul::primitive_desc(d, engine()).weights_desc()).first;
    }
    return found->second;
}

struct Tile {
    matmul primitive;
    memory::desc x, y, scratch;
};

static const Tile& tile(int rows, int k, int n) {
    static std::mutex lock;
    static std::map<std::tuple<int, int, int>, std::unique_ptr<Tile>> known;
    std::lock_guard<std::mutex> hold(lock);
    auto& made = known[std::make_tuple(rows, k, n)];
    if (!made) {
        memory::desc x({rows, k}, type::bf16, tag::ab), y({rows, n}, type::f32, tag::ab);
        dnnl::primitive_attr attributes;
        attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        matmul::primitive_desc d(matmul::desc(x, packed_layout(k, n), y), attributes, engine());
        made.reset(new Tile{matmul(d), x, y, d.scratchpad_desc()});
    }
    return *made;
}

void gemm_tile(const void* weights, int k, int n, const bf16* x, float* y, int rows) {
    checked([&] {
        static thread_local Buffer scratch;
        static thread_local dnnl::stream stream(engine());
        const Tile& t = tile(rows, k, n);
        memory mx(t.x, engine(), const_cast<bf16*>(x)), my(t.y, engine(), y);
        memory mw(packed_layout(k, n), engine(), const_cast<void*>(weights));
        memory ms(t.scratch, engine(), scratch.get<char>(t.scratch.get_size()));
        t.primitive.execute(stream, {{DNNL_ARG_SRC, mx}, {DNNL_ARG_WEIGHTS, mw}, {DNNL_ARG_DST, my},
                                     {DNNL_ARG_SCRATCHPAD, ms}});
    });
}

}  // namespace jl

// Bytes of a (k, n) matrix in bf16 as the products of this processor take it.
int64_t jl::packed_size(int k, int n) {
    return checked([&] { return packed_layout(k, n).get_size(); });
}

JL_API int64_t jl_packed_size(int k, int n) {
    return jl::status_of([&] { return jl::packed_size(k, n); });
}

// Packs M (k, n); `transposed`: w holds it as (n, k), else as (k, n).
void jl::pack(const float* w, void* packed, int k, int n, bool transposed) {
    checked([&] {
        dnnl::stream stream(engine());
        memory from(memory::desc({k, n}, type::f32, transposed ? tag::ba : tag::ab), engine(), const_cast<float*>(w));
        memory to(packed_layout(k, n), engine(), packed);
        dnnl::reorder(from, to).execute(stream, from, to);
        stream.wait();
    });
}

JL_API int jl_pack(const float* w, void* packed, int k, int n, int transposed) {
    return jl::status_of([&] {
        jl::pack(w, packed, k, n, transposed);
        return 0;
    });
}
