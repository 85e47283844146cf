// quant.h — sixteen weights of any format, as floats.
//
// Every product reads weights through quant_load16<T>: T is known when the kernel is compiled, so that
// only one branch of each remains. Blocks as drawn in CKernels/quant_blocks.h; rows in a mapped file are
// aligned to 2 bytes, MXFP4's to 1.
#ifndef PYDS4_QUANT_H
#define PYDS4_QUANT_H
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

// Entry i of IQ2_XXS's grid: eight magnitudes of {8, 25, 43}, two bits each.
constant ushort quant_iq2_grid[256] = {
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041,
    0x0044, 0x0050, 0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110,
    0x0115, 0x0140, 0x0184, 0x0198, 0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421,
    0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481, 0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508,
    0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640, 0x0684, 0x06a4, 0x0800, 0x0805,
    0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940, 0x0a02, 0x0a14,
    0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518,
    0x1562, 0x1600, 0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51,
    0x2000, 0x2002, 0x200a, 0x2044, 0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401,
    0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541, 0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44,
    0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048, 0x4056, 0x4060, 0x4081, 0x4084,
    0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256, 0x4268, 0x4400,
    0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080,
    0x5088, 0x5104, 0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811,
    0x5819, 0x5864, 0x5940, 0x5a08, 0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260,
    0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842, 0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104,
    0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440, 0x8460, 0x8500, 0x8546, 0x8594,
    0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040, 0x90a1, 0x9116,
    0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
};

