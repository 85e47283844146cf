// compressor.metal — pooling windows of tokens into one row (report §2.3).
//
//   compressor_step    one token a session: updates the state; ends the window and appends its row when it is due
//   compressor_rows    many tokens: one threadgroup appends the row of one window they complete
//   compressor_state   many tokens: the state after them. After compressor_rows, which reads the state
//
// kv, gate [n, series · dim]; sessions: a line each, of state and pages. State [series, 3, dim] of maximum,
// sum of weights, weighted sum, as in compressor.c; a sum of zero means "nothing yet". With overlap: series 0
// is the first series of the window before, 1 and 2 those of this window.
//
// Grid       step: tokens; rows: windows; state: one thread two channels
// Precision  f32
// CPU twin   CKernels/compressor.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
using namespace metal;

#define POOL_SLICES 4  // that the tokens of a window are cut into
#define POOL_ROW_THREADS (POOL_SLICES * KV_THREADS)
#define POOL_NOTHING -1.0e38f

// Running sums of two channels, relative to their maximum: POOL_NOTHING, 0, 0 when there was no token yet.
struct pool_sums {
    float2 top;
    float2 sum;
    float2 weighted;
};

inline pool_sums pool_none() {
    pool_sums v;
    v.top = float2(POOL_NOTHING);
    v.sum = float2(0.0f);
    v.weighted = float2(0.0f);
    return v;
}

inline pool_sums pool_where(bool isKept, pool_sums v) {
    v.top = isKept ? v.top : float2(POOL_NOTHING);
    v.sum = isKept ? v.sum : float2(0.0f);
    v.weighted = isKept ? v.weighted : float2(0.0f);
    return v;
}

inline pool_sums pool_merge(pool_sums a, pool_sums b) {
    pool_sums v;
    v.top = max(a.top, b.top);
    const float2 fade_a = exp(a.top - v.top), fade_b = exp(b.top - v.top);
    v.sum = a.sum * fade_a + b.sum * fade_b;
    v.weighted = a.weighted * fade_a + b.weighted * fade_b;
    return v;
}

// Of one token, but for what its place adds to `top`.
inline pool_sums pool_one(device const float *kv, device const float *gate) {
    pool_sums v;
    v.top = *(device const float2 *)gate;
    v.sum = float2(1.0f);
    v.weighted = *(device const float2 *)kv;
    return v;
}

inline pool_sums pool_load(device const float *state, uint dim) {
    pool_sums v;
    v.top = *(device const float2 *)state;
    v.sum = *(device const float2 *)(state + dim);
    v.weighted = *(device const float2 *)(state + 2 * dim);
    v.top = float2(v.sum.x == 0.0f ? POOL_NOTHING : v.top.x, v.sum.y == 0.0f ? POOL_NOTHING : v.top.y);
    return v;
}

inline void pool_store(pool_sums v, device float *state, uint dim) {
    *(device float2 *)state = float2(v.sum.x == 0.0f ? 0.0f : v.top.x, v.sum.y == 0.0f ? 0.0f : v.top.y);
    *(device float2 *)(state + dim) = v.sum;
    *(device float2 *)(state + 2 * dim) = v.weighted;
}

// Adds tokens `from` … `to` - 1 of one window, N at a time: `place` is the place of `from` in the window.
template <ushort N>
inline pool_sums pool_tokens(pool_sums v, device const float *kv, device const float *gate, device const float *bias,
                             uint from, uint to, uint place, uint width) {
    for (uint t = from; t < to; t += N) {
        float2 g[N];
        float2 x[N];
        #pragma unroll
        for (ushort i = 0; i < N; ++i) {
            const uint at = min(t + i, to - 1);
            g[i] = *(device const float2 *)(gate + ulong(at) * width)
                 + *(device const float2 *)(bias + ulong(place + at - from) * width);
            x[i] = *(device const float2 *)(kv + ulong(at) * width);
        }
        float2 top = v.top;
        #pragma unroll
        for (ushort i = 0; i < N; ++i) { top = max(top, g[i]); }
        const float2 fade = exp(v.top - top);
        v.top = top;
        v.sum = v.sum * fade;
        v.weighted = v.weighted * fade;
        #pragma unroll
        for (ushort i = 0; i < N; ++i) {
            const float2 w = t + i < to ? exp(g[i] - top) : float2(0.0f);
            v.sum += w;
            v.weighted += w * x[i];
        }
    }
    return v;
}

// A row sits at the first position of its window.
inline float2 pool_turn(constant gpu_compressor &p, float frequency, uint row) {
    const float angle = float(row * p.ratio) * frequency;
    return float2(precise::cos(angle), precise::sin(angle));
}

