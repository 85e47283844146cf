// attention.metal — attention of a few tokens, with one shared key = value row a position, a sliding window,
// compressed rows and a sink (report §2.3).
//
//   attention_split   one share of a token's rows for ATT_HEADS heads  -> parts [splits, n, heads, dim], and
//                                                                          sums [splits, n, heads] of (log2 of what
//                                                                          the weights are relative to, sum)
//   attention_merge   the shares, the sink, the inverse rotation       -> out [n, heads, dim]; and the last rows
//                                                                          of the call into their slots of the ring
//
// A token at p sees window rows (p - window, p], those before the call from the ring, then compressed rows:
// the selected ones, or the first (p + 1) / ratio. Ring and pages are those of its line of `sessions`.
//
// FP8 rows of 512 values go through the matrix units. A row's 448 plain values are exact in half; queries, weights
// of rows and rotated values are two halfs each, so that 22 bits of them count. Rows of other formats are
// multiplied one by one, in f32.
//
// Grid       split: x shares, y groups of heads, z tokens (each at most 65535); merge: x heads, y tokens from
//            p.first, z pieces of MERGE_VALUES values
// Precision  f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#include "attention.h"
using namespace metal;

// ---------------------------------------------------------------- a share of the rows

#define ATT_SIMDGROUPS 8
#define ATT_SIMD_HEADS 2
#define ATT_HEADS (ATT_SIMDGROUPS * ATT_SIMD_HEADS)
#define ATT_ROWS 8
#define ATT_LANE (KV_MOST_DIM / 128)  // float4 a lane holds of a row: value (v · 32 + lane) · 4 …

#define SPLIT_LOW_LD (64 + 8)
#define SPLIT_LOW (ATT_TILE * ATT_LD)                     // low halfs of rotated values, behind the rows
#define SPLIT_MEMORY ((SPLIT_LOW + ATT_TILE * SPLIT_LOW_LD) / 8)  // uint4

