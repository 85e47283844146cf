// experts.metal — the routed feed-forward layer: gate and up, SwiGLU, down, sum.
//
// A few tokens:
//   experts_gate_up   x [n, D], ids, weights;     -> h [n · used, inner], SwiGLU · weight, and behind it
//                     shared gate, up [n, inner]     the shared expert's [n, inner]
//   experts_down      h                           -> y [n, D] = Σ_j down[id_j]·h_j + shared down·h
// Many tokens, with matmul_experts in between:
//   experts_sort      ids                         -> order [places] (token · used + slot), place [n · used],
//                                                    tiles of at most `tile` places of one expert
//   experts_swiglu    gate, up [places, inner]    -> gate, in place, · weight
//   shared_swiglu     gate, up [n, inner]         -> gate, in place
//   experts_sum       parts [places, D], y [n, D] -> y += Σ_j parts[place[t, j]], j ascending
//
// Grid       gate_up: x row tiles, y n · used + n; down: x row tiles, y tokens; sort: one threadgroup
// Precision  f32
// CPU twin   CKernels/experts.c
// Origin     ours
#include <metal_stdlib>
#include "quant.h"
#include "experts.h"
using namespace metal;

#define EXPERT_SIMDGROUPS 4
#define EXPERT_SIMD_ROWS 2
#define EXPERT_ROWS (EXPERT_SIMDGROUPS * EXPERT_SIMD_ROWS)

template <uint T, bool FULL>
inline void experts_step(device const uchar *w, ulong plane, ulong row, uint columns, device const float *x, uint k0,
                         ushort lane, threadgroup const uint2 *grid, thread float *sums) {
    float4 v[EXPERT_SIMD_ROWS][4];
    float4 a[4];
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        quant_lane16<T, FULL>(w, plane, row + r, columns, k0, lane, grid, v[r]);
    }
    quant_lane_x<T, FULL>(x, columns, k0, lane, a);
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { sums[r] += dot(v[r][j], a[j]); }
    }
}

// This lane's part of row · x for EXPERT_SIMD_ROWS rows from `row` on.
template <uint T>
inline void experts_dot(device const uchar *w, ulong plane, ulong row, uint columns, device const float *x, ushort lane,
                        threadgroup const uint2 *grid, thread float *sums) {
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        experts_step<T, true>(w, plane, row, columns, x, k0, lane, grid, sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        experts_step<T, false>(w, plane, row, columns, x, k0, lane, grid, sums);
    }
}

template <uint T, bool FULL>
inline void experts_pair_step(device const uchar *w, device const uchar *v, ulong plane, ulong row, uint columns,
                              device const float *x, uint k0, ushort lane, threadgroup const uint2 *grid,
                              thread float *w_sums, thread float *v_sums) {
    float4 b[EXPERT_SIMD_ROWS][4];
    float4 c[EXPERT_SIMD_ROWS][4];
    float4 a[4];
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        quant_lane16<T, FULL>(w, plane, row + r, columns, k0, lane, grid, b[r]);
        quant_lane16<T, FULL>(v, plane, row + r, columns, k0, lane, grid, c[r]);
    }
    quant_lane_x<T, FULL>(x, columns, k0, lane, a);
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            w_sums[r] += dot(b[r][j], a[j]);
            v_sums[r] += dot(c[r][j], a[j]);
        }
    }
}

// The same for two matrices at once.
template <uint T>
inline void experts_dot_pair(device const uchar *w, device const uchar *v, ulong plane, ulong row, uint columns,
                             device const float *x, ushort lane, threadgroup const uint2 *grid, thread float *w_sums,
                             thread float *v_sums) {
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        experts_pair_step<T, true>(w, v, plane, row, columns, x, k0, lane, grid, w_sums, v_sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        experts_pair_step<T, false>(w, v, plane, row, columns, x, k0, lane, grid, w_sums, v_sums);
    }
}

