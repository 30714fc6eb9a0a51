// The device, as environment variables describe it: FAKE_CUDA_CAPABILITY (8.6), FAKE_CUDA_DEVICES (1),
// FAKE_CUDA_DRIVER (the newest CUDA it runs, such as 12.4), FAKE_CUDA_MEMORY (bytes).
#pragma once
#include <stdio.h>
#include <stdlib.h>

static int fake_pair(const char *name, int first, int second, int scale) {
    const char *text = getenv(name);
    if (text) sscanf(text, "%d.%d", &first, &second);
    return first * scale + second;
}
static int fake_capability(void) { return fake_pair("FAKE_CUDA_CAPABILITY", 8, 6, 10); }
static int fake_driver(void) { return fake_pair("FAKE_CUDA_DRIVER", 13, 0, 100) * 10; }  // 12.4: 12040
static int fake_devices(void) { return fake_pair("FAKE_CUDA_DEVICES", 1, 0, 1); }
static size_t fake_memory(void) {
    const char *text = getenv("FAKE_CUDA_MEMORY");
    return text ? strtoull(text, 0, 10) : 8ull << 30;
}
static int fake_shared(void) {  // bytes of shared memory a block may have
    switch (fake_capability()) {
    case 75: return 65536;
    case 80: return 166912;
    case 90: case 100: case 103: return 232448;
    default: return 101376;
    }
}
