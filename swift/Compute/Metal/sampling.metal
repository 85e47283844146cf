// sampling.metal — logits -> a token, without leaving the device.
//
//   sampling_argmax   logits [n, count]   -> tokens [n]: the highest, ties to the lower id; -1 when all are NaN
//
// Grid       one threadgroup a row
// CPU twin   CKernels/sampling.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

#define SAMPLING_THREADS 1024

[[max_total_threads_per_threadgroup(SAMPLING_THREADS)]]
kernel void sampling_argmax(device const float *logits     [[buffer(0)]],
                            device int *tokens             [[buffer(1)]],
                            constant gpu_sampling &p       [[buffer(2)]],
                            uint row                       [[threadgroup_position_in_grid]],
                            ushort tid                     [[thread_index_in_threadgroup]],
                            ushort sg                      [[simdgroup_index_in_threadgroup]],
                            ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float tops[32];
    threadgroup uint ids[32];
    device const float *line = logits + ulong(row) * p.count;
    float best = -3.402823466e+38f;
    uint id = 0x7fffffffu;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v > best || (v == best && id == 0x7fffffffu)) {
            best = v;
            id = i;
        }
    }
    float most = simd_max(best);
    uint lowest = simd_min(best == most ? id : 0x7fffffffu);
    if (lane == 0) {
        tops[sg] = most;
        ids[sg] = lowest;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    best = tops[lane];
    id = ids[lane];
    most = simd_max(best);
    lowest = simd_min(best == most ? id : 0x7fffffffu);
    if (tid == 0) { tokens[row] = lowest == 0x7fffffffu ? -1 : int(lowest); }
}
