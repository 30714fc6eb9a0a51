#include "rows.h"

// Writes the sizes of interface.h's structures, in its order, and returns their count.
JL_API int jl_interface_sizes(int64_t* sizes, int room) {
    using namespace jl::decoding;
    int count = 0;
    for (size_t size : {sizeof(Matrix), sizeof(Linear), sizeof(LowRank), sizeof(Update), sizeof(LayerUpdates), sizeof(Norm), sizeof(Layer), sizeof(Network), sizeof(Span), sizeof(Reading)})
        if (count < room) sizes[count++] = size;
    return count;
}
