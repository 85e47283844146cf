// kv_rows.h — rows of attention memory in the model's own formats (drawn in CKernels/include/ckernels.h).
#ifndef PYDS4_KV_ROWS_H
#define PYDS4_KV_ROWS_H
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

#define KV_MOST_DIM 512

// A page of rows. Its address is the GPU's.
struct kv_page {
    device uchar *rows;
};

// A session's line of a table of addresses: first its ring or running sums, then its pages.
inline device const kv_page *kv_line(device const kv_page *table, uint table_stride, uint token) {
    return table + ulong(table_stride) * token;
}

inline device uchar *kv_row(device const kv_page *pages, uint rows_per_page, uint row_bytes, uint row) {
    return pages[row / rows_per_page].rows + ulong(row % rows_per_page) * row_bytes;
}

// The biased exponent of the smallest power of two >= x; 0 stands for 2^-127.
inline uint kv_exponent_above(float x) {
    const uint bits = as_type<uint>(x);
    const uint e = ((bits >> 23) & 0xffu) + ((bits & 0x7fffffu) != 0u ? 1u : 0u);
    return min(e, 254u);
}

// 2^(e - 127) and its inverse.
inline float kv_power(uint e) { return as_type<float>(e != 0u ? e << 23 : 0x00400000u); }
inline float kv_inverse_power(uint e) { return as_type<float>(e < 254u ? (254u - e) << 23 : 0x00400000u); }

// Saturates; a NaN becomes the largest number, since a row must never hold a NaN code.
inline uint kv_e4m3_encode(float x) {
    const uint sign = (as_type<uint>(x) >> 24) & 0x80u;
    const float v = fabs(x);
    if (!(v < 448.0f)) { return sign | 0x7eu; }
    if (v < 0.015625f) { return sign | uint(rint(v * 512.0f)); }
    uint bits = as_type<uint>(v);
    bits += 0x7ffffu + ((bits >> 20) & 1u);
    return sign | min((bits >> 20) - 960u, 0x7eu);
}

// Moved to half's place the bits mean 2^-8 of the value, subnormals included.
inline float kv_e4m3_decode(uint code) {
    return float(as_type<half>(ushort((code & 0x80u) << 8 | (code & 0x7fu) << 7))) * 256.0f;
}

// Codes 0 … 7 mean 0, ½, 1, 1½, 2, 3, 4, 6; ties go to the even code.
inline uint kv_e2m1_encode(float x) {
    const uint sign = (as_type<uint>(x) >> 28) & 8u;
    const float v = fabs(x);
    const uint code = v <= 0.25f ? 0u : v < 0.75f ? 1u : v <= 1.25f ? 2u : v < 1.75f ? 3u
                    : v <= 2.5f ? 4u : v < 3.5f ? 5u : v <= 5.0f ? 6u : 7u;
    return sign | code;
}

inline float kv_e2m1_decode(uint code) {
    const uint m = code & 7u;
    const float v = m < 2u ? 0.5f * float(m) : as_type<float>((126u + (m >> 1)) << 23 | (m & 1u) << 22);
    return (code & 8u) != 0u ? -v : v;
}

// Scale bytes of an FP8 row: one a block of 64, one for the rotated values, padded to 8.
inline uint kv_fp8_scale_bytes(uint dim, uint rope) { return ((dim - rope) / 64 + 1 + 7) / 8 * 8; }

// Value `i` of the rotated ones: 21 bits, three to a 64-bit word.
inline float kv_rope_decode(device const uchar *words, uint i, float step) {
    device const uint *word = (device const uint *)(words + i / 3 * 8);
    const ulong bits = ulong(word[0]) | ulong(word[1]) << 32;
    const uint value = uint(bits >> (21u * (i % 3u))) & 0x1fffffu;
    return float(int(value << 11) >> 11) * step;
}

