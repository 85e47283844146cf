// matvec_many_int8.metal — matrices × 2 to 40 tokens, eight at a time, their activations as 16-bit integers.
//
//   int8_pack          x [n, columns]                                            -> bytes, scales
//   matvec_int8_many   up to 8 matrices of Q8_0 planes, F16 or F32 × those tokens   -> y [n, rows] each
//
// A simdgroup multiplies 16 rows by a slice of the columns of all tokens on the matrix units, 32 columns at a
// time: the bytes of the weights are the units' operand as they lie. Sums of 32 products are exact integers.
//
// Grid       pack: x columns / 128, y eights of tokens; matvec: x eights of tokens (neighbours, so that they
//            share the weights in the cache), y row tiles over all jobs (first_tile, tile_rows)
// Arguments  gpu_pack, gpu_matvec in kernel_args.h
// CPU twin   CKernels/matmul.c
// Origin     ours
#include <metal_stdlib>
#include "int8.h"
#include "jobs.h"
using namespace metal;

#define MSL_BLOCKS_matvec_int8_many 2  // threadgroups on a multiprocessor at once (CUDA)
#define INT8_SIMDGROUPS (INT8_THREADS / 32)
#define INT8_TOKENS 8u
#define INT8_MATRIX_ROWS 16u

// x as bytes, in the order that the units want it: of each eight tokens [columns / 32][8 tokens][4 lanes] of
// eight columns' high bytes, then low ones; and their scales [columns / 32][8]. Tokens past n are zeros.
[[max_total_threads_per_threadgroup(INT8_THREADS)]]
kernel void int8_pack(device const float *x       [[buffer(0)]],
                      device uint2 *bytes         [[buffer(1)]],
                      device float *scales        [[buffer(2)]],
                      constant gpu_pack &p        [[buffer(3)]],
                      uint2 tg                    [[threadgroup_position_in_grid]],
                      ushort sg                   [[simdgroup_index_in_threadgroup]],
                      ushort lane                 [[thread_index_in_simdgroup]])
{
    // A simdgroup is a token, a quarter of it eight lanes of one block of 32 columns.
    const uint b = tg.x * 4u + lane / 8, k = b * 32u + 4u * (lane & 7), token = tg.y * INT8_TOKENS + sg;
    const bool there = token < p.n && k < p.ldx;
    const float4 a = there ? *(device const float4 *)(x + ulong(token) * p.ldx + k) : float4(0.0f);
    float most = int8_most(a, 0.0f);
    most = max(most, simd_shuffle_xor(most, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    most = max(most, simd_shuffle_xor(most, 4));
    uint high;
    uint low;
    int8_split4(a, int8_inverse(most), high, low);
    const uint high2 = simd_shuffle_xor(high, 1), low2 = simd_shuffle_xor(low, 1);
    if (k >= p.ldx) { return; }
    const uint place = (tg.y * (p.ldx / 32u) + b) * INT8_TOKENS + sg;
    const ulong at = ulong(place) * 4u + (lane & 7) / 2;
    bytes[2 * at + (lane & 1)] = (lane & 1) == 0 ? uint2(high, high2) : uint2(low2, low);
    if ((lane & 7) == 0) { scales[place] = int8_scale(most); }
}

// c = a · b for 16 rows, 8 tokens and 32 columns; `b` of signed or of unsigned bytes.
inline void int8_matrix_step(thread const uint *a, uint4 b, thread int *high, thread int *low) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        high[i] = 0;
        low[i] = 0;
    }
    const uint first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
    msl_mma_m16n8k32_s8(high, a, first);
    msl_mma_m16n8k32_u8(low, a, second);
}

// 128 columns of two rows: 32·i + 8·lane … of each block of 32, and the four blocks' scales.
inline void int8_matrix_load(device const uchar *line0, device const uchar *line1, device const uchar *scales0,
                             device const uchar *scales1, uint k, thread uint2 *w0, thread uint2 *w1, thread uint2 &d0,
                             thread uint2 &d1) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        w0[i] = *(device const uint2 *)(line0 + k + 32 * i);
        w1[i] = *(device const uint2 *)(line1 + k + 32 * i);
    }
    d0 = *(device const uint2 *)(scales0 + k / 16);
    d1 = *(device const uint2 *)(scales1 + k / 16);
}

