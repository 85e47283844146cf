// matmul_wide.metal — matrices × many tokens where memory is the device's own.
//
//   half_pack             x [n, columns], order or nothing      -> packed halfs [columns / 8][stride][8]
//   matmul_wide           up to 8 matrices × packed x            -> y [n, rows] each
//   experts_gate_up_wide  sorted assignments                     -> packed SwiGLU(gate, up) · weight
//   experts_down_wide     those                                  -> parts [assignments, D]
//
// Grid       pack: x tokens / 256, y columns / 64; matmul: x row tiles of 128 over all jobs, y tokens / 128;
//            experts: x row tiles of 128 (gate_up; each of gate and up) or 256 (down), y tiles of 64 places
// Precision  weights and activations rounded to half, sums f32
// Arguments  gpu_pack, gpu_matvec, gpu_wide_experts in kernel_args.h
// CPU twin   CKernels/matmul.c, which rounds activations to int8 instead
// Origin     ours
#include <metal_stdlib>
#include "wide.h"
#include "experts.h"
#include "jobs.h"
using namespace metal;

#define MSL_BLOCKS_matmul_wide 2
#define MSL_BLOCKS_experts_gate_up_wide 2
#define MSL_BLOCKS_experts_down_wide 2
#define WIDE_ROWS 128u
#define WIDE_TOKENS 128
#define WIDE_PLACES 64

// One thread: 64 columns of a token.
kernel void half_pack(device const float *x       [[buffer(0)]],
                      device const uint *order    [[buffer(1)]],
                      device uint4 *out           [[buffer(2)]],
                      constant gpu_pack &p        [[buffer(3)]],
                      uint2 i                     [[thread_position_in_grid]])
{
    if (i.x >= p.n) { return; }
    const uint token = p.gather == 0u ? i.x : order[i.x] / p.gather;
    device const float *from = x + ulong(token) * p.ldx + i.y * WIDE_K;
    #pragma unroll
    for (ushort s = 0; s < 4; ++s) {
        uint2 four[4];
        #pragma unroll
        for (ushort q = 0; q < 4; ++q) {
            four[q] = as_type<uint2>(half4(*(device const float4 *)(from + 16 * q + 4 * s)));
        }
        device uint4 *unit = out + ulong(i.y * 8u + 2 * s) * p.stride + i.x;
        unit[0] = uint4(four[0].x, four[1].x, four[2].x, four[3].x);
        unit[p.stride] = uint4(four[0].y, four[1].y, four[2].y, four[3].y);
    }
}

template <uint T>
inline void wide_job(device const uchar *w, constant gpu_matrix_job &job, uint row, device const uint4 *x, uint stride,
                     uint first, uint n, device float *y, threadgroup uint4 *ring, ushort tid, ushort sg, ushort lane) {
    wide_weights<1> weights;
    weights.w[0] = w;
    // A team past the last row repeats it; nothing is written.
    weights.row[0] = min(row + 64u * (sg / 4), job.rows - 1);
    weights.last[0] = job.rows - 1 - uint(weights.row[0]);
    weights.plane = job.plane;
    weights.columns = job.columns;
    float acc[1][WIDE_TOKENS / 2];
    device const uint4 *from = x + ulong(row / job.group_rows) * (job.columns / 8) * stride;
    wide_product<T, 1, WIDE_TOKENS>(weights, from, stride, first, n, ring, (threadgroup const uchar *)0, tid, sg, lane, acc);
    const uint mine = row + 64u * (sg / 4) + 16u * (sg & 3) + lane / 4;
    #pragma unroll
    for (ushort j = 0; j < WIDE_TOKENS / 8; ++j) {
        #pragma unroll
        for (ushort c = 0; c < 4; ++c) {
            const uint token = 8u * j + 2u * (lane & 3) + c % 2, r = mine + 8u * (c / 2);
            if (token < n && r < job.rows) { y[job.out + ulong(first + token) * job.rows + r] = acc[0][4 * j + c]; }
        }
    }
}

[[max_total_threads_per_threadgroup(WIDE_THREADS)]]
kernel void matmul_wide(device const uchar *w0     [[buffer(0)]],
                        device const uchar *w1     [[buffer(1)]],
                        device const uchar *w2     [[buffer(2)]],
                        device const uchar *w3     [[buffer(3)]],
                        device const uchar *w4     [[buffer(4)]],
                        device const uchar *w5     [[buffer(5)]],
                        device const uchar *w6     [[buffer(6)]],
                        device const uchar *w7     [[buffer(7)]],
                        device const uint4 *x      [[buffer(8)]],
                        device float *y            [[buffer(9)]],
                        constant gpu_matvec &p     [[buffer(10)]],
                        uint2 tg                   [[threadgroup_position_in_grid]],
                        ushort tid                 [[thread_index_in_threadgroup]],
                        ushort sg                  [[simdgroup_index_in_threadgroup]],
                        ushort lane                [[thread_index_in_simdgroup]])
{
#ifdef MSL_CUDA
    threadgroup uint4 *ring = (threadgroup uint4 *)msl_dyn_smem;  // more than may be declared
#else
    threadgroup uint4 ring[WIDE_STAGES * WIDE_TOKENS * 8];
#endif
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint row = (tg.x - p.job[j].first_tile) * WIDE_ROWS, first = tg.y * WIDE_TOKENS;
    const uint n = min(p.n - first, uint(WIDE_TOKENS));
    if (p.job[j].type == GPU_F16) {
        wide_job<GPU_F16>(w, p.job[j], row, x, p.ldx, first, n, y, ring, tid, sg, lane);
    } else {
        wide_job<GPU_Q8_0_PLANES>(w, p.job[j], row, x, p.ldx, first, n, y, ring, tid, sg, lane);
    }
}

