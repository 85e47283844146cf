// router.metal — which experts a token takes, and with what weights.
//
//   router_top_k   logits [n, experts], bias [experts]        -> ids, weights [n, used]
//   router_hash    logits, table [vocabulary, used], tokens   -> ids, weights [n, used]
//
// scores = sqrt(softplus(logits)); the highest of score + bias (ties: the lower id); weights = their
// scores / sum · scale.
//
// Grid       one simdgroup a token
// Precision  f32
// CPU twin   CKernels/router.c
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

#define ROUTER_MOST 1024
#define ROUTER_MOST_USED 32

inline float router_score(float logit) {
    // log(1 + e^x): for small e^x the series is closer than the sum's rounding.
    const float e = exp(min(logit, 20.0f));
    const float soft = e < 1.0e-3f ? e * (1.0f - e * (0.5f - e * 0.33333333f)) : log(1.0f + e);
    return sqrt(logit > 20.0f ? logit : soft);
}

// Lane j < used holds id j.
inline void router_weigh(device const float *logits, uint id, uint used, float scale, device float *weights,
                         ushort lane) {
    const float score = lane < used ? router_score(logits[id]) : 0.0f;
    const float sum = simd_sum(score);
    if (lane < used) { weights[lane] = score / sum * scale; }
}

[[max_total_threads_per_threadgroup(32)]]
kernel void router_top_k(device const float *logits   [[buffer(0)]],
                         device const float *bias     [[buffer(1)]],
                         device int *ids              [[buffer(2)]],
                         device float *weights        [[buffer(3)]],
                         constant gpu_router &p       [[buffer(4)]],
                         uint token                   [[threadgroup_position_in_grid]],
                         ushort lane                  [[thread_index_in_simdgroup]])
{
    threadgroup float keys[ROUTER_MOST];
    device const float *line = logits + ulong(token) * p.experts;
    for (uint e = lane; e < p.experts; e += 32) {
        const float key = router_score(line[e]) + bias[e];
        keys[e] = key == key ? key : -3.0e38f;
    }
    uint mine = 0;
    for (uint j = 0; j < p.used; ++j) {
        float best = -3.4e38f;
        uint id = 0xffffu;
        for (uint e = lane; e < p.experts; e += 32) {
            if (keys[e] > best) {
                best = keys[e];
                id = e;
            }
        }
        const float most = simd_max(best);
        const uint chosen = simd_min(best == most ? id : 0xffffu);
        if (lane == chosen % 32u) { keys[chosen] = -3.4e38f; }
        if (lane == j) { mine = chosen; }
    }
    if (lane < p.used) { ids[ulong(token) * p.used + lane] = int(mine); }
    router_weigh(line, mine, p.used, p.scale, weights + ulong(token) * p.used, lane);
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
    router_weigh(logits + ulong(token) * p.experts, id, p.used, p.scale, weights + ulong(token) * p.used, lane);
}