// The same as eight bytes.
constant uint quant_iq2_bytes[512] = {
    0x08080808u, 0x08080808u, 0x0808082bu, 0x08080808u, 0x08081919u, 0x08080808u, 0x08082b08u, 0x08080808u,
    0x08082b2bu, 0x08080808u, 0x08190819u, 0x08080808u, 0x08191908u, 0x08080808u, 0x082b0808u, 0x08080808u,
    0x082b082bu, 0x08080808u, 0x082b2b08u, 0x08080808u, 0x082b2b2bu, 0x08080808u, 0x19080819u, 0x08080808u,
    0x19081908u, 0x08080808u, 0x19190808u, 0x08080808u, 0x19192b08u, 0x08080808u, 0x192b0819u, 0x08080808u,
    0x192b1908u, 0x08080808u, 0x2b080808u, 0x08080808u, 0x2b08082bu, 0x08080808u, 0x2b082b2bu, 0x08080808u,
    0x2b2b082bu, 0x08080808u, 0x08080819u, 0x08080819u, 0x08081908u, 0x08080819u, 0x08190808u, 0x08080819u,
    0x08191919u, 0x08080819u, 0x19080808u, 0x08080819u, 0x2b081908u, 0x08080819u, 0x2b192b08u, 0x08080819u,
    0x08080808u, 0x0808082bu, 0x0808082bu, 0x0808082bu, 0x082b082bu, 0x0808082bu, 0x2b08082bu, 0x0808082bu,
    0x08080819u, 0x08081908u, 0x08081908u, 0x08081908u, 0x08190808u, 0x08081908u, 0x082b0819u, 0x08081908u,
    0x082b1908u, 0x08081908u, 0x19080808u, 0x08081908u, 0x1908082bu, 0x08081908u, 0x19082b08u, 0x08081908u,
    0x192b0808u, 0x08081908u, 0x2b080819u, 0x08081908u, 0x2b081908u, 0x08081908u, 0x2b190808u, 0x08081908u,
    0x2b2b1908u, 0x08081908u, 0x08080808u, 0x08081919u, 0x0808082bu, 0x08081919u, 0x08082b08u, 0x08081919u,
    0x082b0808u, 0x08081919u, 0x1908192bu, 0x08081919u, 0x192b2b19u, 0x08081919u, 0x2b080808u, 0x08081919u,
    0x2b190819u, 0x08081919u, 0x08082b19u, 0x0808192bu, 0x08190808u, 0x0808192bu, 0x19080808u, 0x0808192bu,
    0x2b081908u, 0x0808192bu, 0x2b2b1908u, 0x0808192bu, 0x08080808u, 0x08082b08u, 0x08081919u, 0x08082b08u,
    0x08082b08u, 0x08082b08u, 0x08191908u, 0x08082b08u, 0x082b2b08u, 0x08082b08u, 0x19080819u, 0x08082b08u,
    0x19081908u, 0x08082b08u, 0x19190808u, 0x08082b08u, 0x1919082bu, 0x08082b08u, 0x2b082b08u, 0x08082b08u,
    0x08081908u, 0x08082b19u, 0x19080808u, 0x08082b19u, 0x0808082bu, 0x08082b2bu, 0x08191908u, 0x08082b2bu,
    0x08080819u, 0x08190808u, 0x08081908u, 0x08190808u, 0x08190808u, 0x08190808u, 0x082b0819u, 0x08190808u,
    0x19080808u, 0x08190808u, 0x192b0808u, 0x08190808u, 0x2b081908u, 0x08190808u, 0x2b190808u, 0x08190808u,
    0x2b191919u, 0x08190808u, 0x08080808u, 0x08190819u, 0x08082b08u, 0x08190819u, 0x082b0808u, 0x08190819u,
    0x19190808u, 0x08190819u, 0x19192b2bu, 0x08190819u, 0x2b080808u, 0x08190819u, 0x082b1908u, 0x0819082bu,
    0x19081919u, 0x0819082bu, 0x08080808u, 0x08191908u, 0x08082b08u, 0x08191908u, 0x082b0808u, 0x08191908u,
    0x082b1919u, 0x08191908u, 0x19082b19u, 0x08191908u, 0x2b080808u, 0x08191908u, 0x08192b08u, 0x08191919u,
    0x192b082bu, 0x08191919u, 0x08080808u, 0x0819192bu, 0x0819192bu, 0x0819192bu, 0x08080819u, 0x08192b08u,
    0x08081908u, 0x08192b08u, 0x08190808u, 0x08192b08u, 0x19080808u, 0x08192b08u, 0x2b080819u, 0x08192b08u,
    0x08080808u, 0x08192b19u, 0x08081919u, 0x08192b19u, 0x2b2b0808u, 0x08192b19u, 0x19190819u, 0x08192b2bu,
    0x08080808u, 0x082b0808u, 0x0808082bu, 0x082b0808u, 0x08082b2bu, 0x082b0808u, 0x19081908u, 0x082b0808u,
    0x192b0819u, 0x082b0808u, 0x2b080808u, 0x082b0808u, 0x2b08082bu, 0x082b0808u, 0x082b2b19u, 0x082b0819u,
    0x19082b08u, 0x082b0819u, 0x08080808u, 0x082b082bu, 0x0808082bu, 0x082b082bu, 0x08080819u, 0x082b1908u,
    0x08081908u, 0x082b1908u, 0x08190808u, 0x082b1908u, 0x19080808u, 0x082b1908u, 0x1919192bu, 0x082b1908u,
    0x08080808u, 0x082b1919u, 0x19080819u, 0x082b1919u, 0x192b1908u, 0x082b1919u, 0x2b190808u, 0x082b192bu,
    0x08082b08u, 0x082b2b08u, 0x082b0808u, 0x082b2b08u, 0x2b191908u, 0x082b2b08u, 0x19081908u, 0x082b2b2bu,
    0x08080819u, 0x19080808u, 0x08081908u, 0x19080808u, 0x08190808u, 0x19080808u, 0x08192b08u, 0x19080808u,
    0x082b0819u, 0x19080808u, 0x082b1908u, 0x19080808u, 0x19080808u, 0x19080808u, 0x19082b08u, 0x19080808u,
    0x1919192bu, 0x19080808u, 0x192b0808u, 0x19080808u, 0x2b080819u, 0x19080808u, 0x2b081908u, 0x19080808u,
    0x2b190808u, 0x19080808u, 0x08080808u, 0x19080819u, 0x082b0808u, 0x19080819u, 0x192b0819u, 0x19080819u,
    0x2b080808u, 0x19080819u, 0x2b081919u, 0x19080819u, 0x08080819u, 0x1908082bu, 0x08190808u, 0x1908082bu,
    0x19082b08u, 0x1908082bu, 0x1919192bu, 0x1908082bu, 0x192b2b08u, 0x1908082bu, 0x08080808u, 0x19081908u,
    0x08082b08u, 0x19081908u, 0x082b0808u, 0x19081908u, 0x2b080808u, 0x19081908u, 0x2b192b19u, 0x19081908u,
    0x0819082bu, 0x19081919u, 0x082b1908u, 0x19081919u, 0x08080808u, 0x1908192bu, 0x08080819u, 0x19082b08u,
    0x08081908u, 0x19082b08u, 0x08190808u, 0x19082b08u, 0x19080808u, 0x19082b08u, 0x19081919u, 0x19082b08u,
    0x08080808u, 0x19082b19u, 0x19192b08u, 0x19082b19u, 0x192b0819u, 0x19082b19u, 0x2b08082bu, 0x19082b19u,
    0x19081919u, 0x19082b2bu, 0x2b190808u, 0x19082b2bu, 0x08080808u, 0x19190808u, 0x08082b08u, 0x19190808u,
    0x08190819u, 0x19190808u, 0x08192b19u, 0x19190808u, 0x082b0808u, 0x19190808u, 0x2b080808u, 0x19190808u,
    0x2b082b08u, 0x19190808u, 0x08081908u, 0x19190819u, 0x1908082bu, 0x19190819u, 0x2b2b1908u, 0x19190819u,
    0x2b190819u, 0x1919082bu, 0x2b190808u, 0x19191908u, 0x2b19082bu, 0x19191908u, 0x08082b2bu, 0x19191919u,
    0x08080819u, 0x1919192bu, 0x19191908u, 0x1919192bu, 0x08080808u, 0x19192b08u, 0x08190819u, 0x19192b08u,
    0x08192b19u, 0x19192b08u, 0x192b1908u, 0x19192b08u, 0x19080808u, 0x19192b19u, 0x08082b08u, 0x19192b2bu,
    0x08081908u, 0x192b0808u, 0x08190808u, 0x192b0808u, 0x19080808u, 0x192b0808u, 0x192b2b08u, 0x192b0808u,
    0x08080808u, 0x192b0819u, 0x19191919u, 0x192b0819u, 0x08192b08u, 0x192b082bu, 0x192b0808u, 0x192b082bu,
    0x08080808u, 0x192b1908u, 0x08081919u, 0x192b1908u, 0x08190808u, 0x192b1919u, 0x0819082bu, 0x192b1919u,
    0x2b081908u, 0x192b1919u, 0x1908082bu, 0x192b2b08u, 0x08080808u, 0x2b080808u, 0x0808082bu, 0x2b080808u,
    0x08082b2bu, 0x2b080808u, 0x19080819u, 0x2b080808u, 0x2b08082bu, 0x2b080808u, 0x08081908u, 0x2b080819u,
    0x08192b08u, 0x2b080819u, 0x19080808u, 0x2b080819u, 0x08190819u, 0x2b08082bu, 0x08080819u, 0x2b081908u,
    0x08081908u, 0x2b081908u, 0x08190808u, 0x2b081908u, 0x08191919u, 0x2b081908u, 0x19080808u, 0x2b081908u,
    0x192b0808u, 0x2b081908u, 0x08080808u, 0x2b081919u, 0x1908192bu, 0x2b081919u, 0x2b191908u, 0x2b081919u,
    0x08082b19u, 0x2b08192bu, 0x19080808u, 0x2b08192bu, 0x192b0808u, 0x2b08192bu, 0x0808082bu, 0x2b082b08u,
    0x08081908u, 0x2b082b19u, 0x08190819u, 0x2b082b2bu, 0x08081908u, 0x2b190808u, 0x08190808u, 0x2b190808u,
    0x082b1908u, 0x2b190808u, 0x19080808u, 0x2b190808u, 0x2b2b0819u, 0x2b190808u, 0x0819192bu, 0x2b190819u,
    0x2b080808u, 0x2b190819u, 0x19081919u, 0x2b19082bu, 0x08080808u, 0x2b191908u, 0x082b082bu, 0x2b191908u,
    0x19081908u, 0x2b191908u, 0x19190819u, 0x2b191919u, 0x2b080819u, 0x2b192b08u, 0x082b0808u, 0x2b192b19u,
    0x0808082bu, 0x2b2b0808u, 0x19190808u, 0x2b2b0808u, 0x2b081919u, 0x2b2b0808u, 0x08082b19u, 0x2b2b0819u,
    0x08080808u, 0x2b2b082bu, 0x08192b08u, 0x2b2b1908u, 0x19190808u, 0x2b2b2b08u, 0x08081908u, 0x2b2b2b19u,
};

