// attention_prompt.metal — attention over prompts, heads of 512 and FP8 or f32 rows (see attention.metal).
//
//   attention_tiles   q, rows, sink, the inverse rotation   -> out [n, heads, dim]; the ring is attention_merge's
//
// All heads of a token at once: rows are brought and decoded once for them.
//
// Grid       x groups of TILES_HEADS heads, y tokens
// Precision  queries, rows and weights of rows rounded to half, sums f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#include "attention.h"
using namespace metal;

#define TILES_HEADS 64

// A tile of rows on its way; IS_FP8: or else any other format.
template <bool IS_FP8>
inline void tiles_load(thread kv_share &share, thread uint2 *v, constant gpu_attention &p, device const uchar *row,
                       uint t) {
    if (IS_FP8) {
        kv_load_share(share, row, t, 16);
    } else {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) { v[j] = as_type<uint2>(half4(att_swap(kv_decode4(p.format, row, t + 16 * j)))); }
    }
}

template <bool IS_FP8>
inline void tiles_decode(thread kv_share &share, thread uint2 *v, uint t) {
    uint2 low;
    if (IS_FP8) { att_halfs(share, v, low, t); }
}

// A simdgroup owns 32 heads and 128 channels of queries, rows and output: a score is the sum of four partial
// ones.
template <bool IS_FP8>
inline void tiles_attend(device const float *q, thread att_list &l, constant gpu_attention &p, uint head,
                         device const float *sinks, device const float *table, device float *out, threadgroup half *rows,
                         threadgroup float *partial, threadgroup half *weights, threadgroup float *fades, ushort tid,
                         ushort sg, ushort lane) {
    const ushort half_of_heads = sg & 1, quarter = sg / 2;
    const uint channel = quarter * 128u, t = tid & 15;
    kv_share share;
    att_rows r;
    r.from = 0;
    r.to = l.all;
    device const uchar *next = att_next(r, l, p, 0, sg, lane);
    uint2 v[8];
    tiles_load<IS_FP8>(share, v, p, next, t);
    // Queries become matrices by way of the rows' memory, sixteen heads at a time; all are on their way before.
    tile_a query[2][8];
    float4 x[4][8];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort e = 0; e < 8; ++e) {
            const uint h = min(head + i * 16u + tid / 128 + 2 * e, p.heads - 1);
            x[i][e] = *(device const float4 *)(q + ulong(h) * ATT_DIM + tid % 128 * 4);
        }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort e = 0; e < 8; ++e) {
            *(threadgroup half4 *)(rows + (tid / 128 + 2 * e) * ATT_LD + tid % 128 * 4) = half4(att_swap(x[i][e]));
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (half_of_heads == i / 2) {
            #pragma unroll
            for (ushort k = 0; k < 8; ++k) { tile_load_a(query[i & 1][k], rows + channel + 16 * k, ATT_LD, lane); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[2][8];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) { tile_zero(sum[i][j]); }
    }
    // Of head tid / 4: the same in four lanes, and each lane's share of the weight.
    float top = ATT_NONE, weight = 0.0f;
    const float scale = p.scale * ATT_LOG2E;
    tiles_decode<IS_FP8>(share, v, t);
    next = att_next(r, l, p, 1, sg, lane);
    for (uint at = 0, tile = 0; at < l.all; at += ATT_TILE, ++tile) {
        att_put(rows + tid / 16 * ATT_LD, v, t);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            tile_c score[2];
            tile_zero(score[0]);
            tile_zero(score[1]);
            #pragma unroll
            for (ushort k = 0; k < 8; ++k) {
                tile_b key;
                tile_load_bt(key, rows + channel + 16 * k, ATT_LD, lane);
                tile_mma(score[0], query[0][k], key);
                tile_mma(score[1], query[1][k], key);
            }
            threadgroup float *slot = partial + ((quarter & 1) * TILES_HEADS + half_of_heads * 32) * ATT_TILE;
            if (quarter >= 2) {
                tile_stage(score[0], slot, ATT_TILE, lane);
                tile_stage(score[1], slot + 256, ATT_TILE, lane);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (quarter < 2) {
                tile_add(score[0], slot, ATT_TILE, lane);
                tile_add(score[1], slot + 256, ATT_TILE, lane);
                simdgroup_barrier(mem_flags::mem_threadgroup);
                tile_stage(score[0], slot, ATT_TILE, lane);
                tile_stage(score[1], slot + 256, ATT_TILE, lane);
            }
        }
        // The next tile begins to arrive; where the one after that lies is known by then. Behind the last tile
        // its last row comes again.
        tiles_load<IS_FP8>(share, v, p, next, t);
        next = att_next(r, l, p, tile + 2, sg, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            // Head tid / 4, rows 4·(tid % 4) … of the tile.
            float4 s = *(threadgroup const float4 *)(partial + tid * 4)
                     + *(threadgroup const float4 *)(partial + TILES_HEADS * ATT_TILE + tid * 4);
            const uint row = at + (tid & 3) * 4;
            s = s * scale;
            s.x = row < l.all ? s.x : ATT_NONE;
            s.y = row + 1 < l.all ? s.y : ATT_NONE;
            s.z = row + 2 < l.all ? s.z : ATT_NONE;
            s.w = row + 3 < l.all ? s.w : ATT_NONE;
            float most = max(max(s.x, s.y), max(s.z, s.w));
            most = max(most, simd_shuffle_xor(most, 1));
            most = max(most, simd_shuffle_xor(most, 2));
            const float fade = att_fade(top, most);
            s = float4(exp2(s.x - top), exp2(s.y - top), exp2(s.z - top), exp2(s.w - top));
            weight = weight * fade + ((s.x + s.y) + (s.z + s.w));
            *(threadgroup half4 *)(weights + tid / 4 * ATT_WEIGHT_LD + (tid & 3) * 4) = half4(s);
            if ((tid & 3) == 0) { fades[tid / 4] = fade; }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd_any(fades[half_of_heads * 32 + lane] != 1.0f)) {
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) {
                #pragma unroll
                for (ushort j = 0; j < 8; ++j) { tile_scale_rows(sum[i][j], fades + half_of_heads * 32 + 16 * i, lane); }
            }
        }
        tile_a given[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            tile_load_a(given[i], weights + (half_of_heads * 32 + 16 * i) * ATT_WEIGHT_LD, ATT_WEIGHT_LD, lane);
        }
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, ATT_LD, lane);
            tile_mma(sum[0][j], given[0], value);
            tile_mma(sum[1][j], given[1], value);
        }
        // A branch, so that this is done here, where other simdgroups still multiply, and not behind the barrier.
        if (at + ATT_TILE < l.all) { tiles_decode<IS_FP8>(share, v, t); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    weight += simd_shuffle_xor(weight, 1);
    weight += simd_shuffle_xor(weight, 2);
    if ((tid & 3) == 0) {
        const float sink = sinks[min(head + tid / 4, p.heads - 1)] * ATT_LOG2E, most = max(top, sink);
        const float fade = exp2(top - most);
        fades[tid / 4] = fade / (weight * fade + exp2(sink - most));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float *mine = partial + sg * 256;
    const uint plain = ATT_DIM - p.format.rope;
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) {
            tile_scale_rows(sum[i][j], fades + half_of_heads * 32 + 16 * i, lane);
            tile_stage(sum[i][j], mine, ATT_TILE, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            #pragma unroll
            for (ushort e = 0; e < 2; ++e) {
                const uint h = head + half_of_heads * 32u + i * 16u + lane / 4 + 8 * e, c = channel + 16 * j + lane % 4 * 4;
                float4 x = att_swap(*(threadgroup const float4 *)(mine + (lane / 4 + 8 * e) * ATT_TILE + lane % 4 * 4));
                if (c >= plain) {
                    const float4 turn = *(device const float4 *)(table + c - plain);
                    x = float4(x.x * turn.x + x.y * turn.y, x.y * turn.x - x.x * turn.y,
                               x.z * turn.z + x.w * turn.w, x.w * turn.z - x.z * turn.w);
                }
                if (h < p.heads) { *(device float4 *)(out + ulong(h) * ATT_DIM + c) = x; }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

[[max_total_threads_per_threadgroup(ATT_THREADS)]]
kernel void attention_tiles(device const float *q              [[buffer(0)]],
                            device const uchar *rows_here      [[buffer(1)]],
                            device const kv_page *sessions     [[buffer(2)]],
                            device const int *selected         [[buffer(3)]],
                            device const int *counts           [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device const float *sinks          [[buffer(6)]],
                            device const float *table          [[buffer(7)]],
                            device float *out                  [[buffer(8)]],
                            constant gpu_attention &p          [[buffer(9)]],
                            uint2 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup uint4 rows[ATT_TILE * ATT_LD / 8];
    threadgroup float4 partial[2 * TILES_HEADS * ATT_TILE / 4];
    threadgroup uint4 weights[TILES_HEADS * ATT_WEIGHT_LD / 8];
    threadgroup float fades[TILES_HEADS];
    const uint token = tg.y;
    att_list l = att_open(p, rows_here, sessions, selected, counts, positions, token);
    q += ulong(token) * p.heads * ATT_DIM;
    out += ulong(token) * p.heads * ATT_DIM;
    table += ulong(token) * p.format.rope;
    if (att_is_fp8_512(p)) {
        tiles_attend<true>(q, l, p, tg.x * TILES_HEADS, sinks, table, out, (threadgroup half *)rows,
                           (threadgroup float *)partial, (threadgroup half *)weights, fades, tid, sg, lane);
    } else {
        tiles_attend<false>(q, l, p, tg.x * TILES_HEADS, sinks, table, out, (threadgroup half *)rows,
                            (threadgroup float *)partial, (threadgroup half *)weights, fades, tid, sg, lane);
    }
}
