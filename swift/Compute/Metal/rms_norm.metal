// rms_norm.metal — y = x / sqrt(mean(x²) + eps) · weight
//
//   rms_norm_f32   x [n, width], weight [width]   -> y [n, width]; width a multiple of 4
//
// Grid       one threadgroup a row
// Precision  f32
// CPU twin   CKernels/rms_norm.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
#include "reduce.h"
using namespace metal;

#define NORM_THREADS 256
#define NORM_MOST 2  // quads a thread keeps from the sum to the product; what is beyond is read again

[[max_total_threads_per_threadgroup(NORM_THREADS)]]
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
    const uint quads = p.width / 4;
    device const float4 *from = (device const float4 *)(x + ulong(row) * p.width);
    device const float4 *factor = (device const float4 *)weight;
    device float4 *to = (device float4 *)(y + ulong(row) * p.width);
    float4 v[NORM_MOST];
    float4 w[NORM_MOST];
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) {
        const uint at = i * NORM_THREADS + tid;
        v[i] = float4(0.0f);
        w[i] = float4(0.0f);
        if (at < quads) {
            v[i] = from[at];
            w[i] = factor[at];
        }
    }
    float sum = 0.0f;
    for (uint i = NORM_MOST * NORM_THREADS + tid; i < quads; i += NORM_THREADS) { sum += dot(from[i], from[i]); }
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) { sum += dot(v[i], v[i]); }
    const float scale = reduce_rms(reduce_sum(sum, partial, NORM_THREADS / 32, sg, lane), p.width, p.epsilon);
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) {
        const uint at = i * NORM_THREADS + tid;
        if (at < quads) { to[at] = v[i] * scale * w[i]; }
    }
    for (uint i = NORM_MOST * NORM_THREADS + tid; i < quads; i += NORM_THREADS) { to[i] = from[i] * scale * factor[i]; }
}
