// hyper_connection.metal — mixing the four residual streams (report §2.2).
//
//   hc_spread   x [n, D]                              -> streams [n, 4, D]
//   hc_mix      streams, fn [outputs, 4D]             -> mix [n, outputs + 1]; the last is Σ streams²
//   hc_enter    mix, scale [3], base [24], streams    -> post [n, 4], comb [n, 4, 4], x [n, D] collapsed and normed
//   hc_head     mix, scale [1], base [4], streams     -> x [n, D] collapsed and normed
//   hc_leave    y [n, D], post, comb                  -> streams, in place
//
// comb[i][j] carries stream i into stream j. Order: softmax over j, + eps; columns; then
// (iterations - 1) × (rows, columns), each division by (sum + eps).
//
// Grid       spread, leave: one thread a channel, y tokens; mix: x outputs + 1, y tokens; enter: x 2 (the
//            second makes post and comb), y tokens; head: tokens
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours
#include <metal_stdlib>
#include "quant.h"
#include "reduce.h"
using namespace metal;

#define HC_THREADS 1024
#define HC_MIX_THREADS 1024
#define HC_MOST 8  // channels a thread: at most 8,192 in all

kernel void hc_spread(device const float *x      [[buffer(0)]],
                      device float *streams      [[buffer(1)]],
                      constant gpu_hc &p         [[buffer(2)]],
                      uint2 i                    [[thread_position_in_grid]])
{
    if (i.x >= p.dim) { return; }
    const float v = x[ulong(i.y) * p.dim + i.x];
    for (ushort s = 0; s < 4; ++s) { streams[(ulong(i.y) * 4 + s) * p.dim + i.x] = v; }
}

// A thread's part of fn's row `row` · x: the simdgroups take 512 columns in turn.
template <uint T>
inline float hc_row(device const uchar *fn, ulong plane, uint row, uint width, device const float *x, ushort sg,
                    ushort lane) {
    float sum = 0.0f;
    for (uint k0 = sg * 512u; k0 < width; k0 += HC_MIX_THREADS * 16u) {
        float4 v[4];
        float4 a[4];
        quant_lane16<T, false>(fn, plane, row, width, k0, lane, (threadgroup const uint2 *)0, v);
        quant_lane_x<T, false>(x, width, k0, lane, a);
        for (ushort j = 0; j < 4; ++j) { sum += dot(v[j], a[j]); }
    }
    return sum;
}

[[max_total_threads_per_threadgroup(HC_MIX_THREADS)]]
kernel void hc_mix(device const float *streams    [[buffer(0)]],
                   device const uchar *fn         [[buffer(1)]],
                   device float *mix              [[buffer(2)]],
                   constant gpu_hc &p             [[buffer(3)]],
                   uint2 tg                       [[threadgroup_position_in_grid]],
                   ushort tid                     [[thread_index_in_threadgroup]],
                   ushort sg                      [[simdgroup_index_in_threadgroup]],
                   ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const uint width = 4 * p.dim;
    device const float *x = streams + ulong(tg.y) * width;
    float sum = 0.0f;
    if (tg.x == p.outputs) {
        for (uint k = tid * 4u; k < width; k += HC_MIX_THREADS * 4u) {
            const float4 a = *(device const float4 *)(x + k);
            sum += dot(a, a);
        }
    } else {
        switch (p.type) {
        case GPU_F16: sum = hc_row<GPU_F16>(fn, p.plane, tg.x, width, x, sg, lane); break;
        case GPU_F32: sum = hc_row<GPU_F32>(fn, p.plane, tg.x, width, x, sg, lane); break;
        case GPU_Q8_0: sum = hc_row<GPU_Q8_0>(fn, p.plane, tg.x, width, x, sg, lane); break;
        case GPU_BF16: sum = hc_row<GPU_BF16>(fn, p.plane, tg.x, width, x, sg, lane); break;
        default: sum = hc_row<GPU_Q8_0_PLANES>(fn, p.plane, tg.x, width, x, sg, lane);
        }
    }
    sum = reduce_sum(sum, partial, HC_MIX_THREADS / 32, sg, lane);
    if (tid == 0) { mix[ulong(tg.y) * (p.outputs + 1) + tg.x] = sum; }
}

inline float hc_sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

// Sum over the four lanes of a row (i = lane / 4), and over those of a column (j = lane % 4).
inline float hc_row_sum(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 2);
}
inline float hc_column_sum(float v) {
    v += simd_shuffle_xor(v, 4);
    return v + simd_shuffle_xor(v, 8);
}