// 2^23 + byte: the byte lands in the mantissa, which is much faster than converting integers.
inline float quant_byte_float(uint word, ushort i) {
#ifdef MSL_CUDA
    return as_type<float>(__byte_perm(word, 0x4b000000u, 0x7540u | i));
#else
    return as_type<float>(((word >> (8 * i)) & 0xffu) | 0x4b000000u);
#endif
}

// Four signed bytes.
inline float4 quant_signed4(uint word) {
    const uint biased = word ^ 0x80808080u;
    return float4(quant_byte_float(biased, 0), quant_byte_float(biased, 1), quant_byte_float(biased, 2),
                  quant_byte_float(biased, 3)) - 8388736.0f;
}

// Four unsigned bytes.
inline float4 quant_unsigned4(uint word) {
    return float4(quant_byte_float(word, 0), quant_byte_float(word, 1), quant_byte_float(word, 2),
                  quant_byte_float(word, 3)) - 8388608.0f;
}

// Bytes below 128, negated where the four bits of `signs` say so.
inline uint quant_negate4(uint bytes, uint signs) {
    const uint ones = (signs * 0x00204081u) & 0x01010101u;  // bit i to byte i
    return (bytes ^ ones * 255u) + ones;
}

inline float quant_half(device const uchar *p) { return float(as_type<half>(*(device const ushort *)p)); }

