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
// Grid       spread, leave: one thread a channel, y tokens; mix: x outputs + 1, y tokens; enter, head: tokens
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours
#include <metal_stdlib>
#include "quant.h"
#include "reduce.h"
using namespace metal;

#define HC_THREADS 1024
#define HC_MIX_THREADS 256

kernel void hc_spread(device const float *x      [[buffer(0)]],
                      device float *streams      [[buffer(1)]],
                      constant gpu_hc &p         [[buffer(2)]],
                      uint2 i                    [[thread_position_in_grid]])
{
    if (i.x >= p.dim) { return; }
    const float v = x[ulong(i.y) * p.dim + i.x];
    for (ushort s = 0; s < 4; ++s) { streams[(ulong(i.y) * 4 + s) * p.dim + i.x] = v; }
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
    for (uint k = tid * 16u; k < width; k += HC_MIX_THREADS * 16u) {
        float v[16];
        device const float4 *x4 = (device const float4 *)(x + k);
        if (tg.x == p.outputs) {
            for (ushort j = 0; j < 4; ++j) { sum += dot(x4[j], x4[j]); }
        } else {
            for (ushort j = 0; j < 16; ++j) { v[j] = 0.0f; }
#define HC_BODY(T) quant_load16<T>(fn, p.plane, ulong(tg.x), width, k, v)
            switch (p.type) {
            case GPU_F16: HC_BODY(GPU_F16); break;
            case GPU_F32: HC_BODY(GPU_F32); break;
            case GPU_BF16: HC_BODY(GPU_BF16); break;
            case GPU_Q8_0_PLANES: HC_BODY(GPU_Q8_0_PLANES); break;
            default: HC_BODY(GPU_Q8_0);
            }
#undef HC_BODY
            for (ushort j = 0; j < 4; ++j) {
                sum += dot(x4[j], float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]));
            }
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

// Σ pre_i · stream_i, normed: by all threads of the threadgroup.
inline void hc_collapse(device const float *streams, threadgroup float *pre, device const float *norm, device float *x,
                        uint dim, float epsilon, threadgroup float *partial, ushort tid, ushort sg, ushort lane) {
    float sum = 0.0f;
    for (uint d = tid; d < dim; d += HC_THREADS) {
        const float v = pre[0] * streams[d] + pre[1] * streams[dim + d] + pre[2] * streams[2 * dim + d]
                      + pre[3] * streams[3 * dim + d];
        x[d] = v;
        sum += v * v;
    }
    const float scale = reduce_rms(reduce_sum(sum, partial, HC_THREADS / 32, sg, lane), dim, epsilon);
    for (uint d = tid; d < dim; d += HC_THREADS) { x[d] = x[d] * scale * norm[d]; }
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
                     uint token                     [[threadgroup_position_in_grid]],
                     ushort tid                     [[thread_index_in_threadgroup]],
                     ushort sg                      [[simdgroup_index_in_threadgroup]],
                     ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    threadgroup float pre[4];
    device const float *m = mix + ulong(token) * 25;
    const float inverse = reduce_rms(m[24], 4 * p.dim, p.norm_epsilon);
    if (sg == 0 && lane < 4) { pre[lane] = hc_sigmoid(m[lane] * inverse * scale[0] + base[lane]) + p.epsilon; }
    if (sg == 1) {
        if (lane < 4) {
            post[ulong(token) * 4 + lane] = 2.0f * hc_sigmoid(m[4 + lane] * inverse * scale[1] + base[4 + lane]);
        }
        const ushort e = lane & 15;
        const float v = hc_sinkhorn(m[8 + e] * inverse * scale[2] + base[8 + e], p.iterations, p.epsilon);
        if (lane < 16) { comb[ulong(token) * 16 + lane] = v; }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
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
    threadgroup float pre[4];
    device const float *m = mix + ulong(token) * 5;
    const float inverse = reduce_rms(m[4], 4 * p.dim, p.norm_epsilon);
    if (tid < 4) { pre[tid] = hc_sigmoid(m[tid] * inverse * scale[0] + base[tid]) + p.epsilon; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
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
