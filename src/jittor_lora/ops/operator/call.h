// A call of a kernel by Jittor's operator: the arrays it reads and writes, and numbers. The operator itself
// (kernel_op.cc) is compiled by Jittor and includes only this file.
#pragma once
#include <stdint.h>

#include <stdexcept>

namespace jl {

constexpr int MAX_DIMENSIONS = 4;

struct Array {
    void* memory;
    int64_t count;
    int64_t shape[MAX_DIMENSIONS];
};

struct Call {
    const Array *inputs, *outputs;
    const double* values;
    int input_count, output_count, value_count;

    const float* in(int i) const { return static_cast<const float*>(inputs[i].memory); }
    const int32_t* indices(int i) const { return static_cast<const int32_t*>(inputs[i].memory); }
    const char* bytes(int i) const { return static_cast<const char*>(inputs[i].memory); }
    float* out(int i) const { return static_cast<float*>(outputs[i].memory); }

    // Length of an axis of input i.
    int size(int i, int axis) const { return int(inputs[i].shape[axis]); }

    // The `Count` numbers of the call, for a structured binding.
    template <int Count>
    const double (&numbers() const)[Count] {
        if (value_count != Count) throw std::logic_error("a kernel was called with the wrong count of numbers");
        return *reinterpret_cast<const double(*)[Count]>(values);
    }
};

using Kernel = void (*)(const Call&);

}  // namespace jl

// Defines the kernel that `Caller` in kernel_op.py looks up by this name.
#define JL_OPERATOR(name) extern "C" __attribute__((visibility("default"))) void jl_operator_##name(const jl::Call& c)
