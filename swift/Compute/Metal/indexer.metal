// indexer.metal — how much a token wants of each compressed row (report §2.3.1).
//
//   indexer_score   q [n, heads, dim], w [n, heads], sessions  -> scores [n, stride]
//
// score[t, s] = scale · Σ_h w[t, h] · max(0, q[t, h]·k[s]) for the (position + 1) / ratio visible rows.
// A token that sees no more than `top` rows keeps them all: its scores are not written.
//
// Rows kept as FP4 go through the matrix units and lose nothing there: a code times a power of two is
// exact in half when a row's (and a query head's) powers are counted from the highest of them, which is
// put back in f32. Rows of other formats are multiplied one by one.
//
// Grid       score: x blocks of INDEX_ROWS rows (many tokens: INDEX_MANY_ROWS; not FP4: INDEX_PLAIN_ROWS),
//            y tokens (many: groups of p.tokens)
// Precision  f32; products of FP4 rows with queries that were rounded to FP4 are exact
// CPU twin   CKernels/indexer.c
// Origin     ours
#include <metal_stdlib>
#include "kv_rows.h"
#include "tile.h"
using namespace metal;

#define INDEX_THREADS 256
#define INDEX_DIM 128
#define INDEX_WORDS (INDEX_DIM / 8)       // of codes in an FP4 row; one of scales follows
#define INDEX_LD (INDEX_DIM + 8)          // of queries and rows in threadgroup memory, in halfs
#define INDEX_ROWS 32
#define INDEX_HEADS 64
#define INDEX_MANY_ROWS 256
#define INDEX_MANY_HEADS 32
#define INDEX_STAGE_LD (INDEX_DIM / 4 + 8)
#define INDEX_PLAIN_ROWS 64
#define INDEX_PLAIN_HEADS 16
#define INDEX_MEMORY ((INDEX_HEADS + INDEX_ROWS) * INDEX_LD / 8)  // uint4: the largest need of the three

inline uint index_most(uint scales) {
    return max(max(scales & 255u, scales >> 8 & 255u), max(scales >> 16 & 255u, scales >> 24));
}

// 2^14 times the power of a block's scale over the row's: codes moved to half's place mean 2^-14 of
// their value, subnormals included. What is 2^-28 of the row's highest power vanishes.
inline half2 index_factor(uint scale, uint most) {
    const uint bits = scale + 29u > most ? (scale + 29u - most) << 10 : 0u;
    return as_type<half2>(bits | bits << 16);
}

// Two codes of a byte as two halfs.
inline uint index_pair(uint byte, half2 factor) {
    const uint bits = (byte & 7u) << 9 | (byte & 8u) << 12 | (byte & 0x70u) << 21 | (byte & 0x80u) << 24;
    return as_type<uint>(as_type<half2>(bits) * factor);
}

inline uint4 index_halfs(uint word, half2 factor) {
    return uint4(index_pair(word & 255u, factor), index_pair(word >> 8 & 255u, factor),
                 index_pair(word >> 16 & 255u, factor), index_pair(word >> 24, factor));
}

// A query head's highest power of two, such that neither it nor what is made of it leaves f32.
inline uint index_exponent(float most) { return clamp(as_type<uint>(most) >> 23, 16u, 254u); }

// Values of the head between 256 and 512 at most; what that took is given to the head's weight.
inline half4 index_query(float4 v, uint exponent) { return half4(v * as_type<float>((262u - exponent) << 23)); }
inline float index_weight(float w, uint exponent) { return w * as_type<float>((exponent - 8u) << 23); }

inline float index_highest(float4 v) { return max(max(fabs(v.x), fabs(v.y)), max(fabs(v.z), fabs(v.w))); }

