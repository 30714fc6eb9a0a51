// Decoding: the operators. All layers for some rows of tokens by eight kernels per layer, for few rows as one graph.
#include "decode.cuh"
#include "decode_call.cuh"
#include "decode_graph.cuh"
#include "scratch.cuh"

namespace jl::decoding {
namespace {

constexpr int GRAPH_ROWS = 64;  // most rows of a call that is kept as a graph: a step of decoding, not a prompt
constexpr int HEAD_ROWS = 64;   // whose logits are in memory together where only the likeliest token is asked for

__global__ void embed_kernel(const float* from, int from_stride, float* x, int width, int64_t count) {
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) x[i] = from[i / width * from_stride + i % width];
}

// Arrays of a call on the GPU.
struct Memory {
    const float* embedded;  // (rows, width and angles)
    int stride;
    const Row* table;
    const Query *queries, *last_queries;
    const int* wanted;
    const Tile *tiles, *last_tiles;
    States h, attended, inner;
    float *x, *last, *qkv, *projected, *partial, *logits;
    int *counters, *tokens, *finite;  // tokens: null if the logits are asked for
};

class Run {
public:
    Run(const Network& net, const Reading& reading)
        : net_(net), reading_(reading), rows_(reading.rows.size()), wanted_(reading.wanted.size()),
          tiles_(cut(net, reading, reading.queries)), last_tiles_(cut(net, reading, reading.last_queries)) {}

    int results(bool likeliest) const { return wanted_ * (likeliest ? 1 : net_.head.outputs()) + 1; }

    Memory take(Scratch& scratch, const float* embedded, int stride, float* results, bool likeliest) {
        Memory m;
        Upload upload;
        const int64_t table = upload.add(reading_.rows), queries = upload.add(reading_.queries),
                      last_queries = upload.add(reading_.last_queries), wanted = upload.add(reading_.wanted),
                      tiles = upload.add(tiles_.all), last_tiles = upload.add(last_tiles_.all);
        upload.send(scratch.take<unsigned char>(upload.size()));
        m.embedded = embedded, m.stride = stride, m.table = upload.at<Row>(table);
        m.queries = upload.at<Query>(queries), m.last_queries = upload.at<Query>(last_queries);
        m.wanted = upload.at<int>(wanted), m.tiles = upload.at<Tile>(tiles), m.last_tiles = upload.at<Tile>(last_tiles);
        auto floats = [&](int64_t rows, int64_t width) { return scratch.take<float>(rows * width); };
        auto states = [&](int width) {
            float* exact = floats(rows_, width);
            return States{exact, net_.half ? scratch.take<bf16>(int64_t(rows_) * width) : nullptr, width};
        };
        m.h = states(net_.width), m.attended = states(net_.heads * net_.head_dim), m.inner = states(net_.inner);
        m.x = floats(rows_, net_.width), m.last = floats(wanted_, net_.width), m.qkv = floats(rows_, qkv_width());
        m.projected = floats(rows_, *std::max_element(reading_.ranks, reading_.ranks + LINEARS));
        m.partial = floats(1, std::max(partial_floats(net_, tiles_.all.size(), tiles_.units),
                                       partial_floats(net_, last_tiles_.all.size(), last_tiles_.units)));
        head_rows_ = likeliest ? std::min(wanted_, HEAD_ROWS) : wanted_;
        m.counters = scratch.take<int>(counters());
        m.logits = likeliest ? floats(head_rows_, net_.head.outputs()) : results;
        m.tokens = likeliest ? reinterpret_cast<int*>(results) : nullptr;
        m.finite = reinterpret_cast<int*>(results) + this->results(likeliest) - 1;
        return m;
    }

