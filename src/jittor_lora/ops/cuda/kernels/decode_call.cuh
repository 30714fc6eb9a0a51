// Decoding: a call as Python makes it (decoder.py), and how its rows are cut.
#pragma once
#include <string.h>

#include "decode.cuh"

namespace jl::decoding {

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
inline Network read_network(Numbers& numbers, Arrays& arrays) {
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
            const void* weight = arrays.next().memory;  // in bf16 with more rows than outputs
            const float* bias = vector();
            made.matrices[m] = {weight, bias, numbers.integer()};
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

inline Reading read_readings(Numbers& numbers, Arrays& arrays) {
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
    int queries = 1, units = 1;  // most queries, and chunks of keys, of a tile
};

// Neighbours with the same prefix, or without one that read one span.
inline Tiles cut(const Network& net, const Reading& reading, const std::vector<Query>& queries) {
    Tiles tiles;
    const int most = tile_queries(net);
    int units = 0;
    for (int i = 0; i < int(queries.size()); i++) {
        const Row& row = reading.rows[queries[i].row];
        const Row* before = i && tiles.all.back().count < most ? &reading.rows[queries[i - 1].row] : nullptr;
        const bool continues = before && before->own == row.own && before->at < row.at;
        const bool joins = before && before->prefix == row.prefix && before->prefix_rows == row.prefix_rows &&
                           (continues || (row.prefix && before->own != row.own));
        if (joins) {
            tiles.all.back().count++;
            if (continues) units -= chunks_of(before->at + 1);  // the later query sees these, too
        } else {
            tiles.all.push_back({i, 1});
            units = chunks_of(row.prefix_rows);
        }
        units += chunks_of(row.at + 1);
        tiles.queries = std::max(tiles.queries, tiles.all.back().count);
        tiles.units = std::max(tiles.units, units);
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

}  // namespace jl::decoding