// A word from memory that is aligned to two bytes.
inline uint quant_word(device const uchar *p) {
    device const ushort *h = (device const ushort *)p;
    return uint(h[0]) | uint(h[1]) << 16;
}

// Bytes in a row of `columns` weights, without the scales of planes.
template <uint T> inline ulong quant_row_bytes(uint columns) {
    if (T == GPU_F32) { return ulong(columns) * 4; }
    if (T == GPU_F16 || T == GPU_BF16) { return ulong(columns) * 2; }
    if (T == GPU_Q8_0) { return ulong(columns / 32) * 34; }
    if (T == GPU_Q4_0) { return ulong(columns / 32) * 18; }
    if (T == GPU_MXFP4) { return ulong(columns / 32) * 17; }
    if (T == GPU_Q2_K) { return ulong(columns / 256) * 84; }
    if (T == GPU_Q3_K) { return ulong(columns / 256) * 110; }
    if (T == GPU_Q4_K) { return ulong(columns / 256) * 144; }
    if (T == GPU_Q5_K) { return ulong(columns / 256) * 176; }
    if (T == GPU_Q6_K) { return ulong(columns / 256) * 210; }
    if (T == GPU_IQ2_XXS) { return ulong(columns / 256) * 66; }
    if (T == GPU_Q8_0_PLANES) { return ulong(columns); }
    if (T == GPU_Q2_K_PLANES) { return ulong(columns / 256) * 64; }
    return ulong(columns / 32) * 8;  // IQ2_XXS planes
}

