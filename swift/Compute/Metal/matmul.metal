// matmul.metal — matrix products.
//
//   matvec_1, matvec_4   up to 8 matrices × 1 (4) tokens at a time       -> y [n, rows] each
//   matvec_common        matvec_1 for F32, F16 and Q8_0 planes only: fewer registers, more loads in flight
//   matmul_tile          one matrix × many tokens on the matrix units    -> y [n, rows]
//   matmul_experts       the same for sorted assignments to experts      -> y [assignments, rows]
//   matmul_embed         rows of a table                                  -> x [n, columns]
//   quant_repack_*       GGUF blocks -> aligned planes, once at load
//
// Grid       matvec: x row tiles of MATVEC_ROWS over all jobs, y groups of tokens; tiles: x rows / 128,
//            y tokens / 64
// Precision  matvec: weights and activations f32. Tiles: both rounded to half, sums f32
// Arguments  gpu_matvec, gpu_matmul in kernel_args.h
// CPU twin   CKernels/matmul.c, which rounds activations to int8 instead
// Origin     ours
#include <metal_stdlib>
#include "quant.h"
#include "tile.h"
#include "jobs.h"
using namespace metal;

#define MATVEC_SIMDGROUPS 4
#define MATVEC_SIMD_ROWS 2
#define MATVEC_ROWS (MATVEC_SIMDGROUPS * MATVEC_SIMD_ROWS)

// Adds 512 columns from k0 on: sums[r][t].
template <uint T, ushort R, ushort N, bool FULL>
inline void matvec_step(device const uchar *w, ulong plane, uint row, uint rows, uint columns, device const float *x,
                        uint ldx, uint n, uint k0, ushort lane, threadgroup const uint2 *grid,
                        thread float (&sums)[R][N]) {
    float4 v[R][4];
    #pragma unroll
    for (ushort r = 0; r < R; ++r) {
        // A row past the end repeats the last one; its sum is not written.
        quant_lane16<T, FULL>(w, plane, min(row + r, rows - 1), columns, k0, lane, grid, v[r]);
    }
    #pragma unroll
    for (ushort t = 0; t < N; ++t) {
        float4 a[4];
        quant_lane_x<T, FULL>(x + ulong(min(uint(t), n - 1)) * ldx, columns, k0, lane, a);
        #pragma unroll
        for (ushort r = 0; r < R; ++r) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { sums[r][t] += dot(v[r][j], a[j]); }
        }
    }
}

// Sum over lanes, rows and tokens of one simdgroup: sums[r][t].
template <uint T, ushort R, ushort N>
inline void matvec_sums(device const uchar *w, ulong plane, uint row, uint rows, uint columns, device const float *x,
                        uint ldx, uint n, ushort lane, threadgroup const uint2 *grid, thread float (&sums)[R][N]) {
    for (ushort r = 0; r < R; ++r) {
        for (ushort t = 0; t < N; ++t) { sums[r][t] = 0.0f; }
    }
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        matvec_step<T, R, N, true>(w, plane, row, rows, columns, x, ldx, n, k0, lane, grid, sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        matvec_step<T, R, N, false>(w, plane, row, rows, columns, x, ldx, n, k0, lane, grid, sums);
    }
    #pragma unroll
    for (ushort r = 0; r < R; ++r) {
        #pragma unroll
        for (ushort t = 0; t < N; ++t) { sums[r][t] = simd_sum(sums[r][t]); }
    }
}