[[max_total_threads_per_threadgroup(EXPERT_SIMDGROUPS * 32)]]
kernel void experts_gate_up(device const uchar *gate       [[buffer(0)]],
                            device const uchar *up         [[buffer(1)]],
                            device const float *x          [[buffer(2)]],
                            device const int *ids          [[buffer(3)]],
                            device const float *weights    [[buffer(4)]],
                            device const float *shared_gate [[buffer(5)]],
                            device const float *shared_up  [[buffer(6)]],
                            device float *h                [[buffer(7)]],
                            constant gpu_experts &p        [[buffer(8)]],
                            uint2 tg                       [[threadgroup_position_in_grid]],
                            ushort tid                     [[thread_index_in_threadgroup]],
                            ushort sg                      [[simdgroup_index_in_threadgroup]],
                            ushort lane                    [[thread_index_in_simdgroup]])
{
    if (tg.y >= p.n * p.used) {
        // Behind the routed rows of h: those of the shared expert, whose products were made before.
        const uint token = tg.y - p.n * p.used;
        const ulong from = ulong(token) * p.shared_inner;
        device float *out = h + ulong(p.n) * p.used * p.inner + from;
        for (uint i = tg.x * 128 + tid; i < p.shared_inner; i += p.inner / EXPERT_ROWS * 128) {
            out[i] = experts_glu(shared_gate[from + i], shared_up[from + i], p.shared_clamp);
        }
        return;
    }
    threadgroup uint2 grid[256];
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, EXPERT_SIMDGROUPS * 32); }
    // inner is a multiple of 32: no tile is cut.
    const uint row = tg.x * EXPERT_ROWS + sg * EXPERT_SIMD_ROWS;
    const ulong line = ulong(ids[tg.y]) * p.inner + row;
    device const float *token = x + ulong(tg.y / p.used) * p.hidden;
    float g[EXPERT_SIMD_ROWS];
    float u[EXPERT_SIMD_ROWS];
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        g[r] = 0.0f;
        u[r] = 0.0f;
    }
#define GATE_UP_BODY(T) experts_dot_pair<T>(gate, up, p.plane, line, p.hidden, token, lane, grid, g, u)
    QUANT_SWITCH(p.type, GATE_UP_BODY)
#undef GATE_UP_BODY
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        const float gs = simd_sum(g[r]), us = simd_sum(u[r]);
        if (lane == 0) { h[ulong(tg.y) * p.inner + row + r] = experts_glu(gs, us, p.clamp) * weights[tg.y]; }
    }
}

[[max_total_threads_per_threadgroup(EXPERT_SIMDGROUPS * 32)]]
kernel void experts_down(device const uchar *down          [[buffer(0)]],
                         device const uchar *shared_down   [[buffer(1)]],
                         device const float *h             [[buffer(2)]],
                         device const int *ids             [[buffer(3)]],
                         device float *y                   [[buffer(4)]],
                         constant gpu_experts &p           [[buffer(5)]],
                         uint2 tg                          [[threadgroup_position_in_grid]],
                         ushort tid                        [[thread_index_in_threadgroup]],
                         ushort sg                         [[simdgroup_index_in_threadgroup]],
                         ushort lane                       [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[256];
    if (p.down_type == GPU_IQ2_XXS_PLANES || p.shared_type == GPU_IQ2_XXS_PLANES) {
        quant_fill_grid(grid, tid, EXPERT_SIMDGROUPS * 32);
    }
    const uint row = tg.x * EXPERT_ROWS + sg * EXPERT_SIMD_ROWS;
    float sums[EXPERT_SIMD_ROWS];
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) { sums[r] = 0.0f; }
    for (uint j = 0; j < p.used; ++j) {
        const ulong assignment = ulong(tg.y) * p.used + j;
        const ulong line = ulong(ids[assignment]) * p.hidden + row;
#define DOWN_BODY(T) experts_dot<T>(down, p.down_plane, line, p.inner, h + assignment * p.inner, lane, grid, sums)
        QUANT_SWITCH(p.down_type, DOWN_BODY)
#undef DOWN_BODY
    }
    device const float *shared = h + ulong(p.n) * p.used * p.inner + ulong(tg.y) * p.shared_inner;
#define SHARED_BODY(T) experts_dot<T>(shared_down, p.shared_plane, row, p.shared_inner, shared, lane, grid, sums)
    QUANT_SWITCH(p.shared_type, SHARED_BODY)
#undef SHARED_BODY
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        const float sum = simd_sum(sums[r]);
        if (lane == 0) { y[ulong(tg.y) * p.hidden + row + r] = sum; }
    }
}

// ---------------------------------------------------------------- many tokens