    // All that the kernels' arguments depend on. What differs from step to step lies in the memory.
    std::vector<unsigned char> key(const Memory& m) const {
        std::vector<unsigned char> key;
        auto add = [&](const auto& value) {
            const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
            key.insert(key.end(), bytes, bytes + sizeof(value));
        };
        for (const Layer& layer : net_.layers) {
            for (const Norm& norm : {layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm}) add(norm);
            for (const Linear& linear : layer.linears) add_linear(add, linear);
            add(layer.scale);
        }
        add(net_.last_norm), add_linear(add, net_.head);
        for (int size : {net_.width, net_.heads, net_.kv_heads, net_.head_dim, net_.inner, net_.activation,
                         int(net_.root_mean_square), int(net_.half), rows_, wanted_, int(tiles_.all.size()), tiles_.queries,
                         tiles_.units, int(last_tiles_.all.size()), last_tiles_.queries, last_tiles_.units, m.stride})
            add(size);
        add(net_.eps);
        for (int ranks : reading_.ranks) add(ranks);
        for (const void* pointer : {(const void*)m.embedded, (const void*)m.table, (const void*)m.queries,
                                    (const void*)m.last_queries, (const void*)m.wanted, (const void*)m.tiles,
                                    (const void*)m.last_tiles, (const void*)m.x, (const void*)m.last, (const void*)m.qkv,
                                    (const void*)m.projected, (const void*)m.partial, (const void*)m.logits,
                                    (const void*)m.counters, (const void*)m.tokens, (const void*)m.finite})
            add(pointer);
        for (const States& states : {m.h, m.attended, m.inner}) add(states.exact), add(states.half);
        return key;
    }

    // Starts all kernels.
    void go(const Memory& m) const {
        check(cudaMemsetAsync(m.counters, 0, counters() * sizeof(int), stream()), "memset");
        check(cudaMemsetAsync(m.finite, 1, sizeof(int), stream()), "memset");  // not 0
        launch(embed_kernel, blocks_for(int64_t(rows_) * net_.width, 256), 256, 0, m.embedded, m.stride, m.x, net_.width,
               int64_t(rows_) * net_.width);
        for (int l = 0; l < int(net_.layers.size()); l++) layer(m, l);
        if (!wanted_) return;
        normalize(m.last, net_.last_norm, m.h, wanted_, net_);
        const int vocabulary = net_.head.outputs();
        int* counters = m.counters + int64_t(net_.layers.size()) * layer_counters();
        for (int r = 0; r < wanted_; r += head_rows_, counters += choose_ints()) {
            const int count = std::min(head_rows_, wanted_ - r);
            const int64_t at = int64_t(r) * net_.width;
            Product head{net_.head, {m.h.exact + at, m.h.half ? m.h.half + at : nullptr, net_.width}, count};
            head.y = m.logits, head.width = vocabulary, head.activation = -1;
            multiply(head);
            choose(m.logits, count, vocabulary, m.tokens ? m.tokens + r : nullptr, m.finite, counters);
        }
    }

private:
    template <class Add>
    static void add_linear(Add add, const Linear& linear) {
        for (int i = 0; i < linear.count; i++)
            add(linear.matrices[i].weight), add(linear.matrices[i].bias), add(linear.matrices[i].outputs);
    }

    int qkv_width() const { return net_.layers[0].linears[QKV].outputs(); }
    int attention_counts() const { return attention_counters(net_, std::max(tiles_.all.size(), last_tiles_.all.size())); }
    int layer_counters() const { return attention_counts() + 2 * LINEARS; }
    int choose_ints() const { return head_rows_ * (1 + 2 * CHOOSE_SLICES); }
    int64_t counters() const {
        const int64_t parts = wanted_ ? blocks_for(wanted_, head_rows_) : 0;
        return int64_t(net_.layers.size()) * layer_counters() + parts * choose_ints();
    }

    void layer(const Memory& m, int l) const {
        const Layer& layer = net_.layers[l];
        const bool is_last = l + 1 == int(net_.layers.size());
        int* counters = m.counters + int64_t(l) * layer_counters();
        auto product = [&](int linear, States in, int count, float* y, int width) {
            Product made{layer.linears[linear], in, count};
            made.table = m.table, made.update = l * LINEARS + linear, made.ranks = reading_.ranks[linear];
            made.projected = m.projected, made.counters = counters + attention_counts() + 2 * linear;
            made.y = y, made.width = width, made.activation = -1;
            return made;
        };
        normalize(m.x, layer.attention_norm, m.h, rows_, net_);
        multiply(product(QKV, m.h, rows_, m.qkv, qkv_width()));
        append(net_, l, m.table, m.qkv, m.stride > net_.width ? m.embedded + net_.width : nullptr, m.stride, rows_);
        const int count = is_last ? wanted_ : rows_;  // rows that go on
        if (!count) return;
        const Tiles& cuts = is_last ? last_tiles_ : tiles_;
        attend(net_, l, {m.table, is_last ? m.last_queries : m.queries, is_last ? m.last_tiles : m.tiles,
                         int(cuts.all.size()), cuts.queries, cuts.units, m.qkv, m.attended, m.partial, counters});
        float* sum = is_last ? m.last : m.x;
        Product out = product(OUT, m.attended, count, sum, net_.width);
        out.sum = m.x, out.from = out.sum_from = is_last ? m.wanted : nullptr;
        multiply(out);
        normalize(sum, layer.mlp_norm, m.h, count, net_);
        Product up = product(UP, m.h, count, m.inner.exact, net_.inner);
        up.from = out.from, up.activation = net_.activation, up.half = m.inner.half;
        multiply(up);
        Product down = product(DOWN, m.inner, count, sum, net_.width);
        down.from = out.from, down.sum = sum;
        multiply(down);
    }

