// attention.metal — attention with one shared key = value row a position, a sliding window, compressed
// rows and a sink (report §2.3).
//
//   attention_split   one share of a token's rows for ATT_HEADS heads  -> parts [splits, n, heads, dim], and
//                                                                          sums [splits, n, heads] of (maximum, sum)
//   attention_merge   the shares, the sink, the inverse rotation       -> out [n, heads, dim]; and the last rows
//                                                                          of the call into their slots of the ring
//
// A token at p sees window rows (p - window, p], those before the call from the ring, then compressed rows:
// the selected ones, or the first (p + 1) / ratio.
//
// Grid       split: x shares, y groups of heads, z tokens (each at most 65535); merge: x heads, y tokens
// Precision  f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
using namespace metal;

#define ATT_SIMDGROUPS 8
#define ATT_SIMD_HEADS 2
#define ATT_HEADS (ATT_SIMDGROUPS * ATT_SIMD_HEADS)
#define ATT_ROWS 8
#define ATT_LANE (KV_MOST_DIM / 128)  // float4 a lane holds of a row: value (v · 32 + lane) · 4 …

[[max_total_threads_per_threadgroup(ATT_SIMDGROUPS * 32)]]
kernel void attention_split(device const float *q              [[buffer(0)]],
                            device const uchar *ring           [[buffer(1)]],
                            device const uchar *chunk          [[buffer(2)]],
                            device const kv_page *pages        [[buffer(3)]],
                            device const int *selected         [[buffer(4)]],
                            device const int *counts           [[buffer(5)]],
                            device const int *positions        [[buffer(6)]],
                            device float *parts                [[buffer(7)]],
                            device float2 *sums                [[buffer(8)]],
                            constant gpu_attention &p          [[buffer(9)]],
                            uint3 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup float4 tile[ATT_ROWS * KV_MOST_DIM / 4];
    const uint token = tg.z, dim = p.format.dim, quads = dim / 4;
    const uint first = uint(positions[0]), position = uint(positions[token]);
    const uint start = position + 1 > p.window ? position + 1 - p.window : 0, in_window = position + 1 - start;
    const uint compressed = p.ratio == 0u ? 0u : p.top != 0u ? uint(counts[token]) : (position + 1) / p.ratio;
    const uint all = in_window + compressed, share = (all + p.splits - 1) / p.splits;
    const uint from = min(tg.x * share, all), to = min(from + share, all);

    float4 query[ATT_SIMD_HEADS][ATT_LANE];
    float4 sum[ATT_SIMD_HEADS][ATT_LANE];
    float top[ATT_SIMD_HEADS];
    float weight[ATT_SIMD_HEADS];
    const uint head = tg.y * ATT_HEADS + sg * ATT_SIMD_HEADS;
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        device const float4 *line = (device const float4 *)(q + (ulong(token) * p.heads + min(head + h, p.heads - 1)) * dim);
        #pragma unroll
        for (ushort v = 0; v < ATT_LANE; ++v) {
            const uint i = v * 32u + lane;
            query[h][v] = i < quads ? line[i] * p.scale : float4(0.0f);
            sum[h][v] = float4(0.0f);
        }
        top[h] = -1.0e30f;
        weight[h] = 0.0f;
    }
    for (uint at = from; at < to; at += ATT_ROWS) {
        const uint rows = min(to - at, uint(ATT_ROWS));
        // Simdgroup s decodes row s; rows past the end repeat the last one and weigh nothing.
        const uint place = at + min(uint(sg), rows - 1);
        device const uchar *line;
        if (place < in_window) {
            const uint seen = start + place;
            line = seen < first ? ring + ulong(seen % p.window) * p.format.bytes
                                : chunk + ulong(seen - first) * p.format.bytes;
        } else {
            const uint row = p.top != 0u ? uint(selected[ulong(token) * p.top + place - in_window]) : place - in_window;
            line = kv_row(pages, p.rows_per_page, p.format.bytes, row);
        }
        #pragma unroll
        for (ushort v = 0; v < ATT_LANE; ++v) {
            const uint i = v * 32u + lane;
            if (i < quads) { tile[sg * quads + i] = kv_decode4(p.format, line, i); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float score[ATT_SIMD_HEADS][ATT_ROWS];
        #pragma unroll
        for (ushort r = 0; r < ATT_ROWS; ++r) {
            #pragma unroll
            for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { score[h][r] = 0.0f; }
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) {
                    const float4 k = tile[r * quads + i];
                    #pragma unroll
                    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { score[h][r] += dot(query[h][v], k); }
                }
            }
        }
        #pragma unroll
        for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
            float most = top[h];
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                const float s = simd_sum(score[h][r]);
                score[h][r] = r < rows ? s : -1.0e30f;
                most = max(most, score[h][r]);
            }
            const float fade = exp(top[h] - most);
            top[h] = most;
            weight[h] *= fade;
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) { sum[h][v] = sum[h][v] * fade; }
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                score[h][r] = exp(score[h][r] - most);
                weight[h] += score[h][r];
            }
        }
        #pragma unroll
        for (ushort r = 0; r < ATT_ROWS; ++r) {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) {
                    const float4 k = tile[r * quads + i];
                    #pragma unroll
                    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { sum[h][v] = sum[h][v] + k * score[h][r]; }
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        if (head + h < p.heads) {
            const ulong place = (ulong(tg.x) * p.n + token) * p.heads + head + h;
            device float4 *line = (device float4 *)(parts + place * dim);
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) { line[i] = sum[h][v]; }
            }
            if (lane == 0) { sums[place] = float2(top[h], weight[h]); }
        }
    }
}

