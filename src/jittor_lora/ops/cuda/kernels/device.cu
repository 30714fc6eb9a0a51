// What Python asks about the library: does it run on this device, and how many kernels and products were started.
#include "device.cuh"

#define JL_API extern "C" __attribute__((visibility("default")))

namespace jl {

__global__ void nothing() {}

}  // namespace jl

// Why kernels of this library do not run here, null if they do. Compiles PTX where the library has no code for the device.
JL_API const char* jl_device_problem() {
    static std::string problem;
    try {
        jl::launch(jl::nothing, 1, jl::WARP, 0);
        jl::check(cudaDeviceSynchronize(), "a first kernel");
    } catch (const std::runtime_error& error) {
        problem = error.what();
        return problem.c_str();
    }
    return nullptr;
}

// For tests, and for the script that measures on a GPU.
JL_API int64_t jl_launches() { return jl::launches(); }