    const Network& net_;
    const Reading& reading_;
    const int rows_, wanted_;
    const Tiles tiles_, last_tiles_;
    int head_rows_ = 0;
};

void decode(const Call& c) {
    Numbers numbers(c);
    Arrays arrays(c);
    const float* embedded = arrays.floats();
    const int stride = c.size(0, 1);
    const Network net = read_network(numbers, arrays);
    const Reading reading = read_readings(numbers, arrays);
    const bool likeliest = numbers.integer();
    Run run(net, reading);
    Scratch scratch;
    if (reading.rows.size() > GRAPH_ROWS) return run.go(run.take(scratch, embedded, stride, c.out(0), likeliest));
    // The kernels of a graph read and write the same memory each time.
    const size_t in = reading.rows.size() * stride * sizeof(float), out = run.results(likeliest) * sizeof(float);
    float *states = scratch.take<float>(in / sizeof(float)), *results = scratch.take<float>(out / sizeof(float));
    check(cudaMemcpyAsync(states, embedded, in, cudaMemcpyDeviceToDevice), "copy of embedded rows");
    const Memory memory = run.take(scratch, states, stride, results, likeliest);
    replay(run.key(memory), [&] { run.go(memory); });
    check(cudaMemcpyAsync(c.out(0), results, out, cudaMemcpyDeviceToDevice), "copy of results");
}

// Copies a panel of rows of all layers and heads between a span and a block: (heads of all layers, 2, PANEL · head_dim).
void copy_block(float* span, float* block, int64_t heads, int64_t span_floats, int64_t block_floats, int64_t number, bool out) {
    // Panels of keys, and rows of values, are as many floats.
    float* at = span + number * block_floats;
    check(cudaMemcpy2DAsync(out ? block : at, (out ? block_floats : span_floats) * sizeof(float), out ? at : block,
                            (out ? span_floats : block_floats) * sizeof(float), block_floats * sizeof(float), heads * 2,
                            cudaMemcpyDeviceToDevice), "copy of keys and values");
}

}  // namespace
}  // namespace jl::decoding

using namespace jl;

// embedded rows, vectors, weights, adapters, spans; the network, the readings, is the likeliest token asked for? Appends keys
// and values to the spans. Output: the tokens, or all logits, of the wanted readings; then a number: are all logits finite?
JL_OPERATOR(decode) { decoding::decode(c); }

// A span → a copy
JL_OPERATOR(decode_copy_span) {
    check(cudaMemcpyAsync(c.out(0), c.in(0), c.inputs[0].count * sizeof(float), cudaMemcpyDeviceToDevice), "copy of a span");
}

// Two spans: the first becomes a copy of the second.
JL_OPERATOR(decode_take_span) {
    check(cudaMemcpyAsync(c.inputs[0].memory, c.in(1), c.inputs[0].count * sizeof(float), cudaMemcpyDeviceToDevice),
          "copy of a span");
}

// span (heads of all layers, 2, floats); number of a block → the block
JL_OPERATOR(decode_block) {
    auto& [number] = c.numbers<1>();
    decoding::copy_block(static_cast<float*>(c.inputs[0].memory), c.out(0), c.size(0, 0), c.size(0, 2),
                         c.outputs[0].shape[2], int64_t(number), true);
}

// span, block; its number: puts the block in its place.
JL_OPERATOR(decode_set_block) {
    auto& [number] = c.numbers<1>();
    decoding::copy_block(static_cast<float*>(c.inputs[0].memory), static_cast<float*>(c.inputs[1].memory), c.size(0, 0),
                         c.size(0, 2), c.size(1, 2), int64_t(number), false);
}
