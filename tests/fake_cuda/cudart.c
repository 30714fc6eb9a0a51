// A CUDA runtime without a GPU: memory is the host's, copies to it copy, kernels are counted and not run.
// Compiled against the toolkit's own headers, so that its structures are theirs.
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "calls.h"
#include "device.h"

#define OUT(pointer, value) *(void **)(pointer) = (void *)(value)

// Counters

static fake_counter *counters;
static int capturing;

void fake_called(fake_counter *counter) {
    if (!counter->calls && !counter->captured) {
        fake_counter *each = counters;
        while (each && each != counter) each = each->next;
        if (!each) {
            counter->next = counters;
            counters = counter;
        }
    }
    __atomic_fetch_add(capturing ? &counter->captured : &counter->calls, 1, __ATOMIC_RELAXED);
}

fake_counter *fake_counters(void) { return counters; }

void fake_reset(void) {
    for (fake_counter *each = counters; each; each = each->next) each->calls = each->captured = 0;
}

// Kernels: a table from the host's function to its counter.

enum { KERNELS = 1 << 16 };
static struct { const void *function; fake_counter counter; } kernels[KERNELS];

static fake_counter *kernel(const void *function) {
    size_t place = ((uintptr_t)function >> 4) * 0x9E3779B97F4A7C15u >> 48;
    while (kernels[place].function && kernels[place].function != function) place = (place + 1) % KERNELS;
    kernels[place].function = function;
    kernels[place].counter.kind = FAKE_KERNEL;
    return &kernels[place].counter;
}

void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name, int limit,
                            void *thread, void *block, void *block_size, void *grid_size, int *warp_size) {
    kernel(function)->name = name;
}

cudaError_t __cudaGetKernel(cudaKernel_t *found, const void *function) {
    OUT(found, function);
    return cudaSuccess;
}

static cudaError_t launched(const void *function) {
    fake_counter *counter = kernel(function);
    if (!counter->name) return cudaErrorInvalidDeviceFunction;
    fake_called(counter);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *function, struct dim3 grid, struct dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
    return launched(function);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t function, struct dim3 grid, struct dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream) {
    return launched((const void *)function);
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, struct dim3 grid, struct dim3 block, void **arguments,
                                        size_t shared, cudaStream_t stream) {
    return launched(function);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    return launched(function);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}

static _Thread_local struct { struct dim3 grid, block; size_t shared; struct CUstream_st *stream; } configuration;

unsigned __cudaPushCallConfiguration(struct dim3 grid, struct dim3 block, size_t shared, struct CUstream_st *stream) {
    configuration.grid = grid, configuration.block = block;
    configuration.shared = shared, configuration.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(struct dim3 *grid, struct dim3 *block, size_t *shared, void *stream) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
    OUT(stream, configuration.stream);
    return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    return handle;
}

// The device

static int major(void) { return fake_capability() / 10; }

cudaError_t cudaGetDeviceCount(int *count) { *count = fake_devices(); return *count ? cudaSuccess : cudaErrorNoDevice; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = fake_driver(); return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = fake_memory();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "fake");
    properties->major = major(), properties->minor = fake_capability() % 10;
    properties->totalGlobalMem = fake_memory();
    properties->multiProcessorCount = 82, properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024, properties->maxThreadsPerMultiProcessor = 1536;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024, properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647, properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->sharedMemPerBlock = 49152, properties->sharedMemPerBlockOptin = fake_shared();
    properties->sharedMemPerMultiprocessor = fake_shared() + 1024;
    properties->l2CacheSize = 6 << 20, properties->unifiedAddressing = properties->managedMemory = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = major(); break;
    case cudaDevAttrComputeCapabilityMinor: *value = fake_capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 82; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = fake_shared(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = fake_shared() + 1024; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 1;
    }
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                          size_t shared) {
    *blocks = threads > 768 ? 1 : 1536 / threads;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                                   size_t shared, unsigned flags) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = fake_capability();
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t error) { return error ? "fakeError" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t error) { return error ? "an error of the fake runtime" : "no error"; }

// Memory

static cudaError_t allocated(void **memory, size_t size) {
    CALLED(FAKE_CALL, "allocation");
    *memory = calloc(1, size + 256);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMalloc(void **memory, size_t size) { return allocated(memory, size); }
cudaError_t cudaMallocManaged(void **memory, size_t size, unsigned flags) { return allocated(memory, size); }
cudaError_t cudaMallocHost(void **memory, size_t size) { return allocated(memory, size); }
cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags) { return allocated(memory, size); }
cudaError_t cudaMallocAsync(void **memory, size_t size, cudaStream_t stream) { return allocated(memory, size); }
cudaError_t cudaFree(void *memory) { free(memory); return cudaSuccess; }
cudaError_t cudaFreeHost(void *memory) { free(memory); return cudaSuccess; }
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) { free(memory); return cudaSuccess; }

// What comes back from the device is the integer 1: a token in range, a flag that is set, a float that is finite.
static cudaError_t copied(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (kind == cudaMemcpyDeviceToHost)
        for (size_t i = 0; i < size; i++) ((char *)to)[i] = i % 4 == 0;
    else
        memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    CALLED(FAKE_COPY, "cudaMemcpy");
    return copied(to, from, size, kind);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    CALLED(FAKE_COPY, "cudaMemcpyAsync");
    return copied(to, from, size, kind);
}
cudaError_t cudaMemset(void *memory, int value, size_t size) {
    CALLED(FAKE_COPY, "cudaMemset");
    memset(memory, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream) {
    CALLED(FAKE_COPY, "cudaMemsetAsync");
    memset(memory, value, size);
    return cudaSuccess;
}

// Streams, events and graphs: handles that are not null

static char something;

cudaError_t cudaStreamCreate(cudaStream_t *stream) { OUT(stream, &something); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { OUT(event, &something); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = 1;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = 0;
    OUT(graph, &something);
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
#if CUDART_VERSION >= 12000
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
#else
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, cudaGraphNode_t *node, char *log,
                                 size_t size) {
#endif
    OUT(executable, &something);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    OUT(executable, &something);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    CALLED(FAKE_KERNEL, "cudaGraphLaunch");
    return cudaSuccess;
}
