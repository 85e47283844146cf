// fake_cuda.cpp — a CUDA driver and NVRTC of no GPU: memory is the CPU's, kernels are the emulator's. What
// CUDADevice asks of a driver can then be tested anywhere, graphs included.
//
// Stricter than a GPU where order matters: of the nodes of a graph that may run, the last one added runs
// first, so that a missing dependency shows.
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <string>
#include <vector>

namespace {
typedef int (*dispatch_fn)(const char *, const unsigned *, const unsigned *, void **);
typedef int (*arguments_fn)(const char *, size_t *);
dispatch_fn dispatch;
arguments_fn arguments;
long launches, replays, made;

struct call {
    std::string kernel;
    unsigned grid[3], block[3];
    std::vector<std::vector<char>> values;
    std::vector<size_t> after;
};
struct graph { std::vector<call> calls; };
struct node_parameters {
    void *function;
    unsigned grid[3], block[3], shared;
    void **parameters, **extra;
    void *kernel, *context;
};

call take(void *function, const unsigned *grid, const unsigned *block, void **parameters) {
    call c;
    c.kernel = static_cast<const char *>(function);
    std::copy(grid, grid + 3, c.grid);
    std::copy(block, block + 3, c.block);
    size_t sizes[31];
    const int count = arguments(c.kernel.c_str(), sizes);
    for (int i = 0; i < count; ++i) {
        const char *from = static_cast<const char *>(parameters[i]);
        c.values.emplace_back(from, from + sizes[i]);
    }
    return c;
}

int run(call &c) {
    std::vector<void *> pointers;
    for (size_t i = 0; i < c.values.size(); ++i) {
        void *pointer = c.values[i].data();
        // The last one is the struct itself, the others are addresses.
        if (i + 1 < c.values.size()) memcpy(&pointer, c.values[i].data(), sizeof pointer);
        pointers.push_back(pointer);
    }
    return dispatch(c.kernel.c_str(), c.grid, c.block, pointers.data()) == 0 ? 0 : 719;
}
}

extern "C" {
void fake_cuda_counts(long *out) {
    out[0] = launches;
    out[1] = replays;
    out[2] = made;
}

int cuInit(unsigned) {
    void *emulator = dlopen(getenv("PYDS4_EMULATOR"), RTLD_NOW | RTLD_LOCAL);
    if (!emulator) return 999;
    dispatch = reinterpret_cast<dispatch_fn>(dlsym(emulator, "msl_dispatch_direct"));
    arguments = reinterpret_cast<arguments_fn>(dlsym(emulator, "msl_arguments"));
    return dispatch && arguments ? 0 : 999;
}
int cuGetErrorString(int, const char **text) { *text = "of the fake driver"; return 0; }
int cuDeviceGet(int *device, int) { *device = 0; return 0; }
int cuDeviceGetName(char *name, int, int) { strcpy(name, "Fake GPU"); return 0; }
int cuDeviceGetAttribute(int *value, int which, int) { *value = which == 75 ? 9 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int) { *context = context; return 0; }
int cuCtxSetCurrent(void *) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = size_t(1) << 36; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) { *address = reinterpret_cast<uint64_t>(aligned_alloc(256, (size + 255) / 256 * 256)); return *address ? 0 : 2; }
int cuMemFree_v2(uint64_t address) { free(reinterpret_cast<void *>(address)); return 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned) { *address = malloc(size); return *address ? 0 : 2; }
int cuMemFreeHost(void *address) { free(address); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *) { memcpy(reinterpret_cast<void *>(to), from, n); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *) { memcpy(to, reinterpret_cast<void *>(from), n); return 0; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *) { memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n); return 0; }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void *) { memset(reinterpret_cast<void *>(to), value, n); return 0; }
int cuModuleLoadData(void **module, const void *code) { *module = module; return memcmp(code, "fake", 4) == 0 ? 0 : 200; }
int cuModuleUnload(void *) { return 0; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    size_t sizes[31];
    if (strncmp(name, "msl_", 4) != 0 || arguments(name + 4, sizes) < 0) return 500;
    *function = strdup(name + 4);
    return 0;
}
int cuFuncSetAttribute(void *, int, int) { return 0; }
int cuStreamCreate(void **stream, unsigned) { *stream = stream; return 0; }
int cuStreamDestroy_v2(void *) { return 0; }
int cuStreamSynchronize(void *) { return 0; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void *, void **parameters, void **) {
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    call c = take(function, grid, block, parameters);
    ++launches;
    return run(c);
}
int cuEventCreate(void **event, unsigned) { *event = event; return 0; }
int cuEventRecord(void *, void *) { return 0; }
int cuEventElapsedTime(float *milliseconds, void *, void *) { *milliseconds = 0; return 0; }

// A node's handle is its number, from 1.
int cuGraphCreate(void **out, unsigned) { *out = new graph; return 0; }
int cuGraphAddKernelNode_v2(void **node, void *in, void *const *after, size_t count, const node_parameters *p) {
    graph *g = static_cast<graph *>(in);
    g->calls.push_back(take(p->function, p->grid, p->block, p->parameters));
    for (size_t i = 0; i < count; ++i) g->calls.back().after.push_back(reinterpret_cast<size_t>(after[i]) - 1);
    *node = reinterpret_cast<void *>(g->calls.size());
    return 0;
}
int cuGraphAddDependencies_v2(void *in, void *const *from, void *const *to, const unsigned char *edge, size_t count) {
    graph *g = static_cast<graph *>(in);
    if (edge[0] != 1 || edge[2] != 1) return 1;
    for (size_t i = 0; i < count; ++i) {
        g->calls[reinterpret_cast<size_t>(to[i]) - 1].after.push_back(reinterpret_cast<size_t>(from[i]) - 1);
    }
    return 0;
}
int cuGraphInstantiateWithFlags(void **out, void *in, unsigned long long) {
    ++made;
    // Like some drivers when they run short: the engine must go on without.
    const char *most = getenv("FAKE_CUDA_MOST_GRAPHS");
    if (most && made > atol(most)) return 2;
    *out = new graph(*static_cast<graph *>(in));
    return 0;
}
int cuGraphLaunch(void *in, void *) {
    graph *g = static_cast<graph *>(in);
    ++replays;
    std::vector<char> done(g->calls.size(), 0);
    for (size_t left = done.size(); left > 0; --left) {
        size_t next = done.size();
        for (size_t i = done.size(); i-- > 0 && next == done.size();) {
            const auto &after = g->calls[i].after;
            if (!done[i] && std::all_of(after.begin(), after.end(), [&](size_t a) { return done[a]; })) next = i;
        }
        if (next == done.size()) return 999;
        if (int status = run(g->calls[next])) return status;
        done[next] = 1;
    }
    return 0;
}
int cuGraphDestroy(void *g) { delete static_cast<graph *>(g); return 0; }
int cuGraphExecDestroy(void *g) { delete static_cast<graph *>(g); return 0; }

int nvrtcCreateProgram(void **program, const char *, const char *, int, void *, void *) { *program = program; return 0; }
int nvrtcCompileProgram(void *, int, const char *const *) { return 0; }
int nvrtcDestroyProgram(void **) { return 0; }
int nvrtcGetProgramLogSize(void *, size_t *size) { *size = 1; return 0; }
int nvrtcGetProgramLog(void *, char *log) { *log = 0; return 0; }
int nvrtcGetCUBINSize(void *, size_t *size) { *size = 4; return 0; }
int nvrtcGetCUBIN(void *, char *code) { memcpy(code, "fake", 4); return 0; }
}