// IQ2_XXS's grid where lookups are fast: [256] in threadgroup memory, by all `threads`.
inline void quant_fill_grid(threadgroup uint2 *grid, uint tid, uint threads) {
    for (uint i = tid; i < 256; i += threads) { grid[i] = uint2(quant_iq2_bytes[2 * i], quant_iq2_bytes[2 * i + 1]); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Magnitude codes and sign bits of eight weights to floats.
inline void quant_iq2_eight(uint codes, uint signs, float scale, thread float *out) {
    for (ushort i = 0; i < 8; ++i) {
        const uint code = (codes >> (2 * i)) & 3u;
        const float magnitude = code == 0u ? 8.0f : code == 1u ? 25.0f : 43.0f;
        out[i] = (((signs >> i) & 1u) != 0u ? -magnitude : magnitude) * scale;
    }
}

// Half of a group of 32: grid indices and signs of entries 2·side and 2·side + 1.
inline void quant_iq2_16(uint grid, uint packed, float d, uint side, thread float *out) {
    const float scale = d * float(2u * (packed >> 28) + 1u) * 0.125f;
    for (ushort e = 0; e < 2; ++e) {
        const uint entry = side * 2u + e;
        const uint seven = (packed >> (7u * entry)) & 127u;
        quant_iq2_eight(quant_iq2_grid[(grid >> (8u * entry)) & 255u], seven | (popcount(seven) & 1u) << 7, scale,
                        out + 8 * e);
    }
}

// The six-bit scale and minimum of Q4_K and Q5_K.
inline float2 quant_k4(device const uchar *packed, uint sub) {
    const uint scale = sub < 4u ? packed[sub] & 63u : (packed[sub + 4u] & 15u) | (packed[sub - 4u] >> 6) << 4;
    const uint least = sub < 4u ? packed[sub + 4u] & 63u : packed[sub + 4u] >> 4 | (packed[sub] >> 6) << 4;
    return float2(float(scale), float(least));
}

// Sixteen quants of Q2_K planes from k on, a byte each, and their scale and minimum.
inline void quant_q2_planes(device const uchar *w, ulong plane, ulong row, uint columns, uint k, thread uint4 &two,
                            thread float &d, thread float &least) {
    const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
    const ulong block = row * (columns / 256) + k / 256;
    const uint4 q = *(device const uint4 *)(w + block * 64 + 32u * h + l);
    const uint sub = w[plane + block * 16 + j];
    device const uchar *both = w + plane + plane / 4 + block * 4;
    d = quant_half(both) * float(sub & 15u);
    least = quant_half(both + 2) * float(sub >> 4);
    two = (q >> (2u * s)) & 0x03030303u;
}

// Weights k … k + 15 of row `row`; k is a multiple of 16. `plane`: where the scales of planes begin.
template <uint T>
inline void quant_load16(device const uchar *w, ulong plane, ulong row, uint columns, uint k, thread float *out) {
    device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F32) {
        device const float4 *p = (device const float4 *)(line + ulong(k) * 4);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = p[j];
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_F16) {
        device const uint4 *p = (device const uint4 *)(line + ulong(k) * 2);
        for (ushort j = 0; j < 2; ++j) {
            const uint4 v = p[j];
            for (ushort i = 0; i < 4; ++i) {
                out[8 * j + 2 * i] = float(as_type<half>(ushort(v[i] & 0xffffu)));
                out[8 * j + 2 * i + 1] = float(as_type<half>(ushort(v[i] >> 16)));
            }
        }
    } else if (T == GPU_BF16) {
        device const ushort *p = (device const ushort *)(line + ulong(k) * 2);
        for (ushort i = 0; i < 16; ++i) { out[i] = as_type<float>(uint(p[i]) << 16); }
    } else if (T == GPU_Q8_0) {
        device const uchar *block = line + ulong(k / 32) * 34;
        const float d = quant_half(block);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = quant_signed4(quant_word(block + 2 + (k & 16u) + 4 * j)) * d;
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_Q8_0_PLANES) {
        const uint4 q = *(device const uint4 *)(line + k);
        const float d = quant_half(w + plane + (row * (columns / 32) + k / 32) * 2);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = quant_signed4(q[j]) * d;
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_Q4_0) {
        device const uchar *block = line + ulong(k / 32) * 18;
        const float d = quant_half(block);
        const ushort shift = (k & 16u) != 0u ? 4 : 0;
        for (ushort i = 0; i < 16; ++i) { out[i] = (float((block[2 + i] >> shift) & 15) - 8.0f) * d; }
    } else if (T == GPU_MXFP4) {
        device const uchar *block = line + ulong(k / 32) * 17;
        const uint e = block[0];
        const float d = as_type<float>(e < 2u ? 0x00200000u << e : (e - 1u) << 23);
        const ushort shift = (k & 16u) != 0u ? 4 : 0;
        for (ushort i = 0; i < 16; ++i) {
            const uint code = (block[1 + i] >> shift) & 15;
            const uint m = code & 7u;
            // 0 1 2 3 4 6 8 12: twice the values of e2m1
            const float value = m < 4u ? float(m) : m == 4u ? 4.0f : m == 5u ? 6.0f : m == 6u ? 8.0f : 12.0f;
            out[i] = (code & 8u) != 0u ? -value * d : value * d;
        }
    } else if (T == GPU_IQ2_XXS) {
        device const uchar *block = line + ulong(k / 256) * 66;
        device const uchar *group = block + 2 + (k % 256u) / 32u * 8u;
        quant_iq2_16(quant_word(group), quant_word(group + 4), quant_half(block), (k / 16u) & 1u, out);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(device const uint2 *)(line + ulong(k / 32) * 8);
        const float d = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2);
        quant_iq2_16(group.x, group.y, d, (k / 16u) & 1u, out);
    } else if (T == GPU_Q2_K_PLANES) {
        float d, least;
        uint4 two;
        quant_q2_planes(w, plane, row, columns, k, two, d, least);
        for (ushort i = 0; i < 4; ++i) {
            const float4 v = quant_unsigned4(two[i]) * d - least;
            for (ushort c = 0; c < 4; ++c) { out[4 * i + c] = v[c]; }
        }
    } else {
        // The K types: sixteen sub-blocks of 16 in 256; sub-block j is half `h`, shift `s`, offset `l`.
        const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
        if (T == GPU_Q2_K) {
            device const uchar *block = line + ulong(k / 256) * 84;
            const uint sub = block[j];
            const float d = quant_half(block + 80) * float(sub & 15u);
            const float least = quant_half(block + 82) * float(sub >> 4);
            device const uchar *q = block + 16 + 32u * h + l;
            for (ushort i = 0; i < 4; ++i) {
                const float4 v = quant_unsigned4((quant_word(q + 4 * i) >> (2u * s)) & 0x03030303u) * d - least;
                for (ushort c = 0; c < 4; ++c) { out[4 * i + c] = v[c]; }
            }
        } else if (T == GPU_Q3_K) {
            device const uchar *block = line + ulong(k / 256) * 110;
            device const uchar *scales = block + 96;
            const uint low = j < 8u ? scales[j] & 15u : scales[j - 8u] >> 4;
            const uint high = (scales[8u + j % 4u] >> (2u * (j / 4u))) & 3u;
            const float d = quant_half(block + 108) * (float(low | high << 4) - 32.0f);
            for (ushort i = 0; i < 16; ++i) {
                const uint two = (block[32u + 32u * h + l + i] >> (2u * s)) & 3u;
                const uint one = (block[l + i] >> (4u * h + s)) & 1u;
                out[i] = d * (float(two) - (one != 0u ? 0.0f : 4.0f));
            }
        } else if (T == GPU_Q4_K || T == GPU_Q5_K) {
            device const uchar *block = line + ulong(k / 256) * (T == GPU_Q4_K ? 144u : 176u);
            const uint sub = j / 2u;
            const float2 six = quant_k4(block + 4, sub);
            const float d = quant_half(block) * six.x, least = quant_half(block + 2) * six.y;
            device const uchar *q = block + (T == GPU_Q4_K ? 16u : 48u) + 32u * (sub / 2u) + l;
            for (ushort i = 0; i < 16; ++i) {
                uint value = (q[i] >> ((sub & 1u) * 4u)) & 15u;
                if (T == GPU_Q5_K) { value |= ((block[16u + l + i] >> sub) & 1u) << 4; }
                out[i] = d * float(value) - least;
            }
        } else {  // Q6_K
            device const uchar *block = line + ulong(k / 256) * 210;
            const float d = quant_half(block + 208) * float(as_type<char>(block[192u + j]));
            device const uchar *low = block + 64u * h + 32u * (s & 1u) + l;
            device const uchar *high = block + 128u + 32u * h + l;
            for (ushort i = 0; i < 16; ++i) {
                const uint value = ((low[i] >> (s / 2u * 4u)) & 15u) | ((high[i] >> (2u * s)) & 3u) << 4;
                out[i] = d * (float(value) - 32.0f);
            }
        }
    }
}

