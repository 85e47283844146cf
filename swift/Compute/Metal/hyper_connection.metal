// hyper_connection.metal — the four residual streams around a sublayer (report §2.2).
//
//   hc_spread   x [n, D]                              -> streams [n, 4, D]
//   hc_enter    mix, scale [3], base [24], streams    -> post [n, 4], comb [n, 4, 4], x [n, D] collapsed and normed
//   hc_head     mix, scale [1], base [4], streams     -> x [n, D] collapsed and normed
//   hc_leave    y [n, D], post, comb, streams         -> streams, in place or not
//
// A mix [n, 4, outputs + 4] is four parts to be added, made by hyper_connection_mix.metal; behind the outputs
// Σ streams². comb[i][j] carries stream i into stream j. Order: softmax over j, + eps; columns; then
// (iterations - 1) × (rows, columns), each division by (sum + eps).
//
// Grid       spread, leave: one thread a channel, y tokens; enter: ceil(n / 16) that make post and comb, a
//            simdgroup a token, then a threadgroup a token; head: tokens
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours
#include <metal_stdlib>
#include "hyper_connection.h"
#include "reduce.h"
using namespace metal;

#define HC_THREADS 512
#define HC_TOKENS (HC_THREADS / 32)

kernel void hc_spread(device const float *x      [[buffer(0)]],
                      device float *streams      [[buffer(1)]],
                      constant gpu_hc &p         [[buffer(2)]],
                      uint2 i                    [[thread_position_in_grid]])
{
    if (i.x >= p.dim) { return; }
    const float v = x[ulong(i.y) * p.dim + i.x];
    for (ushort s = 0; s < 4; ++s) { streams[(ulong(i.y) * 4 + s) * p.dim + i.x] = v; }
}

// Good to an ulp or two; x is far from 0 and from infinity.
inline float hc_reciprocal(float x) {
#ifdef MSL_CUDA
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

inline float hc_sigmoid(float x) { return hc_reciprocal(1.0f + exp(-x)); }

inline float hc_sum(float4 v) { return (v.x + v.y) + (v.z + v.w); }

// Rows of the matrix, in one thread. All along it is k_ij / (rows_i · columns_j): a step makes four sums and
// four reciprocals, and only the next step waits for them.
inline void hc_sinkhorn(thread float4 *k, uint iterations, float epsilon) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const float4 v = k[i];
        const float4 e = exp(v - max(max(v.x, v.y), max(v.z, v.w)));
        k[i] = e * hc_reciprocal(hc_sum(e)) + epsilon;
    }
    float4 rows = float4(1.0f), columns = (k[0] + k[1]) + (k[2] + k[3]) + epsilon;
    float4 by_rows = rows, by_columns;
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) { by_columns[j] = hc_reciprocal(columns[j]); }
    for (uint n = 1; n < iterations; ++n) {
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            rows[i] = hc_sum(k[i] * by_columns) + epsilon * rows[i];
            by_rows[i] = hc_reciprocal(rows[i]);
        }
        columns = (k[0] * by_rows[0] + k[1] * by_rows[1]) + (k[2] * by_rows[2] + k[3] * by_rows[3]) + columns * epsilon;
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { by_columns[j] = hc_reciprocal(columns[j]); }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { k[i] = k[i] * by_columns * by_rows[i]; }
}

// What the way out of a token needs, by one simdgroup.
inline void hc_way_out(device const float *mix, device const float *scale, device const float *base,
                       constant gpu_hc &p, device float *post, device float *comb, ushort lane) {
    // A lane has an output, the one behind the last the squares.
    const uint o = min(uint(lane), uint(HC_OUTPUTS));
    const float offset = base[min(o, HC_OUTPUTS - 1u)], factor = scale[o < 4 ? 0 : o < 8 ? 1 : 2];
    float m = mix[o];
    #pragma unroll
    for (ushort part = 1; part < HC_PARTS; ++part) { m += mix[part * HC_LINE(HC_OUTPUTS) + o]; }
    const float inverse = reduce_rms(simd_shuffle(m, HC_OUTPUTS), 4 * p.dim, p.norm_epsilon);
    const float v = m * inverse * factor + offset;
    if (lane >= 4 && lane < 8) { post[lane - 4] = 2.0f * hc_sigmoid(v); }
    float4 k[4];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { k[i][j] = simd_shuffle(v, ushort(8 + 4 * i + j)); }
    }
    hc_sinkhorn(k, p.iterations, p.epsilon);
    if (lane == 0) {
        for (ushort i = 0; i < 4; ++i) { ((device float4 *)comb)[i] = k[i]; }
    }
}

inline float4 hc_weighted(device const float *streams, uint dim, float4 pre) {
    return *(device const float4 *)streams * pre.x + *(device const float4 *)(streams + dim) * pre.y
         + *(device const float4 *)(streams + 2 * dim) * pre.z + *(device const float4 *)(streams + 3 * dim) * pre.w;
}

