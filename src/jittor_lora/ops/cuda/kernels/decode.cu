// Decoding: the operators. All layers for some rows of tokens by eight kernels per layer.
#include <algorithm>

#include "decode.cuh"
#include "scratch.cuh"

namespace jl::decoding {
namespace {

// The numbers of a call, one after the other.
class Numbers {
public:
    explicit Numbers(const Call& c) : c_(c) {}
    double next() {
        if (at_ == c_.value_count) throw std::logic_error("decoding was called with too few numbers");
        return c_.values[at_++];
    }
    int integer() { return int(next()); }

private:
    const Call& c_;
    int at_ = 0;
};

// The arrays of a call, one after the other.
class Arrays {
public:
    explicit Arrays(const Call& c) : c_(c) {}
    const Array& next() {
        if (at_ == c_.input_count) throw std::logic_error("decoding was called with too few arrays");
        return c_.inputs[at_++];
    }
    const float* floats() { return static_cast<const float*>(next().memory); }

private:
    const Call& c_;
    int at_ = 0;
};

// What Python's `Decoder` and `_call` send, in their order.
Network read_network(Numbers& numbers, Arrays& arrays) {
    Network net;
    net.layers.resize(numbers.integer());
    net.width = numbers.integer(), net.heads = numbers.integer(), net.kv_heads = numbers.integer();
    net.head_dim = numbers.integer(), net.inner = numbers.integer(), net.root_mean_square = numbers.integer();
    net.activation = numbers.integer(), net.eps = float(numbers.next()), net.half = numbers.integer();
    const float* vectors = arrays.floats();
    auto vector = [&] {
        int64_t at = int64_t(numbers.next());
        return at < 0 ? nullptr : vectors + at;
    };
    auto norm = [&] {
        const float* weight = vector();
        return Norm{weight, vector()};
    };
    auto linear = [&](int inputs) {
        Linear made{{}, numbers.integer(), inputs};
        for (int m = 0; m < made.count; m++) {
            const Array& weight = arrays.next();
            made.matrices[m] = {weight.memory, vector(), int(weight.shape[0])};
        }
        return made;
    };
    for (Layer& layer : net.layers) {
        layer.attention_norm = norm(), layer.mlp_norm = norm(), layer.q_norm = norm(), layer.k_norm = norm();
        layer.linears[QKV] = linear(net.width), layer.linears[OUT] = linear(net.heads * net.head_dim);
        layer.linears[UP] = linear(net.width), layer.linears[DOWN] = linear(net.inner);
        layer.scale = float(numbers.next());
    }
    net.last_norm = norm();
    const int vocabulary = numbers.integer();
    net.head = {{{arrays.next().memory, nullptr, vocabulary}}, 1, net.width};  // it may have more rows, of zeros
    return net;
}

// The rows of a call, and how they are cut.
struct Reading {
    std::vector<Row> rows;
    std::vector<Query> queries, last_queries;  // of all rows; of the wanted ones, the only ones to leave the last layer
    std::vector<int> wanted;                   // rows
    int ranks[LINEARS];                        // most of any row's updates
};

Reading read_readings(Numbers& numbers, Arrays& arrays) {
    Reading made;
    for (int& ranks : made.ranks) ranks = numbers.integer();
    std::vector<const float*> adapters(numbers.integer());
    for (const float*& adapter : adapters) adapter = arrays.floats();
    struct Room { float* memory; int capacity; };
    std::vector<Room> spans(numbers.integer());
    for (Room& span : spans) {
        span.memory = static_cast<float*>(arrays.next().memory);
        span.capacity = numbers.integer();
    }
    for (int left = numbers.integer(); left; left--) {
        const int count = numbers.integer(), own = numbers.integer(), used = numbers.integer(), prefix = numbers.integer(),
                  prefix_rows = numbers.integer(), adapter = numbers.integer(), wanted = numbers.integer();
        for (int i = 0; i < count; i++)
            made.rows.push_back({spans[own].memory, prefix < 0 ? nullptr : spans[prefix].memory,
                                 adapter < 0 ? nullptr : adapters[adapter], spans[own].capacity,
                                 prefix < 0 ? 0 : spans[prefix].capacity, used + i, prefix < 0 ? 0 : prefix_rows});
        if (wanted) made.wanted.push_back(int(made.rows.size()) - 1);
    }
    for (int r = 0; r < int(made.rows.size()); r++) made.queries.push_back({r, r});
    for (int i = 0; i < int(made.wanted.size()); i++) made.last_queries.push_back({made.wanted[i], i});
    return made;
}

struct Tiles {
    std::vector<Tile> all;
    int queries = 1, chunks = 1;  // most of a tile
};

// Neighbours that read one span, each after the other, and the same prefix.
Tiles cut(const Network& net, const Reading& reading, const std::vector<Query>& queries) {
    Tiles tiles;
    const int most = tile_queries(net);
    for (int i = 0; i < int(queries.size()); i++) {
        const Row& row = reading.rows[queries[i].row];
        bool joins = false;
        if (i && tiles.all.back().count < most) {
            const Row& before = reading.rows[queries[i - 1].row];
            joins = before.own == row.own && before.prefix == row.prefix && before.at < row.at &&
                    before.prefix_rows == row.prefix_rows;
        }
        if (joins) tiles.all.back().count++;
        else tiles.all.push_back({i, 1});
        tiles.queries = std::max(tiles.queries, tiles.all.back().count);
        tiles.chunks = std::max(tiles.chunks, chunks_of(row.prefix_rows, row.at + 1));
    }
    return tiles;
}

// Copies arrays to the GPU, as one.
class Upload {
public:
    template <class T>
    int64_t add(const std::vector<T>& values) {
        int64_t at = (int64_t(bytes_.size()) + 15) / 16 * 16;
        bytes_.resize(at + values.size() * sizeof(T));
        if (!values.empty()) memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
        return at;
    }
    void send(unsigned char* to) {
        memory_ = to;
        check(cudaMemcpyAsync(to, bytes_.data(), bytes_.size(), cudaMemcpyHostToDevice), "copy to the GPU");
    }
    int64_t size() const { return bytes_.size(); }
    template <class T>
    const T* at(int64_t at) const { return reinterpret_cast<const T*>(memory_ + at); }

private:
    std::vector<unsigned char> bytes_;
    unsigned char* memory_ = nullptr;
};

__global__ void embed_kernel(const float* from, int from_stride, float* x, int width, int64_t count) {
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) x[i] = from[i / width * from_stride + i % width];
}

constexpr int HEAD_ROWS = 64;  // whose logits are in memory together where only the likeliest token is asked for

void decode(const Call& c) {
    Numbers numbers(c);
    Arrays arrays(c);
    const float* embedded = arrays.floats();  // (rows, width and angles)
    const int stride = c.size(0, 1);
    const Network net = read_network(numbers, arrays);
    const Reading reading = read_readings(numbers, arrays);
    const bool likeliest = numbers.integer();
    const int rows = reading.rows.size(), wanted = reading.wanted.size(), vocabulary = net.head.outputs();
    const float* angles = stride > net.width ? embedded + net.width : nullptr;
    const Tiles tiles = cut(net, reading, reading.queries), last_tiles = cut(net, reading, reading.last_queries);

    Upload upload;
    const int64_t table_at = upload.add(reading.rows), queries_at = upload.add(reading.queries),
                  last_queries_at = upload.add(reading.last_queries), wanted_at = upload.add(reading.wanted),
                  tiles_at = upload.add(tiles.all), last_tiles_at = upload.add(last_tiles.all);
    Scratch scratch;
    upload.send(scratch.take<unsigned char>(upload.size()));
    const Row* table = upload.at<Row>(table_at);
    const int* from = upload.at<int>(wanted_at);

    auto states = [&](int64_t count, int width) {
        float* exact = scratch.take<float>(count * width);
        return States{exact, net.half ? scratch.take<bf16>(count * width) : nullptr, width};
    };
    const int attended_width = net.heads * net.head_dim, qkv_width = net.layers[0].linears[QKV].outputs();
    float *x = scratch.take<float>(int64_t(rows) * net.width), *last = scratch.take<float>(int64_t(wanted) * net.width);
    float* qkv = scratch.take<float>(int64_t(rows) * qkv_width);
    const States h = states(rows, net.width), attended = states(rows, attended_width), inner = states(rows, net.inner);
    int ranks = 0;
    for (int each : reading.ranks) ranks = std::max(ranks, each);
    float* projected = scratch.take<float>(int64_t(rows) * ranks);
    float* partial = scratch.take<float>(std::max(partial_floats(net, tiles.all.size(), tiles.chunks),
                                                  partial_floats(net, last_tiles.all.size(), last_tiles.chunks)));
    const int head_rows = likeliest ? std::min(wanted, HEAD_ROWS) : wanted;
    const int attention_counts = attention_counters(net, std::max(tiles.all.size(), last_tiles.all.size()));
    const int layer_counters = attention_counts + 2 * LINEARS, head_parts = wanted ? blocks_for(wanted, head_rows) : 0;
    const int choose_ints = head_rows * (1 + 2 * CHOOSE_SLICES);
    const int64_t counter_count = int64_t(net.layers.size()) * layer_counters + int64_t(head_parts) * choose_ints;
    int* counters = scratch.take<int>(counter_count);
    float* logits = likeliest ? scratch.take<float>(int64_t(head_rows) * vocabulary) : c.out(0);
    int* tokens = likeliest ? reinterpret_cast<int*>(c.out(0)) : nullptr;
    int* finite = reinterpret_cast<int*>(c.out(0)) + (likeliest ? wanted : int64_t(wanted) * vocabulary);
    check(cudaMemsetAsync(counters, 0, counter_count * sizeof(int)), "memset");
    check(cudaMemsetAsync(finite, 0x01, sizeof(int)), "memset");

    launch(embed_kernel, blocks_for(int64_t(rows) * net.width, 256), 256, 0, embedded, stride, x, net.width,
           int64_t(rows) * net.width);
    for (int l = 0; l < int(net.layers.size()); l++) {
        const Layer& layer = net.layers[l];
        const bool is_last = l + 1 == int(net.layers.size());
        int* counter = counters + int64_t(l) * layer_counters;
        auto product = [&](int linear, States in, int count, float* y, int width) {
            Product made{layer.linears[linear], in, count};
            made.table = table, made.update = l * LINEARS + linear, made.ranks = reading.ranks[linear];
            made.projected = projected, made.counters = counter + attention_counts + 2 * linear;
            made.y = y, made.width = width, made.activation = -1;
            return made;
        };
        normalize(x, layer.attention_norm, h, rows, net);
        multiply(product(QKV, h, rows, qkv, qkv_width));
        append(net, l, table, qkv, angles, stride, rows);
        const int count = is_last ? wanted : rows;  // rows that go on
        if (!count) break;
        const Tiles& cuts = is_last ? last_tiles : tiles;
        attend(net, l, {table, upload.at<Query>(is_last ? last_queries_at : queries_at),
                        upload.at<Tile>(is_last ? last_tiles_at : tiles_at), int(cuts.all.size()), cuts.queries, cuts.chunks,
                        qkv, attended, partial, counter});
        float* sum = is_last ? last : x;
        Product out = product(OUT, attended, count, sum, net.width);
        out.sum = x, out.from = out.sum_from = is_last ? from : nullptr;
        multiply(out);
        normalize(sum, layer.mlp_norm, h, count, net);
        Product up = product(UP, h, count, inner.exact, net.inner);
        up.from = out.from, up.activation = net.activation, up.half = inner.half;
        multiply(up);
        Product down = product(DOWN, inner, count, sum, net.width);
        down.from = out.from, down.sum = sum;
        multiply(down);
    }
    if (!wanted) return;
    normalize(last, net.last_norm, h, wanted, net);
    for (int r = 0, part = 0; r < wanted; r += head_rows, part++) {
        const int count = std::min(head_rows, wanted - r);
        const States in{h.exact + int64_t(r) * net.width, h.half ? h.half + int64_t(r) * net.width : nullptr, net.width};
        Product head{net.head, in, count};
        head.y = logits, head.width = vocabulary, head.activation = -1;
        multiply(head);
        choose(logits, count, vocabulary, tokens ? tokens + r : nullptr, finite,
               counters + int64_t(net.layers.size()) * layer_counters + int64_t(part) * choose_ints);
    }
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
    check(cudaMemcpyAsync(c.inputs[0].memory, c.in(1), c.inputs[0].count * sizeof(float), cudaMemcpyDeviceToDevice), "copy of a span");
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