// ---------------------------------------------------------------- halfs, for tiles
//
// A byte under 0x64 is the half 1024 + byte: two weights at a time, without a conversion.

inline half2 quant_bytes_half2(uint word, ushort pair) {
#ifdef MSL_CUDA
    return as_type<half2>(__byte_perm(word, 0x64646464u, pair == 0 ? 0x4140u : 0x4342u));
#else
    const uint two = word >> (16 * pair);
    return as_type<half2>((two & 0xffu) | (two & 0xff00u) << 8 | 0x64006400u);
#endif
}

// Four signed bytes times d.
inline uint2 quant_signed_half4(uint word, half2 d) {
    const uint biased = word ^ 0x80808080u;
    const half2 zero = half2(1152.0h);
    return uint2(as_type<uint>((quant_bytes_half2(biased, 0) - zero) * d),
                 as_type<uint>((quant_bytes_half2(biased, 1) - zero) * d));
}

// As quant_load16, as sixteen halfs.
template <uint T>
inline void quant_half16(device const uchar *w, ulong plane, ulong row, uint columns, uint k,
                         threadgroup const uint2 *grid, thread uint2 *out) {
    device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F16) {
        device const uint2 *p = (device const uint2 *)(line + ulong(k) * 2);
        for (ushort j = 0; j < 4; ++j) { out[j] = p[j]; }
    } else if (T == GPU_Q8_0_PLANES) {
        const uint4 q = *(device const uint4 *)(line + k);
        const half2 d = half2(as_type<half>(*(device const ushort *)(w + plane + (row * (columns / 32) + k / 32) * 2)));
        out[0] = quant_signed_half4(q.x, d);
        out[1] = quant_signed_half4(q.y, d);
        out[2] = quant_signed_half4(q.z, d);
        out[3] = quant_signed_half4(q.w, d);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(device const uint2 *)(line + ulong(k / 32) * 8);
        const float scale = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2)
                          * float(2u * (group.y >> 28) + 1u) * 0.125f;
        const half2 d = half2(half(scale));
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint entry = (k / 16u & 1u) * 2u + e;
            const uint seven = (group.y >> (7u * entry)) & 127u;
            const uint signs = seven | (popcount(seven) & 1u) << 7;
            const uint2 eight = grid[(group.x >> (8u * entry)) & 255u];
            out[2 * e] = quant_signed_half4(quant_negate4(eight.x, signs & 15u), d);
            out[2 * e + 1] = quant_signed_half4(quant_negate4(eight.y, signs >> 4), d);
        }
    } else if (T == GPU_Q2_K_PLANES) {
        float scale, minimum;
        uint4 two;
        quant_q2_planes(w, plane, row, columns, k, two, scale, minimum);
        const half2 d = half2(half(scale)), least = half2(half(minimum)), zero = half2(1024.0h);
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            out[i] = uint2(as_type<uint>((quant_bytes_half2(two[i], 0) - zero) * d - least),
                           as_type<uint>((quant_bytes_half2(two[i], 1) - zero) * d - least));
        }
    } else if (T == GPU_Q2_K) {
        const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
        device const uchar *block = line + ulong(k / 256) * 84;
        const uint sub = block[j];
        const half2 d = half2(half(quant_half(block + 80) * float(sub & 15u)));
        const half2 least = half2(half(quant_half(block + 82) * float(sub >> 4)));
        device const uint *q = (device const uint *)(block + 16 + 32u * h + l);
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint two = (q[i] >> (2u * s)) & 0x03030303u;
            const half2 zero = half2(1024.0h);
            out[i] = uint2(as_type<uint>((quant_bytes_half2(two, 0) - zero) * d - least),
                           as_type<uint>((quant_bytes_half2(two, 1) - zero) * d - least));
        }
    } else {
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
        quant_load16<T>(w, plane, row, columns, k, v);
        for (ushort j = 0; j < 4; ++j) {
            out[j] = as_type<uint2>(half4(float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3])));
        }
    }
}

