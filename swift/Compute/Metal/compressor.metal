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
// Grid       step: tokens; state: one thread a channel; rows: windows
// Precision  f32
// CPU twin   CKernels/compressor.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
using namespace metal;

#define POOL_THREADS 256

// (maximum, sum of weights, weighted sum)
inline float3 pool_merge(float3 a, float3 b) {
    if (a.y == 0.0f) { return b; }
    if (b.y == 0.0f) { return a; }
    const float top = max(a.x, b.x), fade_a = exp(a.x - top), fade_b = exp(b.x - top);
    return float3(top, a.y * fade_a + b.y * fade_b, a.z * fade_a + b.z * fade_b);
}

inline float3 pool_load(device const float *state, uint dim) { return float3(state[0], state[dim], state[2 * dim]); }

inline void pool_store(float3 v, device float *state, uint dim) {
    state[0] = v.x;
    state[dim] = v.y;
    state[2 * dim] = v.z;
}

// Adds tokens `from` … `to` - 1 of one channel of one series.
inline float3 pool_tokens(float3 v, device const float *kv, device const float *gate, device const float *bias,
                          uint from, uint to, uint position, uint ratio, uint width) {
    for (uint t = from; t < to; ++t) {
        const float g = gate[ulong(t) * width] + bias[ulong((position + t) % ratio) * width];
        v = pool_merge(v, float3(g, 1.0f, kv[ulong(t) * width]));
    }
    return v;
}

