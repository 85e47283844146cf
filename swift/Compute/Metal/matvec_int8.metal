// matvec_int8.metal — matrices × one token, its activations as 16-bit integers.
//
//   matvec_int8   up to 8 matrices of Q8_0 planes, F16 or F32 -> y [rows] each
//
// A threadgroup makes integers of x, then a simdgroup keeps a slice of 1,024 in registers, 32 a lane, and
// lets rows pass by, four at a time. The simdgroups of a threadgroup share the slices of one row, and what
// slices are left, rows. For F16 and F32 the slice stays f32.
//
// Grid       x row tiles over all jobs (first_tile, tile_rows)
// Arguments  gpu_matvec in kernel_args.h
// CPU twin   CKernels/matmul.c
// Origin     ours
#include <metal_stdlib>
#include "int8.h"
#include "jobs.h"
using namespace metal;

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
                        uint count, uint slice, threadgroup int8_x &memory, ushort tid, ushort lane,
                        threadgroup float *out) {
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
    const uint j = matvec_find(p, tg);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
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