// Values 4·i … 4·i + 3 of a row.
inline float4 kv_decode4(constant gpu_row_format &f, device const uchar *row, uint i) {
    if (f.kind == GPU_ROW_F32) { return ((device const float4 *)row)[i]; }
    if (f.kind == GPU_ROW_FP4) {
        device const uchar *scales = row + f.dim / 2;
        const float scale = kv_power(scales[i / 8]);
        const uint a = row[2 * i], b = row[2 * i + 1];
        return float4(kv_e2m1_decode(a & 15u), kv_e2m1_decode(a >> 4), kv_e2m1_decode(b & 15u), kv_e2m1_decode(b >> 4))
             * scale;
    }
    const uint plain = f.dim - f.rope;
    device const uchar *scales = row + plain;
    if (4 * i < plain) {
        const uint word = *(device const uint *)(row + 4 * i);
        return float4(kv_e4m3_decode(word & 255u), kv_e4m3_decode((word >> 8) & 255u),
                      kv_e4m3_decode((word >> 16) & 255u), kv_e4m3_decode(word >> 24))
             * kv_power(scales[i / 16]);
    }
    device const uchar *words = scales + kv_fp8_scale_bytes(f.dim, f.rope);
    const float step = kv_power(scales[plain / 64]) * 9.5367431640625e-7f;
    const uint first = 4 * i - plain;
    return float4(kv_rope_decode(words, first, step), kv_rope_decode(words, first + 1, step),
                  kv_rope_decode(words, first + 2, step), kv_rope_decode(words, first + 3, step));
}

// A share of an FP8 row of 512 values, 64 of them rotated, as it lies in memory: loads first, numbers later,
// so that loads of the next row can be under way while this one is used. Of `threads` (16 or 32) that share
// a row, thread t has words t, t + threads, … of the plain values and 64 / threads of the rotated ones.
#define KV_FP8_PLAIN 448
#define KV_FP8_WORDS (KV_FP8_PLAIN / 4)

struct kv_share {
    uint q[7];
    uint2 scales;  // seven blocks', then the rotated values'
    uint2 low;     // two words of rotated values
    uint2 high;
};

inline void kv_load_share(thread kv_share &v, device const uchar *row, uint t, uint threads) {
    #pragma unroll
    for (ushort j = 0; j < 7; ++j) {
        const uint i = t + threads * j;
        if (threads * j < KV_FP8_WORDS) { v.q[j] = *(device const uint *)(row + 4 * min(i, KV_FP8_WORDS - 1u)); }
    }
    device const uint2 *tail = (device const uint2 *)(row + KV_FP8_PLAIN);
    v.scales = tail[0];
    const uint first = t * (64 / threads) / 3;
    v.low = tail[1 + first];
    v.high = tail[1 + min(first + 1, 21u)];
}

// Plain word j of the share: values 4·(t + threads·j) … of the row.
inline float4 kv_share_plain(thread kv_share &v, ushort j, uint t, uint threads) {
    const uint block = (t + threads * j) / 16, word = v.q[j];
    const uint scale = ((block < 4 ? v.scales.x : v.scales.y) >> (8 * (block & 3))) & 255u;
    return float4(kv_e4m3_decode(word & 255u), kv_e4m3_decode((word >> 8) & 255u), kv_e4m3_decode((word >> 16) & 255u),
                  kv_e4m3_decode(word >> 24)) * kv_power(scale);
}

// Rotated value `i` of the share, the first being t · 64 / threads.
inline float kv_share_rope(thread kv_share &v, uint i, uint t, uint threads) {
    const uint first = t * (64 / threads), word = (first + i) / 3 - first / 3, place = (first + i) % 3;
    const uint2 w = word == 0 ? v.low : v.high;
    // 21 bits from bit 21 · place of 64.
    const uint bits = place == 0 ? w.x : place == 1 ? (w.x >> 21 | w.y << 11) : w.y >> 10;
    return float(int(bits << 11) >> 11) * (kv_power(v.scales.y >> 24) * 9.5367431640625e-7f);
}