[[max_total_threads_per_threadgroup(KV_THREADS)]]
kernel void compressor_step(device const float *kv            [[buffer(0)]],
                            device const float *gate          [[buffer(1)]],
                            device const float *bias          [[buffer(2)]],
                            device const float *norm          [[buffer(3)]],
                            device const float *frequencies   [[buffer(4)]],
                            device const int *positions       [[buffer(5)]],
                            device const kv_page *sessions    [[buffer(6)]],
                            constant gpu_compressor &p        [[buffer(7)]],
                            uint token                        [[threadgroup_position_in_grid]],
                            ushort tid                        [[thread_index_in_threadgroup]],
                            ushort sg                         [[simdgroup_index_in_threadgroup]],
                            ushort lane                       [[thread_index_in_simdgroup]])
{
    threadgroup float2 shared[KV_THREADS];
    threadgroup float partial[32];
    // Everything is loaded as early as its address is known; threads beyond the row load what the last one does.
    const uint dim = p.format.dim, plain = dim - p.rope, series = p.overlaps != 0u ? dim : 0;
    const uint width = dim + series, c = min(2u * tid, dim - 2);
    const bool isOwn = 2u * tid < dim, turns = isOwn && c >= plain;
    device const kv_page *own = kv_line(sessions, p.table_stride, token);
    const uint position = uint(positions[token]);
    device float *state = (device float *)own[0].rows + c;
    kv += ulong(token) * width + c;
    gate += ulong(token) * width + c;
    bias += c;
    pool_sums first = pool_one(kv, gate), second = pool_one(kv + series, gate + series);
    const float2 weight = *(device const float2 *)(norm + c);
    const float frequency = turns ? frequencies[(c - plain) / 2] : 0.0f;
    pool_sums sums = pool_load(state, dim);
    const pool_sums kept_first = pool_load(state + 3 * series, dim), kept_second = pool_load(state + 6 * series, dim);
    const uint row = position / p.ratio, place = position - row * p.ratio;
    const bool ends = place == p.ratio - 1;
    first.top += *(device const float2 *)(bias + ulong(place) * width);
    second.top += *(device const float2 *)(bias + ulong(place) * width + series);
    device uchar *to = ends ? kv_row(own + 1, p.rows_per_page, p.format.bytes, row) : (device uchar *)state;
    second = pool_merge(kept_second, second);
    if (p.overlaps != 0u) {
        first = pool_merge(kept_first, first);
        sums = pool_merge(sums, second);
        if (ends && isOwn) { pool_store(first, state, dim); }
        if (isOwn) { pool_store(pool_where(!ends, first), state + 3 * dim, dim); }
        if (isOwn) { pool_store(pool_where(!ends, second), state + 6 * dim, dim); }
    } else {
        sums = second;
        if (isOwn) { pool_store(pool_where(!ends, second), state, dim); }
    }
    if (!ends) { return; }
    float2 turn = float2(1.0f, 0.0f);
    if (turns) { turn = pool_turn(p, frequency, row); }
    const float2 v = isOwn ? sums.weighted / sums.sum : float2(0.0f);
    kv_encode(p.format, kv_turn(kv_norm(v, weight, dim, p.epsilon, partial, sg, lane), turn), shared, to, tid, sg, lane);
}