// Σ pre_i · stream_i of a token, normed, by all threads of the threadgroup. Everything is loaded before
// anything is used: the way from the mix to the last store is what a decoded token waits for.
inline void hc_collapse(device const float *mix, uint outputs, device const float *scale, device const float *base,
                        device const float *streams, device const float *norm, device float *x, constant gpu_hc &p,
                        threadgroup float *partial, ushort tid, ushort sg, ushort lane) {
    const uint dim = p.dim, part = lane / 8;
    // Lanes 8 · part … 8 · part + 3 have pre, the next one the squares.
    float m = mix[part * HC_LINE(outputs) + ((lane & 4) != 0 ? outputs : lane & 3)];
    const float pre_scale = scale[0], offset = base[lane & 3];
    float4 s[2][4];
    float4 w[2];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        const uint d = min(4u * (i * HC_THREADS + tid), dim - 4);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { s[i][j] = *(device const float4 *)(streams + j * dim + d); }
        w[i] = *(device const float4 *)(norm + d);
    }
    m += simd_shuffle_xor(m, 8);
    m += simd_shuffle_xor(m, 16);
    const float inverse = reduce_rms(simd_shuffle(m, 4), 4 * dim, p.norm_epsilon);
    const float own = hc_sigmoid(m * inverse * pre_scale + offset) + p.epsilon;
    const float4 pre = float4(simd_shuffle(own, 0), simd_shuffle(own, 1), simd_shuffle(own, 2), simd_shuffle(own, 3));
    float4 v[2];
    float sum = 0.0f;
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        v[i] = s[i][0] * pre.x + s[i][1] * pre.y + s[i][2] * pre.z + s[i][3] * pre.w;
        sum += 4u * (i * HC_THREADS + tid) < dim ? dot(v[i], v[i]) : 0.0f;
    }
    // What is beyond the registers waits in x.
    for (uint d = 4u * (2 * HC_THREADS + tid); d < dim; d += 4 * HC_THREADS) {
        const float4 more = hc_weighted(streams + d, dim, pre);
        sum += dot(more, more);
        *(device float4 *)(x + d) = more;
    }
    const float rms = reduce_rms(reduce_sum(sum, partial, HC_THREADS / 32, sg, lane), dim, p.input_epsilon);
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        const uint d = 4u * (i * HC_THREADS + tid);
        if (d < dim) { *(device float4 *)(x + d) = v[i] * rms * w[i]; }
    }
    for (uint d = 4u * (2 * HC_THREADS + tid); d < dim; d += 4 * HC_THREADS) {
        *(device float4 *)(x + d) = *(device float4 *)(x + d) * rms * *(device const float4 *)(norm + d);
    }
}

[[max_total_threads_per_threadgroup(HC_THREADS)]]
kernel void hc_enter(device const float *mix        [[buffer(0)]],
                     device const float *scale      [[buffer(1)]],
                     device const float *base       [[buffer(2)]],
                     device const float *streams    [[buffer(3)]],
                     device const float *norm       [[buffer(4)]],
                     device float *post             [[buffer(5)]],
                     device float *comb             [[buffer(6)]],
                     device float *x                [[buffer(7)]],
                     constant gpu_hc &p             [[buffer(8)]],
                     uint tg                        [[threadgroup_position_in_grid]],
                     ushort tid                     [[thread_index_in_threadgroup]],
                     ushort sg                      [[simdgroup_index_in_threadgroup]],
                     ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const ulong line = HC_PARTS * HC_LINE(HC_OUTPUTS);
    const uint outs = (p.n + HC_TOKENS - 1) / HC_TOKENS;
    if (tg < outs) {
        const ulong token = tg * HC_TOKENS + sg;
        if (token >= p.n) { return; }
        hc_way_out(mix + token * line, scale, base, p, post + token * 4, comb + token * 16, lane);
        return;
    }
    const ulong token = tg - outs;
    hc_collapse(mix + token * line, HC_OUTPUTS, scale, base, streams + token * 4 * p.dim, norm, x + token * p.dim, p,
                partial, tid, sg, lane);
}

[[max_total_threads_per_threadgroup(HC_THREADS)]]
kernel void hc_head(device const float *mix        [[buffer(0)]],
                    device const float *scale      [[buffer(1)]],
                    device const float *base       [[buffer(2)]],
                    device const float *streams    [[buffer(3)]],
                    device const float *norm       [[buffer(4)]],
                    device float *x                [[buffer(5)]],
                    constant gpu_hc &p             [[buffer(6)]],
                    uint tg                        [[threadgroup_position_in_grid]],
                    ushort tid                     [[thread_index_in_threadgroup]],
                    ushort sg                      [[simdgroup_index_in_threadgroup]],
                    ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const ulong token = tg;
    hc_collapse(mix + token * HC_PARTS * HC_LINE(4), 4, scale, base, streams + token * 4 * p.dim, norm,
                x + token * p.dim, p, partial, tid, sg, lane);
}

kernel void hc_leave(device const float *y       [[buffer(0)]],
                     device const float *post    [[buffer(1)]],
                     device const float *comb    [[buffer(2)]],
                     device const float *streams [[buffer(3)]],
                     device float *out           [[buffer(4)]],
                     constant gpu_hc &p          [[buffer(5)]],
                     uint2 i                     [[thread_position_in_grid]])
{
    if (i.x >= p.dim) { return; }
    device const float *s = streams + ulong(i.y) * 4 * p.dim + i.x;
    // All loads first: one behind a store would wait for the one before.
    const float s0 = s[0], s1 = s[p.dim], s2 = s[2 * p.dim], s3 = s[3 * p.dim], v = y[ulong(i.y) * p.dim + i.x];
    const hc_way way = hc_load_way(post, comb, i.y);
    const float4 left = way.post * v + (way.comb[0] * s0 + way.comb[1] * s1 + way.comb[2] * s2 + way.comb[3] * s3);
    for (ushort j = 0; j < 4; ++j) { out[(ulong(i.y) * 4 + j) * p.dim + i.x] = left[j]; }
}
