// kv_rows.metal — making rows of attention memory.
//
//   kv_key_rows        kv [n, dim], norm, table      -> rows, normed, rotated, encoded
//   kv_index_queries   q [n, heads, dim], table      -> rotated and, if asked, rounded as FP4 rows are
//
// Grid       key rows: tokens; index queries: x heads, y tokens; one simdgroup each
// Precision  f32 up to the rounding; agrees with the CPU but where a value lies between two codes
// CPU twin   CKernels/kv_rows.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
using namespace metal;

[[max_total_threads_per_threadgroup(32)]]
kernel void kv_key_rows(device const float *kv        [[buffer(0)]],
                        device const float *norm      [[buffer(1)]],
                        device const float2 *table    [[buffer(2)]],
                        device uchar *rows            [[buffer(3)]],
                        constant gpu_key_rows &p      [[buffer(4)]],
                        uint token                    [[threadgroup_position_in_grid]],
                        ushort lane                   [[thread_index_in_simdgroup]])
{
    threadgroup float v[KV_MOST_DIM];
    const uint dim = p.format.dim, plain = dim - p.format.rope;
    for (uint i = lane; i < dim; i += 32) { v[i] = kv[ulong(token) * dim + i]; }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    kv_norm(v, norm, dim, p.epsilon, lane);
    for (uint i = lane; i < p.format.rope / 2; i += 32) {
        kv_turn(v + plain + 2 * i, table[ulong(token) * (p.format.rope / 2) + i]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    kv_encode(p.format, v, rows + ulong(token) * p.format.bytes, lane);
}

[[max_total_threads_per_threadgroup(32)]]
kernel void kv_index_queries(device float *q                 [[buffer(0)]],
                             device const float2 *table      [[buffer(1)]],
                             constant gpu_index_queries &p   [[buffer(2)]],
                             uint2 tg                        [[threadgroup_position_in_grid]],
                             ushort lane                     [[thread_index_in_simdgroup]])
{
    threadgroup float v[KV_MOST_DIM];
    device float *row = q + (ulong(tg.y) * p.heads + tg.x) * p.dim;
    for (uint i = lane; i < p.dim; i += 32) { v[i] = row[i]; }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = lane; i < p.rope / 2; i += 32) {
        kv_turn(v + p.dim - p.rope + 2 * i, table[ulong(tg.y) * (p.rope / 2) + i]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (p.rounded != 0u) {
        kv_hadamard(v, p.dim, lane);
        for (uint b = 0; b < p.dim / 32; ++b) {
            const float x = v[32 * b + lane];
            const uint scale = kv_fp4_scale(x);
            row[32 * b + lane] = kv_e2m1_decode(kv_e2m1_encode(x * kv_inverse_power(scale))) * kv_power(scale);
        }
    } else {
        for (uint i = lane; i < p.dim; i += 32) { row[i] = v[i]; }
    }
}
