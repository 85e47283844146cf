// hyper_connection_mix.metal — the products of all four streams that say how they mix (report §2.2).
//
//   hc_mix        streams [n, 4, D], fn [outputs, 4D]   -> mix [n, 4, outputs + 4]: four parts to be added; behind
//                                                          the outputs Σ streams²
//   hc_mix_many   the same for many tokens              -> mix
//   hc_leave_mix  what hc_leave does, and hc_mix of it  -> streams elsewhere, mix
//
// Grid       mix, leave_mix: x outputs + 1, y tokens, z parts; mix_many: x parts, y 32 tokens each
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours
#include <metal_stdlib>
#include "hyper_connection.h"
#include "quant.h"
#include "reduce.h"
using namespace metal;

#define HC_MIX_THREADS 256
#define HC_MANY_THREADS 256
#define HC_MANY_TOKENS 32           // two simdgroups take eight each
#define HC_PIECE (HC_OUTPUTS * 32)  // float4s of 128 columns of fn

// Weights `at` … `at` + 3 of fn as they lie there, and as numbers: loads first, numbers later.
template <uint T> inline uint4 hc_load4(device const uchar *fn, ulong plane, ulong at) {
    if (T == GPU_F32) { return *(device const uint4 *)(fn + 4 * at); }
    if (T == GPU_Q8_0_PLANES) {
        return uint4(*(device const uint *)(fn + at), *(device const ushort *)(fn + plane + at / 32 * 2), 0u, 0u);
    }
    if (T == GPU_Q8_0) {
        device const uchar *block = fn + at / 32 * 34;
        return uint4(quant_word(block + 2 + at % 32), *(device const ushort *)block, 0u, 0u);
    }
    const uint2 two = *(device const uint2 *)(fn + 2 * at);
    return uint4(two.x, two.y, 0u, 0u);
}

template <uint T> inline float4 hc_float4(uint4 v) {
    if (T == GPU_F32) {
        return float4(as_type<float>(v.x), as_type<float>(v.y), as_type<float>(v.z), as_type<float>(v.w));
    }
    if (T == GPU_Q8_0 || T == GPU_Q8_0_PLANES) { return quant_signed4(v.x) * float(as_type<half>(ushort(v.y))); }
    if (T == GPU_F16) {
        return float4(float(as_type<half>(ushort(v.x & 0xffffu))), float(as_type<half>(ushort(v.x >> 16))),
                      float(as_type<half>(ushort(v.y & 0xffffu))), float(as_type<half>(ushort(v.y >> 16))));
    }
    return float4(as_type<float>(v.x << 16), as_type<float>(v.x & 0xffff0000u), as_type<float>(v.y << 16),
                  as_type<float>(v.y & 0xffff0000u));
}

// Calls BODY(T) for the format of fn.
#define HC_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F32, BODY) \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_BF16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    }

// Loads before it are under way before anything behind it waits for one of them.
inline void hc_all_loaded() { simdgroup_barrier(mem_flags::mem_none); }

// A thread's part of fn's row from `line` on · one stream x. Four pieces of the threadgroup are under way at once;
// what lies behind the end is loaded from its last place, and not used.
template <uint T>
inline float hc_row(device const uchar *fn, ulong plane, ulong line, uint dim, device const float *x, ushort tid) {
    float sum = 0.0f;
    for (uint first = 0; first < dim; first += HC_MIX_THREADS * 16u) {
        float4 a[4];
        uint4 w[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint d = min(first + 4u * (HC_MIX_THREADS * i + tid), dim - 4);
            a[i] = *(device const float4 *)(x + d);
            w[i] = hc_load4<T>(fn, plane, line + d);
        }
        hc_all_loaded();
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const float product = dot(a[i], hc_float4<T>(w[i]));
            sum += first + 4u * (HC_MIX_THREADS * i + tid) < dim ? product : 0.0f;
        }
    }
    return sum;
}

inline float hc_squares(device const float *x, uint dim, ushort tid) {
    float sum = 0.0f;
    for (uint first = 0; first < dim; first += HC_MIX_THREADS * 16u) {
        float4 a[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            a[i] = *(device const float4 *)(x + min(first + 4u * (HC_MIX_THREADS * i + tid), dim - 4));
        }
        hc_all_loaded();
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            sum += first + 4u * (HC_MIX_THREADS * i + tid) < dim ? dot(a[i], a[i]) : 0.0f;
        }
    }
    return sum;
}