// Norms, rotates and appends v [dim]: by the first simdgroup.
inline void pool_finish(constant gpu_compressor &p, threadgroup float *v, device const float *norm,
                        device const float *frequencies, device const kv_page *pages, uint row, ushort lane) {
    const uint dim = p.format.dim;
    kv_norm(v, norm, dim, p.epsilon, lane);
    for (uint i = lane; i < p.rope / 2; i += 32) {
        // A row sits at the first position of its window.
        const float angle = float(row * p.ratio) * frequencies[i];
        kv_turn(v + dim - p.rope + 2 * i, float2(precise::cos(angle), precise::sin(angle)));
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    kv_encode(p.format, v, kv_row(pages, p.rows_per_page, p.format.bytes, row), lane);
}

[[max_total_threads_per_threadgroup(POOL_THREADS)]]
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
    threadgroup float v[KV_MOST_DIM];
    const uint dim = p.format.dim, position = uint(positions[token]), place = position % p.ratio;
    const uint width = p.overlaps != 0u ? 2 * dim : dim;
    device const kv_page *own = kv_line(sessions, p.table_stride, token);
    device float *state = (device float *)own[0].rows;
    kv += ulong(token) * width;
    gate += ulong(token) * width;
    const bool ends = place == p.ratio - 1;
    for (uint c = tid; c < dim; c += POOL_THREADS) {
        if (p.overlaps != 0u) {
            float3 first = pool_tokens(pool_load(state + 3 * dim + c, dim), kv + c, gate + c, bias + c, 0, 1, position,
                                       p.ratio, width);
            float3 second = pool_tokens(pool_load(state + 6 * dim + c, dim), kv + dim + c, gate + dim + c,
                                        bias + dim + c, 0, 1, position, p.ratio, width);
            if (ends) {
                const float3 row = pool_merge(pool_load(state + c, dim), second);
                v[c] = row.z / row.y;
                pool_store(first, state + c, dim);
                first = float3(0.0f);
                second = float3(0.0f);
            }
            pool_store(first, state + 3 * dim + c, dim);
            pool_store(second, state + 6 * dim + c, dim);
        } else {
            float3 own = pool_tokens(pool_load(state + c, dim), kv + c, gate + c, bias + c, 0, 1, position, p.ratio,
                                     width);
            if (ends) {
                v[c] = own.z / own.y;
                own = float3(0.0f);
            }
            pool_store(own, state + c, dim);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (ends && sg == 0) { pool_finish(p, v, norm, frequencies, own + 1, position / p.ratio, lane); }
}

[[max_total_threads_per_threadgroup(POOL_THREADS)]]
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
    threadgroup float v[KV_MOST_DIM];
    const uint dim = p.format.dim, position = uint(positions[0]), row = position / p.ratio + window;
    const uint width = p.overlaps != 0u ? 2 * dim : dim;
    device const float *state = (device const float *)sessions[0].rows;
    // Tokens of this window and of the one before, of those in this call.
    const uint end = (row + 1) * p.ratio - position;
    const uint begin = window == 0 ? 0 : end - p.ratio;
    const uint before = begin < p.ratio ? 0 : begin - p.ratio;
    const float3 none = float3(0.0f);
    for (uint c = tid; c < dim; c += POOL_THREADS) {
        float3 pooled;
        if (p.overlaps != 0u) {
            // Of the window before: what the state has of it, then its tokens of this call.
            const float3 kept = window == 0 ? pool_load(state + c, dim)
                              : window == 1 ? pool_load(state + 3 * dim + c, dim) : none;
            const float3 first = window == 0 ? kept
                : pool_tokens(kept, kv + c, gate + c, bias + c, before, begin, position, p.ratio, width);
            const float3 second = pool_tokens(window == 0 ? pool_load(state + 6 * dim + c, dim) : none, kv + dim + c,
                                              gate + dim + c, bias + dim + c, begin, end, position, p.ratio, width);
            pooled = pool_merge(first, second);
        } else {
            pooled = pool_tokens(window == 0 ? pool_load(state + c, dim) : none, kv + c, gate + c, bias + c, begin, end,
                                 position, p.ratio, width);
        }
        v[c] = pooled.z / pooled.y;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg == 0) { pool_finish(p, v, norm, frequencies, sessions + 1, row, lane); }
}

[[max_total_threads_per_threadgroup(POOL_THREADS)]]
kernel void compressor_state(device const float *kv            [[buffer(0)]],
                             device const float *gate          [[buffer(1)]],
                             device const float *bias          [[buffer(2)]],
                             device const int *positions       [[buffer(3)]],
                             device const kv_page *sessions    [[buffer(4)]],
                             constant gpu_compressor &p        [[buffer(5)]],
                             uint c                            [[thread_position_in_grid]])
{
    const uint dim = p.format.dim, position = uint(positions[0]), n = p.n;
    const uint width = p.overlaps != 0u ? 2 * dim : dim;
    if (c >= dim) { return; }
    device float *state = (device float *)sessions[0].rows;
    const uint windows = (position + n) / p.ratio - position / p.ratio;
    // Where the unfinished window begins among these tokens.
    const uint begin = windows == 0 ? 0 : (position + n) / p.ratio * p.ratio - position;
    const float3 none = float3(0.0f);
    if (p.overlaps == 0u) {
        const float3 kept = windows == 0 ? pool_load(state + c, dim) : none;
        pool_store(pool_tokens(kept, kv + c, gate + c, bias + c, begin, n, position, p.ratio, width), state + c, dim);
        return;
    }
    const float3 first_kept = pool_load(state + 3 * dim + c, dim), second_kept = pool_load(state + 6 * dim + c, dim);
    if (windows > 0) {
        // The first series of the last finished window.
        const float3 kept = windows == 1 ? first_kept : none;
        const uint from = windows == 1 ? 0 : begin - p.ratio;
        pool_store(pool_tokens(kept, kv + c, gate + c, bias + c, from, begin, position, p.ratio, width), state + c,
                   dim);
    }
    pool_store(pool_tokens(windows == 0 ? first_kept : none, kv + c, gate + c, bias + c, begin, n, position, p.ratio,
                           width), state + 3 * dim + c, dim);
    pool_store(pool_tokens(windows == 0 ? second_kept : none, kv + dim + c, gate + dim + c, bias + dim + c, begin, n,
                           position, p.ratio, width), state + 6 * dim + c, dim);
}
