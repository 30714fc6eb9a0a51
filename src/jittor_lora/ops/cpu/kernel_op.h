#pragma once
#include "op.h"
#include "var.h"

namespace jittor {

// One operator for all kernels of our own. It has a `run`, so that Jittor compiles nothing for it, whatever it calls.
struct KernelOp : Op {
    vector<Var*> reads, writes;
    int64 kernel;
    vector<float64> numbers;
    /**
     * kernel: the address of a jl::Kernel.
     * inputs, numbers: what it reads. shapes: of its outputs, which are float32.
     */
    // @attrs(multiple_outputs)
    KernelOp(int64 kernel, vector<Var*>&& inputs, vector<NanoVector>&& shapes, vector<float64>&& numbers);
    const char* name() const override { return "kernel"; }
    void run() override;
};

}  // namespace jittor