template <uint T, ushort N>
inline void matvec_job(device const uchar *w, constant gpu_matrix_job &job, device const float *x, device float *y,
                       uint ldx, uint n, uint tile, ushort sg, ushort lane, threadgroup const uint2 *grid) {
    const uint row = tile * MATVEC_ROWS + sg * MATVEC_SIMD_ROWS;
    if (row >= job.rows) { return; }
    float sums[MATVEC_SIMD_ROWS][N];
    matvec_sums<T, MATVEC_SIMD_ROWS, N>(w, job.plane, row, job.rows, job.columns,
                                        x + ulong(row / job.group_rows) * job.columns, ldx, n, lane, grid, sums);
    if (lane == 0) {
        for (ushort r = 0; r < MATVEC_SIMD_ROWS; ++r) {
            for (ushort t = 0; t < N; ++t) {
                if (row + r < job.rows && t < n) { y[job.out + ulong(t) * job.rows + row + r] = sums[r][t]; }
            }
        }
    }
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
kernel void matvec_common(device const uchar *w0     [[buffer(0)]],
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
                          uint2 tg                   [[threadgroup_position_in_grid]],
                          ushort sg                  [[simdgroup_index_in_threadgroup]],
                          ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[1];  // of no use to these formats
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile;
    device const float *from = x + ulong(tg.y) * p.ldx;
    device float *to = y + ulong(tg.y) * p.job[j].rows;
    switch (p.job[j].type) {
    case GPU_F32: matvec_job<GPU_F32, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid); break;
    case GPU_F16: matvec_job<GPU_F16, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid); break;
    default: matvec_job<GPU_Q8_0_PLANES, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid);
    }
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
kernel void matvec_1(device const uchar *w0     [[buffer(0)]],
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
                     uint2 tg                   [[threadgroup_position_in_grid]],
                     ushort tid                 [[thread_index_in_threadgroup]],
                     ushort sg                  [[simdgroup_index_in_threadgroup]],
                     ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[256];
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile;
    device const float *from = x + ulong(tg.y) * p.ldx;
    device float *to = y + ulong(tg.y) * p.job[j].rows;
    if (p.job[j].type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, MATVEC_SIMDGROUPS * 32); }
#define MATVEC_BODY(T) matvec_job<T, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid)
    QUANT_SWITCH(p.job[j].type, MATVEC_BODY)
#undef MATVEC_BODY
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
kernel void matvec_4(device const uchar *w0     [[buffer(0)]],
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
                     uint2 tg                   [[threadgroup_position_in_grid]],
                     ushort tid                 [[thread_index_in_threadgroup]],
                     ushort sg                  [[simdgroup_index_in_threadgroup]],
                     ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[256];
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile, first = tg.y * 4u;
    device const float *from = x + ulong(first) * p.ldx;
    device float *to = y + ulong(first) * p.job[j].rows;
    if (p.job[j].type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, MATVEC_SIMDGROUPS * 32); }
#define MATVEC_BODY(T) matvec_job<T, 4>(w, p.job[j], from, to, p.ldx, min(p.n - first, 4u), tile, sg, lane, \
                                     grid)
    QUANT_SWITCH(p.job[j].type, MATVEC_BODY)
#undef MATVEC_BODY
}

[[max_total_threads_per_threadgroup(256)]]
kernel void matmul_embed(device const uchar *table  [[buffer(0)]],
                         device const int *tokens   [[buffer(1)]],
                         device float *x            [[buffer(2)]],
                         constant gpu_embed &p      [[buffer(3)]],
                         uint token                 [[threadgroup_position_in_grid]],
                         ushort tid                 [[thread_index_in_threadgroup]])
{
    for (uint k = tid * 16u; k < p.columns; k += 4096u) {
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
#define EMBED_BODY(T) quant_load16<T>(table, p.plane, ulong(tokens[token]), p.columns, k, v)
        QUANT_SWITCH(p.type, EMBED_BODY)
#undef EMBED_BODY
        device float4 *out = (device float4 *)(x + ulong(token) * p.columns + k);
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]); }
    }
}

// One thread a block: 34 bytes -> 32 quants and a scale.
kernel void quant_repack_q8_0(device const ushort *blocks [[buffer(0)]],
                              device uchar *planes        [[buffer(1)]],
                              constant gpu_repack &p      [[buffer(2)]],
                              uint i                      [[thread_position_in_grid]])
{
    if (ulong(i) >= p.blocks) { return; }
    device const ushort *block = blocks + ulong(i) * 17;
    const ulong place = p.first_block + i;
    device ushort *quants = (device ushort *)(planes + place * 32);
    *(device ushort *)(planes + p.plane + place * 2) = block[0];
    for (ushort j = 0; j < 16; ++j) { quants[j] = block[1 + j]; }
}

// 84 bytes -> 64 of quants, 16 of sub-block scales, d and dmin.
kernel void quant_repack_q2_k(device const uint *blocks [[buffer(0)]],
                              device uchar *planes      [[buffer(1)]],
                              constant gpu_repack &p    [[buffer(2)]],
                              uint i                    [[thread_position_in_grid]])
{
    if (ulong(i) >= p.blocks) { return; }
    device const uint *block = blocks + ulong(i) * 21;
    const ulong place = p.first_block + i;
    device uint *scales = (device uint *)(planes + p.plane + place * 16);
    device uint *quants = (device uint *)(planes + place * 64);
    for (ushort j = 0; j < 4; ++j) { scales[j] = block[j]; }
    for (ushort j = 0; j < 16; ++j) { quants[j] = block[4 + j]; }
    *(device uint *)(planes + p.plane + p.plane / 4 + place * 4) = block[20];
}