[[max_total_threads_per_threadgroup(HC_MIX_THREADS)]]
kernel void hc_mix(device const float *streams    [[buffer(0)]],
                   device const uchar *fn         [[buffer(1)]],
                   device float *mix              [[buffer(2)]],
                   constant gpu_hc &p             [[buffer(3)]],
                   uint3 tg                       [[threadgroup_position_in_grid]],
                   ushort tid                     [[thread_index_in_threadgroup]],
                   ushort sg                      [[simdgroup_index_in_threadgroup]],
                   ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const ulong line = ulong(tg.y) * HC_PARTS + tg.z;
    device const float *x = streams + line * p.dim;
    float sum = 0.0f;
    if (tg.x == p.outputs) {
        sum = hc_squares(x, p.dim, tid);
    } else {
        #define HC_ROW(T) sum = hc_row<T>(fn, p.plane, (ulong(tg.x) * 4 + tg.z) * p.dim, p.dim, x, tid)
        HC_SWITCH(p.type, HC_ROW)
    }
    sum = reduce_sum(sum, partial, HC_MIX_THREADS / 32, sg, lane);
    if (tid == 0) { mix[line * HC_LINE(p.outputs) + tg.x] = sum; }
}

inline void hc_load_tokens(device const float *streams, ulong row, uint first, uint last, uint k, thread float4 *x) {
    #pragma unroll
    for (ushort t = 0; t < 8; ++t) { x[t] = *(device const float4 *)(streams + row * min(first + t, last) + k); }
}

// A lane's part of eight tokens' products with half of fn's rows, sums[t · 12 + row], and of the squares of
// tokens 4 · side … of them. A piece is 128 columns: while one is worked on, the next one's values are under
// way to registers. `weights`: two pieces.
template <uint T>
inline void hc_products(device const uchar *fn, constant gpu_hc &p, uint stream, device const float *streams, uint first,
                        threadgroup float4 *weights, uint side, ushort sg, ushort lane, thread float *sums,
                        thread float *squares) {
    const ulong row = 4ul * p.dim;
    const uint last = p.n - 1, pieces = p.dim / 128;
    streams += ulong(stream) * p.dim;
    float4 x[8];
    uint4 staged[3];
    hc_load_tokens(streams, row, first, last, 4u * lane, x);
    #pragma unroll
    for (ushort j = 0; j < 3; ++j) {
        staged[j] = hc_load4<T>(fn, p.plane, row * (sg + 8u * j) + ulong(stream) * p.dim + 4u * lane);
    }
    #pragma unroll
    for (ushort j = 0; j < 3; ++j) { weights[(sg + 8 * j) * 32 + lane] = hc_float4<T>(staged[j]); }
    for (uint piece = 0; piece < pieces; ++piece) {
        // Behind the end the last piece is read again.
        const uint k = 128 * min(piece + 1, pieces - 1) + 4u * lane;
        float4 next[8];
        hc_load_tokens(streams, row, first, last, k, next);
        #pragma unroll
        for (ushort j = 0; j < 3; ++j) {
            staged[j] = hc_load4<T>(fn, p.plane, row * (sg + 8u * j) + ulong(stream) * p.dim + k);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        threadgroup const float4 *w = weights + (piece & 1) * HC_PIECE + side * (HC_PIECE / 2) + lane;
        #pragma unroll
        for (ushort o = 0; o < HC_OUTPUTS / 2; ++o) {
            const float4 v = w[32 * o];
            #pragma unroll
            for (ushort t = 0; t < 8; ++t) {
                float sum = sums[t * (HC_OUTPUTS / 2) + o];
                sum += v.x * x[t].x;
                sum += v.y * x[t].y;
                sum += v.z * x[t].z;
                sum += v.w * x[t].w;
                sums[t * (HC_OUTPUTS / 2) + o] = sum;
            }
        }
        if (side == 0) {
            #pragma unroll
            for (ushort t = 0; t < 4; ++t) { squares[t] += dot(x[t], x[t]); }
        } else {
            #pragma unroll
            for (ushort t = 0; t < 4; ++t) { squares[t] += dot(x[4 + t], x[4 + t]); }
        }
        threadgroup float4 *to = weights + (~piece & 1) * HC_PIECE;
        #pragma unroll
        for (ushort j = 0; j < 3; ++j) { to[(sg + 8 * j) * 32 + lane] = hc_float4<T>(staged[j]); }
        #pragma unroll
        for (ushort t = 0; t < 8; ++t) { x[t] = next[t]; }
    }
}

// Halves `sums` [2H] between lanes that differ in `bit`: those that have it keep the upper half.
template <ushort H> inline void hc_fold(thread float *sums, ushort lane, ushort bit) {
    const bool upper = (lane & bit) != 0;
    #pragma unroll
    for (ushort i = 0; i < H; ++i) {
        const float low = sums[i], high = sums[i + H];
        sums[i] = (upper ? high : low) + simd_shuffle_xor(upper ? low : high, bit);
    }
}

// dim must be a multiple of 128, fn's rows 24.
[[max_total_threads_per_threadgroup(HC_MANY_THREADS)]]
kernel void hc_mix_many(device const float *streams    [[buffer(0)]],
                        device const uchar *fn         [[buffer(1)]],
                        device float *mix              [[buffer(2)]],
                        constant gpu_hc &p             [[buffer(3)]],
                        uint2 tg                       [[threadgroup_position_in_grid]],
                        ushort sg                      [[simdgroup_index_in_threadgroup]],
                        ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float4 weights[2 * HC_PIECE];
    const uint side = sg & 1, first = tg.y * HC_MANY_TOKENS + sg / 2 * 8;
    float sums[8 * HC_OUTPUTS / 2];
    float squares[4];
    #pragma unroll
    for (ushort i = 0; i < 8 * HC_OUTPUTS / 2; ++i) { sums[i] = 0.0f; }
    #pragma unroll
    for (ushort t = 0; t < 4; ++t) { squares[t] = 0.0f; }
    #define HC_PRODUCTS(T) hc_products<T>(fn, p, tg.x, streams, first, weights, side, sg, lane, sums, squares)
    HC_SWITCH(p.type, HC_PRODUCTS)
    // Lane l ends with sums 3 · l … 3 · l + 2: of token l / 4.
    hc_fold<48>(sums, lane, 16);
    hc_fold<24>(sums, lane, 8);
    hc_fold<12>(sums, lane, 4);
    hc_fold<6>(sums, lane, 2);
    hc_fold<3>(sums, lane, 1);
    const uint token = first + lane / 4;
    device float *line = mix + (ulong(token) * 4 + tg.x) * HC_LINE(HC_OUTPUTS);
    if (token < p.n) {
        for (ushort i = 0; i < 3; ++i) { line[side * (HC_OUTPUTS / 2) + lane % 4 * 3 + i] = sums[i]; }
    }
    for (ushort t = 0; t < 4; ++t) {
        const float sum = simd_sum(squares[t]);
        const uint other = first + 4 * side + t;
        if (lane == 0 && other < p.n) { mix[(ulong(other) * 4 + tg.x) * HC_LINE(HC_OUTPUTS) + HC_OUTPUTS] = sum; }
    }
}

// A thread's part of output `row`, or of the squares if there is no such row; those threads write the streams.
// A part has every fourth of the threadgroup's pieces of channels.
template <uint T>
inline float hc_left(device const float *y, const hc_way way, device const float *streams, device const uchar *fn,
                     device float *out, constant gpu_hc &p, uint row, uint part, ushort tid) {
    float sum = 0.0f;
    for (uint first = 4u * HC_MIX_THREADS * part; first < p.dim; first += HC_PARTS * HC_MIX_THREADS * 4u) {
        const bool isOwn = first + 4u * tid < p.dim;
        const uint d = isOwn ? first + 4u * tid : p.dim - 4;
        float4 s[4];
        uint4 w[4];
        // fn comes from farthest away: the barrier keeps the compiler from loading it last.
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            w[j] = hc_load4<T>(fn, p.plane, (ulong(min(row, p.outputs - 1)) * 4 + j) * p.dim + d);
        }
        threadgroup_barrier(mem_flags::mem_none);
        const float4 v = *(device const float4 *)(y + d);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { s[j] = *(device const float4 *)(streams + j * p.dim + d); }
        float4 left[4];
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            left[j] = v * way.post[j] + (s[0] * way.comb[0][j] + s[1] * way.comb[1][j] + s[2] * way.comb[2][j]
                                         + s[3] * way.comb[3][j]);
        }
        if (!isOwn) { continue; }
        if (row < p.outputs) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { sum += dot(left[j], hc_float4<T>(w[j])); }
        } else {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                sum += dot(left[j], left[j]);
                *(device float4 *)(out + j * p.dim + d) = left[j];
            }
        }
    }
    return sum;
}

