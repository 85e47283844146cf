// matvec_int8.metal — matrices × a few tokens, their activations as 16-bit integers.
//
//   matvec_int8        up to 8 matrices of Q8_0 planes, F16 or F32 × one token   -> y [rows] each
//   int8_pack          x [n, columns], 2 to 8 tokens                             -> bytes, scales
//   matvec_int8_many   those matrices × those tokens                             -> y [n, rows] each
//
// A threadgroup makes integers of x, then a simdgroup keeps a slice of 1,024 in registers, 32 a lane, and
// lets rows pass by, four at a time. The simdgroups of a threadgroup share the slices of one row, and what slices are left, rows.
// For F16 and F32 the slice stays f32. Several tokens share the matrix units' steps.
//
// Grid       x row tiles over all jobs (first_tile, tile_rows)
// Arguments  gpu_matvec in kernel_args.h
// CPU twin   CKernels/matmul.c
// Origin     ours
#include <metal_stdlib>
#include "int8.h"
using namespace metal;

#define MSL_BLOCKS_matvec_int8_many 2
#define MSL_BLOCKS_matvec_int8 3  // threadgroups on a multiprocessor at once (CUDA)

#define INT8_SIMDGROUPS (INT8_THREADS / 32)
#define INT8_SLICE 1024u
#define INT8_MOST_PARTS 256  // slices · rows of a tile

// Four rows of a slice, a lane's columns: 16 from 16·lane on and 16 from 512 + 16·lane on.
struct int8_rows_q8 {
    uint4 q[4][2];
    float d[4][2];
};

// Past the last column the slice's first one is read; its activations are zeros. Rows past the end, four at a
// time, are the last ones again.
inline void int8_load_q8(device const uchar *w, ulong plane, uint row, uint rows, uint columns, uint k0, ushort lane,
                         thread int8_rows_q8 &out) {
    const ulong line = min(row, rows - 4);
    #pragma unroll
    for (ushort p = 0; p < 2; ++p) {
        const uint at = k0 + 512u * p + 16u * lane, k = at < columns ? at : 0u;
        device const uchar *quants = w + line * columns + k, *scales = w + plane + (line * columns + k) / 32 * 2;
        #pragma unroll
        for (ushort r = 0; r < 4; ++r) {
            out.q[r][p] = *(device const uint4 *)(quants + r * columns);
            out.d[r][p] = quant_half(scales + r * (columns / 16));
        }
    }
}

// The lane's parts of four rows of F16 or F32, of 1,024 columns from k0 on; x comes from the cache every time.
template <uint T>
inline void int8_rows_float(device const uchar *w, uint row, uint rows, uint columns, uint k0, ushort lane,
                            device const float *x, thread float *sums) {
    const ushort v = T == GPU_F16 ? 8 : 4;  // columns in 16 bytes
    const uint line = columns * (T == GPU_F16 ? 2 : 4);
    device const uchar *from = w + ulong(min(row, rows - 4)) * line;
    #pragma unroll
    for (ushort r = 0; r < 4; ++r) { sums[r] = 0.0f; }
    #pragma unroll(2)
    for (ushort p = 0; p < 32 / v; ++p) {
        const uint at = k0 + 32u * v * p + uint(v) * lane, k = at < columns ? at : 0u;
        uint4 q[4];
        float4 a[2];
        #pragma unroll
        for (ushort r = 0; r < 4; ++r) {
            q[r] = *(device const uint4 *)(from + r * line + k * (T == GPU_F16 ? 2 : 4));
        }
        #pragma unroll
        for (ushort i = 0; i < v / 4; ++i) {
            a[i] = at < columns ? *(device const float4 *)(x + k + 4 * i) : float4(0.0f);
        }
        #pragma unroll
        for (ushort r = 0; r < 4; ++r) {
            if (T == GPU_F16) {
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) {
                    const uint l = q[r][2 * i], h = q[r][2 * i + 1];
                    sums[r] += dot(float4(float(as_type<half>(ushort(l & 0xffffu))), float(as_type<half>(ushort(l >> 16))),
                                          float(as_type<half>(ushort(h & 0xffffu))), float(as_type<half>(ushort(h >> 16)))),
                                   a[i]);
                }
            } else {
                sums[r] += dot(as_type<float4>(q[r]), a[0]);
            }
        }
    }
}