// ---------------------------------------------------------------- one simdgroup along a row
//
// 512 weights at a time, sixteen a lane, as four float4: which ones depends on the format, so that lanes
// next to each other read memory next to each other, of the weights and of x.

// Formats of published models, whose branch-free form is worth its code.
template <uint T> inline bool quant_is_common() {
    return T == GPU_F32 || T == GPU_F16 || T == GPU_Q8_0_PLANES || T == GPU_Q2_K || T == GPU_IQ2_XXS_PLANES
        || T == GPU_Q4_K || T == GPU_MXFP4 || T == GPU_Q8_0;
}

// Where the j-th float4 of a lane lies among the 512.
template <uint T> inline uint quant_lane_offset(ushort lane, ushort j) {
    if (T == GPU_F32 || T == GPU_F16 || T == GPU_BF16 || T == GPU_Q8_0_PLANES) { return 128u * j + 4u * lane; }
    if (T == GPU_Q2_K) { return 256u * (lane / 16) + 128u * (lane % 16 / 8) + 32u * j + 4u * (lane % 8); }
    if (T == GPU_IQ2_XXS_PLANES) { return 256u * (j / 2) + 8u * lane + 4u * (j % 2); }
    return 16u * lane + 4u * j;
}

// The lane's weights of [k0, k0 + 512) in row `row`; zeros past the end, unless all 512 are there (FULL):
// then there is no branch, and all loads of several rows can be under way together. `grid`: what
// quant_fill_grid put there, for IQ2_XXS planes.
template <uint T, bool FULL>
inline void quant_lane16(device const uchar *w, ulong plane, ulong row, uint columns, uint k0, ushort lane,
                         threadgroup const uint2 *grid, thread float4 *out) {
    device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F32 || T == GPU_F16 || T == GPU_BF16 || T == GPU_Q8_0_PLANES) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            const uint k = k0 + 128u * j + 4u * lane;
            float4 v = float4(0.0f);
            if (FULL || k < columns) {
                if (T == GPU_F32) {
                    v = *(device const float4 *)(line + ulong(k) * 4);
                } else if (T == GPU_Q8_0_PLANES) {
                    const float d = quant_half(w + plane + (row * (columns / 32) + k / 32) * 2);
                    v = quant_signed4(*(device const uint *)(line + k)) * d;
                } else {
                    const uint2 two = *(device const uint2 *)(line + ulong(k) * 2);
                    if (T == GPU_F16) {
                        v = float4(float(as_type<half>(ushort(two.x & 0xffffu))), float(as_type<half>(ushort(two.x >> 16))),
                                   float(as_type<half>(ushort(two.y & 0xffffu))), float(as_type<half>(ushort(two.y >> 16))));
                    } else {
                        v = float4(as_type<float>(two.x << 16), as_type<float>(two.x & 0xffff0000u),
                                   as_type<float>(two.y << 16), as_type<float>(two.y & 0xffff0000u));
                    }
                }
            }
            out[j] = v;
        }
    } else if (T == GPU_Q2_K) {
        const uint k = k0 + 256u * (lane / 16);
        const ushort h = lane % 16 / 8, word = lane % 8;
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(0.0f); }
        if (FULL || k < columns) {
            device const uchar *block = line + ulong(k / 256) * 84;
            const uint q = *(device const uint *)(block + 16 + 32 * h + 4 * word);
            // Scales 8h + 2s + half of shifts s = 0 … 3.
            const uint2 scales = uint2(*(device const uint *)(block + 8 * h), *(device const uint *)(block + 8 * h + 4));
            const float d = quant_half(block + 80), least = quant_half(block + 82);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const uint both = j < 2 ? scales.x : scales.y;
                const uint sub = (both >> (16 * (j & 1) + 8 * (word / 4))) & 0xffu;
                out[j] = quant_unsigned4((q >> (2 * j)) & 0x03030303u) * (d * float(sub & 15u)) - least * float(sub >> 4);
            }
        }
    } else if (T == GPU_IQ2_XXS_PLANES) {
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint k = k0 + 256u * e + 8u * lane;
            out[2 * e] = float4(0.0f);
            out[2 * e + 1] = float4(0.0f);
            if (FULL || k < columns) {
                const uint2 group = *(device const uint2 *)(line + ulong(k / 32) * 8);
                const float d = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2);
                const float scale = d * float(2u * (group.y >> 28) + 1u) * 0.125f;
                const uint entry = lane & 3;
                const uint seven = (group.y >> (7u * entry)) & 127u;
                const uint signs = seven | (popcount(seven) & 1u) << 7;
                const uint2 eight = grid[(group.x >> (8u * entry)) & 255u];
                out[2 * e] = quant_signed4(quant_negate4(eight.x, signs & 15u)) * scale;
                out[2 * e + 1] = quant_signed4(quant_negate4(eight.y, signs >> 4)) * scale;
            }
        }
    } else {
        const uint k = k0 + 16u * lane;
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
        if (FULL || k < columns) { quant_load16<T>(w, plane, row, columns, k, v); }
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]); }
    }
}