// One simdgroup; lanes 0 … 15 hold comb, the others repeat them.
inline float hc_sinkhorn(float v, uint iterations, float epsilon) {
    float top = max(v, simd_shuffle_xor(v, 1));
    top = max(top, simd_shuffle_xor(top, 2));
    v = exp(v - top);
    v = v / hc_row_sum(v) + epsilon;
    v = v / (hc_column_sum(v) + epsilon);
    for (uint k = 1; k < iterations; ++k) {
        v = v / (hc_row_sum(v) + epsilon);
        v = v / (hc_column_sum(v) + epsilon);
    }
    return v;
}

// Σ pre_i · stream_i, normed: by all threads of the threadgroup. Values stay in registers in between.
inline void hc_collapse(device const float *streams, float4 pre, device const float *norm, device float *x, uint dim,
                        float epsilon, threadgroup float *partial, ushort tid, ushort sg, ushort lane) {
    float v[HC_MOST];
    float sum = 0.0f;
    #pragma unroll
    for (ushort i = 0; i < HC_MOST; ++i) {
        const uint d = i * HC_THREADS + tid;
        v[i] = 0.0f;
        if (d < dim) {
            v[i] = pre.x * streams[d] + pre.y * streams[dim + d] + pre.z * streams[2 * dim + d]
                 + pre.w * streams[3 * dim + d];
        }
        sum += v[i] * v[i];
    }
    const float scale = reduce_rms(reduce_sum(sum, partial, HC_THREADS / 32, sg, lane), dim, epsilon);
    #pragma unroll
    for (ushort i = 0; i < HC_MOST; ++i) {
        const uint d = i * HC_THREADS + tid;
        if (d < dim) { x[d] = v[i] * scale * norm[d]; }
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
                     uint2 tg                       [[threadgroup_position_in_grid]],
                     ushort tid                     [[thread_index_in_threadgroup]],
                     ushort sg                      [[simdgroup_index_in_threadgroup]],
                     ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const uint token = tg.y;
    device const float *m = mix + ulong(token) * 25;
    const float inverse = reduce_rms(m[24], 4 * p.dim, p.norm_epsilon);
    if (tg.x == 1) {
        // What the way out needs, beside the way in.
        if (sg != 0) { return; }
        if (lane < 4) {
            post[ulong(token) * 4 + lane] = 2.0f * hc_sigmoid(m[4 + lane] * inverse * scale[1] + base[4 + lane]);
        }
        const ushort e = lane & 15;
        const float v = hc_sinkhorn(m[8 + e] * inverse * scale[2] + base[8 + e], p.iterations, p.epsilon);
        if (lane < 16) { comb[ulong(token) * 16 + lane] = v; }
        return;
    }
    float4 pre;
    for (ushort i = 0; i < 4; ++i) { pre[i] = hc_sigmoid(m[i] * inverse * scale[0] + base[i]) + p.epsilon; }
    hc_collapse(streams + ulong(token) * 4 * p.dim, pre, norm, x + ulong(token) * p.dim, p.dim, p.input_epsilon,
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
                    uint token                     [[threadgroup_position_in_grid]],
                    ushort tid                     [[thread_index_in_threadgroup]],
                    ushort sg                      [[simdgroup_index_in_threadgroup]],
                    ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    device const float *m = mix + ulong(token) * 5;
    const float inverse = reduce_rms(m[4], 4 * p.dim, p.norm_epsilon);
    float4 pre;
    for (ushort i = 0; i < 4; ++i) { pre[i] = hc_sigmoid(m[i] * inverse * scale[0] + base[i]) + p.epsilon; }
    hc_collapse(streams + ulong(token) * 4 * p.dim, pre, norm, x + ulong(token) * p.dim, p.dim, p.input_epsilon,
                partial, tid, sg, lane);
}

kernel void hc_leave(device const float *y       [[buffer(0)]],
                     device const float *post    [[buffer(1)]],
                     device const float *comb    [[buffer(2)]],
                     device float *streams       [[buffer(3)]],
                     constant gpu_hc &p          [[buffer(4)]],
                     uint2 i                     [[thread_position_in_grid]])
{
    if (i.x >= p.dim) { return; }
    device float *s = streams + ulong(i.y) * 4 * p.dim + i.x;
    device const float *c = comb + ulong(i.y) * 16;
    const float s0 = s[0], s1 = s[p.dim], s2 = s[2 * p.dim], s3 = s[3 * p.dim], v = y[ulong(i.y) * p.dim + i.x];
    for (ushort j = 0; j < 4; ++j) {
        s[ulong(j) * p.dim] = post[ulong(i.y) * 4 + j] * v
                            + (c[j] * s0 + c[4 + j] * s1 + c[8 + j] * s2 + c[12 + j] * s3);
    }
}
