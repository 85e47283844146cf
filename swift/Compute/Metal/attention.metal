// attention.metal — attention with one shared key = value row a position, a sliding window, compressed
// rows and a sink (report §2.3).
//
//   attention_split   one share of a token's rows for ATT_HEADS heads  -> parts [splits, n, heads, dim], and
//                                                                          sums [splits, n, heads] of (log2 of what
//                                                                          the weights are relative to, sum)
//   attention_merge   the shares, the sink, the inverse rotation       -> out [n, heads, dim]; and the last rows
//                                                                          of the call into their slots of the ring
//   attention_tiles   all of it for prompts, heads of 512, but the ring
//
// A token at p sees window rows (p - window, p], those before the call from the ring, then compressed rows:
// the selected ones, or the first (p + 1) / ratio. Ring and pages are those of its line of `sessions`.
//
// FP8 rows of 512 values go through the matrix units in both. A row's 448 plain values are exact in half; split
// takes queries, weights of rows and rotated values as two halfs each, so that 22 bits of them count, tiles
// rounds them to half. Split multiplies rows of other formats one by one, in f32.
//
// Grid       split: x shares, y groups of heads, z tokens (each at most 65535); merge: x heads, y tokens from
//            p.first, z pieces of MERGE_VALUES values; tiles: x groups of TILES_HEADS heads, y tokens
// Precision  f32; tiles: queries, rows and weights of rows rounded to half, sums f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
#include "tile.h"
using namespace metal;

#define ATT_LOG2E 1.44269504f
#define ATT_NONE (-1.0e30f)
#define ATT_CHUNK 0xffffffffu
#define ATT_RING 0xfffffffeu

// What one token attends to: `in_window` rows from position `start` on, then compressed ones.
struct att_list {
    device const uchar *ring;
    device const uchar *chunk;
    device const kv_page *pages;
    device const int *selected;
    uint first;
    uint start;
    uint in_window;
    uint all;
};

inline att_list att_open(constant gpu_attention &p, device const uchar *rows_here, device const kv_page *sessions,
                         device const int *selected, device const int *counts, device const int *positions,
                         uint token) {
    att_list l;
    // Where its session begins in this call.
    const uint base = p.table_stride != 0u ? token : 0u;
    const uint position = uint(positions[token]);
    device const kv_page *own = kv_line(sessions, p.table_stride, token);
    l.first = uint(positions[base]);
    l.ring = own[0].rows;
    l.chunk = rows_here + ulong(base) * p.format.bytes;
    l.pages = own + 1;
    l.selected = selected + ulong(token) * p.top;
    l.start = position + 1 > p.window ? position + 1 - p.window : 0;
    l.in_window = position + 1 - l.start;
    l.all = l.in_window + (p.ratio == 0u ? 0u : p.top != 0u ? uint(counts[token]) : (position + 1) / p.ratio);
    return l;
}

// Where row `place` of the list lies: a page (or ring, or chunk) and the row in it.
inline uint2 att_place(thread att_list &l, constant gpu_attention &p, uint place) {
    if (place < l.in_window) {
        const uint seen = l.start + place;
        return seen < l.first ? uint2(ATT_RING, seen % p.window) : uint2(ATT_CHUNK, seen - l.first);
    }
    const uint row = p.top != 0u ? uint(l.selected[place - l.in_window]) : place - l.in_window;
    return uint2(row / p.rows_per_page, row % p.rows_per_page);
}

inline device const uchar *att_address(thread att_list &l, constant gpu_attention &p, uint2 place) {
    device const uchar *base = l.chunk;
    if (place.x == ATT_RING) { base = l.ring; }
    if (place.x < ATT_RING) { base = l.pages[place.x].rows; }
    return base + ulong(place.y) * p.format.bytes;
}

inline bool att_is_fp8_512(constant gpu_attention &p) {
    return p.format.kind == GPU_ROW_FP8 && p.format.dim == 512u && p.format.rope == 64u;
}

// ---------------------------------------------------------------- rows on the matrix units

#define ATT_THREADS 256
#define ATT_DIM 512
#define ATT_TILE 16                 // rows at a time: sixteen threads bring one
#define ATT_LD (ATT_DIM + 8)        // of rows in threadgroup memory, in halfs
#define ATT_WEIGHT_LD (ATT_TILE + 8)