// 66 bytes -> eight groups and a scale.
kernel void quant_repack_iq2_xxs(device const ushort *blocks [[buffer(0)]],
                                 device uchar *planes        [[buffer(1)]],
                                 constant gpu_repack &p      [[buffer(2)]],
                                 uint i                      [[thread_position_in_grid]])
{
    if (ulong(i) >= p.blocks) { return; }
    device const ushort *block = blocks + ulong(i) * 33;
    const ulong place = p.first_block + i;
    device ushort *groups = (device ushort *)(planes + place * 64);
    *(device ushort *)(planes + p.plane + place * 2) = block[0];
    for (ushort j = 0; j < 32; ++j) { groups[j] = block[1 + j]; }
}

// ---------------------------------------------------------------- tiles

#define TILE_GRID 256
#define TILE_TOKENS 64
#define TILE_ROWS 128
#define TILE_K 32
#define TILE_LD (TILE_K + 8)  // in halfs: rows fall into different banks and stay aligned to 16 bytes
#define TILE_THREADS 128
#define TILE_SLAB (TILE_TOKENS * TILE_LD + TILE_ROWS * TILE_LD)

inline void tile_put16(threadgroup half *to, thread const uint2 *v) {
    *(threadgroup uint4 *)to = uint4(v[0], v[1]);
    *(threadgroup uint4 *)(to + 8) = uint4(v[2], v[3]);
}

inline void tile_put16(threadgroup half *to, thread const float *v) {
    for (ushort j = 0; j < 2; ++j) {
        half4 a = half4(float4(v[8 * j], v[8 * j + 1], v[8 * j + 2], v[8 * j + 3]));
        half4 b = half4(float4(v[8 * j + 4], v[8 * j + 5], v[8 * j + 6], v[8 * j + 7]));
        const uint2 low = as_type<uint2>(a), high = as_type<uint2>(b);
        *(threadgroup uint4 *)(to + 8 * j) = uint4(low, high);
    }
}

