// router.metal — which experts a token takes, and with what weights.
//
//   router_top_k   logits [n, experts], bias [experts]        -> ids, weights [n, used]
//   router_hash    logits, table [vocabulary, used], tokens   -> ids, weights [n, used]
//
// scores = sqrt(softplus(logits)); the highest of score + bias (ties: the lower id); weights = their
// scores / sum · scale.
//
// Grid       one threadgroup a token; of router_hash one simdgroup
// Precision  f32
// CPU twin   CKernels/router.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

#define ROUTER_MOST 1024
#define ROUTER_THREADS 256

inline float router_score(float logit) {
    // log(1 + e^x): for small e^x the series is closer than the sum's rounding.
    const float e = exp(min(logit, 20.0f));
    const float soft = e < 1.0e-3f ? e * (1.0f - e * (0.5f - e * 0.33333333f)) : log(1.0f + e);
    return sqrt(logit > 20.0f ? logit : soft);
}

// Lane j < used holds the score of place j.
inline void router_weigh(float score, uint used, float scale, device float *weights, ushort lane) {
    const float sum = simd_sum(lane < used ? score : 0.0f);
    if (lane < used) { weights[lane] = score / sum * scale; }
}

// Larger for larger keys; a NaN comes behind all numbers, and 0 behind that. A key is never -0.
inline uint router_order(float key) {
    const uint bits = as_type<uint>(key);
    return key != key ? 1u : (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

inline uint router_most(uint v) {
#ifdef MSL_CUDA
    return __reduce_max_sync(0xffffffffu, v);
#else
    return simd_max(v);
#endif
}

inline uint router_least(uint v) {
#ifdef MSL_CUDA
    return __reduce_min_sync(0xffffffffu, v);
#else
    return simd_min(v);
#endif
}

// One simdgroup takes the `used` highest of up to 32 · EACH keys, one after the other. Lane j gets place j.
template <ushort EACH>
inline uint router_choose(threadgroup const uint *keys, uint experts, uint used, ushort lane) {
    uint own[EACH];
    #pragma unroll
    for (ushort i = 0; i < EACH; ++i) { own[i] = 32u * i + lane < experts ? keys[32 * i + lane] : 0u; }
    uint mine = 0;
    for (uint j = 0; j < used; ++j) {
        uint best = own[0], at = 0;
        #pragma unroll
        for (ushort i = 1; i < EACH; ++i) {
            at = own[i] > best ? i : at;
            best = max(best, own[i]);
        }
        const uint most = router_most(best), id = 32 * at + lane;
        const uint chosen = router_least(best == most ? id : 0xffffu);
        #pragma unroll
        for (ushort i = 0; i < EACH; ++i) { own[i] = 32u * i + lane == chosen ? 0u : own[i]; }
        mine = lane == j ? chosen : mine;
    }
    return mine;
}

[[max_total_threads_per_threadgroup(ROUTER_THREADS)]]
kernel void router_top_k(device const float *logits   [[buffer(0)]],
                         device const float *bias     [[buffer(1)]],
                         device int *ids              [[buffer(2)]],
                         device float *weights        [[buffer(3)]],
                         constant gpu_router &p       [[buffer(4)]],
                         uint token                   [[threadgroup_position_in_grid]],
                         ushort tid                   [[thread_index_in_threadgroup]],
                         ushort sg                    [[simdgroup_index_in_threadgroup]],
                         ushort lane                  [[thread_index_in_simdgroup]])
{
    threadgroup uint keys[ROUTER_MOST];
    threadgroup float scores[ROUTER_MOST];
    device const float *line = logits + ulong(token) * p.experts;
    for (uint e = tid; e < p.experts; e += ROUTER_THREADS) {
        const float offset = bias[e], logit = line[e], score = router_score(logit);
        keys[e] = router_order(logit == logit ? score + offset : logit);
        scores[e] = score;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg != 0) { return; }
    const uint mine = p.experts <= 256 ? router_choose<8>(keys, p.experts, p.used, lane)
                    : p.experts <= 512 ? router_choose<16>(keys, p.experts, p.used, lane)
                    : router_choose<32>(keys, p.experts, p.used, lane);
    if (lane < p.used) { ids[ulong(token) * p.used + lane] = int(mine); }
    router_weigh(scores[mine], p.used, p.scale, weights + ulong(token) * p.used, lane);
}

[[max_total_threads_per_threadgroup(32)]]
kernel void router_hash(device const float *logits   [[buffer(0)]],
                        device const int *table      [[buffer(1)]],
                        device const int *tokens     [[buffer(2)]],
                        device int *ids              [[buffer(3)]],
                        device float *weights        [[buffer(4)]],
                        constant gpu_router &p       [[buffer(5)]],
                        uint token                   [[threadgroup_position_in_grid]],
                        ushort lane                  [[thread_index_in_simdgroup]])
{
    const uint id = lane < p.used ? uint(table[ulong(tokens[token]) * p.used + lane]) : 0u;
    if (lane < p.used) { ids[ulong(token) * p.used + lane] = int(id); }
    const float score = router_score(logits[ulong(token) * p.experts + id]);
    router_weigh(score, p.used, p.scale, weights + ulong(token) * p.used, lane);
}