// One simdgroup rotates v [dim] in threadgroup memory by Sylvester's matrix / √dim.
inline void kv_hadamard(threadgroup float *v, uint dim, ushort lane) {
    for (uint step = 1; step < dim; step *= 2) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = lane; i < dim / 2; i += 32) {
            const uint at = i / step * 2 * step + i % step;
            const float a = v[at], b = v[at + step];
            v[at] = a + b;
            v[at + step] = a - b;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const float scale = 1.0f / sqrt(float(dim));
    for (uint i = lane; i < dim; i += 32) { v[i] *= scale; }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// The scale of one FP4 block of 32, a lane each.
inline uint kv_fp4_scale(float v) {
    return kv_exponent_above(max(simd_max(fabs(v)), 7.052966104933725e-38f) / 6.0f);
}

// One simdgroup writes v [dim], in threadgroup memory, as a row. v is changed.
inline void kv_encode(constant gpu_row_format &f, threadgroup float *v, device uchar *row, ushort lane) {
    if (f.kind == GPU_ROW_F32) {
        for (uint i = lane; i < f.dim; i += 32) { ((device float *)row)[i] = v[i]; }
        return;
    }
    if (f.kind == GPU_ROW_FP4) {
        kv_hadamard(v, f.dim, lane);
        for (uint b = 0; b < f.dim / 32; ++b) {
            const float x = v[32 * b + lane];
            const uint scale = kv_fp4_scale(x), code = kv_e2m1_encode(x * kv_inverse_power(scale));
            const uint pair = code | simd_shuffle_xor(code, 1) << 4;
            if ((lane & 1) == 0) { row[16 * b + lane / 2] = uchar(pair); }
            if (lane == 0) { row[f.dim / 2 + b] = uchar(scale); }
        }
        return;
    }
    const uint plain = f.dim - f.rope, blocks = plain / 64, scale_bytes = kv_fp8_scale_bytes(f.dim, f.rope);
    device uchar *scales = row + plain;
    for (uint b = 0; b < blocks; ++b) {
        const float x = v[64 * b + lane], y = v[64 * b + 32 + lane];
        const float most = simd_max(max(fabs(x), fabs(y)));
        const uint scale = kv_exponent_above(max(most, 1e-4f) / 448.0f);
        const float inverse = kv_inverse_power(scale);
        row[64 * b + lane] = uchar(kv_e4m3_encode(x * inverse));
        row[64 * b + 32 + lane] = uchar(kv_e4m3_encode(y * inverse));
        if (lane == 0) { scales[b] = uchar(scale); }
    }
    float most = 0.0f;
    for (uint i = lane; i < f.rope; i += 32) { most = max(most, fabs(v[plain + i])); }
    const uint scale = kv_exponent_above(max(simd_max(most), 8.271806125530277e-25f));
    const float inverse = 1.0f / (kv_power(scale) * 9.5367431640625e-7f);
    if (lane < scale_bytes - blocks) { scales[blocks + lane] = lane == 0 ? uchar(scale) : uchar(0); }
    for (uint w = lane; w < (f.rope + 2) / 3; w += 32) {
        ulong word = 0;
        for (uint i = 0; i < 3 && 3 * w + i < f.rope; ++i) {
            const float x = v[plain + 3 * w + i];
            const int q = clamp(int(rint(x == x ? clamp(x * inverse, -2.0e6f, 2.0e6f) : 0.0f)), -0x100000, 0xfffff);
            word |= ulong(uint(q) & 0x1fffffu) << (21u * i);
        }
        device uint *out = (device uint *)(scales + scale_bytes + 8 * w);
        out[0] = uint(word & 0xfffffffful);
        out[1] = uint(word >> 32);
    }
}

// One simdgroup norms and rotates v [dim] in threadgroup memory. `turn(i)`: cos and sin of pair i.
inline void kv_norm(threadgroup float *v, device const float *weight, uint dim, float epsilon, ushort lane) {
    float sum = 0.0f;
    for (uint i = lane; i < dim; i += 32) { sum += v[i] * v[i]; }
    const float scale = 1.0f / sqrt(simd_sum(sum) / float(dim) + epsilon);
    for (uint i = lane; i < dim; i += 32) { v[i] = v[i] * scale * weight[i]; }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

inline void kv_turn(threadgroup float *pair, float2 turn) {
    const float even = pair[0], odd = pair[1];
    pair[0] = even * turn.x - odd * turn.y;
    pair[1] = even * turn.y + odd * turn.x;
}

#endif