// Simdgroup g owns channels 64·g … of queries, rows and output: a score is the sum of eight partial ones. The last
// one's channels are the rotated values.
inline void split_tiles(device const float *q, thread att_list &l, constant gpu_attention &p, uint from, uint to,
                        uint head, device float *parts, device float2 *sums, threadgroup uint4 *memory,
                        threadgroup float *partial, threadgroup half *weights, threadgroup float *fades, ushort tid,
                        ushort sg, ushort lane) {
    threadgroup half *rows = (threadgroup half *)memory, *rows_low = rows + SPLIT_LOW;
    const uint channel = sg * 64u, t = tid & 15;
    const bool is_rotated = sg == 7;
    kv_share share;
    att_rows r;
    r.from = from;
    r.to = to;
    device const uchar *next = att_next(r, l, p, 0, sg, lane);
    kv_load_share(share, next, t, 16);
    next = att_next(r, l, p, 1, sg, lane);
    // Queries become matrices by way of the rows' memory, a simdgroup's in its own piece of it.
    tile_a query[4], query_low[4];
    {
        threadgroup half *mine = rows + sg * (ATT_HEADS * SPLIT_LOW_LD);
        uint2 low[8];
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            const uint h = min(head + lane / 16 + 2 * i, p.heads - 1);
            const float4 v = att_swap(*(device const float4 *)(q + ulong(h) * ATT_DIM + channel + lane % 16 * 4));
            const half4 high = half4(v);
            low[i] = as_type<uint2>(half4(v - float4(high)));
            *(threadgroup half4 *)(mine + (lane / 16 + 2 * i) * SPLIT_LOW_LD + lane % 16 * 4) = high;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query[k], mine + 16 * k, SPLIT_LOW_LD, lane); }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            *(threadgroup uint2 *)(mine + (lane / 16 + 2 * i) * SPLIT_LOW_LD + lane % 16 * 4) = low[i];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query_low[k], mine + 16 * k, SPLIT_LOW_LD, lane); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[4];
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) { tile_zero(sum[j]); }
    // Of head tid / 16: the same in sixteen lanes, and each lane's share of the weight.
    float top = ATT_NONE, weight = 0.0f;
    for (uint at = from, tile = 0; at < to; at += ATT_TILE, ++tile) {
        {
            uint2 v[8], low;
            att_halfs(share, v, low, t);
            att_put(rows + tid / 16 * ATT_LD, v, t);
            *(threadgroup uint2 *)(rows_low + tid / 16 * SPLIT_LOW_LD + 4 * t) = low;
        }
        // The tile after this one begins to arrive; where the one after that lies is known by then.
        if (at + ATT_TILE < to) {
            kv_load_share(share, next, t, 16);
            next = att_next(r, l, p, tile + 2, sg, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_c score, score_low;
        tile_zero(score);
        tile_zero(score_low);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) {
            tile_b key;
            tile_load_bt(key, rows + channel + 16 * k, ATT_LD, lane);
            tile_mma(score, query[k], key);
            tile_mma(score_low, query_low[k], key);
        }
        if (is_rotated) {
            #pragma unroll
            for (ushort k = 0; k < 4; ++k) {
                tile_b key;
                tile_load_bt(key, rows_low + 16 * k, SPLIT_LOW_LD, lane);
                tile_mma(score_low, query[k], key);
            }
        }
        tile_join(score, score_low);
        tile_stage(score, partial + sg * 256, ATT_TILE, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Head tid / 16, row tid % 16.
        float s = 0.0f;
        #pragma unroll
        for (ushort g = 0; g < 8; ++g) { s += partial[g * 256 + tid]; }
        s = at + t < to ? s * (p.scale * ATT_LOG2E) : ATT_NONE;
        float most = max(s, simd_shuffle_xor(s, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        most = max(most, simd_shuffle_xor(most, 4));
        most = max(most, simd_shuffle_xor(most, 8));
        const float fade = att_fade(top, most);
        s = exp2(s - top);
        weight = weight * fade + s;
        const half high = half(s);
        weights[tid / 16 * ATT_WEIGHT_LD + t] = high;
        weights[(ATT_HEADS + tid / 16) * ATT_WEIGHT_LD + t] = half(s - float(high));
        if (t == 0) { fades[tid / 16] = fade; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd_any(fades[lane & 15] != 1.0f)) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { tile_scale_rows(sum[j], fades, lane); }
        }
        tile_a given, given_low;
        tile_load_a(given, weights, ATT_WEIGHT_LD, lane);
        tile_load_a(given_low, weights + ATT_HEADS * ATT_WEIGHT_LD, ATT_WEIGHT_LD, lane);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, ATT_LD, lane);
            tile_mma(sum[j], given, value);
            tile_mma(sum[j], given_low, value);
        }
        if (is_rotated) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                tile_b value;
                tile_load_b(value, rows_low + 16 * j, SPLIT_LOW_LD, lane);
                tile_mma(sum[j], given, value);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    threadgroup float *mine = partial + sg * 256;
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) {
        tile_stage(sum[j], mine, ATT_TILE, lane);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint h = lane / 4 + 8 * e;
            if (head + h < p.heads) {
                *(device float4 *)(parts + ulong(h) * ATT_DIM + channel + 16 * j + lane % 4 * 4)
                    = att_swap(*(threadgroup const float4 *)(mine + h * ATT_TILE + lane % 4 * 4));
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    weight += simd_shuffle_xor(weight, 1);
    weight += simd_shuffle_xor(weight, 2);
    weight += simd_shuffle_xor(weight, 4);
    weight += simd_shuffle_xor(weight, 8);
    if (t == 0 && head + tid / 16 < p.heads) { sums[tid / 16] = float2(top, weight); }
}

// Rows of any format, ATT_ROWS at a time: simdgroup s decodes row s, then adds up two heads over all of them.
inline void split_plain(device const float *q, thread att_list &l, constant gpu_attention &p, uint from, uint to,
                        uint head, device float *parts, device float2 *sums, threadgroup float4 *tile, ushort sg,
                        ushort lane) {
    const uint dim = p.format.dim, quads = dim / 4;
    float4 query[ATT_SIMD_HEADS][ATT_LANE];
    float4 sum[ATT_SIMD_HEADS][ATT_LANE];
    float top[ATT_SIMD_HEADS];
    float weight[ATT_SIMD_HEADS];
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        const uint of = min(head + sg * ATT_SIMD_HEADS + h, p.heads - 1);
        #pragma unroll
        for (ushort v = 0; v < ATT_LANE; ++v) {
            const uint i = v * 32u + lane;
            query[h][v] = float4(0.0f);
            if (i < quads) { query[h][v] = ((device const float4 *)(q + ulong(of) * dim))[i] * (p.scale * ATT_LOG2E); }
            sum[h][v] = float4(0.0f);
        }
        top[h] = ATT_NONE;
        weight[h] = 0.0f;
    }
    for (uint at = from; at < to; at += ATT_ROWS) {
        const uint rows = min(to - at, uint(ATT_ROWS));
        // Rows past the end repeat the last one and weigh nothing.
        device const uchar *line = att_address(l, p, att_place(l, p, at + min(uint(sg), rows - 1)));
        for (uint i = lane; i < quads; i += 32) { tile[sg * quads + i] = kv_decode4(p.format, line, i); }
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
                score[h][r] = r < rows ? s : ATT_NONE;
                most = max(most, score[h][r]);
            }
            const float fade = exp2(top[h] - most);
            top[h] = most;
            weight[h] *= fade;
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) { sum[h][v] = sum[h][v] * fade; }
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                score[h][r] = exp2(score[h][r] - most);
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
        const uint of = sg * ATT_SIMD_HEADS + h;
        if (head + of < p.heads) {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) { ((device float4 *)(parts + ulong(of) * dim))[i] = sum[h][v]; }
            }
            if (lane == 0) { sums[of] = float2(top[h], weight[h]); }
        }
    }
}