// out is not streams: the other threadgroups still read these.
[[max_total_threads_per_threadgroup(HC_MIX_THREADS)]]
kernel void hc_leave_mix(device const float *y       [[buffer(0)]],
                         device const float *post    [[buffer(1)]],
                         device const float *comb    [[buffer(2)]],
                         device const float *streams [[buffer(3)]],
                         device const uchar *fn      [[buffer(4)]],
                         device float *out           [[buffer(5)]],
                         device float *mix           [[buffer(6)]],
                         constant gpu_hc &p          [[buffer(7)]],
                         uint3 tg                    [[threadgroup_position_in_grid]],
                         ushort tid                  [[thread_index_in_threadgroup]],
                         ushort sg                   [[simdgroup_index_in_threadgroup]],
                         ushort lane                 [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const hc_way way = hc_load_way(post, comb, tg.y);
    float sum = 0.0f;
    y += ulong(tg.y) * p.dim;
    streams += ulong(tg.y) * 4 * p.dim;
    out += ulong(tg.y) * 4 * p.dim;
    #define HC_LEFT(T) sum = hc_left<T>(y, way, streams, fn, out, p, tg.x, tg.z, tid)
    HC_SWITCH(p.type, HC_LEFT)
    sum = reduce_sum(sum, partial, HC_MIX_THREADS / 32, sg, lane);
    if (tid == 0) { mix[(ulong(tg.y) * HC_PARTS + tg.z) * HC_LINE(p.outputs) + tg.x] = sum; }
}
