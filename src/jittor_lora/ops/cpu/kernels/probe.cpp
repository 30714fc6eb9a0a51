#include "vector.h"
extern "C" __attribute__((visibility("default"))) int jl_vector_width() { return jl::W; }
