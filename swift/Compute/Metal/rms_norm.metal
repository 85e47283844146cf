// rms_norm.metal — y = x / sqrt(mean(x²) + eps) · weight
//
//   rms_norm_f32   x [n, width], weight [width]   -> y [n, width]
//
// Grid       one threadgroup a row
// Precision  f32
// CPU twin   CKernels/rms_norm.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
#include "reduce.h"
using namespace metal;

[[max_total_threads_per_threadgroup(256)]]
kernel void rms_norm_f32(device const float *x          [[buffer(0)]],
                         device const float *weight     [[buffer(1)]],
                         device float *y                [[buffer(2)]],
                         constant gpu_rms_norm &p       [[buffer(3)]],
                         uint row                       [[threadgroup_position_in_grid]],
                         ushort tid                     [[thread_index_in_threadgroup]],
                         ushort sg                      [[simdgroup_index_in_threadgroup]],
                         ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    device const float *from = x + ulong(row) * p.width;
    device float *to = y + ulong(row) * p.width;
    float sum = 0.0f;
    for (uint i = tid; i < p.width; i += 256) { sum += from[i] * from[i]; }
    const float scale = reduce_rms(reduce_sum(sum, partial, 8, sg, lane), p.width, p.epsilon);
    for (uint i = tid; i < p.width; i += 256) { to[i] = from[i] * scale * weight[i]; }
}
