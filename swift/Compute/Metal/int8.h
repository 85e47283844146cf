// int8.h — products of quantized weights with activations of 16 bits, four at a time.
//
// A block of activations becomes integers in ±32767 with one scale, kept as two planes of bytes: the high
// one signed, the low one not, v = 256 · high + low. Weights of at most eight bits meet both planes in
// integer dot products of four; sums are exact until they are scaled. Against f32 activations an error of
// 2^-16 of the block's largest value remains.
#ifndef PYDS4_INT8_H
#define PYDS4_INT8_H
#include <metal_stdlib>
#include "quant.h"
using namespace metal;

// sum + Σ of four signed bytes of w times four signed (low: unsigned) bytes of x.
inline int int8_dot_high(uint w, uint x, int sum) {
#ifdef MSL_CUDA
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(w), "r"(x));
    return sum;
#else
    for (ushort i = 0; i < 4; ++i) {
        sum += int(as_type<char>(uchar(w >> (8 * i)))) * int(as_type<char>(uchar(x >> (8 * i))));
    }
    return sum;
#endif
}

inline int int8_dot_low(uint w, uint x, int sum) {
#ifdef MSL_CUDA
    asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(w), "r"(x));
    return sum;
#else
    for (ushort i = 0; i < 4; ++i) { sum += int(as_type<char>(uchar(w >> (8 * i)))) * int((x >> (8 * i)) & 255u); }
    return sum;
#endif
}

// Bytes 0 and 1 of four words, as the words `low` and `high`.
inline void int8_gather(uint4 v, thread uint &high, thread uint &low) {
#ifdef MSL_CUDA
    const uint a = __byte_perm(v.x, v.y, 0x5140u), b = __byte_perm(v.z, v.w, 0x5140u);
    low = __byte_perm(a, b, 0x5410u);
    high = __byte_perm(a, b, 0x7632u);
#else
    low = (v.x & 255u) | (v.y & 255u) << 8 | (v.z & 255u) << 16 | (v.w & 255u) << 24;
    high = (v.x >> 8 & 255u) | (v.y >> 8 & 255u) << 8 | (v.z >> 8 & 255u) << 16 | (v.w >> 8 & 255u) << 24;
#endif
}

inline float int8_most(float4 a, float most) {
    return max(max(max(fabs(a.x), fabs(a.y)), max(fabs(a.z), fabs(a.w))), most);
}

// Four activations to bytes; `inverse`: 32767 / the block's largest value. Adding 1.5 · 2^23 leaves the
// integer in the low bits.
inline void int8_split4(float4 a, float inverse, thread uint &high, thread uint &low) {
    const uint4 v = uint4(as_type<uint>(fma(a.x, inverse, 12582912.0f)), as_type<uint>(fma(a.y, inverse, 12582912.0f)),
                          as_type<uint>(fma(a.z, inverse, 12582912.0f)), as_type<uint>(fma(a.w, inverse, 12582912.0f)));
    int8_gather(v, high, low);
}

inline float int8_inverse(float most) { return most > 0.0f ? 32767.0f / most : 0.0f; }
inline float int8_scale(float most) { return most * (1.0f / 32767.0f); }

// ---------------------------------------------------------------- activations in threadgroup memory
//
// By all threads of a threadgroup of INT8_THREADS: coalesced, and once for all its rows.

#define INT8_THREADS 256
#define INT8_COLUMNS 8192u  // at a time

struct int8_x {
    uint4 high[INT8_COLUMNS / 16];
    uint4 low[INT8_COLUMNS / 16];
    float scale[INT8_COLUMNS / 32];  // a block of 32 columns
};

