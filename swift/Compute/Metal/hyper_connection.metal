// hyper_connection.metal — mixing the four residual streams (report §2.2).
//
//   hc_spread     x [n, D]                            -> streams [n, 4, D]
//   hc_mix        streams, fn [outputs, 4D]           -> mix [n, 1, outputs + 4]: then Σ streams², then nothing
//   hc_mix_many   the same for many tokens            -> mix [n, 4, 28]: a part from each stream
//   hc_enter      mix, scale [3], base [24], streams  -> post [n, 4], comb [n, 4, 4], x [n, D] collapsed and normed
//   hc_head       mix, scale [1], base [4], streams   -> x [n, D] collapsed and normed
//   hc_leave      y [n, D], post, comb, streams       -> streams, in place or not
//   hc_leave_mix  the same, and hc_mix of what it makes, in one launch
//
// comb[i][j] carries stream i into stream j. Order: softmax over j, + eps; columns; then
// (iterations - 1) × (rows, columns), each division by (sum + eps).
//
// Grid       spread, leave: one thread a channel, y tokens; mix, leave_mix: x outputs + 1, y tokens;
//            mix_many: x streams, y 32 tokens each; enter: ceil(n / 512) that make post and comb, a thread a token, then a threadgroup
//            a token; head: tokens
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours
#include <metal_stdlib>
#include "quant.h"
#include "reduce.h"
using namespace metal;

#define HC_THREADS 512
#define HC_MIX_THREADS 1024
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
    if (tid == 0) { mix[ulong(tg.y) * HC_LINE(p.outputs) + tg.x] = sum; }
}

// Weights `at` … `at` + 3 of fn as they lie there, and as numbers: loads first, numbers later.
template <uint T> inline uint4 hc_load4(device const uchar *fn, ulong plane, ulong at) {
    if (T == GPU_F32) { return *(device const uint4 *)(fn + 4 * at); }
    if (T == GPU_Q8_0_PLANES) {
        return uint4(*(device const uint *)(fn + at), *(device const ushort *)(fn + plane + at / 32 * 2), 0u, 0u);
    }
    const uint2 two = *(device const uint2 *)(fn + 2 * at);
    return uint4(two.x, two.y, 0u, 0u);
}

template <uint T> inline float4 hc_float4(uint4 v) {
    if (T == GPU_F32) {
        return float4(as_type<float>(v.x), as_type<float>(v.y), as_type<float>(v.z), as_type<float>(v.w));
    }
    if (T == GPU_Q8_0_PLANES) { return quant_signed4(v.x) * float(as_type<half>(ushort(v.y))); }
    if (T == GPU_F16) {
        return float4(float(as_type<half>(ushort(v.x & 0xffffu))), float(as_type<half>(ushort(v.x >> 16))),
                      float(as_type<half>(ushort(v.y & 0xffffu))), float(as_type<half>(ushort(v.y >> 16))));
    }
    return float4(as_type<float>(v.x << 16), as_type<float>(v.x & 0xffff0000u), as_type<float>(v.y << 16),
                  as_type<float>(v.y & 0xffff0000u));
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
    switch (p.type) {
    QUANT_CASE(GPU_F32, HC_PRODUCTS)
    QUANT_CASE(GPU_F16, HC_PRODUCTS)
    QUANT_CASE(GPU_BF16, HC_PRODUCTS)
    QUANT_CASE(GPU_Q8_0_PLANES, HC_PRODUCTS)
    }
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

// Rows of the matrix, in one thread. All along it is rows_i · k_ij · columns_j: a step makes four sums and four
// reciprocals, and only the next step waits for them.
inline void hc_sinkhorn(thread float4 *k, uint iterations, float epsilon) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const float4 v = k[i];
        const float4 e = exp(v - max(max(v.x, v.y), max(v.z, v.w)));
        k[i] = e * hc_reciprocal(hc_sum(e)) + epsilon;
    }
    float4 rows = float4(1.0f), columns;
    const float4 down = (k[0] + k[1]) + (k[2] + k[3]);
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) { columns[j] = hc_reciprocal(down[j] + epsilon); }
    for (uint n = 1; n < iterations; ++n) {
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            rows[i] = rows[i] * hc_reciprocal(rows[i] * hc_sum(k[i] * columns) + epsilon);
        }
        const float4 sums = (k[0] * rows[0] + k[1] * rows[1]) + (k[2] * rows[2] + k[3] * rows[3]);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { columns[j] = columns[j] * hc_reciprocal(columns[j] * sums[j] + epsilon); }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { k[i] = k[i] * columns * rows[i]; }
}