// All rows of this simdgroup: first_row … first_row + count, counted in the matrix; parts in `out`.
inline void int8_job_q8(device const uchar *w, constant gpu_matrix_job &job, device const float *x, uint first_row,
                        uint count, uint slice, threadgroup int8_x &memory, ushort tid, ushort lane, threadgroup float *out) {
    const uint columns = job.columns, least = job.slices * INT8_SLICE;
    for (uint base = 0; base < columns; base += INT8_COLUMNS) {
        const uint k0 = base + slice * INT8_SLICE;
        // The first rows are under way while activations are made.
        int8_rows_q8 now;
        int8_load_q8(w, job.plane, first_row, job.rows, columns, k0, lane, now);
        if (base > 0) { threadgroup_barrier(mem_flags::mem_threadgroup); }
        int8_quantize(x, columns, base, least, memory, tid);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint high[8];
        uint low[8];
        float scale[2];
        #pragma unroll
        for (ushort p = 0; p < 2; ++p) {
            const uint c = slice * INT8_SLICE + 512u * p + 16u * lane;
            int8_take16(memory, c, high + 4 * p, low + 4 * p);
            scale[p] = memory.scale[c / 32];
        }
        #pragma unroll(1)
        for (uint r = 0; r < count; r += 4) {
            float sums[4];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                sums[i] = 0.0f;
                #pragma unroll
                for (ushort p = 0; p < 2; ++p) {
                    int hi = 0, lo = 0;
                    #pragma unroll
                    for (ushort c = 0; c < 4; ++c) {
                        hi = int8_dot_high(now.q[i][p][c], high[4 * p + c], hi);
                        lo = int8_dot_low(now.q[i][p][c], low[4 * p + c], lo);
                    }
                    sums[i] += float(hi * 256 + lo) * (now.d[i][p] * scale[p]);
                }
            }
            if (r + 4 < count) { int8_load_q8(w, job.plane, first_row + r + 4, job.rows, columns, k0, lane, now); }
            const float sum = int8_reduce4(sums, lane);
            if (lane < 4) { out[r + lane] = base == 0 ? sum : out[r + lane] + sum; }
        }
    }
}

template <uint T>
inline void int8_job_float(device const uchar *w, constant gpu_matrix_job &job, device const float *x, uint first_row,
                           uint count, uint slice, ushort lane, threadgroup float *out) {
    const uint columns = job.columns;
    for (uint base = 0; base < columns; base += job.slices * INT8_SLICE) {
        const uint k0 = base + slice * INT8_SLICE;
        #pragma unroll(1)
        for (uint r = 0; r < count; r += 4) {
            float sums[4];
            int8_rows_float<T>(w, first_row + r, job.rows, columns, k0, lane, x, sums);
            const float sum = int8_reduce4(sums, lane);
            if (lane < 4) { out[r + lane] = base == 0 ? sum : out[r + lane] + sum; }
        }
    }
}

// Which job a tile belongs to, and its weights.
inline uint int8_find(constant gpu_matvec &p, uint tile) {
    uint j = 0;
    while (j + 1u < p.jobs && tile >= p.job[j + 1u].first_tile) { j += 1u; }
    return j;
}

[[max_total_threads_per_threadgroup(INT8_SIMDGROUPS * 32)]]
kernel void matvec_int8(device const uchar *w0     [[buffer(0)]],
                        device const uchar *w1     [[buffer(1)]],
                        device const uchar *w2     [[buffer(2)]],
                        device const uchar *w3     [[buffer(3)]],
                        device const uchar *w4     [[buffer(4)]],
                        device const uchar *w5     [[buffer(5)]],
                        device const uchar *w6     [[buffer(6)]],
                        device const uchar *w7     [[buffer(7)]],
                        device const float *x      [[buffer(8)]],
                        device float *y            [[buffer(9)]],
                        constant gpu_matvec &p     [[buffer(10)]],
                        uint tg                    [[threadgroup_position_in_grid]],
                        ushort tid                 [[thread_index_in_threadgroup]],
                        ushort sg                  [[simdgroup_index_in_threadgroup]],
                        ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup float parts[INT8_MOST_PARTS];
    threadgroup int8_x memory;
    const uint j = int8_find(p, tg);
    device const uchar *w = j < 4u ? (j < 2u ? (j == 0u ? w0 : w1) : (j == 2u ? w2 : w3))
                                   : (j < 6u ? (j == 4u ? w4 : w5) : (j == 6u ? w6 : w7));
    const uint rows = p.job[j].tile_rows, slices = p.job[j].slices, row = (tg - p.job[j].first_tile) * rows;
    const uint slice = sg % slices, count = rows * slices / INT8_SIMDGROUPS, first = sg / slices * count;
    threadgroup float *out = parts + slice * rows + first;
    // Tiles end where the rows of a slice of x do; rows past the last one are computed and not written.
    device const float *from = x + ulong(row / p.job[j].group_rows) * p.job[j].columns;
    switch (p.job[j].type) {
    case GPU_F32: int8_job_float<GPU_F32>(w, p.job[j], from, row + first, count, slice, lane, out); break;
    case GPU_F16: int8_job_float<GPU_F16>(w, p.job[j], from, row + first, count, slice, lane, out); break;
    default: int8_job_q8(w, p.job[j], from, row + first, count, slice, memory, tid, lane, out);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid < rows && row + tid < p.job[j].rows) {
        float sum = parts[tid];
        for (uint s = 1; s < slices; ++s) { sum += parts[s * rows + tid]; }
        y[p.job[j].out + row + tid] = sum;
    }
}

