// kv_rows.h — rows of attention memory in the model's own formats (drawn in CKernels/include/ckernels.h).
#ifndef PYDS4_KV_ROWS_H
#define PYDS4_KV_ROWS_H
#include <metal_stdlib>
#include "kernel_args.h"
#include "reduce.h"
using namespace metal;

#define KV_MOST_DIM 512
#define KV_THREADS (KV_MOST_DIM / 2)

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

// The biased exponent of the smallest power of two >= x, 2^119 at most so that the largest code stays finite;
// 0 stands for 2^-127.
inline uint kv_exponent_above(float x) {
    const uint bits = as_type<uint>(x);
    const uint e = ((bits >> 23) & 0xffu) + ((bits & 0x7fffffu) != 0u ? 1u : 0u);
    return min(e, 246u);
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

// While a row is made, thread t of a threadgroup holds its values 2·t and 2·t + 1, and 0 from dim on: a block of
// an FP8 row is a simdgroup, a pair that is rotated together a thread. Threads from KV_THREADS on hold nothing.

inline float2 kv_norm(float2 v, float2 weight, uint dim, float epsilon, threadgroup float *partial, ushort sg,
                      ushort lane) {
    return v * reduce_rms(reduce_sum(dot(v, v), partial, KV_THREADS / 32, sg, lane), dim, epsilon) * weight;
}

// `turn`: cos and sin.
inline float2 kv_turn(float2 v, float2 turn) {
    return float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

// A sum, or for the upper one of two a difference.
inline float kv_butterfly(float own, float other, bool isUpper) { return isUpper ? other - own : own + other; }

// Rotates by Sylvester's matrix / √dim.
inline float2 kv_hadamard(float2 v, uint dim, threadgroup float2 *shared, ushort tid) {
    v = float2(v.x + v.y, v.x - v.y);
    for (ushort bit = 1; bit < 32; bit *= 2) {
        const float2 other = float2(simd_shuffle_xor(v.x, bit), simd_shuffle_xor(v.y, bit));
        const bool isUpper = (tid & bit) != 0;
        if (2u * bit < dim) {
            v = float2(kv_butterfly(v.x, other.x, isUpper), kv_butterfly(v.y, other.y, isUpper));
        }
    }
    for (ushort bit = 32; 2u * bit < dim; bit *= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (tid < KV_THREADS) { shared[tid] = v; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const float2 other = shared[(tid ^ bit) & (KV_THREADS - 1)];
        const bool isUpper = (tid & bit) != 0;
        v = float2(kv_butterfly(v.x, other.x, isUpper), kv_butterfly(v.y, other.y, isUpper));
    }
    return v * (1.0f / sqrt(float(dim)));
}

// The scale of an FP4 block whose largest magnitude is `most`.
inline uint kv_fp4_scale(float most) { return kv_exponent_above(max(most, 7.052966104933725e-38f) / 6.0f); }

// The rotated values of an FP8 row, from threadgroup memory, by one simdgroup; `scales`: theirs and what pads them.
inline void kv_encode_rope(threadgroup const float *v, uint rope, device uchar *scales, uint scale_bytes, ushort lane) {
    float most = 0.0f;
    for (uint i = lane; i < rope; i += 32) { most = max(most, fabs(v[i])); }
    const uint scale = kv_exponent_above(max(simd_max(most), 8.271806125530277e-25f));
    const float inverse = kv_inverse_power(scale) * 1048576.0f;
    if (lane < scale_bytes) { scales[lane] = lane == 0 ? uchar(scale) : uchar(0); }
    for (uint w = lane; w < (rope + 2) / 3; w += 32) {
        uint q[3];
        #pragma unroll
        for (ushort i = 0; i < 3; ++i) {
            const float x = 3 * w + i < rope ? v[3 * w + i] * inverse : 0.0f;
            q[i] = uint(clamp(int(rint(x == x ? clamp(x, -2.0e6f, 2.0e6f) : 0.0f)), -0x100000, 0xfffff)) & 0x1fffffu;
        }
        *(device uint2 *)(scales + scale_bytes + 8 * w) = uint2(q[0] | q[1] << 21, q[1] >> 11 | q[2] << 10);
    }
}

// Writes a row. `shared` [KV_THREADS] must be free since the last barrier.
inline void kv_encode(constant gpu_row_format &f, float2 v, threadgroup float2 *shared, device uchar *row, ushort tid,
                      ushort sg, ushort lane) {
    if (f.kind == GPU_ROW_F32) {
        if (2u * tid < f.dim) { ((device float2 *)row)[tid] = v; }
        return;
    }
    if (f.kind == GPU_ROW_FP4) {
        v = kv_hadamard(v, f.dim, shared, tid);
        float most = max(fabs(v.x), fabs(v.y));
        for (ushort bit = 1; bit < 16; bit *= 2) { most = max(most, simd_shuffle_xor(most, bit)); }
        const uint scale = kv_fp4_scale(most);
        const float inverse = kv_inverse_power(scale);
        if (2u * tid >= f.dim) { return; }
        row[tid] = uchar(kv_e2m1_encode(v.x * inverse) | kv_e2m1_encode(v.y * inverse) << 4);
        if (lane % 16 == 0) { row[f.dim / 2 + tid / 16] = uchar(scale); }
        return;
    }
    const uint plain = f.dim - f.rope, blocks = plain / 64, scale_bytes = kv_fp8_scale_bytes(f.dim, f.rope);
    device uchar *scales = row + plain;
    if (2u * tid >= plain && 2u * tid < f.dim) { shared[tid - plain / 2] = v; }
    if (sg < blocks) {
        const uint scale = kv_exponent_above(max(simd_max(max(fabs(v.x), fabs(v.y))), 1e-4f) / 448.0f);
        const float inverse = kv_inverse_power(scale);
        ((device ushort *)row)[tid] = ushort(kv_e4m3_encode(v.x * inverse) | kv_e4m3_encode(v.y * inverse) << 8);
        if (lane == 0) { scales[sg] = uchar(scale); }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg == KV_THREADS / 32 - 1) {
        kv_encode_rope((threadgroup const float *)shared, f.rope, scales + blocks, scale_bytes - blocks, lane);
    }
}

#endif