#define SORT_THREADS 1024
#define SORT_MOST 1024  // experts

// A stable counting sort: thread e walks over all assignments of expert e.
[[max_total_threads_per_threadgroup(SORT_THREADS)]]
kernel void experts_sort(device const int *ids        [[buffer(0)]],
                         device uint *order           [[buffer(1)]],
                         device uint *place           [[buffer(2)]],
                         device uint4 *tiles          [[buffer(3)]],
                         constant gpu_experts &p      [[buffer(4)]],
                         ushort tid                   [[thread_index_in_threadgroup]],
                         ushort sg                    [[simdgroup_index_in_threadgroup]],
                         ushort lane                  [[thread_index_in_simdgroup]])
{
    threadgroup atomic_uint counts[SORT_MOST];
    threadgroup uint partial[32];
    threadgroup uint partial_tiles[32];
    const uint assignments = p.n * p.used;
    atomic_store_explicit(&counts[tid], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < assignments; i += SORT_THREADS) {
        atomic_fetch_add_explicit(&counts[ids[i]], 1u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Where each expert begins, in places and in tiles.
    const uint count = atomic_load_explicit(&counts[tid], memory_order_relaxed);
    const uint own_tiles = (count + p.tile - 1) / p.tile;
    const uint before = simd_prefix_exclusive_sum(count), tiles_before = simd_prefix_exclusive_sum(own_tiles);
    const uint group = simd_sum(count), group_tiles = simd_sum(own_tiles);
    if (lane == 0) {
        partial[sg] = group;
        partial_tiles[sg] = group_tiles;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint groups = partial[lane], groups_tiles = partial_tiles[lane];
    const uint begin = before + simd_sum(lane < sg ? groups : 0u);
    const uint first_tile = tiles_before + simd_sum(lane < sg ? groups_tiles : 0u);
    const uint all_tiles = simd_sum(groups_tiles);
    for (uint i = 0; i < own_tiles; ++i) {
        tiles[first_tile + i] = uint4(tid, begin + i * p.tile, min(count - i * p.tile, p.tile), 0);
    }
    const uint most_tiles = assignments / p.tile + min(p.experts, assignments);
    for (uint i = all_tiles + tid; i < most_tiles; i += SORT_THREADS) { tiles[i] = uint4(0, 0, 0, 0); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_store_explicit(&counts[tid], begin, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // The order inside an expert does not matter: every place is written and read by its own number.
    for (uint i = tid; i < assignments; i += SORT_THREADS) {
        const uint at = atomic_fetch_add_explicit(&counts[ids[i]], 1u, memory_order_relaxed);
        order[at] = i;
        place[i] = at;
    }
}

kernel void experts_swiglu(device float *gate            [[buffer(0)]],
                           device const float *up        [[buffer(1)]],
                           device const uint *order      [[buffer(2)]],
                           device const float *weights   [[buffer(3)]],
                           constant gpu_experts &p       [[buffer(4)]],
                           uint2 i                       [[thread_position_in_grid]])
{
    if (i.x >= p.inner) { return; }
    const ulong at = ulong(i.y) * p.inner + i.x;
    gate[at] = experts_glu(gate[at], up[at], p.clamp) * weights[order[i.y]];
}

kernel void shared_swiglu(device float *gate            [[buffer(0)]],
                          device const float *up        [[buffer(1)]],
                          constant gpu_experts &p       [[buffer(2)]],
                          uint2 i                       [[thread_position_in_grid]])
{
    if (i.x >= p.shared_inner) { return; }
    const ulong at = ulong(i.y) * p.shared_inner + i.x;
    gate[at] = experts_glu(gate[at], up[at], p.shared_clamp);
}

kernel void experts_sum(device const float *parts       [[buffer(0)]],
                        device const uint *place        [[buffer(1)]],
                        device float *y                 [[buffer(2)]],
                        constant gpu_experts &p         [[buffer(3)]],
                        uint2 i                         [[thread_position_in_grid]])
{
    if (i.x >= p.hidden) { return; }
    float sum = 0.0f;
    for (uint j = 0; j < p.used; ++j) { sum += parts[ulong(place[i.y * p.used + j]) * p.hidden + i.x]; }
    y[ulong(i.y) * p.hidden + i.x] += sum;
}