// Rows `first` … + 16 of Q8_0 planes, columns k0 … k1 (multiples of 128): out [16][INT8_TOKENS].
inline void int8_matrix_q8(device const uchar *w, ulong plane, uint first, uint rows, uint columns, uint k0, uint k1,
                           device const uint4 *bytes, device const float *scales, ushort lane, threadgroup float *out) {
    const ushort g = lane / 4, q = lane & 3;
    const ulong row0 = min(first + g, rows - 1), row1 = min(first + g + 8u, rows - 1);
    float acc[4];
    for (ushort i = 0; i < 4; ++i) { acc[i] = 0.0f; }
    device const uchar *line0 = w + row0 * columns + 8 * q, *line1 = w + row1 * columns + 8 * q;
    device const uchar *scales0 = w + plane + row0 * columns / 16, *scales1 = w + plane + row1 * columns / 16;
    uint2 w0[4];
    uint2 w1[4];
    uint2 d0;
    uint2 d1;
    int8_matrix_load(line0, line1, scales0, scales1, k0 < k1 ? k0 : 0u, w0, w1, d0, d1);
    #pragma unroll(1)
    for (uint k = k0; k < k1; k += 128) {
        uint4 x[4];
        float2 s[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint b = k / 32 + i;
            x[i] = bytes[(b * INT8_TOKENS + g) * 4u + q];
            s[i] = *(device const float2 *)(scales + b * INT8_TOKENS + 2 * q);
        }
        uint2 v0[4];
        uint2 v1[4];
        const uint2 e0 = d0, e1 = d1;
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            v0[i] = w0[i];
            v1[i] = w1[i];
        }
        // The next columns are under way while these are multiplied.
        if (k + 128 < k1) { int8_matrix_load(line0, line1, scales0, scales1, k + 128, w0, w1, d0, d1); }
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint a[4] = {v0[i].x, v1[i].x, v0[i].y, v1[i].y};
            int high[4];
            int low[4];
            int8_matrix_step(a, x[i], high, low);
            const uint two0 = i < 2 ? e0.x : e0.y, two1 = i < 2 ? e1.x : e1.y;
            const float f0 = float(as_type<half>(ushort(two0 >> (16 * (i & 1)))));
            const float f1 = float(as_type<half>(ushort(two1 >> (16 * (i & 1)))));
            acc[0] += float(high[0] * 256 + low[0]) * (f0 * s[i].x);
            acc[1] += float(high[1] * 256 + low[1]) * (f0 * s[i].y);
            acc[2] += float(high[2] * 256 + low[2]) * (f1 * s[i].x);
            acc[3] += float(high[3] * 256 + low[3]) * (f1 * s[i].y);
        }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { out[(g + 8 * (i / 2)) * INT8_TOKENS + 2 * q + i % 2] = acc[i]; }
}

// The same for F16 and F32 and x as it is.
template <uint T>
inline void int8_matrix_float(device const uchar *w, uint first, uint rows, uint columns, uint k0, uint k1,
                              device const float *x, uint ldx, uint n, ushort lane, threadgroup float *out) {
    const ushort v = T == GPU_F16 ? 8 : 4;  // columns in 16 bytes
    const uint line = columns * (T == GPU_F16 ? 2 : 4);
    #pragma unroll(1)
    for (uint r = 0; r < INT8_MATRIX_ROWS; r += 4) {
        device const uchar *from = w + ulong(min(first + r, rows - 4)) * line;
        float sums[INT8_TOKENS][4];
        #pragma unroll
        for (ushort t = 0; t < INT8_TOKENS; ++t) {
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) { sums[t][i] = 0.0f; }
        }
        #pragma unroll(1)
        for (uint k = k0 + uint(v) * lane; k < k1; k += 32u * v) {
            float4 b[4][2];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                const uint4 q = *(device const uint4 *)(from + i * line + k * (T == GPU_F16 ? 2 : 4));
                if (T == GPU_F16) {
                    #pragma unroll
                    for (ushort e = 0; e < 2; ++e) {
                        const uint l = q[2 * e], h = q[2 * e + 1];
                        b[i][e] = float4(float(as_type<half>(ushort(l & 0xffffu))), float(as_type<half>(ushort(l >> 16))),
                                         float(as_type<half>(ushort(h & 0xffffu))), float(as_type<half>(ushort(h >> 16))));
                    }
                } else {
                    b[i][0] = as_type<float4>(q);
                }
            }
            #pragma unroll
            for (ushort t = 0; t < INT8_TOKENS; ++t) {
                if (t < n) {
                    #pragma unroll
                    for (ushort e = 0; e < v / 4; ++e) {
                        const float4 a = *(device const float4 *)(x + ulong(t) * ldx + k + 4 * e);
                        #pragma unroll
                        for (ushort i = 0; i < 4; ++i) { sums[t][i] += dot(b[i][e], a); }
                    }
                }
            }
        }
        #pragma unroll
        for (ushort t = 0; t < INT8_TOKENS; ++t) {
            if (t < n) {
                const float sum = int8_reduce4(sums[t], lane);
                if (lane < 4) { out[(r + lane) * INT8_TOKENS + t] = sum; }
            }
        }
    }
}