// What the way out of a token needs, by one thread.
inline void hc_way_out(device const float *mix, device const float *scale, device const float *base,
                       constant gpu_hc &p, device float *post, device float *comb) {
    device const float4 *quads = (device const float4 *)mix;
    const float post_scale = scale[1], comb_scale = scale[2];
    float4 offset[5];
    float4 v[5];
    #pragma unroll
    for (ushort i = 0; i < 5; ++i) {
        offset[i] = ((device const float4 *)base)[1 + i];
        v[i] = quads[1 + i];
    }
    float squares = mix[HC_OUTPUTS];
    #pragma unroll(1)
    for (uint part = 1; part < p.parts; ++part) {
        quads += HC_LINE(HC_OUTPUTS) / 4;
        #pragma unroll
        for (ushort i = 0; i < 5; ++i) { v[i] += quads[1 + i]; }
        squares += quads[HC_OUTPUTS / 4].x;
    }
    const float inverse = reduce_rms(squares, 4 * p.dim, p.norm_epsilon);
    #pragma unroll
    for (ushort i = 0; i < 5; ++i) { v[i] = v[i] * inverse * (i == 0 ? post_scale : comb_scale) + offset[i]; }
    for (ushort j = 0; j < 4; ++j) { v[0][j] = 2.0f * hc_sigmoid(v[0][j]); }
    *(device float4 *)post = v[0];
    hc_sinkhorn(v + 1, p.iterations, p.epsilon);
    for (ushort i = 0; i < 4; ++i) { ((device float4 *)comb)[i] = v[1 + i]; }
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
    const uint dim = p.dim, part = lane / 8 < p.parts ? lane / 8 : 0;
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
    if (p.parts > 1) {
        m += simd_shuffle_xor(m, 8);
        m += simd_shuffle_xor(m, 16);
    }
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
    const ulong line = p.parts * HC_LINE(HC_OUTPUTS);
    const uint outs = (p.n + HC_THREADS - 1) / HC_THREADS;
    if (tg < outs) {
        const ulong token = tg * HC_THREADS + tid;
        if (token >= p.n) { return; }
        post += token * 4;
        comb += token * 16;
        mix += token * line;
        hc_way_out(mix, scale, base, p, post, comb);
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
    hc_collapse(mix + token * p.parts * HC_LINE(4), 4, scale, base, streams + token * 4 * p.dim, norm, x + token * p.dim, p, partial,
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
template <uint T>
inline float hc_left(device const float *y, const hc_way way, device const float *streams, device const uchar *fn,
                     device float *out, constant gpu_hc &p, uint row, ushort tid) {
    float sum = 0.0f;
    for (uint d = 4u * tid; d < p.dim; d += HC_MIX_THREADS * 4u) {
        float4 s[4];
        uint4 w[4];
        const float4 v = *(device const float4 *)(y + d);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            s[j] = *(device const float4 *)(streams + j * p.dim + d);
            w[j] = hc_load4<T>(fn, p.plane, (ulong(min(row, p.outputs - 1)) * 4 + j) * p.dim + d);
        }
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            const float4 left = v * way.post[j] + (s[0] * way.comb[0][j] + s[1] * way.comb[1][j]
                                                   + s[2] * way.comb[2][j] + s[3] * way.comb[3][j]);
            if (row < p.outputs) {
                sum += dot(left, hc_float4<T>(w[j]));
            } else {
                sum += dot(left, left);
                *(device float4 *)(out + j * p.dim + d) = left;
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
                         uint2 tg                    [[threadgroup_position_in_grid]],
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
    #define HC_LEFT(T) sum = hc_left<T>(y, way, streams, fn, out, p, tg.x, tid)
    switch (p.type) {
    QUANT_CASE(GPU_F32, HC_LEFT)
    QUANT_CASE(GPU_F16, HC_LEFT)
    QUANT_CASE(GPU_BF16, HC_LEFT)
    QUANT_CASE(GPU_Q8_0_PLANES, HC_LEFT)
    }
    sum = reduce_sum(sum, partial, HC_MIX_THREADS / 32, sg, lane);
    if (tid == 0) { mix[ulong(tg.y) * HC_LINE(p.outputs) + tg.x] = sum; }
}
