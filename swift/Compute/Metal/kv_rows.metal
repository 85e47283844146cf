// kv_rows.metal — making rows of attention memory.
//
//   kv_key_rows        kv [n, dim], norm, table      -> rows, normed, rotated, encoded
//   kv_index_queries   q [n, heads, dim], table      -> rotated and, if asked, rounded as FP4 rows are
//
// Grid       key rows: one threadgroup a token; index queries: x eight heads, a simdgroup each, y tokens
// Precision  f32 up to the rounding; agrees with the CPU but where a value lies between two codes
// CPU twin   CKernels/kv_rows.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
using namespace metal;

#define INDEX_THREADS 256

[[max_total_threads_per_threadgroup(KV_THREADS)]]
kernel void kv_key_rows(device const float *kv        [[buffer(0)]],
                        device const float *norm      [[buffer(1)]],
                        device const float2 *table    [[buffer(2)]],
                        device uchar *rows            [[buffer(3)]],
                        constant gpu_key_rows &p      [[buffer(4)]],
                        uint token                    [[threadgroup_position_in_grid]],
                        ushort tid                    [[thread_index_in_threadgroup]],
                        ushort sg                     [[simdgroup_index_in_threadgroup]],
                        ushort lane                   [[thread_index_in_simdgroup]])
{
    threadgroup float2 shared[KV_THREADS];
    threadgroup float partial[32];
    const uint dim = p.format.dim, plain = dim - p.format.rope;
    const bool isOwn = 2u * tid < dim, turns = isOwn && 2u * tid >= plain;
    float2 v = float2(0.0f), weight = float2(0.0f), turn = float2(1.0f, 0.0f);
    if (isOwn) {
        v = ((device const float2 *)(kv + ulong(token) * dim))[tid];
        weight = ((device const float2 *)norm)[tid];
    }
    if (turns) { turn = table[ulong(token) * (p.format.rope / 2) + tid - plain / 2]; }
    v = kv_norm(v, weight, dim, p.epsilon, partial, sg, lane);
    if (turns) { v = kv_turn(v, turn); }
    kv_encode(p.format, v, shared, rows + ulong(token) * p.format.bytes, tid, sg, lane);
}

// A lane holds values 128 · e + 4 · lane … of the row, 4 · EACH in all.
template <ushort EACH>
inline void index_query(device float *row, device const float2 *table, constant gpu_index_queries &p, ushort lane) {
    const uint plain = p.dim - p.rope;
    float4 v[EACH];
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        v[e] = i < p.dim ? *(device const float4 *)(row + i) : float4(0.0f);
    }
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        if (i >= plain && i < p.dim) { v[e].xy = kv_turn(v[e].xy, table[(i - plain) / 2]); }
        if (i + 2 >= plain && i < p.dim) { v[e].zw = kv_turn(v[e].zw, table[(i + 2 - plain) / 2]); }
    }
    if (p.rounded != 0u) {
        // Sylvester's matrix, as kv_hadamard.
        #pragma unroll
        for (ushort e = 0; e < EACH; ++e) {
            v[e] = float4(v[e].x + v[e].y, v[e].x - v[e].y, v[e].z + v[e].w, v[e].z - v[e].w);
            v[e] = float4(v[e].x + v[e].z, v[e].y + v[e].w, v[e].x - v[e].z, v[e].y - v[e].w);
            #pragma unroll
            for (ushort bit = 1; bit < 32; bit *= 2) {
                const bool isUpper = (lane & bit) != 0;
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) {
                    const float own = v[e][j], other = simd_shuffle_xor(own, bit);
                    v[e][j] = 4u * bit < p.dim ? kv_butterfly(own, other, isUpper) : own;
                }
            }
        }
        #pragma unroll
        for (ushort step = 1; step < EACH; step *= 2) {
            #pragma unroll
            for (ushort e = 0; e < EACH; ++e) {
                if ((e & step) == 0) {
                    const float4 low = v[e], high = v[e + step];
                    v[e] = low + high;
                    v[e + step] = low - high;
                }
            }
        }
        const float factor = 1.0f / sqrt(float(p.dim));
        #pragma unroll
        for (ushort e = 0; e < EACH; ++e) {
            const float4 x = v[e] * factor;
            float most = max(max(fabs(x.x), fabs(x.y)), max(fabs(x.z), fabs(x.w)));
            for (ushort bit = 1; bit < 8; bit *= 2) { most = max(most, simd_shuffle_xor(most, bit)); }
            const uint scale = kv_fp4_scale(most);
            const float inverse = kv_inverse_power(scale), power = kv_power(scale);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { v[e][j] = kv_e2m1_decode(kv_e2m1_encode(x[j] * inverse)) * power; }
        }
    }
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        if (i < p.dim) { *(device float4 *)(row + i) = v[e]; }
    }
}

[[max_total_threads_per_threadgroup(INDEX_THREADS)]]
kernel void kv_index_queries(device float *q                 [[buffer(0)]],
                             device const float2 *table      [[buffer(1)]],
                             constant gpu_index_queries &p   [[buffer(2)]],
                             uint2 tg                        [[threadgroup_position_in_grid]],
                             ushort sg                       [[simdgroup_index_in_threadgroup]],
                             ushort lane                     [[thread_index_in_simdgroup]])
{
    const uint head = tg.x * (INDEX_THREADS / 32) + sg;
    if (head >= p.heads) { return; }
    device float *row = q + (ulong(tg.y) * p.heads + head) * p.dim;
    table += ulong(tg.y) * (p.rope / 2);
    if (p.dim <= 128) {
        index_query<1>(row, table, p, lane);
    } else if (p.dim <= 256) {
        index_query<2>(row, table, p, lane);
    } else {
        index_query<4>(row, table, p, lane);
    }
}
