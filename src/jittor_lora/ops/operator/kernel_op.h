#pragma once
#include "op.h"
#include "var.h"

namespace jittor {

// One operator for all of our kernels, on the CPU and on GPUs. Because it has a `run`, Jittor compiles nothing more, whichever kernel it calls.
struct KernelOp : Op {
    vector<Var*> reads, writes;
    int64 kernel;
    vector<float64> numbers;
    /**
     * kernel: the address of a jl::Kernel. on_device: whether its arrays lie in the memory of a GPU.
     * inputs, numbers: the kernel's. shapes: of its outputs, all float32.
     */
    // @attrs(multiple_outputs)
    KernelOp(int64 kernel, bool on_device, vector<Var*>&& inputs, vector<NanoVector>&& shapes, vector<float64>&& numbers);
    const char* name() const override { return "kernel"; }
    void run() override;
};

}  // namespace jittor
