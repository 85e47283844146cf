// indexer.metal — which compressed rows a token attends to (report §2.3.1).
//
//   indexer_score   q [n, heads, dim], w [n, heads], sessions  -> scores [n, stride]
//   indexer_top_k   scores                                  -> selected [n, top], ascending; counts [n]
//
// score[t, s] = scale · Σ_h w[t, h] · max(0, q[t, h]·k[s]) for the (position + 1) / ratio visible rows;
// the `top` highest stay (ties: the lower row).
//
// Grid       score: x blocks of INDEX_ROWS rows, y tokens; top-k: tokens
// Precision  f32
// CPU twin   CKernels/indexer.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
using namespace metal;

#define INDEX_ROWS 64
#define INDEX_HEADS 16
#define INDEX_LANE 4  // float4 of a row that a lane holds: a quad of lanes shares a row in pieces

// A quad of lanes holds one row; heads stream through threadgroup memory.
[[max_total_threads_per_threadgroup(INDEX_ROWS * 4)]]
kernel void indexer_score(device const float *q              [[buffer(0)]],
                          device const float *w              [[buffer(1)]],
                          device const kv_page *sessions     [[buffer(2)]],
                          device const int *positions        [[buffer(3)]],
                          device float *scores               [[buffer(4)]],
                          constant gpu_indexer &p            [[buffer(5)]],
                          uint2 tg                           [[threadgroup_position_in_grid]],
                          ushort tid                         [[thread_index_in_threadgroup]])
{
    threadgroup float4 heads[INDEX_HEADS * 32];  // a piece of 128 values of INDEX_HEADS queries
    const uint in_sight = uint(positions[tg.y] + 1) / p.ratio, dim = p.format.dim;
    if (tg.x * INDEX_ROWS >= in_sight) { return; }
    const uint row = min(tg.x * INDEX_ROWS + tid / 4, in_sight - 1);
    const ushort quarter = tid & 3;
    device const kv_page *pages = kv_line(sessions, p.table_stride, tg.y) + 1;
    device const uchar *line = kv_row(pages, p.rows_per_page, p.format.bytes, row);
    float score = 0.0f;
    for (uint h0 = 0; h0 < p.heads; h0 += INDEX_HEADS) {
        float dots[INDEX_HEADS];
        #pragma unroll
        for (ushort h = 0; h < INDEX_HEADS; ++h) { dots[h] = 0.0f; }
        for (uint piece = 0; piece < dim; piece += 128) {
            const uint quads = min(dim - piece, 128u) / 4;
            for (uint i = tid; i < INDEX_HEADS * quads; i += INDEX_ROWS * 4) {
                const uint h = min(h0 + i / quads, p.heads - 1);
                heads[i] = *(device const float4 *)(q + (ulong(tg.y) * p.heads + h) * dim + piece + i % quads * 4);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = quarter; i < quads; i += 4) {
                const float4 k = kv_decode4(p.format, line, piece / 4 + i);
                #pragma unroll
                for (ushort h = 0; h < INDEX_HEADS; ++h) { dots[h] += dot(heads[h * quads + i], k); }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        #pragma unroll
        for (ushort h = 0; h < INDEX_HEADS; ++h) {
            float sum = dots[h] + simd_shuffle_xor(dots[h], 1);
            sum += simd_shuffle_xor(sum, 2);
            if (h0 + h < p.heads) { score += w[ulong(tg.y) * p.heads + h0 + h] * max(sum, 0.0f); }
        }
    }
    if (quarter == 0 && tg.x * INDEX_ROWS + tid / 4 < in_sight) { scores[ulong(tg.y) * p.stride + row] = score * p.scale; }
}

#define TOP_THREADS 1024

// Floats as integers of the same order; NaN becomes the lowest.
inline uint top_key(float x) {
    const uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0u; }
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

[[max_total_threads_per_threadgroup(TOP_THREADS)]]
kernel void indexer_top_k(device const float *scores         [[buffer(0)]],
                          device const int *positions        [[buffer(1)]],
                          device int *selected               [[buffer(2)]],
                          device int *counts                 [[buffer(3)]],
                          constant gpu_indexer &p            [[buffer(4)]],
                          uint token                         [[threadgroup_position_in_grid]],
                          ushort tid                         [[thread_index_in_threadgroup]],
                          ushort sg                          [[simdgroup_index_in_threadgroup]],
                          ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup atomic_uint bins[256];
    threadgroup uint found[4];      // prefix so far, how many still wanted
    threadgroup uint above[32];
    threadgroup uint equal[32];
    const uint in_sight = uint(positions[token] + 1) / p.ratio;
    device const float *score = scores + ulong(token) * p.stride;
    device int *out = selected + ulong(token) * p.top;
    if (tid == 0) { counts[token] = int(min(in_sight, p.top)); }
    if (in_sight <= p.top) {
        for (uint i = tid; i < in_sight; i += TOP_THREADS) { out[i] = int(i); }
        return;
    }
    uint prefix = 0, mask = 0, wanted = p.top;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (tid < 256) { atomic_store_explicit(&bins[tid], 0u, memory_order_relaxed); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = tid; i < in_sight; i += TOP_THREADS) {
            const uint key = top_key(score[i]);
            if ((key & mask) == prefix) { atomic_fetch_add_explicit(&bins[(key >> shift) & 255u], 1u, memory_order_relaxed); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0) {
            // Lane l looks at bins 255 - 8·l downwards.
            uint mine = 0;
            for (uint i = 0; i < 8; ++i) {
                mine += atomic_load_explicit(&bins[255u - 8u * lane - i], memory_order_relaxed);
            }
            uint higher = simd_prefix_exclusive_sum(mine);
            for (uint i = 0; i < 8; ++i) {
                const uint digit = 255u - 8u * lane - i;
                const uint count = atomic_load_explicit(&bins[digit], memory_order_relaxed);
                if (higher < wanted && wanted <= higher + count) {
                    found[0] = prefix | digit << shift;
                    found[1] = wanted - higher;
                }
                higher += count;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix = found[0];
        wanted = found[1];
        mask |= 255u << shift;
    }
    // Everything above the threshold, and the first `wanted` that equal it, in ascending order.
    uint done = 0, equals = 0;
    for (uint base = 0; base < in_sight; base += TOP_THREADS) {
        const uint i = base + tid;
        const uint key = i < in_sight ? top_key(score[i]) : 0u;
        const uint is_equal = i < in_sight && key == prefix ? 1u : 0u;
        const uint equal_before = simd_prefix_exclusive_sum(is_equal), equal_here = simd_sum(is_equal);
        if (lane == 0) { equal[sg] = equal_here; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint group_equals = equal[lane];
        const uint equal_groups = simd_sum(lane < sg ? group_equals : 0u), equal_all = simd_sum(group_equals);
        const uint rank = equals + equal_groups + equal_before;
        const uint keep = i < in_sight && (key > prefix || (is_equal != 0u && rank < wanted)) ? 1u : 0u;
        const uint kept_before = simd_prefix_exclusive_sum(keep), kept_here = simd_sum(keep);
        if (lane == 0) { above[sg] = kept_here; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint group_kept = above[lane];
        const uint kept_groups = simd_sum(lane < sg ? group_kept : 0u), kept_all = simd_sum(group_kept);
        if (keep != 0u) { out[done + kept_groups + kept_before] = int(i); }
        done += kept_all;
        equals += equal_all;
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}
