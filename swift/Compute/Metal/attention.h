// attention.h — the rows that a token attends to, and how they reach the matrix units: for attention.metal
// and attention_prompt.metal.
#ifndef PYDS4_ATTENTION_H
#define PYDS4_ATTENTION_H
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
#endif
