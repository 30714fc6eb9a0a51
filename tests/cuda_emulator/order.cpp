#include "device.cuh"

extern "C" __attribute__((visibility("default"))) void jl_emulator_order(int order) { emulator::order() = order; }
