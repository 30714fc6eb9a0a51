// What kernels compiled with -fsanitize=alignment,bounds call before an access that a GPU faults on (a vector at an
// address that is not a multiple of its size) or that is to another array. In place of the sanitizer's own library,
// which would have to be loaded before Python.
#include "device.cuh"

struct Place {  // of the source: the beginning of each of the sanitizer's records
    const char* file;
    uint32_t line, column;
};

[[noreturn]] static void stop(const Place* place, const char* why) {
    fprintf(stderr, "%s:%u: ", place->file, place->line);
    emulator::stop(why);
}

extern "C" {
__attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(Place* place, void*) {
    stop(place, "an access to an address that is null or not aligned");
}
__attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds_abort(Place* place, void*) {
    stop(place, "an index beyond its array");
}
}