// The lane's values of x in the same order; past the end whatever row 0 of 512 has, times zero weights.
template <uint T, bool FULL>
inline void quant_lane_x(device const float *x, uint columns, uint k0, ushort lane, thread float4 *out) {
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) {
        const uint k = k0 + quant_lane_offset<T>(lane, j);
        out[j] = FULL || k < columns ? *(device const float4 *)(x + k) : float4(0.0f);
    }
}

// Calls BODY(T) for the format that `type` names.
// A device may know which types its model has, and leave out the code of the others: bits of QUANT_TYPES.
#ifndef QUANT_TYPES
#define QUANT_TYPES 0xffffffffu
#endif
#define QUANT_BIT(T) ((T) < 32 ? (T) : (T) == GPU_MXFP4 ? 9 : (T) == GPU_Q8_0_PLANES ? 3 : (T) == GPU_Q2_K_PLANES ? 5 : 4)
#define QUANT_CASE(T, BODY) case T: if ((QUANT_TYPES >> QUANT_BIT(T) & 1u) != 0u) { BODY(T); } break;

#define QUANT_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F32, BODY) \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_BF16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    QUANT_CASE(GPU_Q4_0, BODY) \
    QUANT_CASE(GPU_MXFP4, BODY) \
    QUANT_CASE(GPU_Q2_K, BODY) \
    QUANT_CASE(GPU_Q2_K_PLANES, BODY) \
    QUANT_CASE(GPU_Q3_K, BODY) \
    QUANT_CASE(GPU_Q4_K, BODY) \
    QUANT_CASE(GPU_Q5_K, BODY) \
    QUANT_CASE(GPU_Q6_K, BODY) \
    QUANT_CASE(GPU_IQ2_XXS, BODY) \
    QUANT_CASE(GPU_IQ2_XXS_PLANES, BODY) \
    default: break; \
    }

#endif
