#include "kernel_op.h"

#include "call.h"

namespace jittor {

KernelOp::KernelOp(int64 kernel, bool on_device, vector<Var*>&& inputs, vector<NanoVector>&& shapes,
                   vector<float64>&& numbers)
    : reads(inputs), kernel(kernel), numbers(move(numbers)) {
    flags.set(on_device ? NodeFlags::_cuda : NodeFlags::_cpu);
    flags.set(NodeFlags::_manual_set_vnbb);  // the operator has no gradient that would keep its inputs
    for (auto& shape : shapes) writes.push_back(create_output(shape, ns_float32));
}

static vector<jl::Array> arrays(const vector<Var*>& vars) {
    vector<jl::Array> result;
    result.reserve(vars.size());
    for (Var* var : vars) {
        CHECK(var->shape.size() <= jl::MAX_DIMENSIONS) << "A kernel accepts arrays of up to" << jl::MAX_DIMENSIONS << "axes";
        jl::Array array{var->mem_ptr, var->num, {}};
        for (int axis = 0; axis < var->shape.size(); axis++) array.shape[axis] = var->shape[axis];
        result.push_back(array);
    }
    return result;
}

void KernelOp::run() {
    auto in = arrays(reads), out = arrays(writes);
    reinterpret_cast<jl::Kernel>(kernel)(
        {in.data(), out.data(), numbers.data(), int(in.size()), int(out.size()), int(numbers.size())});
}

}  // namespace jittor