// INDEX_ROWS rows of one token: simdgroup s multiplies sixteen of them, 16 · (s / 4) …, by heads 16 · (s % 4) ….
inline void index_few(device const float *q, device const float *w, device const kv_page *pages, uint position,
                      device float *scores, constant gpu_indexer &p, threadgroup uint4 *memory,
                      threadgroup float *weights, threadgroup float *powers, threadgroup float *parts, uint block,
                      ushort tid, ushort sg, ushort lane) {
    threadgroup half *queries = (threadgroup half *)memory, *rows = queries + INDEX_HEADS * INDEX_LD;
    const uint in_sight = (position + 1) / p.ratio, first = block * INDEX_ROWS;
    if (first >= in_sight || in_sight <= p.top) { return; }
    {
        // Eight threads bring a row, two words each.
        const uint row = first + tid / 8, piece = tid & 7;
        uint scales = 0;
        uint2 codes = uint2(0u);
        if (row < in_sight) {
            device const uint *line = (device const uint *)kv_row(pages, p.rows_per_page, p.format.bytes, row);
            codes = uint2(line[2 * piece], line[2 * piece + 1]);
            scales = line[INDEX_WORDS];
        }
        const uint most = index_most(scales);
        const half2 factor = index_factor(scales >> (piece / 2 * 8) & 255u, most);
        threadgroup uint4 *to = (threadgroup uint4 *)(rows + tid / 8 * INDEX_LD + piece * 16);
        to[0] = index_halfs(codes.x, factor);
        to[1] = index_halfs(codes.y, factor);
        if (piece == 0) { powers[tid / 8] = kv_power(most) * p.scale; }
    }
    float sum[2] = {0.0f, 0.0f};
    for (uint h0 = 0; h0 < p.heads; h0 += INDEX_HEADS) {
        // Four threads bring a head.
        const uint head = h0 + tid / 4, piece = tid & 3;
        device const float4 *line = (device const float4 *)(q + ulong(min(head, p.heads - 1)) * INDEX_DIM);
        float4 v[8];
        float most = 0.0f;
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) { v[i] = line[piece + 4 * i]; }
        const float weight = head < p.heads ? w[head] : 0.0f;
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) { most = max(most, index_highest(v[i])); }
        most = max(most, simd_shuffle_xor(most, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        const uint exponent = index_exponent(most);
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            *(threadgroup half4 *)(queries + tid / 4 * INDEX_LD + (piece + 4 * i) * 4) = index_query(v[i], exponent);
        }
        if (piece == 0) { weights[tid / 4] = index_weight(weight, exponent); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        threadgroup const half *mine = rows + sg / 4 * 16 * INDEX_LD, *heads = queries + sg % 4 * 16 * INDEX_LD;
        tile_c c[2];
        tile_zero(c[0]);
        tile_zero(c[1]);
        #pragma unroll
        for (ushort k = 0; k < INDEX_DIM / 16; ++k) {
            tile_a key;
            tile_b query;
            tile_load_a(key, mine + 16 * k, INDEX_LD, lane);
            tile_load_bt(query, heads + 16 * k, INDEX_LD, lane);
            // Two sums, so that products need not wait for each other.
            tile_mma(c[k & 1], key, query);
        }
        tile_join(c[0], c[1]);
        tile_add_positive(c[0], weights + sg % 4 * 16, sum, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    sum[0] = tile_across(sum[0]);
    sum[1] = tile_across(sum[1]);
    if (tile_is_first(lane)) {
        threadgroup float *to = parts + sg % 4 * INDEX_ROWS + sg / 4 * 16 + tile_row(lane);
        to[0] = sum[0];
        to[8] = sum[1];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid < INDEX_ROWS && first + tid < in_sight) {
        scores[first + tid] = (parts[tid] + parts[INDEX_ROWS + tid] + parts[2 * INDEX_ROWS + tid]
                               + parts[3 * INDEX_ROWS + tid]) * powers[tid];
    }
}

// One step's heads of a token on their way: eight threads bring one.
struct index_fetch {
    float4 v[4];
    float weight;
};

inline void index_load(thread index_fetch &f, device const float *q, device const float *w, uint heads, uint h0,
                       ushort tid) {
    const uint head = h0 + tid / 8;
    device const float4 *line = (device const float4 *)(q + ulong(min(head, heads - 1)) * INDEX_DIM) + (tid & 7);
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { f.v[i] = line[8 * i]; }
    f.weight = head < heads ? w[head] : 0.0f;
}

inline void index_put(thread index_fetch &f, threadgroup half *queries, threadgroup float *weights, ushort tid) {
    float most = max(max(index_highest(f.v[0]), index_highest(f.v[1])), max(index_highest(f.v[2]), index_highest(f.v[3])));
    most = max(most, simd_shuffle_xor(most, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    most = max(most, simd_shuffle_xor(most, 4));
    const uint exponent = index_exponent(most);
    threadgroup half *to = queries + tid / 8 * INDEX_LD + (tid & 7) * 4;
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { *(threadgroup half4 *)(to + 32 * i) = index_query(f.v[i], exponent); }
    if ((tid & 7) == 0) { weights[tid / 8] = index_weight(f.weight, exponent); }
}

// INDEX_MANY_ROWS rows of up to p.tokens consecutive tokens: a simdgroup keeps 32 rows in registers, and the
// tokens' heads come by, the next ones while these are multiplied.
inline void index_many(device const float *q, device const float *w, device const kv_page *pages, uint position,
                       uint tokens, device float *scores, constant gpu_indexer &p, threadgroup uint4 *memory,
                       threadgroup float *weights, threadgroup float *powers, uint block, ushort tid, ushort sg,
                       ushort lane) {
    threadgroup half *queries = (threadgroup half *)memory;
    const uint first = block * INDEX_MANY_ROWS;
    // The first token that sees the first row, and more rows than it keeps.
    const uint enough = (max(first, p.top) + 1) * p.ratio;
    uint token = enough > position + 1 ? enough - position - 1 : 0;
    if (token >= tokens) { return; }
    tile_a keys[2][INDEX_DIM / 16];
    {
        // Every thread brings a row; a simdgroup brings its own.
        threadgroup half *stage = (threadgroup half *)memory + sg * 32 * INDEX_STAGE_LD;
        uint codes[INDEX_WORDS];
        uint scales = 0;
        if (first + tid < (position + tokens) / p.ratio) {
            device const uint *line
                = (device const uint *)kv_row(pages, p.rows_per_page, p.format.bytes, first + tid);
            #pragma unroll
            for (ushort i = 0; i < INDEX_WORDS; ++i) { codes[i] = line[i]; }
            scales = line[INDEX_WORDS];
        } else {
            #pragma unroll
            for (ushort i = 0; i < INDEX_WORDS; ++i) { codes[i] = 0; }
        }
        const uint most = index_most(scales);
        powers[tid] = kv_power(most) * p.scale;
        threadgroup uint4 *to = (threadgroup uint4 *)(stage + lane * INDEX_STAGE_LD);
        #pragma unroll
        for (ushort b = 0; b < 4; ++b) {
            const half2 factor = index_factor(scales >> (8 * b) & 255u, most);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { to[j] = index_halfs(codes[4 * b + j], factor); }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) {
                #pragma unroll
                for (ushort k = 0; k < 2; ++k) {
                    tile_load_a(keys[i][2 * b + k], stage + i * 16 * INDEX_STAGE_LD + 16 * k, INDEX_STAGE_LD, lane);
                }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    index_fetch fetch;
    uint h0 = 0, slot = 0;
    index_load(fetch, q + ulong(token) * p.heads * INDEX_DIM, w + ulong(token) * p.heads, p.heads, 0, tid);
    index_put(fetch, queries, weights, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    while (token < tokens) {
        const bool is_last = h0 + INDEX_MANY_HEADS >= p.heads;
        const uint next_token = is_last ? token + 1 : token, next_h0 = is_last ? 0 : h0 + INDEX_MANY_HEADS;
        if (next_token < tokens) {
            index_load(fetch, q + ulong(next_token) * p.heads * INDEX_DIM, w + ulong(next_token) * p.heads, p.heads,
                       next_h0, tid);
        }
        const uint in_sight = (position + token + 1) / p.ratio, row = first + sg * 32u;
        if (row < in_sight) {
            threadgroup const half *heads = queries + slot * (INDEX_MANY_HEADS * INDEX_LD);
            #pragma unroll
            for (ushort j = 0; j < INDEX_MANY_HEADS / 16; ++j) {
                tile_c c[2];
                tile_zero(c[0]);
                tile_zero(c[1]);
                #pragma unroll
                for (ushort k = 0; k < INDEX_DIM / 16; ++k) {
                    tile_b query;
                    tile_load_bt(query, heads + j * 16 * INDEX_LD + 16 * k, INDEX_LD, lane);
                    tile_mma(c[0], keys[0][k], query);
                    tile_mma(c[1], keys[1][k], query);
                }
                tile_add_positive(c[0], weights + slot * INDEX_MANY_HEADS + j * 16, sum[0], lane);
                tile_add_positive(c[1], weights + slot * INDEX_MANY_HEADS + j * 16, sum[1], lane);
            }
            if (is_last) {
                #pragma unroll
                for (ushort i = 0; i < 4; ++i) {
                    const float score = tile_across(sum[i / 2][i & 1]);
                    const uint at = 8 * i + tile_row(lane);
                    if (tile_is_first(lane) && row + at < in_sight) {
                        scores[ulong(token) * p.stride + row + at] = score * powers[sg * 32 + at];
                    }
                    sum[i / 2][i & 1] = 0.0f;
                }
            }
        }
        slot ^= 1u;
        if (next_token < tokens) {
            index_put(fetch, queries + slot * (INDEX_MANY_HEADS * INDEX_LD), weights + slot * INDEX_MANY_HEADS, tid);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        token = next_token;
        h0 = next_h0;
    }
}

// Rows of any format: a quad of lanes holds one, and heads stream through threadgroup memory.
inline void index_plain(device const float *q, device const float *w, device const kv_page *pages, uint position,
                        device float *scores, constant gpu_indexer &p, threadgroup uint4 *memory, uint block,
                        ushort tid) {
    threadgroup float4 *heads = (threadgroup float4 *)memory;  // a piece of 128 values of each head
    const uint in_sight = (position + 1) / p.ratio, dim = p.format.dim;
    if (block * INDEX_PLAIN_ROWS >= in_sight || in_sight <= p.top) { return; }
    const uint row = min(block * INDEX_PLAIN_ROWS + tid / 4, in_sight - 1);
    const ushort quarter = tid & 3;
    device const uchar *line = kv_row(pages, p.rows_per_page, p.format.bytes, row);
    float score = 0.0f;
    for (uint h0 = 0; h0 < p.heads; h0 += INDEX_PLAIN_HEADS) {
        float dots[INDEX_PLAIN_HEADS];
        #pragma unroll
        for (ushort h = 0; h < INDEX_PLAIN_HEADS; ++h) { dots[h] = 0.0f; }
        for (uint piece = 0; piece < dim; piece += 128) {
            const uint quads = min(dim - piece, 128u) / 4;
            for (uint i = tid; i < INDEX_PLAIN_HEADS * quads; i += INDEX_THREADS) {
                const uint h = min(h0 + i / quads, p.heads - 1);
                heads[i] = *(device const float4 *)(q + ulong(h) * dim + piece + i % quads * 4);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = quarter; i < quads; i += 4) {
                const float4 k = kv_decode4(p.format, line, piece / 4 + i);
                #pragma unroll
                for (ushort h = 0; h < INDEX_PLAIN_HEADS; ++h) { dots[h] += dot(heads[h * quads + i], k); }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        #pragma unroll
        for (ushort h = 0; h < INDEX_PLAIN_HEADS; ++h) {
            float sum = dots[h] + simd_shuffle_xor(dots[h], 1);
            sum += simd_shuffle_xor(sum, 2);
            if (h0 + h < p.heads) { score += w[h0 + h] * max(sum, 0.0f); }
        }
    }
    if (quarter == 0 && block * INDEX_PLAIN_ROWS + tid / 4 < in_sight) { scores[row] = score * p.scale; }
}

// As many threads as half the registers of a multiprocessor serve: two threadgroups then fit one.
[[max_total_threads_per_threadgroup(2 * INDEX_THREADS)]]
kernel void indexer_score(device const float *q              [[buffer(0)]],
                          device const float *w              [[buffer(1)]],
                          device const kv_page *sessions     [[buffer(2)]],
                          device const int *positions        [[buffer(3)]],
                          device float *scores               [[buffer(4)]],
                          constant gpu_indexer &p            [[buffer(5)]],
                          uint2 tg                           [[threadgroup_position_in_grid]],
                          ushort tid                         [[thread_index_in_threadgroup]],
                          ushort sg                          [[simdgroup_index_in_threadgroup]],
                          ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup uint4 memory[INDEX_MEMORY];
    threadgroup float weights[INDEX_HEADS];
    threadgroup float powers[INDEX_MANY_ROWS];
    threadgroup float parts[4 * INDEX_ROWS];
    const uint token = p.tokens == 0u ? tg.y : tg.y * p.tokens, position = uint(positions[token]);
    device const kv_page *pages = kv_line(sessions, p.table_stride, token) + 1;
    q += ulong(token) * p.heads * p.format.dim;
    w += ulong(token) * p.heads;
    scores += ulong(token) * p.stride;
    if (p.tokens != 0u) {
        index_many(q, w, pages, position, min(p.tokens, p.n - token), scores, p, memory, weights, powers, tg.x, tid, sg,
                   lane);
    } else if (p.format.kind == GPU_ROW_FP4 && p.format.dim == INDEX_DIM) {
        index_few(q, w, pages, position, scores, p, memory, weights, powers, parts, tg.x, tid, sg, lane);
    } else {
        index_plain(q, w, pages, position, scores, p, memory, tg.x, tid);
    }
}