// As many threads as half the registers of a multiprocessor serve: two threadgroups then fit one.
[[max_total_threads_per_threadgroup(2 * ATT_THREADS)]]
kernel void attention_split(device const float *q              [[buffer(0)]],
                            device const uchar *rows_here      [[buffer(1)]],
                            device const kv_page *sessions     [[buffer(2)]],
                            device const int *selected         [[buffer(3)]],
                            device const int *counts           [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device float *parts                [[buffer(6)]],
                            device float2 *sums                [[buffer(7)]],
                            constant gpu_attention &p          [[buffer(8)]],
                            uint3 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup uint4 memory[SPLIT_MEMORY];
    threadgroup float4 partial[ATT_SIMDGROUPS * 64];
    threadgroup uint4 weights[2 * ATT_HEADS * ATT_WEIGHT_LD / 8];
    threadgroup float fades[ATT_HEADS];
    const uint token = tg.z, head = tg.y * ATT_HEADS;
    att_list l = att_open(p, rows_here, sessions, selected, counts, positions, token);
    // Whole tiles.
    const uint share = ((l.all + p.splits - 1) / p.splits + ATT_TILE - 1) / ATT_TILE * ATT_TILE;
    const uint from = min(tg.x * share, l.all), to = min(from + share, l.all);
    const ulong place = (ulong(tg.x) * p.n + token) * p.heads + head;
    if (from == to) {
        // Of no rows only that is known.
        if (tid < ATT_HEADS && head + tid < p.heads) { sums[place + tid] = float2(ATT_NONE, 0.0f); }
        return;
    }
    q += ulong(token) * p.heads * p.format.dim;
    if (att_is_fp8_512(p)) {
        split_tiles(q, l, p, from, to, head, parts + place * ATT_DIM, sums + place, memory,
                    (threadgroup float *)partial, (threadgroup half *)weights, fades, tid, sg, lane);
    } else {
        split_plain(q, l, p, from, to, head, parts + place * p.format.dim, sums + place, (threadgroup float4 *)memory, sg,
                    lane);
    }
}

// ---------------------------------------------------------------- shares together

#define MERGE_THREADS 128
#define MERGE_SIMDGROUPS (MERGE_THREADS / 32)
#define MERGE_VALUES 128
#define ATT_MOST_SPLITS 32

// A lane has four values, a simdgroup every fourth share. p.splits = 0: only the ring is written.
[[max_total_threads_per_threadgroup(MERGE_THREADS)]]
kernel void attention_merge(device const float *parts          [[buffer(0)]],
                            device const float2 *sums          [[buffer(1)]],
                            device const float *sinks          [[buffer(2)]],
                            device const float2 *table         [[buffer(3)]],
                            device const uchar *rows_here      [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device float *out                  [[buffer(6)]],
                            device const kv_page *sessions     [[buffer(7)]],
                            constant gpu_attention &p          [[buffer(8)]],
                            uint3 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup float4 shares[MERGE_SIMDGROUPS * 32];
    const uint head = tg.x, token = p.first + tg.y;
    if (p.splits != 0u) {
        const uint dim = p.format.dim, quad = tg.z * (MERGE_VALUES / 4) + lane;
        const ulong place = ulong(token) * p.heads + head, step = ulong(p.n) * p.heads;
        const bool is_there = quad < dim / 4;
        // Everything is on its way before anything is used.
        float4 v[ATT_MOST_SPLITS / MERGE_SIMDGROUPS];
        #pragma unroll
        for (ushort j = 0; j < ATT_MOST_SPLITS / MERGE_SIMDGROUPS; ++j) {
            const uint s = sg + MERGE_SIMDGROUPS * j;
            v[j] = float4(0.0f);
            if (s < p.splits && is_there) { v[j] = ((device const float4 *)(parts + (place + s * step) * dim))[quad]; }
        }
        float2 part = float2(ATT_NONE, 0.0f);
        if (lane < p.splits) { part = sums[place + lane * step]; }
        const float sink = sinks[head] * ATT_LOG2E, most = max(sink, simd_max(part.x));
        // A share of no rows has no values either.
        const float fade = part.y > 0.0f ? exp2(part.x - most) : 0.0f;
        const float inverse = 1.0f / (exp2(sink - most) + simd_sum(part.y * fade));
        float4 sum = float4(0.0f);
        #pragma unroll
        for (ushort j = 0; j < ATT_MOST_SPLITS / MERGE_SIMDGROUPS; ++j) {
            const float f = simd_shuffle(fade, ushort(sg + MERGE_SIMDGROUPS * j));
            if (f > 0.0f) { sum = sum + v[j] * f; }
        }
        shares[tid] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0 && is_there) {
            sum = (shares[lane] + shares[32 + lane] + shares[64 + lane] + shares[96 + lane]) * inverse;
            const uint plain = (dim - p.format.rope) / 2, pair = 2 * quad;
            device const float2 *turns = table + ulong(token) * (p.format.rope / 2);
            if (pair >= plain) {
                const float2 turn = turns[pair - plain];
                sum.xy = float2(sum.x * turn.x + sum.y * turn.y, sum.y * turn.x - sum.x * turn.y);
            }
            if (pair + 1 >= plain) {
                const float2 turn = turns[pair + 1 - plain];
                sum.zw = float2(sum.z * turn.x + sum.w * turn.y, sum.w * turn.x - sum.z * turn.y);
            }
            ((device float4 *)(out + place * dim))[quad] = sum;
        }
    }
    if (head == 0 && tg.z == 0 && (p.table_stride != 0u || token + p.window >= p.n)) {
        const uint slot = uint(positions[token]) % p.window;
        device const uint *from = (device const uint *)(rows_here + ulong(token) * p.format.bytes);
        device uint *to = (device uint *)(kv_line(sessions, p.table_stride, token)[0].rows + ulong(slot) * p.format.bytes);
        for (uint i = tid; i < p.format.bytes / 4; i += MERGE_THREADS) { to[i] = from[i]; }
    }
}