// ---------------------------------------------------------------- several tokens, on the matrix units
//
// A simdgroup multiplies 16 rows by a slice of the columns of all tokens, 32 columns at a time: the bytes of
// the weights are the matrix units' operand as they lie. Sums of 32 products are exact integers.

#define INT8_TOKENS 8u
#define INT8_MATRIX_ROWS 16u

// x as bytes, in the order that the units want it: [columns / 32][8 tokens][4 lanes] of eight columns' high
// bytes, then low ones; and its scales [columns / 32][8]. Tokens past n are zeros.
[[max_total_threads_per_threadgroup(INT8_THREADS)]]
kernel void int8_pack(device const float *x       [[buffer(0)]],
                      device uint2 *bytes         [[buffer(1)]],
                      device float *scales        [[buffer(2)]],
                      constant gpu_pack &p        [[buffer(3)]],
                      uint block                  [[threadgroup_position_in_grid]],
                      ushort sg                   [[simdgroup_index_in_threadgroup]],
                      ushort lane                 [[thread_index_in_simdgroup]])
{
    // A simdgroup is a token, a quarter of it eight lanes of one block of 32 columns.
    const uint b = block * 4u + lane / 8, k = b * 32u + 4u * (lane & 7);
    const bool there = sg < p.n && k < p.ldx;
    const float4 a = there ? *(device const float4 *)(x + ulong(sg) * p.ldx + k) : float4(0.0f);
    float most = int8_most(a, 0.0f);
    most = max(most, simd_shuffle_xor(most, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    most = max(most, simd_shuffle_xor(most, 4));
    uint high;
    uint low;
    int8_split4(a, int8_inverse(most), high, low);
    const uint high2 = simd_shuffle_xor(high, 1), low2 = simd_shuffle_xor(low, 1);
    if (k >= p.ldx) { return; }
    const ulong at = (ulong(b) * INT8_TOKENS + sg) * 4u + (lane & 7) / 2;
    bytes[2 * at + (lane & 1)] = (lane & 1) == 0 ? uint2(high, high2) : uint2(low2, low);
    if ((lane & 7) == 0) { scales[b * INT8_TOKENS + sg] = int8_scale(most); }
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
            const float f0 = float(as_type<half>(ushort(two0 >> (16 * (i & 1))))), f1 = float(as_type<half>(ushort(two1 >> (16 * (i & 1)))));
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
                             uint tg                    [[threadgroup_position_in_grid]],
                             ushort tid                 [[thread_index_in_threadgroup]],
                             ushort sg                  [[simdgroup_index_in_threadgroup]],
                             ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup float parts[INT8_SIMDGROUPS * INT8_MATRIX_ROWS * INT8_TOKENS];
    const uint j = int8_find(p, tg);
    device const uchar *w = j < 4u ? (j < 2u ? (j == 0u ? w0 : w1) : (j == 2u ? w2 : w3))
                                   : (j < 6u ? (j == 4u ? w4 : w5) : (j == 6u ? w6 : w7));
    // The slices of 16 rows are neighbours.
    const uint slices = p.job[j].slices, columns = p.job[j].columns, rows = p.job[j].rows;
    const uint span = (columns / 128u + slices - 1) / slices * 128u, k0 = sg % slices * span, k1 = min(k0 + span, columns);
    const uint tile = INT8_SIMDGROUPS / slices * INT8_MATRIX_ROWS, row = (tg - p.job[j].first_tile) * tile;
    const uint first = row + sg / slices * INT8_MATRIX_ROWS, offset = row / p.job[j].group_rows * columns;
    threadgroup float *out = parts + sg * (INT8_MATRIX_ROWS * INT8_TOKENS);
    switch (p.job[j].type) {
    case GPU_F32: int8_matrix_float<GPU_F32>(w, first, rows, columns, k0, k1, x + offset, p.ldx, p.n, lane, out); break;
    case GPU_F16: int8_matrix_float<GPU_F16>(w, first, rows, columns, k0, k1, x + offset, p.ldx, p.n, lane, out); break;
    default: int8_matrix_q8(w, p.job[j].plane, first, rows, columns, k0, k1, bytes + offset / 32 * (INT8_TOKENS * 4),
                            scales + offset / 32 * INT8_TOKENS, lane, out);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < tile * INT8_TOKENS; i += INT8_THREADS) {
        const uint r = i / INT8_TOKENS, t = i % INT8_TOKENS, at = r / INT8_MATRIX_ROWS * slices * INT8_MATRIX_ROWS + r % INT8_MATRIX_ROWS;
        if (t < p.n && row + r < rows) {
            float sum = parts[at * INT8_TOKENS + t];
            for (uint s = 1; s < slices; ++s) { sum += parts[(at + s * INT8_MATRIX_ROWS) * INT8_TOKENS + t]; }
            y[p.job[j].out + ulong(t) * rows + row + r] = sum;
        }
    }
}
