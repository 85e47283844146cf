// rope.metal — rotary position embedding of the last `rope` values of a row, interleaved pairs.
//
//   rope_table_f32     positions [n], frequencies [pairs]   -> table [n, pairs, 2] of (cos, sin)
//   rope_queries_f32   q [n, heads, dim], table             -> each head normed, then rotated
//
// Grid       table: one thread a pair; queries: x heads, y tokens, one simdgroup each
// Precision  f32; the angle is rounded to f32 before the cosine, as the reference implementation does
// CPU twin   CKernels/rope.c, rms_norm.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
#include "reduce.h"
using namespace metal;

kernel void rope_table_f32(device const int *positions     [[buffer(0)]],
                           device const float *frequencies [[buffer(1)]],
                           device float2 *table            [[buffer(2)]],
                           constant gpu_rope_table &p      [[buffer(3)]],
                           uint i                          [[thread_position_in_grid]])
{
    if (i >= p.n * p.pairs) { return; }
    const float angle = float(positions[i / p.pairs]) * frequencies[i % p.pairs];
    table[i] = float2(precise::cos(angle), precise::sin(angle));
}

[[max_total_threads_per_threadgroup(32)]]
kernel void rope_queries_f32(device float *q              [[buffer(0)]],
                             device const float2 *table   [[buffer(1)]],
                             constant gpu_queries &p      [[buffer(2)]],
                             uint2 tg                     [[threadgroup_position_in_grid]],
                             ushort lane                  [[thread_index_in_simdgroup]])
{
    device float2 *row = (device float2 *)(q + (ulong(tg.y) * p.heads + tg.x) * p.dim);
    const uint pairs = p.dim / 2, plain = (p.dim - p.rope) / 2;
    float sum = 0.0f;
    for (uint i = lane; i < pairs; i += 32) {
        const float2 v = row[i];
        sum += dot(v, v);
    }
    const float scale = reduce_rms(simd_sum(sum), p.dim, p.epsilon);
    for (uint i = lane; i < pairs; i += 32) {
        const float2 v = row[i] * scale;
        if (i < plain) {
            row[i] = v;
        } else {
            const float2 turn = table[ulong(tg.y) * (p.rope / 2) + i - plain];
            row[i] = float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
        }
    }
}
