// rope.metal — rotary position embedding of the last `rope` values of a row, interleaved pairs.
//
//   rope_table_f32     positions [n], frequencies [pairs]   -> table [n, pairs, 2] of (cos, sin)
//   rope_queries_f32   q [n, heads, dim], table             -> each head normed, then rotated
//
// Grid       table: one thread a pair; queries: x eight heads, a simdgroup each, y tokens
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

// Four pieces of 128 values at most: a lane has 4 · lane … of each, read once.
#define ROPE_PIECES 4
#define ROPE_THREADS 256

inline float2 rope_turn(float2 v, float2 turn) {
    return float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

[[max_total_threads_per_threadgroup(ROPE_THREADS)]]
kernel void rope_queries_f32(device float *q              [[buffer(0)]],
                             device const float2 *table   [[buffer(1)]],
                             constant gpu_queries &p      [[buffer(2)]],
                             uint2 tg                     [[threadgroup_position_in_grid]],
                             ushort sg                    [[simdgroup_index_in_threadgroup]],
                             ushort lane                  [[thread_index_in_simdgroup]])
{
    const uint head = tg.x * (ROPE_THREADS / 32) + sg, plain = p.dim - p.rope;
    if (head >= p.heads) { return; }
    device float *row = q + (ulong(tg.y) * p.heads + head) * p.dim;
    table += ulong(tg.y) * (p.rope / 2);
    float4 v[ROPE_PIECES];
    float4 turn[ROPE_PIECES];  // of the piece's two pairs
    float sum = 0.0f;
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) {
        const uint i = 128u * e + 4u * lane;
        v[e] = float4(0.0f);
        turn[e] = float4(1.0f, 0.0f, 1.0f, 0.0f);
        if (i < p.dim) { v[e] = *(device const float4 *)(row + i); }
        if (i < p.dim && i >= plain) { turn[e].xy = table[(i - plain) / 2]; }
        if (i < p.dim && i + 2 >= plain) { turn[e].zw = table[(i + 2 - plain) / 2]; }
    }
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) { sum += dot(v[e], v[e]); }
    const float scale = reduce_rms(simd_sum(sum), p.dim, p.epsilon);
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) {
        const uint i = 128u * e + 4u * lane;
        const float4 x = v[e] * scale;
        if (i < p.dim) {
            *(device float4 *)(row + i) = float4(rope_turn(x.xy, turn[e].xy), rope_turn(x.zw, turn[e].zw));
        }
    }
}