[[max_total_threads_per_threadgroup(INT8_THREADS)]]
kernel void matvec_int8_many(device const uchar *w0     [[buffer(0)]],
                             device const uchar *w1     [[buffer(1)]],
                             device const uchar *w2     [[buffer(2)]],
                             device const uchar *w3     [[buffer(3)]],
                             device const uchar *w4     [[buffer(4)]],
                             device const uchar *w5     [[buffer(5)]],
                             device const uchar *w6     [[buffer(6)]],
                             device const uchar *w7     [[buffer(7)]],
                             device const float *x      [[buffer(8)]],
                             device const uint4 *bytes  [[buffer(9)]],
                             device const float *scales [[buffer(10)]],
                             device float *y            [[buffer(11)]],
                             constant gpu_matvec &p     [[buffer(12)]],
                             uint2 tg                   [[threadgroup_position_in_grid]],
                             ushort tid                 [[thread_index_in_threadgroup]],
                             ushort sg                  [[simdgroup_index_in_threadgroup]],
                             ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup float parts[INT8_SIMDGROUPS * INT8_MATRIX_ROWS * INT8_TOKENS];
    const uint j = matvec_find(p, tg.y), from = tg.x * INT8_TOKENS, n = min(INT8_TOKENS, p.n - from);
    x += ulong(from) * p.ldx;
    bytes += ulong(from) * (p.ldx / 32u * 4u);
    scales += from * (p.ldx / 32u);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    // The slices of 16 rows are neighbours.
    const uint slices = p.job[j].slices, columns = p.job[j].columns, rows = p.job[j].rows;
    const uint span = (columns / 128u + slices - 1) / slices * 128u, k0 = sg % slices * span, k1 = min(k0 + span, columns);
    const uint tile = INT8_SIMDGROUPS / slices * INT8_MATRIX_ROWS, row = (tg.y - p.job[j].first_tile) * tile;
    const uint first = row + sg / slices * INT8_MATRIX_ROWS, offset = row / p.job[j].group_rows * columns;
    threadgroup float *out = parts + sg * (INT8_MATRIX_ROWS * INT8_TOKENS);
    switch (p.job[j].type) {
    case GPU_F32: int8_matrix_float<GPU_F32>(w, first, rows, columns, k0, k1, x + offset, p.ldx, n, lane, out); break;
    case GPU_F16: int8_matrix_float<GPU_F16>(w, first, rows, columns, k0, k1, x + offset, p.ldx, n, lane, out); break;
    default: int8_matrix_q8(w, p.job[j].plane, first, rows, columns, k0, k1, bytes + offset / 32 * (INT8_TOKENS * 4),
                            scales + offset / 32 * INT8_TOKENS, lane, out);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < tile * INT8_TOKENS; i += INT8_THREADS) {
        const uint r = i / INT8_TOKENS, t = i % INT8_TOKENS;
        const uint at = r / INT8_MATRIX_ROWS * slices * INT8_MATRIX_ROWS + r % INT8_MATRIX_ROWS;
        if (t < n && row + r < rows) {
            float sum = parts[at * INT8_TOKENS + t];
            for (uint s = 1; s < slices; ++s) { sum += parts[(at + s * INT8_MATRIX_ROWS) * INT8_TOKENS + t]; }
            y[p.job[j].out + ulong(from + t) * rows + row + r] = sum;
        }
    }
}
