// attention.metal — attention with one shared key = value row a position, a sliding window, compressed
// rows and a sink (report §2.3).
//
//   attention_split   one share of a token's rows for ATT_HEADS heads  -> parts [splits, n, heads, dim], and
//                                                                          sums [splits, n, heads] of (maximum, sum)
//   attention_tiles   the same with one share, heads of 512, products in half on the matrix units: for prompts
//   attention_merge   the shares, the sink, the inverse rotation       -> out [n, heads, dim]; and the last rows
//                                                                          of the call into their slots of the ring
//
// A token at p sees window rows (p - window, p], those before the call from the ring, then compressed rows:
// the selected ones, or the first (p + 1) / ratio. Ring and pages are those of its line of `sessions`.
//
// Grid       split: x shares, y groups of heads, z tokens (each at most 65535); tiles: x groups of 32 heads,
//            y tokens; merge: x heads, y tokens
// Precision  f32; tiles: queries, rows and weights of rows rounded to half, sums f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
#include "tile.h"
using namespace metal;

// Where row `place` of a token's list lies: window rows first, `start` being the first one's position.
inline device const uchar *att_row(constant gpu_attention &p, device const uchar *ring, device const uchar *chunk,
                                   device const kv_page *pages, device const int *selected, uint token, uint first,
                                   uint start, uint in_window, uint place) {
    if (place < in_window) {
        const uint seen = start + place;
        return seen < first ? ring + ulong(seen % p.window) * p.format.bytes
                            : chunk + ulong(seen - first) * p.format.bytes;
    }
    const uint row = p.top != 0u ? uint(selected[ulong(token) * p.top + place - in_window]) : place - in_window;
    return kv_row(pages, p.rows_per_page, p.format.bytes, row);
}

inline bool att_is_fp8_512(constant gpu_attention &p) {
    return p.format.kind == GPU_ROW_FP8 && p.format.dim == 512u && p.format.rope == 64u;
}

#define ATT_SIMDGROUPS 8
#define ATT_SIMD_HEADS 2
#define ATT_HEADS (ATT_SIMDGROUPS * ATT_SIMD_HEADS)
#define ATT_ROWS 8
#define ATT_LANE (KV_MOST_DIM / 128)  // float4 a lane holds of a row: value (v · 32 + lane) · 4 …

[[max_total_threads_per_threadgroup(ATT_SIMDGROUPS * 32)]]
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
    threadgroup float4 tile[ATT_ROWS * KV_MOST_DIM / 4];
    const uint token = tg.z, dim = p.format.dim, quads = dim / 4;
    // Where its session begins in this call.
    const uint base = p.table_stride != 0u ? token : 0u;
    const uint first = uint(positions[base]), position = uint(positions[token]);
    device const kv_page *own = kv_line(sessions, p.table_stride, token);
    device const uchar *ring = own[0].rows, *chunk = rows_here + ulong(base) * p.format.bytes;
    device const kv_page *pages = own + 1;
    const uint start = position + 1 > p.window ? position + 1 - p.window : 0, in_window = position + 1 - start;
    const uint compressed = p.ratio == 0u ? 0u : p.top != 0u ? uint(counts[token]) : (position + 1) / p.ratio;
    const uint all = in_window + compressed, share = (all + p.splits - 1) / p.splits;
    const uint from = min(tg.x * share, all), to = min(from + share, all);
    const bool is_fp8 = att_is_fp8_512(p);

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
        device const uchar *line = att_row(p, ring, chunk, pages, selected, token, first, start, in_window,
                                           at + min(uint(sg), rows - 1));
        if (is_fp8) {
            kv_share share;
            kv_load_share(share, line, lane, 32);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const uint i = lane + 32u * j;
                if (i < KV_FP8_WORDS) { tile[sg * 128 + i] = kv_share_plain(share, j, lane, 32); }
            }
            threadgroup float2 *rotated = (threadgroup float2 *)(tile + sg * 128 + KV_FP8_WORDS);
            rotated[lane] = float2(kv_share_rope(share, 0, lane, 32), kv_share_rope(share, 1, lane, 32));
        } else {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) { tile[sg * quads + i] = kv_decode4(p.format, line, i); }
            }
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

#define TILES_DIM 512
#define TILES_HEADS 32
#define TILES_ROWS 16
#define TILES_LD (TILES_DIM + 8)
#define TILES_WEIGHT_LD (TILES_ROWS + 8)