// ---------------------------------------------------------------- experts

// tiles[i] = (expert, first place, places, 0); those past the last one have no places.
[[max_total_threads_per_threadgroup(WIDE_THREADS)]]
kernel void experts_gate_up_wide(device const uchar *gate     [[buffer(0)]],
                                 device const uchar *up       [[buffer(1)]],
                                 device const uint4 *x        [[buffer(2)]],
                                 device const uint4 *tiles    [[buffer(3)]],
                                 device const uint *order     [[buffer(4)]],
                                 device const float *weights  [[buffer(5)]],
                                 device uint4 *h              [[buffer(6)]],
                                 constant gpu_wide_experts &p [[buffer(7)]],
                                 uint2 tg                     [[threadgroup_position_in_grid]],
                                 ushort tid                   [[thread_index_in_threadgroup]],
                                 ushort sg                    [[simdgroup_index_in_threadgroup]],
                                 ushort lane                  [[thread_index_in_simdgroup]])
{
#ifdef MSL_CUDA
    threadgroup uint4 *ring = (threadgroup uint4 *)msl_dyn_smem;  // more than may be declared
#else
    threadgroup uint4 ring[WIDE_STAGES * WIDE_PLACES * 8];
#endif
    threadgroup uint4 table[INT8_TABLE / 4];
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    int8_fill_table(table, tid, WIDE_THREADS);
    // A team's 64 rows of gate and the same ones of up: `rows` is a multiple of 64.
    const uint row = min(tg.x * WIDE_ROWS + 64u * (sg / 4), p.rows - 64u);
    wide_weights<2> both;
    both.w[0] = gate;
    both.w[1] = up;
    for (ushort s = 0; s < 2; ++s) {
        both.row[s] = ulong(tile.x) * p.rows + row;
        both.last[s] = 63;
    }
    both.plane = p.plane;
    both.columns = p.columns;
    float acc[2][WIDE_PLACES / 2];
    wide_product<GPU_IQ2_XXS_PLANES, 2, WIDE_PLACES>(both, x, p.stride, tile.y, tile.z, ring,
                                                     (threadgroup const uchar *)table, tid, sg, lane, acc);
    // Packed as the next product wants it: these 64 rows are 64 of its columns.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup half *packed = (threadgroup half *)(ring + (sg / 4) * (8 * WIDE_PLACES));
    #pragma unroll
    for (ushort j = 0; j < WIDE_PLACES / 8; ++j) {
        #pragma unroll
        for (ushort c = 0; c < 4; ++c) {
            const uint token = 8u * j + 2u * (lane & 3) + c % 2, e = lane / 4 + 8u * (c / 2);
            const float weight = weights[order[tile.y + min(token, tile.z - 1)]];
            const float value = experts_glu(acc[0][4 * j + c], acc[1][4 * j + c], p.clamp) * weight;
            packed[(e / 2 * WIDE_PLACES + token) * 8 + 2 * (sg & 3) + e % 2] = half(value);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid & 127; i < 8 * WIDE_PLACES; i += 128) {
        const uint unit = i / WIDE_PLACES, token = i % WIDE_PLACES;
        if (token < tile.z) {
            h[ulong(row / 8 + unit) * p.stride + tile.y + token] = ring[(sg / 4) * (8 * WIDE_PLACES) + i];
        }
    }
}

[[max_total_threads_per_threadgroup(WIDE_THREADS)]]
kernel void experts_down_wide(device const uchar *down     [[buffer(0)]],
                              device const uint4 *h        [[buffer(1)]],
                              device float *parts          [[buffer(2)]],
                              device const uint4 *tiles    [[buffer(3)]],
                              constant gpu_wide_experts &p [[buffer(4)]],
                              uint2 tg                     [[threadgroup_position_in_grid]],
                              ushort tid                   [[thread_index_in_threadgroup]],
                              ushort sg                    [[simdgroup_index_in_threadgroup]],
                              ushort lane                  [[thread_index_in_simdgroup]])
{
#ifdef MSL_CUDA
    threadgroup uint4 *ring = (threadgroup uint4 *)msl_dyn_smem;  // more than may be declared
#else
    threadgroup uint4 ring[WIDE_STAGES * WIDE_PLACES * 8];
#endif
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    wide_weights<2> both;
    for (ushort s = 0; s < 2; ++s) {
        const uint row = min(tg.x * 2u * WIDE_ROWS + 128u * (sg / 4) + 64u * s, p.rows - 1);
        both.w[s] = down;
        both.row[s] = ulong(tile.x) * p.rows + row;
        both.last[s] = p.rows - 1 - row;
    }
    both.plane = p.plane;
    both.columns = p.columns;
    float acc[2][WIDE_PLACES / 2];
    wide_product<GPU_Q2_K_PLANES, 2, WIDE_PLACES>(both, h, p.stride, tile.y, tile.z, ring,
                                                  (threadgroup const uchar *)0, tid, sg, lane, acc);
    #pragma unroll
    for (ushort s = 0; s < 2; ++s) {
        const uint mine = tg.x * 2u * WIDE_ROWS + 128u * (sg / 4) + 64u * s + 16u * (sg & 3) + lane / 4;
        #pragma unroll
        for (ushort j = 0; j < WIDE_PLACES / 8; ++j) {
            #pragma unroll
            for (ushort c = 0; c < 4; ++c) {
                const uint token = 8u * j + 2u * (lane & 3) + c % 2, r = mine + 8u * (c / 2);
                if (token < tile.z && r < p.rows) { parts[ulong(tile.y + token) * p.rows + r] = acc[s][4 * j + c]; }
            }
        }
    }
}
