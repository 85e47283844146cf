// hyper_connection.metal — mixing the four residual streams (report §2.2).
//
//   hc_spread     x [n, D]                            -> streams [n, 4, D]
//   hc_mix        streams, fn [outputs, 4D]           -> mix [n, 4, outputs + 4]: four parts to be added; behind
//                                                        the outputs Σ streams²
//   hc_mix_many   the same for many tokens            -> mix
//   hc_enter      mix, scale [3], base [24], streams  -> post [n, 4], comb [n, 4, 4], x [n, D] collapsed and normed
//   hc_head       mix, scale [1], base [4], streams   -> x [n, D] collapsed and normed
//   hc_leave      y [n, D], post, comb, streams       -> streams, in place or not
//   hc_leave_mix  the same, and hc_mix of what it makes, in one launch
//
// comb[i][j] carries stream i into stream j. Order: softmax over j, + eps; columns; then
// (iterations - 1) × (rows, columns), each division by (sum + eps).
//
// Grid       spread, leave: one thread a channel, y tokens; mix, leave_mix: x outputs + 1, y tokens, z parts;
//            mix_many: x parts, y 32 tokens each; enter: ceil(n / 16) that make post and comb, a simdgroup a
//            token, then a threadgroup a token; head: tokens
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours
#include <metal_stdlib>
#include "quant.h"
#include "reduce.h"
using namespace metal;

#define HC_THREADS 512
#define HC_TOKENS (HC_THREADS / 32)
#define HC_MIX_THREADS 256
#define HC_PARTS 4  // as many as streams
#define HC_OUTPUTS 24
#define HC_LINE(outputs) ((outputs) + 4)  // floats from one line of a mix to the next
#define HC_MANY_THREADS 256
#define HC_MANY_TOKENS 32             // two simdgroups take eight each
#define HC_PIECE (HC_OUTPUTS * 32)    // float4s of 128 columns of fn

kernel void hc_spread(device const float *x      [[buffer(0)]],
                      device float *streams      [[buffer(1)]],
                      constant gpu_hc &p         [[buffer(2)]],
                      uint2 i                    [[thread_position_in_grid]])
{
    if (i.x >= p.dim) { return; }
    const float v = x[ulong(i.y) * p.dim + i.x];
    for (ushort s = 0; s < 4; ++s) { streams[(ulong(i.y) * 4 + s) * p.dim + i.x] = v; }
}

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
    hc_collapse(mix + token * HC_PARTS * HC_LINE(4), 4, scale, base, streams + token * 4 * p.dim, norm, x + token * p.dim, p, partial,
                   tid, sg, lane);
}

// What leaves a token's channels: stream j takes post_j · y + Σ_i comb_ij · stream_i.
struct hc_way {
    float4 comb[4];
    float4 post;
};

inline hc_way hc_load_way(device const float *post, device const float *comb, uint token) {
    hc_way way;
    for (ushort i = 0; i < 4; ++i) { way.comb[i] = ((device const float4 *)(comb + ulong(token) * 16))[i]; }
    way.post = *(device const float4 *)(post + ulong(token) * 4);
    return way;
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