#define MERGE_THREADS 128

[[max_total_threads_per_threadgroup(MERGE_THREADS)]]
kernel void attention_merge(device const float *parts          [[buffer(0)]],
                            device const float2 *sums          [[buffer(1)]],
                            device const float *sinks          [[buffer(2)]],
                            device const float2 *table         [[buffer(3)]],
                            device const uchar *chunk          [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device float *out                  [[buffer(6)]],
                            device uchar *ring                 [[buffer(7)]],
                            constant gpu_attention &p          [[buffer(8)]],
                            uint2 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]])
{
    const uint head = tg.x, token = tg.y, dim = p.format.dim, plain = (dim - p.format.rope) / 2;
    const ulong place = ulong(token) * p.heads + head, step = ulong(p.n) * p.heads;
    float most = sinks[head];
    for (uint s = 0; s < p.splits; ++s) { most = max(most, sums[place + s * step].x); }
    float weight = exp(sinks[head] - most);
    for (uint s = 0; s < p.splits; ++s) {
        const float2 share = sums[place + s * step];
        weight += share.y * exp(share.x - most);
    }
    const float inverse = 1.0f / weight;
    for (uint i = tid; i < dim / 2; i += MERGE_THREADS) {
        float2 v = float2(0.0f);
        for (uint s = 0; s < p.splits; ++s) {
            const float fade = exp(sums[place + s * step].x - most);
            v = v + ((device const float2 *)(parts + (place + s * step) * dim))[i] * fade;
        }
        v = v * inverse;
        if (i >= plain) {
            const float2 turn = table[ulong(token) * (p.format.rope / 2) + i - plain];
            v = float2(v.x * turn.x + v.y * turn.y, v.y * turn.x - v.x * turn.y);
        }
        ((device float2 *)(out + place * dim))[i] = v;
    }
    if (head == 0 && token + p.window >= p.n) {
        const uint slot = uint(positions[token]) % p.window;
        device const uint *from = (device const uint *)(chunk + ulong(token) * p.format.bytes);
        device uint *to = (device uint *)(ring + ulong(slot) * p.format.bytes);
        for (uint i = tid; i < p.format.bytes / 4; i += MERGE_THREADS) { to[i] = from[i]; }
    }
}
