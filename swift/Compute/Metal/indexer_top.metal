// indexer_top.metal — which compressed rows a token attends to (report §2.3.1).
//
//   indexer_top_k   scores [n, stride]   -> selected [n, top], ascending; counts [n]
//
// The `top` highest stay (ties: the lower row). A token that sees no more than `top` rows keeps them all.
//
// Grid       tokens
// CPU twin   CKernels/indexer_top.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

#define TOP_THREADS 1024
#define TOP_MINE 8  // consecutive scores of a thread
#define TOP_BLOCK (TOP_THREADS * TOP_MINE)
#define TOP_BINS (256 + 256 / 8)

// Floats as integers of the same order; NaN becomes the lowest.
inline uint top_key(float x) {
    const uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0u; }
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// Keys of scores `first` … as a thread has them. Past the end they are the lowest, and last of those.
inline void top_load(thread uint *keys, device const float *score, uint first, uint count, bool is_aligned) {
    if (is_aligned && first + TOP_MINE <= count) {
        const float4 a = *(device const float4 *)(score + first), b = *(device const float4 *)(score + first + 4);
        keys[0] = top_key(a.x);
        keys[1] = top_key(a.y);
        keys[2] = top_key(a.z);
        keys[3] = top_key(a.w);
        keys[4] = top_key(b.x);
        keys[5] = top_key(b.y);
        keys[6] = top_key(b.z);
        keys[7] = top_key(b.w);
        return;
    }
    #pragma unroll
    for (ushort j = 0; j < TOP_MINE; ++j) { keys[j] = first + j < count ? top_key(score[first + j]) : 0u; }
}

// Eight neighbours lie in different banks for the lanes that add them up.
inline uint top_bin(uint digit) { return digit + digit / 8; }

// The lowest key that stays is found digit by digit, from counts of keys that begin as it does. Keys of up to
// TOP_BLOCK scores stay in registers all the while.
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
    threadgroup atomic_uint bins[2 * TOP_BINS];  // one half counts while the other is cleared
    threadgroup uint found[2];                   // prefix so far, how many still wanted
    threadgroup uint groups[2 * 32];
    const uint in_sight = uint(positions[token] + 1) / p.ratio;
    device const float *score = scores + ulong(token) * p.stride;
    device int *out = selected + ulong(token) * p.top;
    if (tid == 0) { counts[token] = int(min(in_sight, p.top)); }
    if (in_sight <= p.top) {
        for (uint i = tid; i < in_sight; i += TOP_THREADS) { out[i] = int(i); }
        return;
    }
    const bool is_aligned = p.stride % 4 == 0, is_short = in_sight <= TOP_BLOCK;
    uint keys[TOP_MINE];
    top_load(keys, score, tid * TOP_MINE, in_sight, is_aligned);
    if (tid < TOP_BINS) { atomic_store_explicit(&bins[tid], 0u, memory_order_relaxed); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint prefix = 0, mask = 0, wanted = p.top;
    for (int shift = 24; shift >= 0; shift -= 8) {
        threadgroup atomic_uint *here = shift % 16 == 8 ? bins : bins + TOP_BINS;
        threadgroup atomic_uint *other = shift % 16 == 8 ? bins + TOP_BINS : bins;
        for (uint base = 0; base < in_sight; base += TOP_BLOCK) {
            if (!is_short) { top_load(keys, score, base + tid * TOP_MINE, in_sight, is_aligned); }
            #pragma unroll
            for (ushort j = 0; j < TOP_MINE; ++j) {
                if ((keys[j] & mask) == prefix) {
                    atomic_fetch_add_explicit(&here[top_bin((keys[j] >> shift) & 255u)], 1u, memory_order_relaxed);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0) {
            // Lane l looks at bins 255 - 8·l downwards.
            uint count[8], mine = 0;
            #pragma unroll
            for (ushort i = 0; i < 8; ++i) {
                count[i] = atomic_load_explicit(&here[top_bin(255u - 8u * lane - i)], memory_order_relaxed);
                mine += count[i];
            }
            uint higher = simd_prefix_exclusive_sum(mine);
            #pragma unroll
            for (ushort i = 0; i < 8; ++i) {
                if (higher < wanted && wanted <= higher + count[i]) {
                    found[0] = prefix | (255u - 8u * lane - i) << shift;
                    found[1] = wanted - higher;
                }
                higher += count[i];
            }
        } else if (tid - 32u < TOP_BINS) {
            atomic_store_explicit(&other[tid - 32], 0u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix = found[0];
        wanted = found[1];
        mask |= 255u << shift;
    }
    // Everything above the threshold, and the first `wanted` that equal it, in ascending order. Counts of
    // both are added up at once, those above in the upper half.
    uint above = 0, equal = 0, slot = 0;
    for (uint base = 0; base < in_sight; base += TOP_BLOCK) {
        const uint first = base + tid * TOP_MINE;
        if (!is_short) { top_load(keys, score, first, in_sight, is_aligned); }
        uint mine = 0;
        #pragma unroll
        for (ushort j = 0; j < TOP_MINE; ++j) { mine += keys[j] > prefix ? 0x10000u : keys[j] == prefix ? 1u : 0u; }
        const uint before = simd_prefix_exclusive_sum(mine);
        if (lane == 31) { groups[slot + sg] = before + mine; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint group = groups[slot + lane], all = simd_sum(group);
        const uint earlier = before + simd_sum(lane < sg ? group : 0u);
        uint above_mine = above + (earlier >> 16), equal_mine = equal + (earlier & 0xffffu);
        #pragma unroll
        for (ushort j = 0; j < TOP_MINE; ++j) {
            const bool is_above = keys[j] > prefix, is_equal = keys[j] == prefix;
            if (is_above || (is_equal && equal_mine < wanted)) { out[above_mine + min(equal_mine, wanted)] = int(first + j); }
            above_mine += is_above ? 1u : 0u;
            equal_mine += is_equal ? 1u : 0u;
        }
        above += all >> 16;
        equal += all & 0xffffu;
        slot ^= 32u;
    }
}