// y[m, r] for 64 rows of x and 128 rows of w. `source`: the row of x for this thread, which fetches
// half of a 32-wide piece of one row of x and of two rows of w. `base`: rows of w before the first.
template <uint T>
inline void tile_product(device const uchar *w, ulong plane, ulong base, uint row, uint rows, uint columns,
                         device const float *source, threadgroup uint4 *memory, threadgroup const uint2 *grid,
                         device float *y, uint ldy, uint n, ushort tid, ushort sg, ushort lane) {
    threadgroup half *slabs = (threadgroup half *)memory;
    const ushort wm = (sg / 2) * 32, wn = (sg % 2) * 64;
    tile_c acc[2][4];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { tile_zero(acc[i][j]); }
    }
    const ushort piece = (tid & 1) * 16, line = tid / 2;
    const uint row0 = min(row + line, rows - 1), row1 = min(row + line + 64, rows - 1);
    float v[16];
    uint2 u[2][4];
    for (uint k0 = 0; k0 < columns + TILE_K; k0 += TILE_K) {
        threadgroup half *next = slabs + ((k0 / TILE_K) & 1u) * TILE_SLAB;
        if (k0 < columns) {
            device const float4 *x4 = (device const float4 *)(source + k0 + piece);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const float4 a = x4[j];
                v[4 * j] = a.x;
                v[4 * j + 1] = a.y;
                v[4 * j + 2] = a.z;
                v[4 * j + 3] = a.w;
            }
            quant_half16<T>(w, plane, base + row0, columns, k0 + piece, grid, u[0]);
            quant_half16<T>(w, plane, base + row1, columns, k0 + piece, grid, u[1]);
        }
        if (k0 > 0) {
            // The slab before, while the loads above are under way.
            threadgroup half *sa = slabs + (((k0 / TILE_K) & 1u) ^ 1u) * TILE_SLAB;
            threadgroup half *sb = sa + TILE_TOKENS * TILE_LD;
            #pragma unroll
            for (ushort kk = 0; kk < TILE_K; kk += TILE) {
                tile_a a[2];
                tile_b b[4];
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) { tile_load_a(a[i], sa + (wm + i * TILE) * TILE_LD + kk, TILE_LD, lane); }
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) { tile_load_bt(b[j], sb + (wn + j * TILE) * TILE_LD + kk, TILE_LD, lane); }
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) {
                    #pragma unroll
                    for (ushort j = 0; j < 4; ++j) { tile_mma(acc[i][j], a[i], b[j]); }
                }
            }
        }
        if (k0 < columns) {
            tile_put16(next + line * TILE_LD + piece, v);
            tile_put16(next + (TILE_TOKENS + line) * TILE_LD + piece, u[0]);
            tile_put16(next + (TILE_TOKENS + line + 64) * TILE_LD + piece, u[1]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Through threadgroup memory, 16 × 16 values a simdgroup: rows past the end are not written.
    threadgroup float *mine = (threadgroup float *)memory + sg * (TILE * TILE);
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_stage(acc[i][j], mine, TILE, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            const uint column = row + wn + j * TILE + (lane & 15);
            for (ushort e = lane / 16; e < TILE; e += 2) {
                const uint m = wm + i * TILE + e;
                if (m < n && column < rows) { y[ulong(m) * ldy + column] = mine[e * TILE + (lane & 15)]; }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

#define TILE_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    QUANT_CASE(GPU_MXFP4, BODY) \
    QUANT_CASE(GPU_Q2_K, BODY) \
    QUANT_CASE(GPU_Q2_K_PLANES, BODY) \
    QUANT_CASE(GPU_Q4_K, BODY) \
    QUANT_CASE(GPU_IQ2_XXS, BODY) \
    QUANT_CASE(GPU_IQ2_XXS_PLANES, BODY) \
    default: break; \
    }

[[max_total_threads_per_threadgroup(TILE_THREADS)]]
kernel void matmul_tile(device const uchar *w      [[buffer(0)]],
                        device const float *x      [[buffer(1)]],
                        device float *y            [[buffer(2)]],
                        constant gpu_matmul &p     [[buffer(3)]],
                        uint2 tg                   [[threadgroup_position_in_grid]],
                        ushort tid                 [[thread_index_in_threadgroup]],
                        ushort sg                  [[simdgroup_index_in_threadgroup]],
                        ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint4 slabs[2 * TILE_SLAB / 8];
    threadgroup uint2 grid[TILE_GRID];
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, TILE_THREADS); }
    const uint row = tg.x * TILE_ROWS, first = tg.y * TILE_TOKENS;
    const uint n = min(p.n - first, uint(TILE_TOKENS));
    device const float *source = x + ulong(first + min(uint(tid / 2), n - 1)) * p.ldx
                               + ulong(row / p.group_rows) * p.columns;
#define TILE_BODY(T) tile_product<T>(w, p.plane, 0, row, p.rows, p.columns, source, slabs, grid, \
                                     y + ulong(first) * p.ldy, p.ldy, n, tid, sg, lane)
    TILE_SWITCH(p.type, TILE_BODY)
#undef TILE_BODY
}

// tiles[i] = (expert, first place, places, 0); those past the last one have no places.
[[max_total_threads_per_threadgroup(TILE_THREADS)]]
kernel void matmul_experts(device const uchar *w      [[buffer(0)]],
                           device const float *x      [[buffer(1)]],
                           device float *y            [[buffer(2)]],
                           device const uint4 *tiles  [[buffer(3)]],
                           device const uint *order   [[buffer(4)]],
                           constant gpu_matmul &p     [[buffer(5)]],
                           uint2 tg                   [[threadgroup_position_in_grid]],
                           ushort tid                 [[thread_index_in_threadgroup]],
                           ushort sg                  [[simdgroup_index_in_threadgroup]],
                           ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint4 slabs[2 * TILE_SLAB / 8];
    threadgroup uint2 grid[TILE_GRID];
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, TILE_THREADS); }
    const uint row = tg.x * TILE_ROWS, place = tile.y + min(uint(tid / 2), tile.z - 1);
    device const float *source = x + ulong(p.gather == 0u ? place : order[place] / p.gather) * p.ldx;
#define TILE_BODY(T) tile_product<T>(w, p.plane, ulong(tile.x) * p.rows, row, p.rows, p.columns, source, \
                                     slabs, grid, y + ulong(tile.y) * p.ldy, p.ldy, tile.z, tid, sg, lane)
    TILE_SWITCH(p.type, TILE_BODY)
#undef TILE_BODY
}
