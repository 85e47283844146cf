// sampling.metal — what is needed of a row of logits to choose a token, without taking the row along.
//
//   sampling_scan   logits [n, count], temperatures [n], selected [n, listed], counts [n]
//                     -> out [n, 3 + 2 · listed]: the id of the highest logit (ties: the lower id; -1 when all
//                        are NaN or -inf), that logit, Σ exp((logit - highest) / temperature) over those
//                        that a random number can hit, then ids and logits of the selected ones
//
// `selected` are the highest ones, ascending, by indexer_top_k; none where listed is 0.
//
// Grid       one threadgroup a row
// Precision  f32; the sum has one order
// CPU twin   CKernels/sampling.c; the walk over the list is in GPUSampling.swift
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
#include "reduce.h"
using namespace metal;

#define SAMPLING_THREADS 1024

[[max_total_threads_per_threadgroup(SAMPLING_THREADS)]]
kernel void sampling_scan(device const float *logits       [[buffer(0)]],
                          device const float *temperatures [[buffer(1)]],
                          device const int *selected       [[buffer(2)]],
                          device const int *counts         [[buffer(3)]],
                          device int *out                  [[buffer(4)]],
                          constant gpu_sampling &p         [[buffer(5)]],
                          uint row                         [[threadgroup_position_in_grid]],
                          ushort tid                       [[thread_index_in_threadgroup]],
                          ushort sg                        [[simdgroup_index_in_threadgroup]],
                          ushort lane                      [[thread_index_in_simdgroup]])
{
    threadgroup float tops[32];
    threadgroup uint ids[32];
    threadgroup float partial[32];
    const uint none = 0x7fffffffu;
    device const float *line = logits + ulong(row) * p.count;
    device int *result = out + ulong(row) * (3 + 2 * p.listed);
    float best = as_type<float>(0xff800000u);  // -inf
    uint id = none;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v > best) {
            best = v;
            id = i;
        }
    }
    float most = simd_max(best);
    uint lowest = simd_min(best == most ? id : none);
    if (lane == 0) {
        tops[sg] = most;
        ids[sg] = lowest;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    best = tops[lane];
    id = ids[lane];
    most = simd_max(best);
    lowest = simd_min(best == most ? id : none);

    const float temperature = temperatures[row], least = most - 40.0f * temperature;
    float sum = 0.0f;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v >= least) { sum += exp((v - most) / temperature); }
    }
    const float total = reduce_sum(sum, partial, SAMPLING_THREADS / 32, sg, lane);
    if (tid == 0) {
        result[0] = lowest == none ? -1 : int(lowest);
        result[1] = as_type<int>(most);
        result[2] = as_type<int>(total);
    }
    if (p.listed == 0u) { return; }
    for (uint i = tid; i < p.listed; i += SAMPLING_THREADS) {
        const int chosen = int(i) < counts[row] ? selected[ulong(row) * p.listed + i] : -1;
        result[3 + i] = chosen;
        result[3 + p.listed + i] = chosen < 0 ? 0 : as_type<int>(line[chosen]);
    }
}