// Columns k0 … k0 + count of x, zeros past the end; `count` is rounded up to 1,024.
inline void int8_quantize(device const float *x, uint columns, uint k0, uint count, threadgroup int8_x &out, ushort tid) {
    threadgroup uint *high = (threadgroup uint *)out.high, *low = (threadgroup uint *)out.low;
    // No thread leaves the loop before the others.
    #pragma unroll(4)
    for (uint c0 = 0; c0 < count; c0 += 4u * INT8_THREADS) {
        const uint c = c0 + 4u * tid;
        const float4 a = k0 + c < columns ? *(device const float4 *)(x + k0 + c) : float4(0.0f);
        float most = int8_most(a, 0.0f);
        most = max(most, simd_shuffle_xor(most, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        most = max(most, simd_shuffle_xor(most, 4));
        uint h;
        uint l;
        int8_split4(a, int8_inverse(most), h, l);
        high[c / 4] = h;
        low[c / 4] = l;
        if ((tid & 7) == 0) { out.scale[c / 32] = int8_scale(most); }
    }
}

// Sixteen columns from c on, a multiple of sixteen.
inline void int8_take16(threadgroup const int8_x &x, uint c, thread uint *high, thread uint *low) {
    const uint4 h = x.high[c / 16], l = x.low[c / 16];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        high[i] = h[i];
        low[i] = l[i];
    }
}

// Sums over the simdgroup of four values at once: lane l has that of v[l % 4].
inline float int8_reduce4(thread const float *v, ushort lane) {
    const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
    const float a = (odd ? v[1] : v[0]) + simd_shuffle_xor(odd ? v[0] : v[1], 1);
    const float b = (odd ? v[3] : v[2]) + simd_shuffle_xor(odd ? v[2] : v[3], 1);
    float sum = (upper ? b : a) + simd_shuffle_xor(upper ? a : b, 2);
    sum += simd_shuffle_xor(sum, 4);
    sum += simd_shuffle_xor(sum, 8);
    return sum + simd_shuffle_xor(sum, 16);
}

// ---------------------------------------------------------------- IQ2_XXS: entries by byte selection
//
// An entry of the grid is eight of {8, 25, 43}, with signs: a nibble each that selects a byte of
// {8, 25, 43, –, -8, -25, -43, –}. Tables of such nibbles, of magnitudes (256) and of signs (128, the
// eighth is the others' parity), lie in threadgroup memory eight times, so that lanes rarely meet.

#define INT8_COPIES 8u
#define INT8_TABLE (384u * INT8_COPIES)  // words

// Entry or signs `which` of four, as an offset in bytes: a shift and one operation on bits.
inline uint int8_offset(uint word, ushort from, uint mask, uint copy) {
    return ((from < 5 ? word << (5 - from) : word >> (from - 5)) & (mask << 5)) | copy;
}

// The nibbles of entry e of four. `copy`: this lane's, in bytes.
inline uint int8_nibbles(threadgroup const uchar *table, uint entries, uint signs, ushort e, uint copy) {
    return *(threadgroup const uint *)(table + int8_offset(entries, 8 * e, 255u, copy))
         | *(threadgroup const uint *)(table + 1024u * INT8_COPIES + int8_offset(signs, 7 * e, 127u, copy));
}

// Four of the eight bytes of low and high, by the four lowest nibbles.
inline uint int8_select4(uint nibbles, uint low, uint high) {
#ifdef MSL_CUDA
    // Not __byte_perm, which would clear the bits of the selector that are never set.
    uint out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(nibbles));
    return out;
#else
    uint out = 0;
    for (ushort i = 0; i < 4; ++i) {
        const uint n = nibbles >> (4 * i) & 7u;
        out |= ((n < 4u ? low : high) >> (8u * (n & 3u)) & 255u) << (8 * i);
    }
    return out;
#endif
}

// By all `threads` of the threadgroup.
inline void int8_fill_table(threadgroup uint4 *table, uint tid, uint threads) {
    for (uint i = tid; i < 384; i += threads) {
        uint v;
        if (i < 256) {
            v = quant_iq2_grid[i];
            v = (v | v << 8) & 0x00ff00ffu;
            v = (v | v << 4) & 0x0f0f0f0fu;
            v = (v | v << 2) & 0x33333333u;
        } else {
            const uint seven = i - 256;
            v = seven | (popcount(seven) & 1u) << 7;
            v = (v | v << 12) & 0x000f000fu;
            v = (v | v << 6) & 0x03030303u;
            v = (v | v << 3) & 0x11111111u;
            v <<= 2;
        }
        // Neighbours write neighbours' words: each begins at another copy.
        for (ushort c = 0; c < INT8_COPIES / 4; ++c) { table[i * (INT8_COPIES / 4) + (c + i) % (INT8_COPIES / 4)] = uint4(v); }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// A group of 32 weights times 32 activations, without the block's scale but times twice the group's: a whole
// number of 31 bits. `copy`: this lane's, in bytes.
inline int int8_iq2_group(uint2 group, threadgroup const uchar *table, uint copy, thread const uint *high,
                          thread const uint *low) {
    int hi = 0, lo = 0;
    #pragma unroll
    for (ushort e = 0; e < 4; ++e) {
        const uint nibbles = int8_nibbles(table, group.x, group.y, e, copy);
        const uint a = int8_select4(nibbles, 0x002b1908u, 0x00d5e7f8u);
        const uint b = int8_select4(nibbles >> 16, 0x002b1908u, 0x00d5e7f8u);
        hi = int8_dot_high(a, high[2 * e], hi);
        lo = int8_dot_low(a, low[2 * e], lo);
        hi = int8_dot_high(b, high[2 * e + 1], hi);
        lo = int8_dot_low(b, low[2 * e + 1], lo);
    }
    // Bit 27 belongs to a sign: twice the four bits above it plus one is what remains with bit 0 set.
    return (hi * 256 + lo) * int(group.y >> 27 | 1u);
}
#endif
