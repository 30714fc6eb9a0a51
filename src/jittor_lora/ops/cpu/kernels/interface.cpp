#include "rows.h"

// The sizes of the structures in interface.h, in their order.
JL_API int jl_interface_sizes(int64_t* sizes, int room) {
    using namespace jl::decoding;
    int count = 0;
    for (size_t size : {sizeof(Matrix), sizeof(Linear), sizeof(Norm), sizeof(Layer), sizeof(Network), sizeof(Span), sizeof(Segment)})
        if (count < room) sizes[count++] = size;
    return count;
}