// Simdgroup g owns channels 64·g … of queries, rows and output: a score is the sum of eight partial ones.
[[max_total_threads_per_threadgroup(256)]]
kernel void attention_tiles(device const float *q              [[buffer(0)]],
                            device const uchar *rows_here      [[buffer(1)]],
                            device const kv_page *sessions     [[buffer(2)]],
                            device const int *selected         [[buffer(3)]],
                            device const int *counts           [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device float *parts                [[buffer(6)]],
                            device float2 *sums                [[buffer(7)]],
                            constant gpu_attention &p          [[buffer(8)]],
                            uint2 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup uint4 row_memory[TILES_ROWS * TILES_LD / 8];
    threadgroup float4 partial_memory[4 * TILES_HEADS * TILES_ROWS / 4];
    threadgroup uint4 weight_memory[TILES_HEADS * TILES_WEIGHT_LD / 8];
    threadgroup float fades[TILES_HEADS];
    threadgroup half *rows = (threadgroup half *)row_memory;
    threadgroup float *partial = (threadgroup float *)partial_memory;
    threadgroup half *weights = (threadgroup half *)weight_memory;

    const uint token = tg.y, head = tg.x * TILES_HEADS, channel = sg * 64u;
    // Where its session begins in this call.
    const uint base = p.table_stride != 0u ? token : 0u;
    const uint first = uint(positions[base]), position = uint(positions[token]);
    device const kv_page *own = kv_line(sessions, p.table_stride, token);
    device const uchar *ring = own[0].rows, *chunk = rows_here + ulong(base) * p.format.bytes;
    device const kv_page *pages = own + 1;
    const uint start = position + 1 > p.window ? position + 1 - p.window : 0, in_window = position + 1 - start;
    const uint compressed = p.ratio == 0u ? 0u : p.top != 0u ? uint(counts[token]) : (position + 1) / p.ratio;
    const uint all = in_window + compressed;

    // Queries become matrices by way of the rows' memory, sixteen heads at a time.
    tile_a query[2][4];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        for (ushort e = tid; e < TILES_ROWS * TILES_DIM / 4; e += 256) {
            const uint h = min(head + i * 16u + e / 128, p.heads - 1);
            const float4 v = *(device const float4 *)(q + (ulong(token) * p.heads + h) * TILES_DIM + e % 128 * 4);
            *(threadgroup half4 *)(rows + e / 128 * TILES_LD + e % 128 * 4) = half4(v * p.scale);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query[i][k], rows + channel + 16 * k, TILES_LD, lane); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[2][4];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { tile_zero(sum[i][j]); }
    }
    // Rows past the end repeat the last one and weigh nothing.
    const bool is_fp8 = att_is_fp8_512(p);
    kv_share share;
    device const uchar *next = att_row(p, ring, chunk, pages, selected, token, first, start, in_window,
                                       min(uint(tid / 16), all - 1));
    if (is_fp8) {
        kv_load_share(share, next, tid & 15, 16);
        next = att_row(p, ring, chunk, pages, selected, token, first, start, in_window,
                       min(TILES_ROWS + uint(tid / 16), all - 1));
    }
    // Of head tid / 8, the same in eight lanes.
    float top = -1.0e30f, weight = 0.0f;
    for (uint at = 0; at < all; at += TILES_ROWS) {
        // Sixteen threads decode a row.
        threadgroup half *line = rows + tid / 16 * TILES_LD;
        const uint t = tid & 15;
        if (is_fp8) {
            #pragma unroll
            for (ushort j = 0; j < 7; ++j) {
                *(threadgroup half4 *)(line + 4 * (t + 16 * j)) = half4(kv_share_plain(share, j, t, 16));
            }
            *(threadgroup half4 *)(line + KV_FP8_PLAIN + 4 * t)
                = half4(float4(kv_share_rope(share, 0, t, 16), kv_share_rope(share, 1, t, 16),
                               kv_share_rope(share, 2, t, 16), kv_share_rope(share, 3, t, 16)));
            // The row after this one begins to arrive; where the one after that lies is known by then.
            kv_load_share(share, next, t, 16);
            next = att_row(p, ring, chunk, pages, selected, token, first, start, in_window,
                           min(at + 2 * TILES_ROWS + tid / 16, all - 1));
        } else {
            device const uchar *row = att_row(p, ring, chunk, pages, selected, token, first, start, in_window,
                                              min(at + tid / 16, all - 1));
            for (ushort j = 0; j < TILES_DIM / 64; ++j) {
                const uint i = t + 16 * j;
                *(threadgroup half4 *)(line + 4 * i) = half4(kv_decode4(p.format, row, i));
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_c score[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) { tile_zero(score[i]); }
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) {
            tile_b key;
            tile_load_bt(key, rows + channel + 16 * k, TILES_LD, lane);
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) { tile_mma(score[i], query[i][k], key); }
        }
        threadgroup float *slot = partial + (sg & 3) * (TILES_HEADS * TILES_ROWS);
        if (sg >= 4) {
            for (ushort i = 0; i < 2; ++i) { tile_stage(score[i], slot + i * 256, TILES_ROWS, lane); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg < 4) {
            for (ushort i = 0; i < 2; ++i) {
                tile_add(score[i], slot + i * 256, TILES_ROWS, lane);
                simdgroup_barrier(mem_flags::mem_threadgroup);
                tile_stage(score[i], slot + i * 256, TILES_ROWS, lane);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Head tid / 8, rows 2·(tid % 8) and the next.
        float2 s = float2(0.0f);
        #pragma unroll
        for (ushort g = 0; g < 4; ++g) {
            s = s + *(threadgroup const float2 *)(partial + g * (TILES_HEADS * TILES_ROWS) + tid * 2);
        }
        const uint row = at + (tid & 7) * 2;
        s.x = row < all ? s.x : -1.0e30f;
        s.y = row + 1 < all ? s.y : -1.0e30f;
        float most = max(s.x, s.y);
        most = max(most, simd_shuffle_xor(most, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        most = max(max(most, simd_shuffle_xor(most, 4)), top);
        const float fade = exp(top - most);
        s = float2(exp(s.x - most), exp(s.y - most));
        float added = s.x + s.y;
        added += simd_shuffle_xor(added, 1);
        added += simd_shuffle_xor(added, 2);
        added += simd_shuffle_xor(added, 4);
        top = most;
        weight = weight * fade + added;
        weights[tid / 8 * TILES_WEIGHT_LD + (tid & 7) * 2] = half(s.x);
        weights[tid / 8 * TILES_WEIGHT_LD + (tid & 7) * 2 + 1] = half(s.y);
        if ((tid & 7) == 0) { fades[tid / 8] = fade; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_a shares[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            tile_load_a(shares[i], weights + i * 16 * TILES_WEIGHT_LD, TILES_WEIGHT_LD, lane);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { tile_scale_rows(sum[i][j], fades + 16 * i, lane); }
        }
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, TILES_LD, lane);
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) { tile_mma(sum[i][j], shares[i], value); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    threadgroup float *mine = partial + sg * 256;
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_stage(sum[i][j], mine, 16, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            for (ushort e = lane / 16; e < 16; e += 2) {
                const uint h = head + i * 16 + e;
                if (h < p.heads) {
                    parts[(ulong(token) * p.heads + h) * TILES_DIM + channel + 16 * j + (lane & 15)]
                        = mine[e * 16 + (lane & 15)];
                }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
    if ((tid & 7) == 0 && head + tid / 8 < p.heads) {
        sums[ulong(token) * p.heads + head + tid / 8] = float2(top, weight);
    }
}

#define MERGE_THREADS 128
#define ATT_MOST_SPLITS 32

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
                            uint2 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]])
{
    const uint head = tg.x, token = tg.y, dim = p.format.dim, plain = (dim - p.format.rope) / 2;
    const ulong place = ulong(token) * p.heads + head, step = ulong(p.n) * p.heads;
    threadgroup float fades[ATT_MOST_SPLITS];
    float most = sinks[head];
    for (uint s = 0; s < p.splits; ++s) { most = max(most, sums[place + s * step].x); }
    if (tid < p.splits) { fades[tid] = exp(sums[place + tid * step].x - most); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float weight = exp(sinks[head] - most);
    for (uint s = 0; s < p.splits; ++s) { weight += sums[place + s * step].y * fades[s]; }
    const float inverse = 1.0f / weight;
    for (uint i = tid; i < dim / 2; i += MERGE_THREADS) {
        float2 v = float2(0.0f);
        #pragma unroll(4)
        for (uint s = 0; s < p.splits; ++s) {
            v = v + ((device const float2 *)(parts + (place + s * step) * dim))[i] * fades[s];
        }
        v = v * inverse;
        if (i >= plain) {
            const float2 turn = table[ulong(token) * (p.format.rope / 2) + i - plain];
            v = float2(v.x * turn.x + v.y * turn.y, v.y * turn.x - v.x * turn.y);
        }
        ((device float2 *)(out + place * dim))[i] = v;
    }
    if (head == 0 && (p.table_stride != 0u || token + p.window >= p.n)) {
        const uint slot = uint(positions[token]) % p.window;
        device const uint *from = (device const uint *)(rows_here + ulong(token) * p.format.bytes);
        device uint *to = (device uint *)(kv_line(sessions, p.table_stride, token)[0].rows + ulong(slot) * p.format.bytes);
        for (uint i = tid; i < p.format.bytes / 4; i += MERGE_THREADS) { to[i] = from[i]; }
    }
}
