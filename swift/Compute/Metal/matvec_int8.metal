// matvec_int8.metal — matrices × a few tokens, their activations as 16-bit integers.
//
//   matvec_int8        up to 8 matrices of Q8_0 planes, F16 or F32 × one token   -> y [rows] each
//   matvec_int8_many   the same × 2 to 8 tokens                                  -> y [n, rows] each
//
// A threadgroup makes integers of x, then a simdgroup keeps a slice of 1,024 in registers, 32 a lane, and
// lets rows pass by, four at a time. The simdgroups of a threadgroup share the slices of one row, and what slices are left, rows.
// For F16 and F32 the slice stays f32. With several tokens all simdgroups work on one slice of all tokens
// after the other, so that weights are read once.
//
// Grid       x row tiles over all jobs (first_tile, tile_rows)
// Arguments  gpu_matvec in kernel_args.h
// CPU twin   CKernels/matmul.c
// Origin     ours
#include <metal_stdlib>
#include "int8.h"
using namespace metal;

#define MSL_BLOCKS_matvec_int8_many 3
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

// ---------------------------------------------------------------- several tokens

#define INT8_TOKENS 8u
#define INT8_MANY_ROWS 64u  // of a tile, at most

// Rows first … first + count of this simdgroup, `out` [row][INT8_TOKENS].
inline void int8_many_q8(device const uchar *w, constant gpu_matrix_job &job, device const float *x, uint ldx, uint n,
                         uint first, uint count, threadgroup int8_x &memory, ushort tid, ushort lane,
                         threadgroup float *out) {
    const uint columns = job.columns;
    for (uint k0 = 0; k0 < columns; k0 += INT8_SLICE) {
        int8_rows_q8 now;
        int8_load_q8(w, job.plane, first, job.rows, columns, k0, lane, now);
        if (k0 > 0) { threadgroup_barrier(mem_flags::mem_threadgroup); }
        // A slice of every token behind one another, in turn of 256 threads with four columns each.
        int8_quantize_tokens(x, ldx, columns, k0, n, memory, tid);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll(1)
        for (uint r = 0; r < count; r += 4) {
            #pragma unroll(1)
            for (uint t = 0; t < n; ++t) {
                float sums[4];
                #pragma unroll
                for (ushort i = 0; i < 4; ++i) { sums[i] = 0.0f; }
                #pragma unroll
                for (ushort p = 0; p < 2; ++p) {
                    const uint c = t * INT8_SLICE + 512u * p + 16u * lane;
                    uint high[4];
                    uint low[4];
                    int8_take16(memory, c, high, low);
                    const float scale = memory.scale[c / 32];
                    #pragma unroll
                    for (ushort i = 0; i < 4; ++i) {
                        int hi = 0, lo = 0;
                        #pragma unroll
                        for (ushort e = 0; e < 4; ++e) {
                            hi = int8_dot_high(now.q[i][p][e], high[e], hi);
                            lo = int8_dot_low(now.q[i][p][e], low[e], lo);
                        }
                        sums[i] += float(hi * 256 + lo) * (now.d[i][p] * scale);
                    }
                }
                const float sum = int8_reduce4(sums, lane);
                threadgroup float *part = out + (r + lane % 4) * INT8_TOKENS + t;
                if (lane < 4) { *part = k0 == 0 ? sum : *part + sum; }
            }
            if (r + 4 < count) { int8_load_q8(w, job.plane, first + r + 4, job.rows, columns, k0, lane, now); }
        }
    }
}

template <uint T>
inline void int8_many_float(device const uchar *w, constant gpu_matrix_job &job, device const float *x, uint ldx, uint n,
                            uint first, uint count, ushort lane, threadgroup float *out) {
    const ushort v = T == GPU_F16 ? 8 : 4;  // columns in 16 bytes
    const uint columns = job.columns, line = columns * (T == GPU_F16 ? 2 : 4);
    #pragma unroll(1)
    for (uint r = 0; r < count; r += 4) {
        device const uchar *from = w + ulong(min(first + r, job.rows - 4)) * line;
        float sums[INT8_TOKENS][4];
        #pragma unroll
        for (ushort t = 0; t < INT8_TOKENS; ++t) {
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) { sums[t][i] = 0.0f; }
        }
        #pragma unroll(2)
        for (uint k0 = 0; k0 < columns; k0 += 32u * v) {
            const uint at = k0 + uint(v) * lane, k = at < columns ? at : 0u;
            float4 b[4][2];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                const uint4 q = *(device const uint4 *)(from + i * line + k * (T == GPU_F16 ? 2 : 4));
                if (T == GPU_F16) {
                    #pragma unroll
                    for (ushort e = 0; e < 2; ++e) {
                        b[i][e] = float4(float(as_type<half>(ushort(q[2 * e] & 0xffffu))), float(as_type<half>(ushort(q[2 * e] >> 16))),
                                         float(as_type<half>(ushort(q[2 * e + 1] & 0xffffu))),
                                         float(as_type<half>(ushort(q[2 * e + 1] >> 16))));
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
                        const float4 a = at < columns ? *(device const float4 *)(x + ulong(t) * ldx + k + 4 * e) : float4(0.0f);
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

[[max_total_threads_per_threadgroup(INT8_SIMDGROUPS * 32)]]
kernel void matvec_int8_many(device const uchar *w0     [[buffer(0)]],
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
    threadgroup float parts[INT8_MANY_ROWS * INT8_TOKENS];
    threadgroup int8_x memory;
    const uint j = int8_find(p, tg);
    device const uchar *w = j < 4u ? (j < 2u ? (j == 0u ? w0 : w1) : (j == 2u ? w2 : w3))
                                   : (j < 6u ? (j == 4u ? w4 : w5) : (j == 6u ? w6 : w7));
    const uint rows = p.job[j].tile_rows, row = (tg - p.job[j].first_tile) * rows;
    const uint count = rows / INT8_SIMDGROUPS, first = sg * count;
    device const float *from = x + ulong(row / p.job[j].group_rows) * p.job[j].columns;
    threadgroup float *out = parts + first * INT8_TOKENS;
    switch (p.job[j].type) {
    case GPU_F32: int8_many_float<GPU_F32>(w, p.job[j], from, p.ldx, p.n, row + first, count, lane, out); break;
    case GPU_F16: int8_many_float<GPU_F16>(w, p.job[j], from, p.ldx, p.n, row + first, count, lane, out); break;
    default: int8_many_q8(w, p.job[j], from, p.ldx, p.n, row + first, count, memory, tid, lane, out);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < rows * p.n; i += INT8_THREADS) {
        const uint t = i / rows, r = i % rows;
        if (row + r < p.job[j].rows) { y[p.job[j].out + ulong(t) * p.job[j].rows + row + r] = parts[r * INT8_TOKENS + t]; }
    }
}