// The tokens of a window are cut into slices of consecutive ones; KV_THREADS threads take each.
[[max_total_threads_per_threadgroup(POOL_ROW_THREADS)]]
kernel void compressor_rows(device const float *kv            [[buffer(0)]],
                            device const float *gate          [[buffer(1)]],
                            device const float *bias          [[buffer(2)]],
                            device const float *norm          [[buffer(3)]],
                            device const float *frequencies   [[buffer(4)]],
                            device const int *positions       [[buffer(5)]],
                            device const kv_page *sessions    [[buffer(6)]],
                            constant gpu_compressor &p        [[buffer(7)]],
                            uint window                       [[threadgroup_position_in_grid]],
                            ushort tid                        [[thread_index_in_threadgroup]],
                            ushort sg                         [[simdgroup_index_in_threadgroup]],
                            ushort lane                       [[thread_index_in_simdgroup]])
{
    threadgroup float2 parts[POOL_SLICES - 1][3][KV_THREADS];
    threadgroup float partial[32];
    const uint dim = p.format.dim, position = uint(positions[0]), row = position / p.ratio + window;
    const uint width = p.overlaps != 0u ? 2 * dim : dim, slice = tid / KV_THREADS, c = 2u * (tid % KV_THREADS);
    device const float *state = (device const float *)sessions[0].rows + c;
    // Tokens of this window and of the one before, of those in this call.
    const uint end = (row + 1) * p.ratio - position;
    const uint begin = window == 0 ? 0 : end - p.ratio;
    const uint before = begin < p.ratio ? 0 : begin - p.ratio;
    const uint length = (end - begin + POOL_SLICES - 1) / POOL_SLICES, from = min(begin + slice * length, end);
    float2 v = float2(0.0f), weight = float2(0.0f);
    pool_sums sums = pool_none();
    if (c < dim) {
        weight = *(device const float2 *)(norm + c);
        // What the state has of both windows, then the tokens of this call.
        if (slice == 0 && window == 0) { sums = pool_load(p.overlaps != 0u ? state + 6 * dim : state, dim); }
        device const float *x = kv + c, *g = gate + c, *b = bias + c;
        if (p.overlaps != 0u) {
            if (slice == 0 && window < 2) { sums = pool_merge(sums, pool_load(state + 3 * dim * window, dim)); }
            if (window > 0) {
                const uint earlier = (begin - before + POOL_SLICES - 1) / POOL_SLICES;
                const uint start = min(before + slice * earlier, begin);
                sums = pool_tokens<4>(sums, x, g, b, start, min(start + earlier, begin), (position + start) % p.ratio,
                                      width);
            }
            x += dim;
            g += dim;
            b += dim;
        }
        sums = pool_tokens<4>(sums, x, g, b, from, min(from + length, end), (position + from) % p.ratio, width);
        if (slice != 0) {
            parts[slice - 1][0][c / 2] = sums.top;
            parts[slice - 1][1][c / 2] = sums.sum;
            parts[slice - 1][2][c / 2] = sums.weighted;
        }
    }
    const uint plain = dim - p.rope;
    float2 turn = float2(1.0f, 0.0f);
    if (slice == 0 && c >= plain && c < dim) { turn = pool_turn(p, frequencies[(c - plain) / 2], row); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (slice == 0 && c < dim) {
        for (ushort other = 0; other < POOL_SLICES - 1; ++other) {
            pool_sums more;
            more.top = parts[other][0][tid];
            more.sum = parts[other][1][tid];
            more.weighted = parts[other][2][tid];
            sums = pool_merge(sums, more);
        }
        v = sums.weighted / sums.sum;
    }
    v = kv_turn(kv_norm(v, weight, dim, p.epsilon, partial, sg, lane), turn);
    kv_encode(p.format, v, parts[0][0], kv_row(sessions + 1, p.rows_per_page, p.format.bytes, row), tid, sg, lane);
}

[[max_total_threads_per_threadgroup(256)]]
kernel void compressor_state(device const float *kv            [[buffer(0)]],
                             device const float *gate          [[buffer(1)]],
                             device const float *bias          [[buffer(2)]],
                             device const int *positions       [[buffer(3)]],
                             device const kv_page *sessions    [[buffer(4)]],
                             constant gpu_compressor &p        [[buffer(5)]],
                             uint tid                          [[thread_position_in_grid]])
{
    const uint dim = p.format.dim, position = uint(positions[0]), n = p.n, c = 2 * tid;
    const uint width = p.overlaps != 0u ? 2 * dim : dim;
    if (c >= dim) { return; }
    device float *state = (device float *)sessions[0].rows + c;
    const uint windows = (position + n) / p.ratio - position / p.ratio;
    // Where the unfinished window begins among these tokens.
    const uint begin = windows == 0 ? 0 : (position + n) / p.ratio * p.ratio - position;
    const uint place = (position + begin) % p.ratio;
    kv += c;
    gate += c;
    bias += c;
    if (p.overlaps == 0u) {
        const pool_sums kept = pool_where(windows == 0, pool_load(state, dim));
        pool_store(pool_tokens<4>(kept, kv, gate, bias, begin, n, place, width), state, dim);
        return;
    }
    const pool_sums first = pool_load(state + 3 * dim, dim), second = pool_load(state + 6 * dim, dim);
    if (windows > 0) {
        // The first series of the last finished window.
        const uint from = windows == 1 ? 0 : begin - p.ratio;
        pool_store(pool_tokens<4>(pool_where(windows == 1, first), kv, gate, bias, from, begin,
                                  (position + from) % p.ratio, width), state, dim);
    }
    pool_store(pool_tokens<4>(pool_where(windows == 0, first), kv, gate, bias, begin, n, place, width),
               state + 3 * dim, dim);
    pool_store(pool_tokens<4>(pool_where(windows == 0, second), kv + dim, gate + dim, bias + dim, begin, n, place,
                              width), state + 6 * dim, dim);
}