// The list's rows from `from` to `to`, ATT_TILE at a time. A simdgroup brings two rows of each tile: the places of
// its rows in sixteen tiles are looked up at once, a lane each.
struct att_rows {
    uint from;
    uint to;
    uint2 places;
};

inline device const uchar *att_next(thread att_rows &r, thread att_list &l, constant gpu_attention &p, uint tile,
                                    ushort sg, ushort lane) {
    if (tile % 16 == 0) {
        // Rows past the end repeat the last one and weigh nothing.
        r.places = att_place(l, p, min(r.from + (tile + lane / 2) * ATT_TILE + sg * 2 + lane % 2, r.to - 1));
    }
    return att_address(l, p, simd_shuffle(r.places, ushort(tile % 16 * 2 + lane / 16)));
}

// In threadgroup memory, and so in queries and sums, the middle two of four neighbouring channels have changed
// places: a word of codes then becomes two pairs of halfs by masks.
inline float4 att_swap(float4 v) { return float4(v.x, v.z, v.y, v.w); }

// Two codes of E4M3, whose bits were moved to half's place, there mean 2^-8 of their value. The power of a block
// is 2^-22 at least, and as large as is needed for numbers that half has.
inline uint att_pair(uint signs, uint magnitudes, half2 factor) {
    return as_type<uint>(as_type<half2>((signs & 0x80008000u) | (magnitudes & 0x3f803f80u)) * factor);
}

// Values 4 · (t + 16 · j) … of a row as halfs, for j from 0 to 7; low: what the rotated ones, j = 7, lack.
inline void att_halfs(thread kv_share &share, thread uint2 *v, thread uint2 &low, uint t) {
    #pragma unroll
    for (ushort j = 0; j < 7; ++j) {
        const uint scale = ((j < 4 ? share.scales.x : share.scales.y) >> (8 * (j & 3))) & 255u, w = share.q[j];
        // 2^8 times the block's power, twice.
        const half2 factor = as_type<half2>(scale * 0x04000400u - 104u * 0x04000400u);
        v[j] = uint2(att_pair(w << 8, w << 7, factor), att_pair(w, w >> 1, factor));
    }
    // Three values of 21 bits to 64: this thread's begin at value 4·t % 3 of a word.
    const float step = kv_power(share.scales.y >> 24) * 9.5367431640625e-7f;
    const ulong words[2] = {ulong(share.low.x) | ulong(share.low.y) << 32, ulong(share.high.x) | ulong(share.high.y) << 32};
    float4 x;
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const uint at = t % 3 + i;
        const uint bits = uint((at < 3 ? words[0] : words[1]) >> (21u * (at < 3 ? at : at - 3)));
        x[i] = float(int(bits << 11) >> 11) * step;
    }
    x = att_swap(x);
    const half4 h = half4(x);
    v[7] = as_type<uint2>(h);
    low = as_type<uint2>(half4(x - float4(h)));
}

inline void att_put(threadgroup half *line, thread const uint2 *v, uint t) {
    #pragma unroll
    for (ushort j = 0; j < 8; ++j) { *(threadgroup uint2 *)(line + 4 * (t + 16 * j)) = v[j]; }
}

// Weights stay relative to a maximum until that is exceeded by so much: they are at most 2^8 then, and sums need
// scaling seldom.
#define ATT_SLACK 8.0f

// What sums so far are worth from now on; `top` moves up to `most` when that is much higher.
inline float att_fade(thread float &top, float most) {
    const float fade = most > top + ATT_SLACK ? exp2(top - most) : 1.0f;
    top = most > top + ATT_SLACK ? most : top;
    return fade;
}

// c = c + d.
#ifdef MSL_TILE_MMA
inline void att_join(thread tile_c &c, thread tile_c &d) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) { c.r[i] += d.r[i]; }
}
#else
inline void att_join(thread tile_c &c, thread tile_c &d) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int e = 0; e < 2; ++e) {
        c.m[i][j].thread_elements()[e] += d.m[i][j].thread_elements()[e];
    }
}
#endif

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
        att_join(score, score_low);
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

// ---------------------------------------------------------------- prompts

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
