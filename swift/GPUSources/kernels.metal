#line 1 "attention.metal"
// attention.metal — attention of a few tokens, with one shared key = value row a position, a sliding window,
// compressed rows and a sink (report §2.3).
//
//   attention_split   one share of a token's rows for ATT_HEADS heads  -> parts [splits, n, heads, dim], and
//                                                                          sums [splits, n, heads] of (log2 of what
//                                                                          the weights are relative to, sum)
//   attention_merge   the shares, the sink, the inverse rotation       -> out [n, heads, dim]; and the last rows
//                                                                          of the call into their slots of the ring
//
// A token at p sees window rows (p - window, p], those before the call from the ring, then compressed rows:
// the selected ones, or the first (p + 1) / ratio. Ring and pages are those of its line of `sessions`.
//
// FP8 rows of 512 values go through the matrix units. A row's 448 plain values are exact in half; queries, weights
// of rows and rotated values are two halfs each, so that 22 bits of them count. Rows of other formats are
// multiplied one by one, in f32.
//
// Grid       split: x shares, y groups of heads, z tokens (each at most 65535); merge: x heads, y tokens from
//            p.first, z pieces of MERGE_VALUES values
// Precision  f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#line 1 "attention.h"
// attention.h — the rows that a token attends to, and how they reach the matrix units: for attention.metal
// and attention_prompt.metal.
#ifndef PYDS4_ATTENTION_H
#define PYDS4_ATTENTION_H
#include <metal_stdlib>
#line 1 "kv_rows.h"
// kv_rows.h — rows of attention memory in the model's own formats (drawn in CKernels/include/ckernels.h).
#ifndef PYDS4_KV_ROWS_H
#define PYDS4_KV_ROWS_H
#include <metal_stdlib>
#line 1 "kernel_args.h"
/* kernel_args.h — the argument structs of the GPU kernels, shared by C, Swift and the .metal files.
 *
 * Members are 4 or 8 bytes wide and lie at multiples of their size, so that every compiler agrees.
 * Shapes as in ckernels.h. "ld" is the distance of two rows, in values.
 */
#ifndef PYDS4_KERNEL_ARGS_H
#define PYDS4_KERNEL_ARGS_H





/* How a GPU keeps weights: a ggml type id, or a rearrangement of one into aligned planes.
 *   Q8_0 planes     all quants (int8, row-major), then all scales (half)
 *   Q2_K planes     all quants (64 bytes a block), then all sub-block scales (16), then all d and dmin (2 halfs)
 *   IQ2_XXS planes  all groups of 32 (8 bytes), then all scales (half) */
enum { GPU_F32 = 0, GPU_F16 = 1, GPU_Q4_0 = 2, GPU_Q8_0 = 8, GPU_Q2_K = 10, GPU_Q3_K = 11, GPU_Q4_K = 12,
       GPU_Q5_K = 13, GPU_Q6_K = 14, GPU_IQ2_XXS = 16, GPU_BF16 = 30, GPU_MXFP4 = 39, GPU_Q8_0_PLANES = 108,
       GPU_Q2_K_PLANES = 110, GPU_IQ2_XXS_PLANES = 116 };





enum { GPU_ROW_F32 = 0, GPU_ROW_FP8 = 1, GPU_ROW_FP4 = 2 };
enum { GPU_MOST_JOBS = 8 };

/* One matrix of a launch that multiplies several. */
struct gpu_matrix_job {
    uint32_t type;
    uint32_t rows;
    uint32_t columns;
    uint32_t group_rows; /* rows that read the same slice of x; `rows` when all do */
    uint32_t first_tile; /* of its row tiles, counted through all jobs */
    uint32_t tile_rows;  /* of matvec_int8: a multiple of 32 / slices */
    uint32_t slices;     /* of a row, each a simdgroup's: 1, 2, 4 or 8 */
    uint32_t unused;
    uint64_t plane;      /* byte offset of the scales in planes */
    uint64_t out;        /* float offset of its y [n, rows] */
};

struct gpu_matvec {
    uint32_t n;
    uint32_t ldx;
    uint32_t jobs;
    uint32_t unused;
    struct gpu_matrix_job job[GPU_MOST_JOBS];
};

struct gpu_embed {
    uint32_t type;
    uint32_t columns;
    uint64_t plane;
};

struct gpu_repack {
    uint64_t blocks;
    uint64_t first_block; /* of this part of the matrix */
    uint64_t plane;
};

/* y[m, r] = Σ_k w[r, k] · x[m, k] on the matrix units. With tiles: m counts places of the sorted
 * assignments, x is row token[m] / divide. */
struct gpu_matmul {
    uint32_t type;
    uint32_t n;
    uint32_t rows;
    uint32_t columns;
    uint32_t ldx;
    uint32_t ldy;
    uint32_t group_rows;
    uint32_t gather; /* 0: row m of x itself; else row order[m] / gather */
    uint64_t plane;
};

/* x, rounded to half, in the order that wide products read it. */
struct gpu_pack {
    uint32_t n;      /* tokens, or places of sorted assignments */
    uint32_t ldx;
    uint32_t stride; /* tokens between units of eight columns */
    uint32_t gather; /* 0: token m is row m of x; else row order[m] / gather */
};

struct gpu_wide_experts {
    uint32_t rows;    /* of one expert */
    uint32_t columns;
    uint32_t stride;  /* of the packed input, and of gate_up's output */
    float clamp;
    uint64_t plane;
};

struct gpu_rms_norm {
    uint32_t width;
    float epsilon;
};

struct gpu_rope_table {
    uint32_t n;
    uint32_t pairs;
};

struct gpu_queries {
    uint32_t heads;
    uint32_t dim;
    uint32_t rope;
    float epsilon;
};

struct gpu_index_queries {
    uint32_t heads;
    uint32_t dim;
    uint32_t rope;
    uint32_t rounded;
};

struct gpu_hc {
    uint32_t n;
    uint32_t dim;
    uint32_t outputs; /* 24, the head's 4 */
    uint32_t iterations;
    float norm_epsilon;  /* of the flattened streams */
    float epsilon;
    float input_epsilon; /* of the sublayer's norm */
    uint32_t type;       /* of fn */
    uint64_t plane;
};

struct gpu_row_format {
    uint32_t kind;
    uint32_t dim;
    uint32_t rope;
    uint32_t bytes;
};

struct gpu_key_rows {
    struct gpu_row_format format;
    float epsilon;
    uint32_t unused;
};

/* What a kernel reads of sessions it finds by a table of addresses, one line a session: the ring or the
 * running sums, then the pages of compressed rows. `table_stride` is the length of a line where every
 * token is of a session of its own, and 0 where all are consecutive tokens of one. */

struct gpu_compressor {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t ratio;
    uint32_t overlaps;
    uint32_t rows_per_page;
    uint32_t rope; /* values that carry the position, at the row's end */
    float epsilon;
    uint32_t table_stride;
    uint32_t unused;
};

struct gpu_indexer {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t heads;
    uint32_t ratio;
    uint32_t rows_per_page;
    uint32_t stride; /* of scores */
    uint32_t top;
    float scale;
    uint32_t table_stride;
    uint32_t tokens; /* consecutive ones that a threadgroup of scores takes; 0: one */
    uint32_t unused;
};

struct gpu_attention {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t heads;
    uint32_t window;
    uint32_t ratio; /* 0: no compressed rows */
    uint32_t rows_per_page;
    uint32_t top; /* 0: all visible rows */
    uint32_t splits; /* 0: there are none to merge */
    float scale;
    uint32_t table_stride;
    uint32_t first; /* token to merge */
};

struct gpu_router {
    uint32_t experts;
    uint32_t used;
    float scale;
    uint32_t unused;
};

struct gpu_experts {
    uint32_t type;      /* of gate and up */
    uint32_t down_type;
    uint32_t shared_type;
    uint32_t n;
    uint32_t used;
    uint32_t experts;
    uint32_t hidden;    /* columns of gate, rows of down */
    uint32_t inner;
    uint32_t shared_inner;
    float clamp;
    float shared_clamp;
    uint32_t tile;      /* assignments in a tile of the sorted lists; rows of one of the integer kernels */
    uint64_t plane;     /* of gate and up */
    uint64_t down_plane;
    uint64_t shared_plane;
};

struct gpu_sampling {
    uint32_t count;
    uint32_t listed;
};

enum { GPU_MOST_COPIES = 96 };

#endif

#line 6 "kv_rows.h"
#line 1 "reduce.h"
// reduce.h — sums over a threadgroup.
#ifndef PYDS4_REDUCE_H
#define PYDS4_REDUCE_H
#include <metal_stdlib>
using namespace metal;

// The sum of `value` over all `simdgroups`, the same in every thread. `partial` [32] may be used again
// behind the next barrier only.
inline float reduce_sum(float value, threadgroup float *partial, ushort simdgroups, ushort sg, ushort lane) {
    const float sum = simd_sum(value);
    if (lane == 0) { partial[sg] = sum; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
}

inline float reduce_rms(float squares, uint count, float epsilon) {
    return rsqrt(squares * (1.0f / float(count)) + epsilon);
}

#endif

#line 7 "kv_rows.h"
using namespace metal;

#define KV_MOST_DIM 512
#define KV_THREADS (KV_MOST_DIM / 2)

// A page of rows. Its address is the GPU's.
struct kv_page {
    device uchar *rows;
};

// A session's line of a table of addresses: first its ring or running sums, then its pages.
inline device const kv_page *kv_line(device const kv_page *table, uint table_stride, uint token) {
    return table + ulong(table_stride) * token;
}

inline device uchar *kv_row(device const kv_page *pages, uint rows_per_page, uint row_bytes, uint row) {
    return pages[row / rows_per_page].rows + ulong(row % rows_per_page) * row_bytes;
}

// The biased exponent of the smallest power of two >= x, 2^119 at most so that the largest code stays finite;
// 0 stands for 2^-127.
inline uint kv_exponent_above(float x) {
    const uint bits = as_type<uint>(x);
    const uint e = ((bits >> 23) & 0xffu) + ((bits & 0x7fffffu) != 0u ? 1u : 0u);
    return min(e, 246u);
}

// 2^(e - 127) and its inverse.
inline float kv_power(uint e) { return as_type<float>(e != 0u ? e << 23 : 0x00400000u); }
inline float kv_inverse_power(uint e) { return as_type<float>(e < 254u ? (254u - e) << 23 : 0x00400000u); }

// Saturates; a NaN becomes the largest number, since a row must never hold a NaN code.
inline uint kv_e4m3_encode(float x) {
    const uint sign = (as_type<uint>(x) >> 24) & 0x80u;
    const float v = fabs(x);
    if (!(v < 448.0f)) { return sign | 0x7eu; }
    if (v < 0.015625f) { return sign | uint(rint(v * 512.0f)); }
    uint bits = as_type<uint>(v);
    bits += 0x7ffffu + ((bits >> 20) & 1u);
    return sign | min((bits >> 20) - 960u, 0x7eu);
}

// Moved to half's place the bits mean 2^-8 of the value, subnormals included.
inline float kv_e4m3_decode(uint code) {
    return float(as_type<half>(ushort((code & 0x80u) << 8 | (code & 0x7fu) << 7))) * 256.0f;
}

// Codes 0 … 7 mean 0, ½, 1, 1½, 2, 3, 4, 6; ties go to the even code.
inline uint kv_e2m1_encode(float x) {
    const uint sign = (as_type<uint>(x) >> 28) & 8u;
    const float v = fabs(x);
    const uint code = v <= 0.25f ? 0u : v < 0.75f ? 1u : v <= 1.25f ? 2u : v < 1.75f ? 3u
                    : v <= 2.5f ? 4u : v < 3.5f ? 5u : v <= 5.0f ? 6u : 7u;
    return sign | code;
}

inline float kv_e2m1_decode(uint code) {
    const uint m = code & 7u;
    const float v = m < 2u ? 0.5f * float(m) : as_type<float>((126u + (m >> 1)) << 23 | (m & 1u) << 22);
    return (code & 8u) != 0u ? -v : v;
}

// Scale bytes of an FP8 row: one a block of 64, one for the rotated values, padded to 8.
inline uint kv_fp8_scale_bytes(uint dim, uint rope) { return ((dim - rope) / 64 + 1 + 7) / 8 * 8; }

// Value `i` of the rotated ones: 21 bits, three to a 64-bit word.
inline float kv_rope_decode(device const uchar *words, uint i, float step) {
    device const uint *word = (device const uint *)(words + i / 3 * 8);
    const ulong bits = ulong(word[0]) | ulong(word[1]) << 32;
    const uint value = uint(bits >> (21u * (i % 3u))) & 0x1fffffu;
    return float(int(value << 11) >> 11) * step;
}

// Values 4·i … 4·i + 3 of a row.
inline float4 kv_decode4(constant gpu_row_format &f, device const uchar *row, uint i) {
    if (f.kind == GPU_ROW_F32) { return ((device const float4 *)row)[i]; }
    if (f.kind == GPU_ROW_FP4) {
        device const uchar *scales = row + f.dim / 2;
        const float scale = kv_power(scales[i / 8]);
        const uint a = row[2 * i], b = row[2 * i + 1];
        return float4(kv_e2m1_decode(a & 15u), kv_e2m1_decode(a >> 4), kv_e2m1_decode(b & 15u), kv_e2m1_decode(b >> 4))
             * scale;
    }
    const uint plain = f.dim - f.rope;
    device const uchar *scales = row + plain;
    if (4 * i < plain) {
        const uint word = *(device const uint *)(row + 4 * i);
        return float4(kv_e4m3_decode(word & 255u), kv_e4m3_decode((word >> 8) & 255u),
                      kv_e4m3_decode((word >> 16) & 255u), kv_e4m3_decode(word >> 24))
             * kv_power(scales[i / 16]);
    }
    device const uchar *words = scales + kv_fp8_scale_bytes(f.dim, f.rope);
    const float step = kv_power(scales[plain / 64]) * 9.5367431640625e-7f;
    const uint first = 4 * i - plain;
    return float4(kv_rope_decode(words, first, step), kv_rope_decode(words, first + 1, step),
                  kv_rope_decode(words, first + 2, step), kv_rope_decode(words, first + 3, step));
}

// A share of an FP8 row of 512 values, 64 of them rotated, as it lies in memory: loads first, numbers later,
// so that loads of the next row can be under way while this one is used. Of `threads` (16 or 32) that share
// a row, thread t has words t, t + threads, … of the plain values and 64 / threads of the rotated ones.
#define KV_FP8_PLAIN 448
#define KV_FP8_WORDS (KV_FP8_PLAIN / 4)

struct kv_share {
    uint q[7];
    uint2 scales;  // seven blocks', then the rotated values'
    uint2 low;     // two words of rotated values
    uint2 high;
};

inline void kv_load_share(thread kv_share &v, device const uchar *row, uint t, uint threads) {
    #pragma unroll
    for (ushort j = 0; j < 7; ++j) {
        const uint i = t + threads * j;
        if (threads * j < KV_FP8_WORDS) { v.q[j] = *(device const uint *)(row + 4 * min(i, KV_FP8_WORDS - 1u)); }
    }
    device const uint2 *tail = (device const uint2 *)(row + KV_FP8_PLAIN);
    v.scales = tail[0];
    const uint first = t * (64 / threads) / 3;
    v.low = tail[1 + first];
    v.high = tail[1 + min(first + 1, 21u)];
}

// Plain word j of the share: values 4·(t + threads·j) … of the row.
inline float4 kv_share_plain(thread kv_share &v, ushort j, uint t, uint threads) {
    const uint block = (t + threads * j) / 16, word = v.q[j];
    const uint scale = ((block < 4 ? v.scales.x : v.scales.y) >> (8 * (block & 3))) & 255u;
    return float4(kv_e4m3_decode(word & 255u), kv_e4m3_decode((word >> 8) & 255u), kv_e4m3_decode((word >> 16) & 255u),
                  kv_e4m3_decode(word >> 24)) * kv_power(scale);
}

// Rotated value `i` of the share, the first being t · 64 / threads.
inline float kv_share_rope(thread kv_share &v, uint i, uint t, uint threads) {
    const uint first = t * (64 / threads), word = (first + i) / 3 - first / 3, place = (first + i) % 3;
    const uint2 w = word == 0 ? v.low : v.high;
    // 21 bits from bit 21 · place of 64.
    const uint bits = place == 0 ? w.x : place == 1 ? (w.x >> 21 | w.y << 11) : w.y >> 10;
    return float(int(bits << 11) >> 11) * (kv_power(v.scales.y >> 24) * 9.5367431640625e-7f);
}

// While a row is made, thread t of a threadgroup holds its values 2·t and 2·t + 1, and 0 from dim on: a block of
// an FP8 row is a simdgroup, a pair that is rotated together a thread. Threads from KV_THREADS on hold nothing.

inline float2 kv_norm(float2 v, float2 weight, uint dim, float epsilon, threadgroup float *partial, ushort sg,
                      ushort lane) {
    return v * reduce_rms(reduce_sum(dot(v, v), partial, KV_THREADS / 32, sg, lane), dim, epsilon) * weight;
}

// `turn`: cos and sin.
inline float2 kv_turn(float2 v, float2 turn) {
    return float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

// A sum, or for the upper one of two a difference.
inline float kv_butterfly(float own, float other, bool isUpper) { return isUpper ? other - own : own + other; }

// Rotates by Sylvester's matrix / √dim.
inline float2 kv_hadamard(float2 v, uint dim, threadgroup float2 *shared, ushort tid) {
    v = float2(v.x + v.y, v.x - v.y);
    for (ushort bit = 1; bit < 32; bit *= 2) {
        const float2 other = float2(simd_shuffle_xor(v.x, bit), simd_shuffle_xor(v.y, bit));
        const bool isUpper = (tid & bit) != 0;
        if (2u * bit < dim) {
            v = float2(kv_butterfly(v.x, other.x, isUpper), kv_butterfly(v.y, other.y, isUpper));
        }
    }
    for (ushort bit = 32; 2u * bit < dim; bit *= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (tid < KV_THREADS) { shared[tid] = v; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const float2 other = shared[(tid ^ bit) & (KV_THREADS - 1)];
        const bool isUpper = (tid & bit) != 0;
        v = float2(kv_butterfly(v.x, other.x, isUpper), kv_butterfly(v.y, other.y, isUpper));
    }
    return v * (1.0f / sqrt(float(dim)));
}

// The scale of an FP4 block whose largest magnitude is `most`.
inline uint kv_fp4_scale(float most) { return kv_exponent_above(max(most, 7.052966104933725e-38f) / 6.0f); }

// The rotated values of an FP8 row, from threadgroup memory, by one simdgroup; `scales`: theirs and what pads them.
inline void kv_encode_rope(threadgroup const float *v, uint rope, device uchar *scales, uint scale_bytes, ushort lane) {
    float most = 0.0f;
    for (uint i = lane; i < rope; i += 32) { most = max(most, fabs(v[i])); }
    const uint scale = kv_exponent_above(max(simd_max(most), 8.271806125530277e-25f));
    const float inverse = kv_inverse_power(scale) * 1048576.0f;
    if (lane < scale_bytes) { scales[lane] = lane == 0 ? uchar(scale) : uchar(0); }
    for (uint w = lane; w < (rope + 2) / 3; w += 32) {
        uint q[3];
        #pragma unroll
        for (ushort i = 0; i < 3; ++i) {
            const float x = 3 * w + i < rope ? v[3 * w + i] * inverse : 0.0f;
            q[i] = uint(clamp(int(rint(x == x ? clamp(x, -2.0e6f, 2.0e6f) : 0.0f)), -0x100000, 0xfffff)) & 0x1fffffu;
        }
        *(device uint2 *)(scales + scale_bytes + 8 * w) = uint2(q[0] | q[1] << 21, q[1] >> 11 | q[2] << 10);
    }
}

// Writes a row. `shared` [KV_THREADS] must be free since the last barrier.
inline void kv_encode(constant gpu_row_format &f, float2 v, threadgroup float2 *shared, device uchar *row, ushort tid,
                      ushort sg, ushort lane) {
    if (f.kind == GPU_ROW_F32) {
        if (2u * tid < f.dim) { ((device float2 *)row)[tid] = v; }
        return;
    }
    if (f.kind == GPU_ROW_FP4) {
        v = kv_hadamard(v, f.dim, shared, tid);
        float most = max(fabs(v.x), fabs(v.y));
        for (ushort bit = 1; bit < 16; bit *= 2) { most = max(most, simd_shuffle_xor(most, bit)); }
        const uint scale = kv_fp4_scale(most);
        const float inverse = kv_inverse_power(scale);
        if (2u * tid >= f.dim) { return; }
        row[tid] = uchar(kv_e2m1_encode(v.x * inverse) | kv_e2m1_encode(v.y * inverse) << 4);
        if (lane % 16 == 0) { row[f.dim / 2 + tid / 16] = uchar(scale); }
        return;
    }
    const uint plain = f.dim - f.rope, blocks = plain / 64, scale_bytes = kv_fp8_scale_bytes(f.dim, f.rope);
    device uchar *scales = row + plain;
    if (2u * tid >= plain && 2u * tid < f.dim) { shared[tid - plain / 2] = v; }
    if (sg < blocks) {
        const uint scale = kv_exponent_above(max(simd_max(max(fabs(v.x), fabs(v.y))), 1e-4f) / 448.0f);
        const float inverse = kv_inverse_power(scale);
        ((device ushort *)row)[tid] = ushort(kv_e4m3_encode(v.x * inverse) | kv_e4m3_encode(v.y * inverse) << 8);
        if (lane == 0) { scales[sg] = uchar(scale); }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg == KV_THREADS / 32 - 1) {
        kv_encode_rope((threadgroup const float *)shared, f.rope, scales + blocks, scale_bytes - blocks, lane);
    }
}

#endif

#line 7 "attention.h"
#line 1 "tile.h"
// tile.h — a 16 × 16 × 16 matrix step of one simdgroup: half inputs, f32 sums. The only place that knows
// simdgroup_matrix (Metal: four 8 × 8) from mma.sync (CUDA: ldmatrix and two m16n8k16); the host runs
// either branch, emulated.
//
// A is [16, k] row-major, B is given transposed ([16, k] row-major, as weights lie), both in threadgroup
// memory. `ld` is a multiple of 8 halfs and tile corners are aligned to 16 bytes: ldmatrix asks for it.
//
// What a lane has of C: rows tile_row and that + 8, of each four columns. tile_add_positive weighs what is
// above zero of these, and tile_across sums what the lanes of a row have. tile_join: c = c + d.
#ifndef TILE_H
#define TILE_H
#include <metal_stdlib>
using namespace metal;
#define TILE 16

#ifdef MSL_TILE_MMA       // CUDA; on the host -DMSL_TILE_MMA runs this branch too, with ldmatrix and mma emulated
struct tile_a { uint r[4]; };
struct tile_b { uint r[4]; };
struct tile_c { float r[8]; };
inline void tile_zero(thread tile_c &c) { for (int i = 0; i < 8; ++i) c.r[i] = 0.0f; }
inline void tile_load_a(thread tile_a &t, threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4(t.r, p + (lane & 15) * ld + (lane >> 4) * 8);
}
inline void tile_load_bt(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4(t.r, p + ((lane & 7) + ((lane >> 4) << 3)) * ld + ((lane >> 3) & 1) * 8);
}
// B as it lies for values: [k, 16] row-major.
inline void tile_load_b(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4_trans(t.r, p + ((lane & 7) + ((lane >> 3) & 1) * 8) * ld + (lane >> 4) * 8);
}
// Row r of c times factors[r].
inline void tile_scale_rows(thread tile_c &c, threadgroup const float *factors, ushort lane) {
    const float low = factors[lane >> 2], high = factors[(lane >> 2) + 8];
    for (int h = 0; h < 2; ++h) {
        c.r[h * 4] *= low;
        c.r[h * 4 + 1] *= low;
        c.r[h * 4 + 2] *= high;
        c.r[h * 4 + 3] *= high;
    }
}
// Adds what tile_stage put there.
inline void tile_add(thread tile_c &c, threadgroup const float *p, uint ld, ushort lane) {
    const uint r = lane >> 2, x = (lane & 3) * 2;
    for (int h = 0; h < 2; ++h) {
        const float2 low = *(threadgroup const float2 *)(p + r * ld + h * 8 + x);
        const float2 high = *(threadgroup const float2 *)(p + (r + 8) * ld + h * 8 + x);
        c.r[h * 4] += low.x;
        c.r[h * 4 + 1] += low.y;
        c.r[h * 4 + 2] += high.x;
        c.r[h * 4 + 3] += high.y;
    }
}
inline void tile_mma(thread tile_c &c, thread tile_a &a, thread tile_b &b) {
    msl_mma_m16n8k16(c.r, a.r, b.r);
    msl_mma_m16n8k16(c.r + 4, a.r, b.r + 2);
}
inline void tile_stage(thread tile_c &c, threadgroup float *p, uint ld, ushort lane) {
    const uint r = lane >> 2, x = (lane & 3) * 2;
    for (int h = 0; h < 2; ++h) {
        *(threadgroup float2 *)(p + r * ld + h * 8 + x)       = float2(c.r[h * 4 + 0], c.r[h * 4 + 1]);
        *(threadgroup float2 *)(p + (r + 8) * ld + h * 8 + x) = float2(c.r[h * 4 + 2], c.r[h * 4 + 3]);
    }
}
inline void tile_join(thread tile_c &c, thread tile_c &d) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) { c.r[i] += d.r[i]; }
}
inline void tile_add_positive(thread tile_c &c, threadgroup const float *w, thread float *sum, ushort lane) {
    const ushort x = (lane & 3) * 2;
    const float2 a = *(threadgroup const float2 *)(w + x), b = *(threadgroup const float2 *)(w + x + 8);
    sum[0] += a.x * max(c.r[0], 0.0f) + a.y * max(c.r[1], 0.0f) + b.x * max(c.r[4], 0.0f) + b.y * max(c.r[5], 0.0f);
    sum[1] += a.x * max(c.r[2], 0.0f) + a.y * max(c.r[3], 0.0f) + b.x * max(c.r[6], 0.0f) + b.y * max(c.r[7], 0.0f);
}
inline ushort tile_row(ushort lane) { return lane >> 2; }
inline bool tile_is_first(ushort lane) { return (lane & 3) == 0; }
inline float tile_across(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 2);
}
#else
struct tile_a { simdgroup_half8x8 m[2][2]; };
struct tile_b { simdgroup_half8x8 m[2][2]; };
struct tile_c { simdgroup_float8x8 m[2][2]; };
inline void tile_zero(thread tile_c &c) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) c.m[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}
inline void tile_load_a(thread tile_a &t, threadgroup const half *p, ushort ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int k = 0; k < 2; ++k) simdgroup_load(t.m[i][k], p + i * 8 * ld + k * 8, ld);
}
inline void tile_load_bt(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    for (int k = 0; k < 2; ++k) for (int j = 0; j < 2; ++j) simdgroup_load(t.m[k][j], p + j * 8 * ld + k * 8, ld, ulong2(0), true);
}
inline void tile_load_b(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    for (int k = 0; k < 2; ++k) for (int j = 0; j < 2; ++j) simdgroup_load(t.m[k][j], p + k * 8 * ld + j * 8, ld);
}
inline void tile_scale_rows(thread tile_c &c, threadgroup const float *factors, ushort lane) {
    // Which row of an 8 × 8 matrix a lane's two elements belong to.
    const ushort row = (lane / 4 & 4) + lane / 2 % 4;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        c.m[i][j].thread_elements()[0] *= factors[i * 8 + row];
        c.m[i][j].thread_elements()[1] *= factors[i * 8 + row];
    }
}
inline void tile_add(thread tile_c &c, threadgroup const float *p, uint ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        simdgroup_float8x8 m;
        simdgroup_load(m, p + i * 8 * ld + j * 8, ld);
        c.m[i][j].thread_elements()[0] += m.thread_elements()[0];
        c.m[i][j].thread_elements()[1] += m.thread_elements()[1];
    }
}
inline void tile_mma(thread tile_c &c, thread tile_a &a, thread tile_b &b) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int k = 0; k < 2; ++k)
        simdgroup_multiply_accumulate(c.m[i][j], a.m[i][k], b.m[k][j], c.m[i][j]);
}
inline void tile_stage(thread tile_c &c, threadgroup float *p, uint ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) simdgroup_store(c.m[i][j], p + i * 8 * ld + j * 8, ld);
}
inline void tile_join(thread tile_c &c, thread tile_c &d) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int e = 0; e < 2; ++e) {
        c.m[i][j].thread_elements()[e] += d.m[i][j].thread_elements()[e];
    }
}
inline void tile_add_positive(thread tile_c &c, threadgroup const float *w, thread float *sum, ushort lane) {
    const ushort x = (lane / 4 & 2) * 2 + lane % 2 * 2;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        sum[i] += w[j * 8 + x] * max(c.m[i][j].thread_elements()[0], 0.0f)
                + w[j * 8 + x + 1] * max(c.m[i][j].thread_elements()[1], 0.0f);
    }
}
inline ushort tile_row(ushort lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline bool tile_is_first(ushort lane) { return (lane & 9) == 0; }
inline float tile_across(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 8);
}
#endif
#endif

#line 8 "attention.h"
using namespace metal;

#define ATT_LOG2E 1.44269504f
#define ATT_NONE (-1.0e30f)
#define ATT_CHUNK 0xffffffffu
#define ATT_RING 0xfffffffeu

// What one token attends to: `in_window` rows from position `start` on, then compressed ones.
struct att_list {
    device const uchar *ring;
    device const uchar *chunk;
    device const kv_page *pages;
    device const int *selected;
    uint first;
    uint start;
    uint in_window;
    uint all;
};

inline att_list att_open(constant gpu_attention &p, device const uchar *rows_here, device const kv_page *sessions,
                         device const int *selected, device const int *counts, device const int *positions,
                         uint token) {
    att_list l;
    // Where its session begins in this call.
    const uint base = p.table_stride != 0u ? token : 0u;
    const uint position = uint(positions[token]);
    device const kv_page *own = kv_line(sessions, p.table_stride, token);
    l.first = uint(positions[base]);
    l.ring = own[0].rows;
    l.chunk = rows_here + ulong(base) * p.format.bytes;
    l.pages = own + 1;
    l.selected = selected + ulong(token) * p.top;
    l.start = position + 1 > p.window ? position + 1 - p.window : 0;
    l.in_window = position + 1 - l.start;
    l.all = l.in_window + (p.ratio == 0u ? 0u : p.top != 0u ? uint(counts[token]) : (position + 1) / p.ratio);
    return l;
}

// Where row `place` of the list lies: a page (or ring, or chunk) and the row in it.
inline uint2 att_place(thread att_list &l, constant gpu_attention &p, uint place) {
    if (place < l.in_window) {
        const uint seen = l.start + place;
        return seen < l.first ? uint2(ATT_RING, seen % p.window) : uint2(ATT_CHUNK, seen - l.first);
    }
    const uint row = p.top != 0u ? uint(l.selected[place - l.in_window]) : place - l.in_window;
    return uint2(row / p.rows_per_page, row % p.rows_per_page);
}

inline device const uchar *att_address(thread att_list &l, constant gpu_attention &p, uint2 place) {
    device const uchar *base = l.chunk;
    if (place.x == ATT_RING) { base = l.ring; }
    if (place.x < ATT_RING) { base = l.pages[place.x].rows; }
    return base + ulong(place.y) * p.format.bytes;
}

inline bool att_is_fp8_512(constant gpu_attention &p) {
    return p.format.kind == GPU_ROW_FP8 && p.format.dim == 512u && p.format.rope == 64u;
}

// ---------------------------------------------------------------- rows on the matrix units

#define ATT_THREADS 256
#define ATT_DIM 512
#define ATT_TILE 16                 // rows at a time: sixteen threads bring one
#define ATT_LD (ATT_DIM + 8)        // of rows in threadgroup memory, in halfs
#define ATT_WEIGHT_LD (ATT_TILE + 8)

// The list's rows from `from` to `to`, ATT_TILE at a time. A simdgroup brings two rows of each tile: the places of
// its rows in sixteen tiles are looked up at once, a lane each.
struct att_rows {
    uint from;
    uint to;
    uint2 places;
};

inline device const uchar *att_next(thread att_rows &r, thread att_list &l, constant gpu_attention &p, uint tile,
                                    ushort sg, ushort lane) {
    if (tile % 16 == 0) {
        // Rows past the end repeat the last one and weigh nothing.
        r.places = att_place(l, p, min(r.from + (tile + lane / 2) * ATT_TILE + sg * 2 + lane % 2, r.to - 1));
    }
    return att_address(l, p, simd_shuffle(r.places, ushort(tile % 16 * 2 + lane / 16)));
}

// In threadgroup memory, and so in queries and sums, the middle two of four neighbouring channels have changed
// places: a word of codes then becomes two pairs of halfs by masks.
inline float4 att_swap(float4 v) { return float4(v.x, v.z, v.y, v.w); }

// Two codes of E4M3, whose bits were moved to half's place, there mean 2^-8 of their value. The power of a block
// is 2^-22 at least, and as large as is needed for numbers that half has.
inline uint att_pair(uint signs, uint magnitudes, half2 factor) {
    return as_type<uint>(as_type<half2>((signs & 0x80008000u) | (magnitudes & 0x3f803f80u)) * factor);
}

// Values 4 · (t + 16 · j) … of a row as halfs, for j from 0 to 7; low: what the rotated ones, j = 7, lack.
inline void att_halfs(thread kv_share &share, thread uint2 *v, thread uint2 &low, uint t) {
    #pragma unroll
    for (ushort j = 0; j < 7; ++j) {
        const uint scale = ((j < 4 ? share.scales.x : share.scales.y) >> (8 * (j & 3))) & 255u, w = share.q[j];
        // 2^8 times the block's power, twice.
        const half2 factor = as_type<half2>(scale * 0x04000400u - 104u * 0x04000400u);
        v[j] = uint2(att_pair(w << 8, w << 7, factor), att_pair(w, w >> 1, factor));
    }
    // Three values of 21 bits to 64: this thread's begin at value 4·t % 3 of a word.
    const float step = kv_power(share.scales.y >> 24) * 9.5367431640625e-7f;
    const ulong words[2] = {ulong(share.low.x) | ulong(share.low.y) << 32, ulong(share.high.x) | ulong(share.high.y) << 32};
    float4 x;
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const uint at = t % 3 + i;
        const uint bits = uint((at < 3 ? words[0] : words[1]) >> (21u * (at < 3 ? at : at - 3)));
        x[i] = float(int(bits << 11) >> 11) * step;
    }
    x = att_swap(x);
    const half4 h = half4(x);
    v[7] = as_type<uint2>(h);
    low = as_type<uint2>(half4(x - float4(h)));
}

inline void att_put(threadgroup half *line, thread const uint2 *v, uint t) {
    #pragma unroll
    for (ushort j = 0; j < 8; ++j) { *(threadgroup uint2 *)(line + 4 * (t + 16 * j)) = v[j]; }
}

// Weights stay relative to a maximum until that is exceeded by so much: they are at most 2^8 then, and sums need
// scaling seldom.
#define ATT_SLACK 8.0f

// What sums so far are worth from now on; `top` moves up to `most` when that is much higher.
inline float att_fade(thread float &top, float most) {
    const float fade = most > top + ATT_SLACK ? exp2(top - most) : 1.0f;
    top = most > top + ATT_SLACK ? most : top;
    return fade;
}
#endif

#line 24 "attention.metal"
using namespace metal;

// ---------------------------------------------------------------- a share of the rows

#define ATT_SIMDGROUPS 8
#define ATT_SIMD_HEADS 2
#define ATT_HEADS (ATT_SIMDGROUPS * ATT_SIMD_HEADS)
#define ATT_ROWS 8
#define ATT_LANE (KV_MOST_DIM / 128)  // float4 a lane holds of a row: value (v · 32 + lane) · 4 …

#define SPLIT_LOW_LD (64 + 8)
#define SPLIT_LOW (ATT_TILE * ATT_LD)                     // low halfs of rotated values, behind the rows
#define SPLIT_MEMORY ((SPLIT_LOW + ATT_TILE * SPLIT_LOW_LD) / 8)  // uint4

// Simdgroup g owns channels 64·g … of queries, rows and output: a score is the sum of eight partial ones. The last
// one's channels are the rotated values.
inline void split_tiles(device const float *q, thread att_list &l, constant gpu_attention &p, uint from, uint to,
                        uint head, device float *parts, device float2 *sums, threadgroup uint4 *memory,
                        threadgroup float *partial, threadgroup half *weights, threadgroup float *fades, ushort tid,
                        ushort sg, ushort lane) {
    threadgroup half *rows = (threadgroup half *)memory, *rows_low = rows + SPLIT_LOW;
    const uint channel = sg * 64u, t = tid & 15;
    const bool is_rotated = sg == 7;
    kv_share share;
    att_rows r;
    r.from = from;
    r.to = to;
    device const uchar *next = att_next(r, l, p, 0, sg, lane);
    kv_load_share(share, next, t, 16);
    next = att_next(r, l, p, 1, sg, lane);
    // Queries become matrices by way of the rows' memory, a simdgroup's in its own piece of it.
    tile_a query[4], query_low[4];
    {
        threadgroup half *mine = rows + sg * (ATT_HEADS * SPLIT_LOW_LD);
        uint2 low[8];
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            const uint h = min(head + lane / 16 + 2 * i, p.heads - 1);
            const float4 v = att_swap(*(device const float4 *)(q + ulong(h) * ATT_DIM + channel + lane % 16 * 4));
            const half4 high = half4(v);
            low[i] = as_type<uint2>(half4(v - float4(high)));
            *(threadgroup half4 *)(mine + (lane / 16 + 2 * i) * SPLIT_LOW_LD + lane % 16 * 4) = high;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query[k], mine + 16 * k, SPLIT_LOW_LD, lane); }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            *(threadgroup uint2 *)(mine + (lane / 16 + 2 * i) * SPLIT_LOW_LD + lane % 16 * 4) = low[i];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query_low[k], mine + 16 * k, SPLIT_LOW_LD, lane); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[4];
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) { tile_zero(sum[j]); }
    // Of head tid / 16: the same in sixteen lanes, and each lane's share of the weight.
    float top = ATT_NONE, weight = 0.0f;
    for (uint at = from, tile = 0; at < to; at += ATT_TILE, ++tile) {
        {
            uint2 v[8], low;
            att_halfs(share, v, low, t);
            att_put(rows + tid / 16 * ATT_LD, v, t);
            *(threadgroup uint2 *)(rows_low + tid / 16 * SPLIT_LOW_LD + 4 * t) = low;
        }
        // The tile after this one begins to arrive; where the one after that lies is known by then.
        if (at + ATT_TILE < to) {
            kv_load_share(share, next, t, 16);
            next = att_next(r, l, p, tile + 2, sg, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_c score, score_low;
        tile_zero(score);
        tile_zero(score_low);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) {
            tile_b key;
            tile_load_bt(key, rows + channel + 16 * k, ATT_LD, lane);
            tile_mma(score, query[k], key);
            tile_mma(score_low, query_low[k], key);
        }
        if (is_rotated) {
            #pragma unroll
            for (ushort k = 0; k < 4; ++k) {
                tile_b key;
                tile_load_bt(key, rows_low + 16 * k, SPLIT_LOW_LD, lane);
                tile_mma(score_low, query[k], key);
            }
        }
        tile_join(score, score_low);
        tile_stage(score, partial + sg * 256, ATT_TILE, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Head tid / 16, row tid % 16.
        float s = 0.0f;
        #pragma unroll
        for (ushort g = 0; g < 8; ++g) { s += partial[g * 256 + tid]; }
        s = at + t < to ? s * (p.scale * ATT_LOG2E) : ATT_NONE;
        float most = max(s, simd_shuffle_xor(s, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        most = max(most, simd_shuffle_xor(most, 4));
        most = max(most, simd_shuffle_xor(most, 8));
        const float fade = att_fade(top, most);
        s = exp2(s - top);
        weight = weight * fade + s;
        const half high = half(s);
        weights[tid / 16 * ATT_WEIGHT_LD + t] = high;
        weights[(ATT_HEADS + tid / 16) * ATT_WEIGHT_LD + t] = half(s - float(high));
        if (t == 0) { fades[tid / 16] = fade; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd_any(fades[lane & 15] != 1.0f)) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { tile_scale_rows(sum[j], fades, lane); }
        }
        tile_a given, given_low;
        tile_load_a(given, weights, ATT_WEIGHT_LD, lane);
        tile_load_a(given_low, weights + ATT_HEADS * ATT_WEIGHT_LD, ATT_WEIGHT_LD, lane);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, ATT_LD, lane);
            tile_mma(sum[j], given, value);
            tile_mma(sum[j], given_low, value);
        }
        if (is_rotated) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                tile_b value;
                tile_load_b(value, rows_low + 16 * j, SPLIT_LOW_LD, lane);
                tile_mma(sum[j], given, value);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    threadgroup float *mine = partial + sg * 256;
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) {
        tile_stage(sum[j], mine, ATT_TILE, lane);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint h = lane / 4 + 8 * e;
            if (head + h < p.heads) {
                *(device float4 *)(parts + ulong(h) * ATT_DIM + channel + 16 * j + lane % 4 * 4)
                    = att_swap(*(threadgroup const float4 *)(mine + h * ATT_TILE + lane % 4 * 4));
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    weight += simd_shuffle_xor(weight, 1);
    weight += simd_shuffle_xor(weight, 2);
    weight += simd_shuffle_xor(weight, 4);
    weight += simd_shuffle_xor(weight, 8);
    if (t == 0 && head + tid / 16 < p.heads) { sums[tid / 16] = float2(top, weight); }
}

// Rows of any format, ATT_ROWS at a time: simdgroup s decodes row s, then adds up two heads over all of them.
inline void split_plain(device const float *q, thread att_list &l, constant gpu_attention &p, uint from, uint to,
                        uint head, device float *parts, device float2 *sums, threadgroup float4 *tile, ushort sg,
                        ushort lane) {
    const uint dim = p.format.dim, quads = dim / 4;
    float4 query[ATT_SIMD_HEADS][ATT_LANE];
    float4 sum[ATT_SIMD_HEADS][ATT_LANE];
    float top[ATT_SIMD_HEADS];
    float weight[ATT_SIMD_HEADS];
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        const uint of = min(head + sg * ATT_SIMD_HEADS + h, p.heads - 1);
        #pragma unroll
        for (ushort v = 0; v < ATT_LANE; ++v) {
            const uint i = v * 32u + lane;
            query[h][v] = float4(0.0f);
            if (i < quads) { query[h][v] = ((device const float4 *)(q + ulong(of) * dim))[i] * (p.scale * ATT_LOG2E); }
            sum[h][v] = float4(0.0f);
        }
        top[h] = ATT_NONE;
        weight[h] = 0.0f;
    }
    for (uint at = from; at < to; at += ATT_ROWS) {
        const uint rows = min(to - at, uint(ATT_ROWS));
        // Rows past the end repeat the last one and weigh nothing.
        device const uchar *line = att_address(l, p, att_place(l, p, at + min(uint(sg), rows - 1)));
        for (uint i = lane; i < quads; i += 32) { tile[sg * quads + i] = kv_decode4(p.format, line, i); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float score[ATT_SIMD_HEADS][ATT_ROWS];
        #pragma unroll
        for (ushort r = 0; r < ATT_ROWS; ++r) {
            #pragma unroll
            for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { score[h][r] = 0.0f; }
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) {
                    const float4 k = tile[r * quads + i];
                    #pragma unroll
                    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { score[h][r] += dot(query[h][v], k); }
                }
            }
        }
        #pragma unroll
        for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
            float most = top[h];
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                const float s = simd_sum(score[h][r]);
                score[h][r] = r < rows ? s : ATT_NONE;
                most = max(most, score[h][r]);
            }
            const float fade = exp2(top[h] - most);
            top[h] = most;
            weight[h] *= fade;
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) { sum[h][v] = sum[h][v] * fade; }
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                score[h][r] = exp2(score[h][r] - most);
                weight[h] += score[h][r];
            }
        }
        #pragma unroll
        for (ushort r = 0; r < ATT_ROWS; ++r) {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) {
                    const float4 k = tile[r * quads + i];
                    #pragma unroll
                    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { sum[h][v] = sum[h][v] + k * score[h][r]; }
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        const uint of = sg * ATT_SIMD_HEADS + h;
        if (head + of < p.heads) {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) { ((device float4 *)(parts + ulong(of) * dim))[i] = sum[h][v]; }
            }
            if (lane == 0) { sums[of] = float2(top[h], weight[h]); }
        }
    }
}

// As many threads as half the registers of a multiprocessor serve: two threadgroups then fit one.
[[max_total_threads_per_threadgroup(2 * ATT_THREADS)]]
kernel void attention_split(device const float *q              [[buffer(0)]],
                            device const uchar *rows_here      [[buffer(1)]],
                            device const kv_page *sessions     [[buffer(2)]],
                            device const int *selected         [[buffer(3)]],
                            device const int *counts           [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device float *parts                [[buffer(6)]],
                            device float2 *sums                [[buffer(7)]],
                            constant gpu_attention &p          [[buffer(8)]],
                            uint3 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup uint4 memory[SPLIT_MEMORY];
    threadgroup float4 partial[ATT_SIMDGROUPS * 64];
    threadgroup uint4 weights[2 * ATT_HEADS * ATT_WEIGHT_LD / 8];
    threadgroup float fades[ATT_HEADS];
    const uint token = tg.z, head = tg.y * ATT_HEADS;
    att_list l = att_open(p, rows_here, sessions, selected, counts, positions, token);
    // Whole tiles.
    const uint share = ((l.all + p.splits - 1) / p.splits + ATT_TILE - 1) / ATT_TILE * ATT_TILE;
    const uint from = min(tg.x * share, l.all), to = min(from + share, l.all);
    const ulong place = (ulong(tg.x) * p.n + token) * p.heads + head;
    if (from == to) {
        // Of no rows only that is known.
        if (tid < ATT_HEADS && head + tid < p.heads) { sums[place + tid] = float2(ATT_NONE, 0.0f); }
        return;
    }
    q += ulong(token) * p.heads * p.format.dim;
    if (att_is_fp8_512(p)) {
        split_tiles(q, l, p, from, to, head, parts + place * ATT_DIM, sums + place, memory,
                    (threadgroup float *)partial, (threadgroup half *)weights, fades, tid, sg, lane);
    } else {
        split_plain(q, l, p, from, to, head, parts + place * p.format.dim, sums + place, (threadgroup float4 *)memory, sg,
                    lane);
    }
}

// ---------------------------------------------------------------- shares together

#define MERGE_THREADS 128
#define MERGE_SIMDGROUPS (MERGE_THREADS / 32)
#define MERGE_VALUES 128
#define ATT_MOST_SPLITS 32

// A lane has four values, a simdgroup every fourth share. p.splits = 0: only the ring is written.
[[max_total_threads_per_threadgroup(MERGE_THREADS)]]
kernel void attention_merge(device const float *parts          [[buffer(0)]],
                            device const float2 *sums          [[buffer(1)]],
                            device const float *sinks          [[buffer(2)]],
                            device const float2 *table         [[buffer(3)]],
                            device const uchar *rows_here      [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device float *out                  [[buffer(6)]],
                            device const kv_page *sessions     [[buffer(7)]],
                            constant gpu_attention &p          [[buffer(8)]],
                            uint3 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup float4 shares[MERGE_SIMDGROUPS * 32];
    const uint head = tg.x, token = p.first + tg.y;
    if (p.splits != 0u) {
        const uint dim = p.format.dim, quad = tg.z * (MERGE_VALUES / 4) + lane;
        const ulong place = ulong(token) * p.heads + head, step = ulong(p.n) * p.heads;
        const bool is_there = quad < dim / 4;
        // Everything is on its way before anything is used.
        float4 v[ATT_MOST_SPLITS / MERGE_SIMDGROUPS];
        #pragma unroll
        for (ushort j = 0; j < ATT_MOST_SPLITS / MERGE_SIMDGROUPS; ++j) {
            const uint s = sg + MERGE_SIMDGROUPS * j;
            v[j] = float4(0.0f);
            if (s < p.splits && is_there) { v[j] = ((device const float4 *)(parts + (place + s * step) * dim))[quad]; }
        }
        float2 part = float2(ATT_NONE, 0.0f);
        if (lane < p.splits) { part = sums[place + lane * step]; }
        const float sink = sinks[head] * ATT_LOG2E, most = max(sink, simd_max(part.x));
        // A share of no rows has no values either.
        const float fade = part.y > 0.0f ? exp2(part.x - most) : 0.0f;
        const float inverse = 1.0f / (exp2(sink - most) + simd_sum(part.y * fade));
        float4 sum = float4(0.0f);
        #pragma unroll
        for (ushort j = 0; j < ATT_MOST_SPLITS / MERGE_SIMDGROUPS; ++j) {
            const float f = simd_shuffle(fade, ushort(sg + MERGE_SIMDGROUPS * j));
            if (f > 0.0f) { sum = sum + v[j] * f; }
        }
        shares[tid] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0 && is_there) {
            sum = (shares[lane] + shares[32 + lane] + shares[64 + lane] + shares[96 + lane]) * inverse;
            const uint plain = (dim - p.format.rope) / 2, pair = 2 * quad;
            device const float2 *turns = table + ulong(token) * (p.format.rope / 2);
            if (pair >= plain) {
                const float2 turn = turns[pair - plain];
                sum.xy = float2(sum.x * turn.x + sum.y * turn.y, sum.y * turn.x - sum.x * turn.y);
            }
            if (pair + 1 >= plain) {
                const float2 turn = turns[pair + 1 - plain];
                sum.zw = float2(sum.z * turn.x + sum.w * turn.y, sum.w * turn.x - sum.z * turn.y);
            }
            ((device float4 *)(out + place * dim))[quad] = sum;
        }
    }
    if (head == 0 && tg.z == 0 && (p.table_stride != 0u || token + p.window >= p.n)) {
        const uint slot = uint(positions[token]) % p.window;
        device const uint *from = (device const uint *)(rows_here + ulong(token) * p.format.bytes);
        device uint *to = (device uint *)(kv_line(sessions, p.table_stride, token)[0].rows + ulong(slot) * p.format.bytes);
        for (uint i = tid; i < p.format.bytes / 4; i += MERGE_THREADS) { to[i] = from[i]; }
    }
}

#line 1 "attention_prompt.metal"
// attention_prompt.metal — attention over prompts, heads of 512 and FP8 or f32 rows (see attention.metal).
//
//   attention_tiles   q, rows, sink, the inverse rotation   -> out [n, heads, dim]; the ring is attention_merge's
//
// All heads of a token at once: rows are brought and decoded once for them.
//
// Grid       x groups of TILES_HEADS heads, y tokens
// Precision  queries, rows and weights of rows rounded to half, sums f32
// CPU twin   CKernels/attention.c
// Origin     ours
#include <metal_stdlib>
#line 13 "attention_prompt.metal"
using namespace metal;

#define TILES_HEADS 64

// A tile of rows on its way; IS_FP8: or else any other format.
template <bool IS_FP8>
inline void tiles_load(thread kv_share &share, thread uint2 *v, constant gpu_attention &p, device const uchar *row,
                       uint t) {
    if (IS_FP8) {
        kv_load_share(share, row, t, 16);
    } else {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) { v[j] = as_type<uint2>(half4(att_swap(kv_decode4(p.format, row, t + 16 * j)))); }
    }
}

template <bool IS_FP8>
inline void tiles_decode(thread kv_share &share, thread uint2 *v, uint t) {
    uint2 low;
    if (IS_FP8) { att_halfs(share, v, low, t); }
}

// A simdgroup owns 32 heads and 128 channels of queries, rows and output: a score is the sum of four partial
// ones.
template <bool IS_FP8>
inline void tiles_attend(device const float *q, thread att_list &l, constant gpu_attention &p, uint head,
                         device const float *sinks, device const float *table, device float *out, threadgroup half *rows,
                         threadgroup float *partial, threadgroup half *weights, threadgroup float *fades, ushort tid,
                         ushort sg, ushort lane) {
    const ushort half_of_heads = sg & 1, quarter = sg / 2;
    const uint channel = quarter * 128u, t = tid & 15;
    kv_share share;
    att_rows r;
    r.from = 0;
    r.to = l.all;
    device const uchar *next = att_next(r, l, p, 0, sg, lane);
    uint2 v[8];
    tiles_load<IS_FP8>(share, v, p, next, t);
    // Queries become matrices by way of the rows' memory, sixteen heads at a time; all are on their way before.
    tile_a query[2][8];
    float4 x[4][8];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort e = 0; e < 8; ++e) {
            const uint h = min(head + i * 16u + tid / 128 + 2 * e, p.heads - 1);
            x[i][e] = *(device const float4 *)(q + ulong(h) * ATT_DIM + tid % 128 * 4);
        }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort e = 0; e < 8; ++e) {
            *(threadgroup half4 *)(rows + (tid / 128 + 2 * e) * ATT_LD + tid % 128 * 4) = half4(att_swap(x[i][e]));
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (half_of_heads == i / 2) {
            #pragma unroll
            for (ushort k = 0; k < 8; ++k) { tile_load_a(query[i & 1][k], rows + channel + 16 * k, ATT_LD, lane); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[2][8];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) { tile_zero(sum[i][j]); }
    }
    // Of head tid / 4: the same in four lanes, and each lane's share of the weight.
    float top = ATT_NONE, weight = 0.0f;
    const float scale = p.scale * ATT_LOG2E;
    tiles_decode<IS_FP8>(share, v, t);
    next = att_next(r, l, p, 1, sg, lane);
    for (uint at = 0, tile = 0; at < l.all; at += ATT_TILE, ++tile) {
        att_put(rows + tid / 16 * ATT_LD, v, t);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            tile_c score[2];
            tile_zero(score[0]);
            tile_zero(score[1]);
            #pragma unroll
            for (ushort k = 0; k < 8; ++k) {
                tile_b key;
                tile_load_bt(key, rows + channel + 16 * k, ATT_LD, lane);
                tile_mma(score[0], query[0][k], key);
                tile_mma(score[1], query[1][k], key);
            }
            threadgroup float *slot = partial + ((quarter & 1) * TILES_HEADS + half_of_heads * 32) * ATT_TILE;
            if (quarter >= 2) {
                tile_stage(score[0], slot, ATT_TILE, lane);
                tile_stage(score[1], slot + 256, ATT_TILE, lane);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (quarter < 2) {
                tile_add(score[0], slot, ATT_TILE, lane);
                tile_add(score[1], slot + 256, ATT_TILE, lane);
                simdgroup_barrier(mem_flags::mem_threadgroup);
                tile_stage(score[0], slot, ATT_TILE, lane);
                tile_stage(score[1], slot + 256, ATT_TILE, lane);
            }
        }
        // The next tile begins to arrive; where the one after that lies is known by then. Behind the last tile
        // its last row comes again.
        tiles_load<IS_FP8>(share, v, p, next, t);
        next = att_next(r, l, p, tile + 2, sg, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            // Head tid / 4, rows 4·(tid % 4) … of the tile.
            float4 s = *(threadgroup const float4 *)(partial + tid * 4)
                     + *(threadgroup const float4 *)(partial + TILES_HEADS * ATT_TILE + tid * 4);
            const uint row = at + (tid & 3) * 4;
            s = s * scale;
            s.x = row < l.all ? s.x : ATT_NONE;
            s.y = row + 1 < l.all ? s.y : ATT_NONE;
            s.z = row + 2 < l.all ? s.z : ATT_NONE;
            s.w = row + 3 < l.all ? s.w : ATT_NONE;
            float most = max(max(s.x, s.y), max(s.z, s.w));
            most = max(most, simd_shuffle_xor(most, 1));
            most = max(most, simd_shuffle_xor(most, 2));
            const float fade = att_fade(top, most);
            s = float4(exp2(s.x - top), exp2(s.y - top), exp2(s.z - top), exp2(s.w - top));
            weight = weight * fade + ((s.x + s.y) + (s.z + s.w));
            *(threadgroup half4 *)(weights + tid / 4 * ATT_WEIGHT_LD + (tid & 3) * 4) = half4(s);
            if ((tid & 3) == 0) { fades[tid / 4] = fade; }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd_any(fades[half_of_heads * 32 + lane] != 1.0f)) {
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) {
                #pragma unroll
                for (ushort j = 0; j < 8; ++j) { tile_scale_rows(sum[i][j], fades + half_of_heads * 32 + 16 * i, lane); }
            }
        }
        tile_a given[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            tile_load_a(given[i], weights + (half_of_heads * 32 + 16 * i) * ATT_WEIGHT_LD, ATT_WEIGHT_LD, lane);
        }
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, ATT_LD, lane);
            tile_mma(sum[0][j], given[0], value);
            tile_mma(sum[1][j], given[1], value);
        }
        // A branch, so that this is done here, where other simdgroups still multiply, and not behind the barrier.
        if (at + ATT_TILE < l.all) { tiles_decode<IS_FP8>(share, v, t); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    weight += simd_shuffle_xor(weight, 1);
    weight += simd_shuffle_xor(weight, 2);
    if ((tid & 3) == 0) {
        const float sink = sinks[min(head + tid / 4, p.heads - 1)] * ATT_LOG2E, most = max(top, sink);
        const float fade = exp2(top - most);
        fades[tid / 4] = fade / (weight * fade + exp2(sink - most));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float *mine = partial + sg * 256;
    const uint plain = ATT_DIM - p.format.rope;
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) {
            tile_scale_rows(sum[i][j], fades + half_of_heads * 32 + 16 * i, lane);
            tile_stage(sum[i][j], mine, ATT_TILE, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            #pragma unroll
            for (ushort e = 0; e < 2; ++e) {
                const uint h = head + half_of_heads * 32u + i * 16u + lane / 4 + 8 * e, c = channel + 16 * j + lane % 4 * 4;
                float4 x = att_swap(*(threadgroup const float4 *)(mine + (lane / 4 + 8 * e) * ATT_TILE + lane % 4 * 4));
                if (c >= plain) {
                    const float4 turn = *(device const float4 *)(table + c - plain);
                    x = float4(x.x * turn.x + x.y * turn.y, x.y * turn.x - x.x * turn.y,
                               x.z * turn.z + x.w * turn.w, x.w * turn.z - x.z * turn.w);
                }
                if (h < p.heads) { *(device float4 *)(out + ulong(h) * ATT_DIM + c) = x; }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

[[max_total_threads_per_threadgroup(ATT_THREADS)]]
kernel void attention_tiles(device const float *q              [[buffer(0)]],
                            device const uchar *rows_here      [[buffer(1)]],
                            device const kv_page *sessions     [[buffer(2)]],
                            device const int *selected         [[buffer(3)]],
                            device const int *counts           [[buffer(4)]],
                            device const int *positions        [[buffer(5)]],
                            device const float *sinks          [[buffer(6)]],
                            device const float *table          [[buffer(7)]],
                            device float *out                  [[buffer(8)]],
                            constant gpu_attention &p          [[buffer(9)]],
                            uint2 tg                           [[threadgroup_position_in_grid]],
                            ushort tid                         [[thread_index_in_threadgroup]],
                            ushort sg                          [[simdgroup_index_in_threadgroup]],
                            ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup uint4 rows[ATT_TILE * ATT_LD / 8];
    threadgroup float4 partial[2 * TILES_HEADS * ATT_TILE / 4];
    threadgroup uint4 weights[TILES_HEADS * ATT_WEIGHT_LD / 8];
    threadgroup float fades[TILES_HEADS];
    const uint token = tg.y;
    att_list l = att_open(p, rows_here, sessions, selected, counts, positions, token);
    q += ulong(token) * p.heads * ATT_DIM;
    out += ulong(token) * p.heads * ATT_DIM;
    table += ulong(token) * p.format.rope;
    if (att_is_fp8_512(p)) {
        tiles_attend<true>(q, l, p, tg.x * TILES_HEADS, sinks, table, out, (threadgroup half *)rows,
                           (threadgroup float *)partial, (threadgroup half *)weights, fades, tid, sg, lane);
    } else {
        tiles_attend<false>(q, l, p, tg.x * TILES_HEADS, sinks, table, out, (threadgroup half *)rows,
                            (threadgroup float *)partial, (threadgroup half *)weights, fades, tid, sg, lane);
    }
}

#line 1 "compressor.metal"
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
#line 17 "compressor.metal"
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

#line 1 "copy.metal"
// copy.metal — many small copies at once.
//
//   copy_many   up to GPU_MOST_COPIES pieces of words from one place to another
//
// Grid       one threadgroup a piece
// Origin     ours
#include <metal_stdlib>
#line 9 "copy.metal"
using namespace metal;

struct copy_job {
    device const uint *from;
    device uint *to;
    ulong quads;  // of words, where both addresses allow it
    ulong words;
};

struct copy_jobs {
    copy_job job[GPU_MOST_COPIES];
};

[[max_total_threads_per_threadgroup(256)]]
kernel void copy_many(constant copy_jobs &p    [[buffer(0)]],
                      uint piece               [[threadgroup_position_in_grid]],
                      ushort tid               [[thread_index_in_threadgroup]])
{
    device const uint *from = p.job[piece].from;
    device uint *to = p.job[piece].to;
    const ulong quads = p.job[piece].quads, words = p.job[piece].words;
    #pragma unroll(4)
    for (ulong i = tid; i < quads; i += 256) { ((device uint4 *)to)[i] = ((device const uint4 *)from)[i]; }
    for (ulong i = 4 * quads + tid; i < words; i += 256) { to[i] = from[i]; }
}

#line 1 "experts.metal"
// experts.metal — the routed feed-forward layer: gate and up, SwiGLU, down, sum.
//
// A few tokens:
//   experts_gate_up   x [n, D], ids, weights;     -> h [n · used, inner], SwiGLU · weight, and behind it
//                     shared gate, up [n, inner]     the shared expert's [n, inner]
//   experts_down      h                           -> y [n, D] = Σ_j down[id_j]·h_j + shared down·h
// Many tokens, with matmul_experts in between:
//   experts_sort      ids                         -> order [places] (token · used + slot), place [n · used],
//                                                    tiles of at most `tile` places of one expert
//   experts_swiglu    gate, up [places, inner]    -> gate, in place, · weight
//   shared_swiglu     gate, up [n, inner]         -> gate, in place
//   experts_sum       parts [places, D], y [n, D] -> y += Σ_j parts[place[t, j]], j ascending
//
// Grid       gate_up: x row tiles, y n · used + n; down: x row tiles, y tokens; sort: one threadgroup
// Precision  f32
// CPU twin   CKernels/experts.c
// Origin     ours
#include <metal_stdlib>
#line 1 "quant.h"
// quant.h — sixteen weights of any format, as floats.
//
// Every product reads weights through quant_load16<T>: T is known when the kernel is compiled, so that
// only one branch of each remains. Blocks as drawn in CKernels/quant_blocks.h; rows in a mapped file are
// aligned to 2 bytes, MXFP4's to 1.
#ifndef PYDS4_QUANT_H
#define PYDS4_QUANT_H
#include <metal_stdlib>
#line 10 "quant.h"
using namespace metal;

// Entry i of IQ2_XXS's grid: eight magnitudes of {8, 25, 43}, two bits each.
constant ushort quant_iq2_grid[256] = {
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041,
    0x0044, 0x0050, 0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110,
    0x0115, 0x0140, 0x0184, 0x0198, 0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421,
    0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481, 0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508,
    0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640, 0x0684, 0x06a4, 0x0800, 0x0805,
    0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940, 0x0a02, 0x0a14,
    0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518,
    0x1562, 0x1600, 0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51,
    0x2000, 0x2002, 0x200a, 0x2044, 0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401,
    0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541, 0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44,
    0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048, 0x4056, 0x4060, 0x4081, 0x4084,
    0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256, 0x4268, 0x4400,
    0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080,
    0x5088, 0x5104, 0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811,
    0x5819, 0x5864, 0x5940, 0x5a08, 0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260,
    0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842, 0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104,
    0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440, 0x8460, 0x8500, 0x8546, 0x8594,
    0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040, 0x90a1, 0x9116,
    0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
};

// The same as eight bytes.
constant uint quant_iq2_bytes[512] = {
    0x08080808u, 0x08080808u, 0x0808082bu, 0x08080808u, 0x08081919u, 0x08080808u, 0x08082b08u, 0x08080808u,
    0x08082b2bu, 0x08080808u, 0x08190819u, 0x08080808u, 0x08191908u, 0x08080808u, 0x082b0808u, 0x08080808u,
    0x082b082bu, 0x08080808u, 0x082b2b08u, 0x08080808u, 0x082b2b2bu, 0x08080808u, 0x19080819u, 0x08080808u,
    0x19081908u, 0x08080808u, 0x19190808u, 0x08080808u, 0x19192b08u, 0x08080808u, 0x192b0819u, 0x08080808u,
    0x192b1908u, 0x08080808u, 0x2b080808u, 0x08080808u, 0x2b08082bu, 0x08080808u, 0x2b082b2bu, 0x08080808u,
    0x2b2b082bu, 0x08080808u, 0x08080819u, 0x08080819u, 0x08081908u, 0x08080819u, 0x08190808u, 0x08080819u,
    0x08191919u, 0x08080819u, 0x19080808u, 0x08080819u, 0x2b081908u, 0x08080819u, 0x2b192b08u, 0x08080819u,
    0x08080808u, 0x0808082bu, 0x0808082bu, 0x0808082bu, 0x082b082bu, 0x0808082bu, 0x2b08082bu, 0x0808082bu,
    0x08080819u, 0x08081908u, 0x08081908u, 0x08081908u, 0x08190808u, 0x08081908u, 0x082b0819u, 0x08081908u,
    0x082b1908u, 0x08081908u, 0x19080808u, 0x08081908u, 0x1908082bu, 0x08081908u, 0x19082b08u, 0x08081908u,
    0x192b0808u, 0x08081908u, 0x2b080819u, 0x08081908u, 0x2b081908u, 0x08081908u, 0x2b190808u, 0x08081908u,
    0x2b2b1908u, 0x08081908u, 0x08080808u, 0x08081919u, 0x0808082bu, 0x08081919u, 0x08082b08u, 0x08081919u,
    0x082b0808u, 0x08081919u, 0x1908192bu, 0x08081919u, 0x192b2b19u, 0x08081919u, 0x2b080808u, 0x08081919u,
    0x2b190819u, 0x08081919u, 0x08082b19u, 0x0808192bu, 0x08190808u, 0x0808192bu, 0x19080808u, 0x0808192bu,
    0x2b081908u, 0x0808192bu, 0x2b2b1908u, 0x0808192bu, 0x08080808u, 0x08082b08u, 0x08081919u, 0x08082b08u,
    0x08082b08u, 0x08082b08u, 0x08191908u, 0x08082b08u, 0x082b2b08u, 0x08082b08u, 0x19080819u, 0x08082b08u,
    0x19081908u, 0x08082b08u, 0x19190808u, 0x08082b08u, 0x1919082bu, 0x08082b08u, 0x2b082b08u, 0x08082b08u,
    0x08081908u, 0x08082b19u, 0x19080808u, 0x08082b19u, 0x0808082bu, 0x08082b2bu, 0x08191908u, 0x08082b2bu,
    0x08080819u, 0x08190808u, 0x08081908u, 0x08190808u, 0x08190808u, 0x08190808u, 0x082b0819u, 0x08190808u,
    0x19080808u, 0x08190808u, 0x192b0808u, 0x08190808u, 0x2b081908u, 0x08190808u, 0x2b190808u, 0x08190808u,
    0x2b191919u, 0x08190808u, 0x08080808u, 0x08190819u, 0x08082b08u, 0x08190819u, 0x082b0808u, 0x08190819u,
    0x19190808u, 0x08190819u, 0x19192b2bu, 0x08190819u, 0x2b080808u, 0x08190819u, 0x082b1908u, 0x0819082bu,
    0x19081919u, 0x0819082bu, 0x08080808u, 0x08191908u, 0x08082b08u, 0x08191908u, 0x082b0808u, 0x08191908u,
    0x082b1919u, 0x08191908u, 0x19082b19u, 0x08191908u, 0x2b080808u, 0x08191908u, 0x08192b08u, 0x08191919u,
    0x192b082bu, 0x08191919u, 0x08080808u, 0x0819192bu, 0x0819192bu, 0x0819192bu, 0x08080819u, 0x08192b08u,
    0x08081908u, 0x08192b08u, 0x08190808u, 0x08192b08u, 0x19080808u, 0x08192b08u, 0x2b080819u, 0x08192b08u,
    0x08080808u, 0x08192b19u, 0x08081919u, 0x08192b19u, 0x2b2b0808u, 0x08192b19u, 0x19190819u, 0x08192b2bu,
    0x08080808u, 0x082b0808u, 0x0808082bu, 0x082b0808u, 0x08082b2bu, 0x082b0808u, 0x19081908u, 0x082b0808u,
    0x192b0819u, 0x082b0808u, 0x2b080808u, 0x082b0808u, 0x2b08082bu, 0x082b0808u, 0x082b2b19u, 0x082b0819u,
    0x19082b08u, 0x082b0819u, 0x08080808u, 0x082b082bu, 0x0808082bu, 0x082b082bu, 0x08080819u, 0x082b1908u,
    0x08081908u, 0x082b1908u, 0x08190808u, 0x082b1908u, 0x19080808u, 0x082b1908u, 0x1919192bu, 0x082b1908u,
    0x08080808u, 0x082b1919u, 0x19080819u, 0x082b1919u, 0x192b1908u, 0x082b1919u, 0x2b190808u, 0x082b192bu,
    0x08082b08u, 0x082b2b08u, 0x082b0808u, 0x082b2b08u, 0x2b191908u, 0x082b2b08u, 0x19081908u, 0x082b2b2bu,
    0x08080819u, 0x19080808u, 0x08081908u, 0x19080808u, 0x08190808u, 0x19080808u, 0x08192b08u, 0x19080808u,
    0x082b0819u, 0x19080808u, 0x082b1908u, 0x19080808u, 0x19080808u, 0x19080808u, 0x19082b08u, 0x19080808u,
    0x1919192bu, 0x19080808u, 0x192b0808u, 0x19080808u, 0x2b080819u, 0x19080808u, 0x2b081908u, 0x19080808u,
    0x2b190808u, 0x19080808u, 0x08080808u, 0x19080819u, 0x082b0808u, 0x19080819u, 0x192b0819u, 0x19080819u,
    0x2b080808u, 0x19080819u, 0x2b081919u, 0x19080819u, 0x08080819u, 0x1908082bu, 0x08190808u, 0x1908082bu,
    0x19082b08u, 0x1908082bu, 0x1919192bu, 0x1908082bu, 0x192b2b08u, 0x1908082bu, 0x08080808u, 0x19081908u,
    0x08082b08u, 0x19081908u, 0x082b0808u, 0x19081908u, 0x2b080808u, 0x19081908u, 0x2b192b19u, 0x19081908u,
    0x0819082bu, 0x19081919u, 0x082b1908u, 0x19081919u, 0x08080808u, 0x1908192bu, 0x08080819u, 0x19082b08u,
    0x08081908u, 0x19082b08u, 0x08190808u, 0x19082b08u, 0x19080808u, 0x19082b08u, 0x19081919u, 0x19082b08u,
    0x08080808u, 0x19082b19u, 0x19192b08u, 0x19082b19u, 0x192b0819u, 0x19082b19u, 0x2b08082bu, 0x19082b19u,
    0x19081919u, 0x19082b2bu, 0x2b190808u, 0x19082b2bu, 0x08080808u, 0x19190808u, 0x08082b08u, 0x19190808u,
    0x08190819u, 0x19190808u, 0x08192b19u, 0x19190808u, 0x082b0808u, 0x19190808u, 0x2b080808u, 0x19190808u,
    0x2b082b08u, 0x19190808u, 0x08081908u, 0x19190819u, 0x1908082bu, 0x19190819u, 0x2b2b1908u, 0x19190819u,
    0x2b190819u, 0x1919082bu, 0x2b190808u, 0x19191908u, 0x2b19082bu, 0x19191908u, 0x08082b2bu, 0x19191919u,
    0x08080819u, 0x1919192bu, 0x19191908u, 0x1919192bu, 0x08080808u, 0x19192b08u, 0x08190819u, 0x19192b08u,
    0x08192b19u, 0x19192b08u, 0x192b1908u, 0x19192b08u, 0x19080808u, 0x19192b19u, 0x08082b08u, 0x19192b2bu,
    0x08081908u, 0x192b0808u, 0x08190808u, 0x192b0808u, 0x19080808u, 0x192b0808u, 0x192b2b08u, 0x192b0808u,
    0x08080808u, 0x192b0819u, 0x19191919u, 0x192b0819u, 0x08192b08u, 0x192b082bu, 0x192b0808u, 0x192b082bu,
    0x08080808u, 0x192b1908u, 0x08081919u, 0x192b1908u, 0x08190808u, 0x192b1919u, 0x0819082bu, 0x192b1919u,
    0x2b081908u, 0x192b1919u, 0x1908082bu, 0x192b2b08u, 0x08080808u, 0x2b080808u, 0x0808082bu, 0x2b080808u,
    0x08082b2bu, 0x2b080808u, 0x19080819u, 0x2b080808u, 0x2b08082bu, 0x2b080808u, 0x08081908u, 0x2b080819u,
    0x08192b08u, 0x2b080819u, 0x19080808u, 0x2b080819u, 0x08190819u, 0x2b08082bu, 0x08080819u, 0x2b081908u,
    0x08081908u, 0x2b081908u, 0x08190808u, 0x2b081908u, 0x08191919u, 0x2b081908u, 0x19080808u, 0x2b081908u,
    0x192b0808u, 0x2b081908u, 0x08080808u, 0x2b081919u, 0x1908192bu, 0x2b081919u, 0x2b191908u, 0x2b081919u,
    0x08082b19u, 0x2b08192bu, 0x19080808u, 0x2b08192bu, 0x192b0808u, 0x2b08192bu, 0x0808082bu, 0x2b082b08u,
    0x08081908u, 0x2b082b19u, 0x08190819u, 0x2b082b2bu, 0x08081908u, 0x2b190808u, 0x08190808u, 0x2b190808u,
    0x082b1908u, 0x2b190808u, 0x19080808u, 0x2b190808u, 0x2b2b0819u, 0x2b190808u, 0x0819192bu, 0x2b190819u,
    0x2b080808u, 0x2b190819u, 0x19081919u, 0x2b19082bu, 0x08080808u, 0x2b191908u, 0x082b082bu, 0x2b191908u,
    0x19081908u, 0x2b191908u, 0x19190819u, 0x2b191919u, 0x2b080819u, 0x2b192b08u, 0x082b0808u, 0x2b192b19u,
    0x0808082bu, 0x2b2b0808u, 0x19190808u, 0x2b2b0808u, 0x2b081919u, 0x2b2b0808u, 0x08082b19u, 0x2b2b0819u,
    0x08080808u, 0x2b2b082bu, 0x08192b08u, 0x2b2b1908u, 0x19190808u, 0x2b2b2b08u, 0x08081908u, 0x2b2b2b19u,
};

// 2^23 + byte: the byte lands in the mantissa, which is much faster than converting integers.
inline float quant_byte_float(uint word, ushort i) {
#ifdef MSL_CUDA
    return as_type<float>(__byte_perm(word, 0x4b000000u, 0x7540u | i));
#else
    return as_type<float>(((word >> (8 * i)) & 0xffu) | 0x4b000000u);
#endif
}

// Four signed bytes.
inline float4 quant_signed4(uint word) {
    const uint biased = word ^ 0x80808080u;
    return float4(quant_byte_float(biased, 0), quant_byte_float(biased, 1), quant_byte_float(biased, 2),
                  quant_byte_float(biased, 3)) - 8388736.0f;
}

// Four unsigned bytes.
inline float4 quant_unsigned4(uint word) {
    return float4(quant_byte_float(word, 0), quant_byte_float(word, 1), quant_byte_float(word, 2),
                  quant_byte_float(word, 3)) - 8388608.0f;
}

// Bytes below 128, negated where the four bits of `signs` say so.
inline uint quant_negate4(uint bytes, uint signs) {
    const uint ones = (signs * 0x00204081u) & 0x01010101u;  // bit i to byte i
    return (bytes ^ ones * 255u) + ones;
}

inline float quant_half(device const uchar *p) { return float(as_type<half>(*(device const ushort *)p)); }

// A word from memory that is aligned to two bytes.
inline uint quant_word(device const uchar *p) {
    device const ushort *h = (device const ushort *)p;
    return uint(h[0]) | uint(h[1]) << 16;
}

// Bytes in a row of `columns` weights, without the scales of planes.
template <uint T> inline ulong quant_row_bytes(uint columns) {
    if (T == GPU_F32) { return ulong(columns) * 4; }
    if (T == GPU_F16 || T == GPU_BF16) { return ulong(columns) * 2; }
    if (T == GPU_Q8_0) { return ulong(columns / 32) * 34; }
    if (T == GPU_Q4_0) { return ulong(columns / 32) * 18; }
    if (T == GPU_MXFP4) { return ulong(columns / 32) * 17; }
    if (T == GPU_Q2_K) { return ulong(columns / 256) * 84; }
    if (T == GPU_Q3_K) { return ulong(columns / 256) * 110; }
    if (T == GPU_Q4_K) { return ulong(columns / 256) * 144; }
    if (T == GPU_Q5_K) { return ulong(columns / 256) * 176; }
    if (T == GPU_Q6_K) { return ulong(columns / 256) * 210; }
    if (T == GPU_IQ2_XXS) { return ulong(columns / 256) * 66; }
    if (T == GPU_Q8_0_PLANES) { return ulong(columns); }
    if (T == GPU_Q2_K_PLANES) { return ulong(columns / 256) * 64; }
    return ulong(columns / 32) * 8;  // IQ2_XXS planes
}

// IQ2_XXS's grid where lookups are fast: [256] in threadgroup memory, by all `threads`.
inline void quant_fill_grid(threadgroup uint2 *grid, uint tid, uint threads) {
    for (uint i = tid; i < 256; i += threads) { grid[i] = uint2(quant_iq2_bytes[2 * i], quant_iq2_bytes[2 * i + 1]); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Magnitude codes and sign bits of eight weights to floats.
inline void quant_iq2_eight(uint codes, uint signs, float scale, thread float *out) {
    for (ushort i = 0; i < 8; ++i) {
        const uint code = (codes >> (2 * i)) & 3u;
        const float magnitude = code == 0u ? 8.0f : code == 1u ? 25.0f : 43.0f;
        out[i] = (((signs >> i) & 1u) != 0u ? -magnitude : magnitude) * scale;
    }
}

// Half of a group of 32: grid indices and signs of entries 2·side and 2·side + 1.
inline void quant_iq2_16(uint grid, uint packed, float d, uint side, thread float *out) {
    const float scale = d * float(2u * (packed >> 28) + 1u) * 0.125f;
    for (ushort e = 0; e < 2; ++e) {
        const uint entry = side * 2u + e;
        const uint seven = (packed >> (7u * entry)) & 127u;
        quant_iq2_eight(quant_iq2_grid[(grid >> (8u * entry)) & 255u], seven | (popcount(seven) & 1u) << 7, scale,
                        out + 8 * e);
    }
}

// The six-bit scale and minimum of Q4_K and Q5_K.
inline float2 quant_k4(device const uchar *packed, uint sub) {
    const uint scale = sub < 4u ? packed[sub] & 63u : (packed[sub + 4u] & 15u) | (packed[sub - 4u] >> 6) << 4;
    const uint least = sub < 4u ? packed[sub + 4u] & 63u : packed[sub + 4u] >> 4 | (packed[sub] >> 6) << 4;
    return float2(float(scale), float(least));
}

// Sixteen quants of Q2_K planes from k on, a byte each, and their scale and minimum.
inline void quant_q2_planes(device const uchar *w, ulong plane, ulong row, uint columns, uint k, thread uint4 &two,
                            thread float &d, thread float &least) {
    const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
    const ulong block = row * (columns / 256) + k / 256;
    const uint4 q = *(device const uint4 *)(w + block * 64 + 32u * h + l);
    const uint sub = w[plane + block * 16 + j];
    device const uchar *both = w + plane + plane / 4 + block * 4;
    d = quant_half(both) * float(sub & 15u);
    least = quant_half(both + 2) * float(sub >> 4);
    two = (q >> (2u * s)) & 0x03030303u;
}

// Weights k … k + 15 of row `row`; k is a multiple of 16. `plane`: where the scales of planes begin.
template <uint T>
inline void quant_load16(device const uchar *w, ulong plane, ulong row, uint columns, uint k, thread float *out) {
    device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F32) {
        device const float4 *p = (device const float4 *)(line + ulong(k) * 4);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = p[j];
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_F16) {
        device const uint4 *p = (device const uint4 *)(line + ulong(k) * 2);
        for (ushort j = 0; j < 2; ++j) {
            const uint4 v = p[j];
            for (ushort i = 0; i < 4; ++i) {
                out[8 * j + 2 * i] = float(as_type<half>(ushort(v[i] & 0xffffu)));
                out[8 * j + 2 * i + 1] = float(as_type<half>(ushort(v[i] >> 16)));
            }
        }
    } else if (T == GPU_BF16) {
        device const ushort *p = (device const ushort *)(line + ulong(k) * 2);
        for (ushort i = 0; i < 16; ++i) { out[i] = as_type<float>(uint(p[i]) << 16); }
    } else if (T == GPU_Q8_0) {
        device const uchar *block = line + ulong(k / 32) * 34;
        const float d = quant_half(block);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = quant_signed4(quant_word(block + 2 + (k & 16u) + 4 * j)) * d;
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_Q8_0_PLANES) {
        const uint4 q = *(device const uint4 *)(line + k);
        const float d = quant_half(w + plane + (row * (columns / 32) + k / 32) * 2);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = quant_signed4(q[j]) * d;
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_Q4_0) {
        device const uchar *block = line + ulong(k / 32) * 18;
        const float d = quant_half(block);
        const ushort shift = (k & 16u) != 0u ? 4 : 0;
        for (ushort i = 0; i < 16; ++i) { out[i] = (float((block[2 + i] >> shift) & 15) - 8.0f) * d; }
    } else if (T == GPU_MXFP4) {
        device const uchar *block = line + ulong(k / 32) * 17;
        const uint e = block[0];
        const float d = as_type<float>(e < 2u ? 0x00200000u << e : (e - 1u) << 23);
        const ushort shift = (k & 16u) != 0u ? 4 : 0;
        for (ushort i = 0; i < 16; ++i) {
            const uint code = (block[1 + i] >> shift) & 15;
            const uint m = code & 7u;
            // 0 1 2 3 4 6 8 12: twice the values of e2m1
            const float value = m < 4u ? float(m) : m == 4u ? 4.0f : m == 5u ? 6.0f : m == 6u ? 8.0f : 12.0f;
            out[i] = (code & 8u) != 0u ? -value * d : value * d;
        }
    } else if (T == GPU_IQ2_XXS) {
        device const uchar *block = line + ulong(k / 256) * 66;
        device const uchar *group = block + 2 + (k % 256u) / 32u * 8u;
        quant_iq2_16(quant_word(group), quant_word(group + 4), quant_half(block), (k / 16u) & 1u, out);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(device const uint2 *)(line + ulong(k / 32) * 8);
        const float d = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2);
        quant_iq2_16(group.x, group.y, d, (k / 16u) & 1u, out);
    } else if (T == GPU_Q2_K_PLANES) {
        float d, least;
        uint4 two;
        quant_q2_planes(w, plane, row, columns, k, two, d, least);
        for (ushort i = 0; i < 4; ++i) {
            const float4 v = quant_unsigned4(two[i]) * d - least;
            for (ushort c = 0; c < 4; ++c) { out[4 * i + c] = v[c]; }
        }
    } else {
        // The K types: sixteen sub-blocks of 16 in 256; sub-block j is half `h`, shift `s`, offset `l`.
        const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
        if (T == GPU_Q2_K) {
            device const uchar *block = line + ulong(k / 256) * 84;
            const uint sub = block[j];
            const float d = quant_half(block + 80) * float(sub & 15u);
            const float least = quant_half(block + 82) * float(sub >> 4);
            device const uchar *q = block + 16 + 32u * h + l;
            for (ushort i = 0; i < 4; ++i) {
                const float4 v = quant_unsigned4((quant_word(q + 4 * i) >> (2u * s)) & 0x03030303u) * d - least;
                for (ushort c = 0; c < 4; ++c) { out[4 * i + c] = v[c]; }
            }
        } else if (T == GPU_Q3_K) {
            device const uchar *block = line + ulong(k / 256) * 110;
            device const uchar *scales = block + 96;
            const uint low = j < 8u ? scales[j] & 15u : scales[j - 8u] >> 4;
            const uint high = (scales[8u + j % 4u] >> (2u * (j / 4u))) & 3u;
            const float d = quant_half(block + 108) * (float(low | high << 4) - 32.0f);
            for (ushort i = 0; i < 16; ++i) {
                const uint two = (block[32u + 32u * h + l + i] >> (2u * s)) & 3u;
                const uint one = (block[l + i] >> (4u * h + s)) & 1u;
                out[i] = d * (float(two) - (one != 0u ? 0.0f : 4.0f));
            }
        } else if (T == GPU_Q4_K || T == GPU_Q5_K) {
            device const uchar *block = line + ulong(k / 256) * (T == GPU_Q4_K ? 144u : 176u);
            const uint sub = j / 2u;
            const float2 six = quant_k4(block + 4, sub);
            const float d = quant_half(block) * six.x, least = quant_half(block + 2) * six.y;
            device const uchar *q = block + (T == GPU_Q4_K ? 16u : 48u) + 32u * (sub / 2u) + l;
            for (ushort i = 0; i < 16; ++i) {
                uint value = (q[i] >> ((sub & 1u) * 4u)) & 15u;
                if (T == GPU_Q5_K) { value |= ((block[16u + l + i] >> sub) & 1u) << 4; }
                out[i] = d * float(value) - least;
            }
        } else {  // Q6_K
            device const uchar *block = line + ulong(k / 256) * 210;
            const float d = quant_half(block + 208) * float(as_type<char>(block[192u + j]));
            device const uchar *low = block + 64u * h + 32u * (s & 1u) + l;
            device const uchar *high = block + 128u + 32u * h + l;
            for (ushort i = 0; i < 16; ++i) {
                const uint value = ((low[i] >> (s / 2u * 4u)) & 15u) | ((high[i] >> (2u * s)) & 3u) << 4;
                out[i] = d * (float(value) - 32.0f);
            }
        }
    }
}

// ---------------------------------------------------------------- halfs, for tiles
//
// A byte under 0x64 is the half 1024 + byte: two weights at a time, without a conversion.

inline half2 quant_bytes_half2(uint word, ushort pair) {
#ifdef MSL_CUDA
    return as_type<half2>(__byte_perm(word, 0x64646464u, pair == 0 ? 0x4140u : 0x4342u));
#else
    const uint two = word >> (16 * pair);
    return as_type<half2>((two & 0xffu) | (two & 0xff00u) << 8 | 0x64006400u);
#endif
}

// Four signed bytes times d.
inline uint2 quant_signed_half4(uint word, half2 d) {
    const uint biased = word ^ 0x80808080u;
    const half2 zero = half2(1152.0h);
    return uint2(as_type<uint>((quant_bytes_half2(biased, 0) - zero) * d),
                 as_type<uint>((quant_bytes_half2(biased, 1) - zero) * d));
}

// As quant_load16, as sixteen halfs.
template <uint T>
inline void quant_half16(device const uchar *w, ulong plane, ulong row, uint columns, uint k,
                         threadgroup const uint2 *grid, thread uint2 *out) {
    device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F16) {
        device const uint2 *p = (device const uint2 *)(line + ulong(k) * 2);
        for (ushort j = 0; j < 4; ++j) { out[j] = p[j]; }
    } else if (T == GPU_Q8_0_PLANES) {
        const uint4 q = *(device const uint4 *)(line + k);
        const half2 d = half2(as_type<half>(*(device const ushort *)(w + plane + (row * (columns / 32) + k / 32) * 2)));
        out[0] = quant_signed_half4(q.x, d);
        out[1] = quant_signed_half4(q.y, d);
        out[2] = quant_signed_half4(q.z, d);
        out[3] = quant_signed_half4(q.w, d);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(device const uint2 *)(line + ulong(k / 32) * 8);
        const float scale = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2)
                          * float(2u * (group.y >> 28) + 1u) * 0.125f;
        const half2 d = half2(half(scale));
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint entry = (k / 16u & 1u) * 2u + e;
            const uint seven = (group.y >> (7u * entry)) & 127u;
            const uint signs = seven | (popcount(seven) & 1u) << 7;
            const uint2 eight = grid[(group.x >> (8u * entry)) & 255u];
            out[2 * e] = quant_signed_half4(quant_negate4(eight.x, signs & 15u), d);
            out[2 * e + 1] = quant_signed_half4(quant_negate4(eight.y, signs >> 4), d);
        }
    } else if (T == GPU_Q2_K_PLANES) {
        float scale, minimum;
        uint4 two;
        quant_q2_planes(w, plane, row, columns, k, two, scale, minimum);
        const half2 d = half2(half(scale)), least = half2(half(minimum)), zero = half2(1024.0h);
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            out[i] = uint2(as_type<uint>((quant_bytes_half2(two[i], 0) - zero) * d - least),
                           as_type<uint>((quant_bytes_half2(two[i], 1) - zero) * d - least));
        }
    } else if (T == GPU_Q2_K) {
        const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
        device const uchar *block = line + ulong(k / 256) * 84;
        const uint sub = block[j];
        const half2 d = half2(half(quant_half(block + 80) * float(sub & 15u)));
        const half2 least = half2(half(quant_half(block + 82) * float(sub >> 4)));
        device const uint *q = (device const uint *)(block + 16 + 32u * h + l);
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint two = (q[i] >> (2u * s)) & 0x03030303u;
            const half2 zero = half2(1024.0h);
            out[i] = uint2(as_type<uint>((quant_bytes_half2(two, 0) - zero) * d - least),
                           as_type<uint>((quant_bytes_half2(two, 1) - zero) * d - least));
        }
    } else {
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
        quant_load16<T>(w, plane, row, columns, k, v);
        for (ushort j = 0; j < 4; ++j) {
            out[j] = as_type<uint2>(half4(float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3])));
        }
    }
}

// ---------------------------------------------------------------- one simdgroup along a row
//
// 512 weights at a time, sixteen a lane, as four float4: which ones depends on the format, so that lanes
// next to each other read memory next to each other, of the weights and of x.

// Formats of published models, whose branch-free form is worth its code.
template <uint T> inline bool quant_is_common() {
    return T == GPU_F32 || T == GPU_F16 || T == GPU_Q8_0_PLANES || T == GPU_Q2_K || T == GPU_IQ2_XXS_PLANES
        || T == GPU_Q4_K || T == GPU_MXFP4 || T == GPU_Q8_0;
}

// Where the j-th float4 of a lane lies among the 512.
template <uint T> inline uint quant_lane_offset(ushort lane, ushort j) {
    if (T == GPU_F32 || T == GPU_F16 || T == GPU_BF16 || T == GPU_Q8_0_PLANES) { return 128u * j + 4u * lane; }
    if (T == GPU_Q2_K) { return 256u * (lane / 16) + 128u * (lane % 16 / 8) + 32u * j + 4u * (lane % 8); }
    if (T == GPU_IQ2_XXS_PLANES) { return 256u * (j / 2) + 8u * lane + 4u * (j % 2); }
    return 16u * lane + 4u * j;
}

// The lane's weights of [k0, k0 + 512) in row `row`; zeros past the end, unless all 512 are there (FULL):
// then there is no branch, and all loads of several rows can be under way together. `grid`: what
// quant_fill_grid put there, for IQ2_XXS planes.
template <uint T, bool FULL>
inline void quant_lane16(device const uchar *w, ulong plane, ulong row, uint columns, uint k0, ushort lane,
                         threadgroup const uint2 *grid, thread float4 *out) {
    device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F32 || T == GPU_F16 || T == GPU_BF16 || T == GPU_Q8_0_PLANES) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            const uint k = k0 + 128u * j + 4u * lane;
            float4 v = float4(0.0f);
            if (FULL || k < columns) {
                if (T == GPU_F32) {
                    v = *(device const float4 *)(line + ulong(k) * 4);
                } else if (T == GPU_Q8_0_PLANES) {
                    const float d = quant_half(w + plane + (row * (columns / 32) + k / 32) * 2);
                    v = quant_signed4(*(device const uint *)(line + k)) * d;
                } else {
                    const uint2 two = *(device const uint2 *)(line + ulong(k) * 2);
                    if (T == GPU_F16) {
                        v = float4(float(as_type<half>(ushort(two.x & 0xffffu))), float(as_type<half>(ushort(two.x >> 16))),
                                   float(as_type<half>(ushort(two.y & 0xffffu))), float(as_type<half>(ushort(two.y >> 16))));
                    } else {
                        v = float4(as_type<float>(two.x << 16), as_type<float>(two.x & 0xffff0000u),
                                   as_type<float>(two.y << 16), as_type<float>(two.y & 0xffff0000u));
                    }
                }
            }
            out[j] = v;
        }
    } else if (T == GPU_Q2_K) {
        const uint k = k0 + 256u * (lane / 16);
        const ushort h = lane % 16 / 8, word = lane % 8;
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(0.0f); }
        if (FULL || k < columns) {
            device const uchar *block = line + ulong(k / 256) * 84;
            const uint q = *(device const uint *)(block + 16 + 32 * h + 4 * word);
            // Scales 8h + 2s + half of shifts s = 0 … 3.
            const uint2 scales = uint2(*(device const uint *)(block + 8 * h), *(device const uint *)(block + 8 * h + 4));
            const float d = quant_half(block + 80), least = quant_half(block + 82);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const uint both = j < 2 ? scales.x : scales.y;
                const uint sub = (both >> (16 * (j & 1) + 8 * (word / 4))) & 0xffu;
                out[j] = quant_unsigned4((q >> (2 * j)) & 0x03030303u) * (d * float(sub & 15u)) - least * float(sub >> 4);
            }
        }
    } else if (T == GPU_IQ2_XXS_PLANES) {
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint k = k0 + 256u * e + 8u * lane;
            out[2 * e] = float4(0.0f);
            out[2 * e + 1] = float4(0.0f);
            if (FULL || k < columns) {
                const uint2 group = *(device const uint2 *)(line + ulong(k / 32) * 8);
                const float d = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2);
                const float scale = d * float(2u * (group.y >> 28) + 1u) * 0.125f;
                const uint entry = lane & 3;
                const uint seven = (group.y >> (7u * entry)) & 127u;
                const uint signs = seven | (popcount(seven) & 1u) << 7;
                const uint2 eight = grid[(group.x >> (8u * entry)) & 255u];
                out[2 * e] = quant_signed4(quant_negate4(eight.x, signs & 15u)) * scale;
                out[2 * e + 1] = quant_signed4(quant_negate4(eight.y, signs >> 4)) * scale;
            }
        }
    } else {
        const uint k = k0 + 16u * lane;
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
        if (FULL || k < columns) { quant_load16<T>(w, plane, row, columns, k, v); }
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]); }
    }
}

// The lane's values of x in the same order; past the end whatever row 0 of 512 has, times zero weights.
template <uint T, bool FULL>
inline void quant_lane_x(device const float *x, uint columns, uint k0, ushort lane, thread float4 *out) {
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) {
        const uint k = k0 + quant_lane_offset<T>(lane, j);
        out[j] = FULL || k < columns ? *(device const float4 *)(x + k) : float4(0.0f);
    }
}

// Calls BODY(T) for the format that `type` names.
// A device may know which types its model has, and leave out the code of the others: bits of QUANT_TYPES.
#ifndef QUANT_TYPES
#define QUANT_TYPES 0xffffffffu
#endif
#define QUANT_BIT(T) ((T) < 32 ? (T) : (T) == GPU_MXFP4 ? 9 : (T) == GPU_Q8_0_PLANES ? 3 : (T) == GPU_Q2_K_PLANES ? 5 : 4)
#define QUANT_CASE(T, BODY) case T: if ((QUANT_TYPES >> QUANT_BIT(T) & 1u) != 0u) { BODY(T); } break;

#define QUANT_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F32, BODY) \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_BF16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    QUANT_CASE(GPU_Q4_0, BODY) \
    QUANT_CASE(GPU_MXFP4, BODY) \
    QUANT_CASE(GPU_Q2_K, BODY) \
    QUANT_CASE(GPU_Q2_K_PLANES, BODY) \
    QUANT_CASE(GPU_Q3_K, BODY) \
    QUANT_CASE(GPU_Q4_K, BODY) \
    QUANT_CASE(GPU_Q5_K, BODY) \
    QUANT_CASE(GPU_Q6_K, BODY) \
    QUANT_CASE(GPU_IQ2_XXS, BODY) \
    QUANT_CASE(GPU_IQ2_XXS_PLANES, BODY) \
    default: break; \
    }

#endif

#line 20 "experts.metal"
#line 1 "experts.h"
// experts.h — what the kernels of routed experts share.
#ifndef PYDS4_EXPERTS_H
#define PYDS4_EXPERTS_H
#include <metal_stdlib>
using namespace metal;

// silu(min(g, clamp)) · clip(u, ±clamp)
inline float experts_glu(float g, float u, float limit) {
    if (limit > 0.0f) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    return g / (1.0f + exp(-g)) * u;
}
#endif

#line 21 "experts.metal"
using namespace metal;

#define EXPERT_SIMDGROUPS 4
#define EXPERT_SIMD_ROWS 2
#define EXPERT_ROWS (EXPERT_SIMDGROUPS * EXPERT_SIMD_ROWS)

template <uint T, bool FULL>
inline void experts_step(device const uchar *w, ulong plane, ulong row, uint columns, device const float *x, uint k0,
                         ushort lane, threadgroup const uint2 *grid, thread float *sums) {
    float4 v[EXPERT_SIMD_ROWS][4];
    float4 a[4];
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        quant_lane16<T, FULL>(w, plane, row + r, columns, k0, lane, grid, v[r]);
    }
    quant_lane_x<T, FULL>(x, columns, k0, lane, a);
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { sums[r] += dot(v[r][j], a[j]); }
    }
}

// This lane's part of row · x for EXPERT_SIMD_ROWS rows from `row` on.
template <uint T>
inline void experts_dot(device const uchar *w, ulong plane, ulong row, uint columns, device const float *x, ushort lane,
                        threadgroup const uint2 *grid, thread float *sums) {
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        experts_step<T, true>(w, plane, row, columns, x, k0, lane, grid, sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        experts_step<T, false>(w, plane, row, columns, x, k0, lane, grid, sums);
    }
}

template <uint T, bool FULL>
inline void experts_pair_step(device const uchar *w, device const uchar *v, ulong plane, ulong row, uint columns,
                              device const float *x, uint k0, ushort lane, threadgroup const uint2 *grid,
                              thread float *w_sums, thread float *v_sums) {
    float4 b[EXPERT_SIMD_ROWS][4];
    float4 c[EXPERT_SIMD_ROWS][4];
    float4 a[4];
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        quant_lane16<T, FULL>(w, plane, row + r, columns, k0, lane, grid, b[r]);
        quant_lane16<T, FULL>(v, plane, row + r, columns, k0, lane, grid, c[r]);
    }
    quant_lane_x<T, FULL>(x, columns, k0, lane, a);
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            w_sums[r] += dot(b[r][j], a[j]);
            v_sums[r] += dot(c[r][j], a[j]);
        }
    }
}

// The same for two matrices at once.
template <uint T>
inline void experts_dot_pair(device const uchar *w, device const uchar *v, ulong plane, ulong row, uint columns,
                             device const float *x, ushort lane, threadgroup const uint2 *grid, thread float *w_sums,
                             thread float *v_sums) {
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        experts_pair_step<T, true>(w, v, plane, row, columns, x, k0, lane, grid, w_sums, v_sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        experts_pair_step<T, false>(w, v, plane, row, columns, x, k0, lane, grid, w_sums, v_sums);
    }
}

[[max_total_threads_per_threadgroup(EXPERT_SIMDGROUPS * 32)]]
kernel void experts_gate_up(device const uchar *gate       [[buffer(0)]],
                            device const uchar *up         [[buffer(1)]],
                            device const float *x          [[buffer(2)]],
                            device const int *ids          [[buffer(3)]],
                            device const float *weights    [[buffer(4)]],
                            device const float *shared_gate [[buffer(5)]],
                            device const float *shared_up  [[buffer(6)]],
                            device float *h                [[buffer(7)]],
                            constant gpu_experts &p        [[buffer(8)]],
                            uint2 tg                       [[threadgroup_position_in_grid]],
                            ushort tid                     [[thread_index_in_threadgroup]],
                            ushort sg                      [[simdgroup_index_in_threadgroup]],
                            ushort lane                    [[thread_index_in_simdgroup]])
{
    if (tg.y >= p.n * p.used) {
        // Behind the routed rows of h: those of the shared expert, whose products were made before.
        const uint token = tg.y - p.n * p.used;
        const ulong from = ulong(token) * p.shared_inner;
        device float *out = h + ulong(p.n) * p.used * p.inner + from;
        for (uint i = tg.x * 128 + tid; i < p.shared_inner; i += p.inner / EXPERT_ROWS * 128) {
            out[i] = experts_glu(shared_gate[from + i], shared_up[from + i], p.shared_clamp);
        }
        return;
    }
    threadgroup uint2 grid[256];
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, EXPERT_SIMDGROUPS * 32); }
    // inner is a multiple of 32: no tile is cut.
    const uint row = tg.x * EXPERT_ROWS + sg * EXPERT_SIMD_ROWS;
    const ulong line = ulong(ids[tg.y]) * p.inner + row;
    device const float *token = x + ulong(tg.y / p.used) * p.hidden;
    float g[EXPERT_SIMD_ROWS];
    float u[EXPERT_SIMD_ROWS];
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        g[r] = 0.0f;
        u[r] = 0.0f;
    }
#define GATE_UP_BODY(T) experts_dot_pair<T>(gate, up, p.plane, line, p.hidden, token, lane, grid, g, u)
    QUANT_SWITCH(p.type, GATE_UP_BODY)
#undef GATE_UP_BODY
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        const float gs = simd_sum(g[r]), us = simd_sum(u[r]);
        if (lane == 0) { h[ulong(tg.y) * p.inner + row + r] = experts_glu(gs, us, p.clamp) * weights[tg.y]; }
    }
}

[[max_total_threads_per_threadgroup(EXPERT_SIMDGROUPS * 32)]]
kernel void experts_down(device const uchar *down          [[buffer(0)]],
                         device const uchar *shared_down   [[buffer(1)]],
                         device const float *h             [[buffer(2)]],
                         device const int *ids             [[buffer(3)]],
                         device float *y                   [[buffer(4)]],
                         constant gpu_experts &p           [[buffer(5)]],
                         uint2 tg                          [[threadgroup_position_in_grid]],
                         ushort tid                        [[thread_index_in_threadgroup]],
                         ushort sg                         [[simdgroup_index_in_threadgroup]],
                         ushort lane                       [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[256];
    if (p.down_type == GPU_IQ2_XXS_PLANES || p.shared_type == GPU_IQ2_XXS_PLANES) {
        quant_fill_grid(grid, tid, EXPERT_SIMDGROUPS * 32);
    }
    const uint row = tg.x * EXPERT_ROWS + sg * EXPERT_SIMD_ROWS;
    float sums[EXPERT_SIMD_ROWS];
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) { sums[r] = 0.0f; }
    for (uint j = 0; j < p.used; ++j) {
        const ulong assignment = ulong(tg.y) * p.used + j;
        const ulong line = ulong(ids[assignment]) * p.hidden + row;
#define DOWN_BODY(T) experts_dot<T>(down, p.down_plane, line, p.inner, h + assignment * p.inner, lane, grid, sums)
        QUANT_SWITCH(p.down_type, DOWN_BODY)
#undef DOWN_BODY
    }
    device const float *shared = h + ulong(p.n) * p.used * p.inner + ulong(tg.y) * p.shared_inner;
#define SHARED_BODY(T) experts_dot<T>(shared_down, p.shared_plane, row, p.shared_inner, shared, lane, grid, sums)
    QUANT_SWITCH(p.shared_type, SHARED_BODY)
#undef SHARED_BODY
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        const float sum = simd_sum(sums[r]);
        if (lane == 0) { y[ulong(tg.y) * p.hidden + row + r] = sum; }
    }
}

// ---------------------------------------------------------------- many tokens

#define SORT_THREADS 1024
#define SORT_MOST 1024  // experts

// A stable counting sort: thread e walks over all assignments of expert e.
[[max_total_threads_per_threadgroup(SORT_THREADS)]]
kernel void experts_sort(device const int *ids        [[buffer(0)]],
                         device uint *order           [[buffer(1)]],
                         device uint *place           [[buffer(2)]],
                         device uint4 *tiles          [[buffer(3)]],
                         constant gpu_experts &p      [[buffer(4)]],
                         ushort tid                   [[thread_index_in_threadgroup]],
                         ushort sg                    [[simdgroup_index_in_threadgroup]],
                         ushort lane                  [[thread_index_in_simdgroup]])
{
    threadgroup atomic_uint counts[SORT_MOST];
    threadgroup uint partial[32];
    threadgroup uint partial_tiles[32];
    const uint assignments = p.n * p.used;
    atomic_store_explicit(&counts[tid], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < assignments; i += SORT_THREADS) {
        atomic_fetch_add_explicit(&counts[ids[i]], 1u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Where each expert begins, in places and in tiles.
    const uint count = atomic_load_explicit(&counts[tid], memory_order_relaxed);
    const uint own_tiles = (count + p.tile - 1) / p.tile;
    const uint before = simd_prefix_exclusive_sum(count), tiles_before = simd_prefix_exclusive_sum(own_tiles);
    const uint group = simd_sum(count), group_tiles = simd_sum(own_tiles);
    if (lane == 0) {
        partial[sg] = group;
        partial_tiles[sg] = group_tiles;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint groups = partial[lane], groups_tiles = partial_tiles[lane];
    const uint begin = before + simd_sum(lane < sg ? groups : 0u);
    const uint first_tile = tiles_before + simd_sum(lane < sg ? groups_tiles : 0u);
    const uint all_tiles = simd_sum(groups_tiles);
    for (uint i = 0; i < own_tiles; ++i) {
        tiles[first_tile + i] = uint4(tid, begin + i * p.tile, min(count - i * p.tile, p.tile), 0);
    }
    const uint most_tiles = assignments / p.tile + min(p.experts, assignments);
    for (uint i = all_tiles + tid; i < most_tiles; i += SORT_THREADS) { tiles[i] = uint4(0, 0, 0, 0); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_store_explicit(&counts[tid], begin, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // The order inside an expert does not matter: every place is written and read by its own number.
    for (uint i = tid; i < assignments; i += SORT_THREADS) {
        const uint at = atomic_fetch_add_explicit(&counts[ids[i]], 1u, memory_order_relaxed);
        order[at] = i;
        place[i] = at;
    }
}

kernel void experts_swiglu(device float *gate            [[buffer(0)]],
                           device const float *up        [[buffer(1)]],
                           device const uint *order      [[buffer(2)]],
                           device const float *weights   [[buffer(3)]],
                           constant gpu_experts &p       [[buffer(4)]],
                           uint2 i                       [[thread_position_in_grid]])
{
    if (i.x >= p.inner) { return; }
    const ulong at = ulong(i.y) * p.inner + i.x;
    gate[at] = experts_glu(gate[at], up[at], p.clamp) * weights[order[i.y]];
}

kernel void shared_swiglu(device float *gate            [[buffer(0)]],
                          device const float *up        [[buffer(1)]],
                          constant gpu_experts &p       [[buffer(2)]],
                          uint2 i                       [[thread_position_in_grid]])
{
    if (i.x >= p.shared_inner) { return; }
    const ulong at = ulong(i.y) * p.shared_inner + i.x;
    gate[at] = experts_glu(gate[at], up[at], p.shared_clamp);
}

kernel void experts_sum(device const float *parts       [[buffer(0)]],
                        device const uint *place        [[buffer(1)]],
                        device float *y                 [[buffer(2)]],
                        constant gpu_experts &p         [[buffer(3)]],
                        uint2 i                         [[thread_position_in_grid]])
{
    if (i.x >= p.hidden) { return; }
    float sum = 0.0f;
    for (uint j = 0; j < p.used; ++j) { sum += parts[ulong(place[i.y * p.used + j]) * p.hidden + i.x]; }
    y[ulong(i.y) * p.hidden + i.x] += sum;
}

#line 1 "hyper_connection.metal"
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
#line 1 "hyper_connection.h"
// hyper_connection.h — what both files of hyper-connection kernels know.
#ifndef PYDS4_HYPER_CONNECTION_H
#define PYDS4_HYPER_CONNECTION_H
#include <metal_stdlib>
#line 6 "hyper_connection.h"
using namespace metal;

#define HC_PARTS 4  // of an output, as many as streams
#define HC_OUTPUTS 24
#define HC_LINE(outputs) ((outputs) + 4)  // floats from one line of a mix to the next

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

#endif

#line 19 "hyper_connection.metal"
#line 20 "hyper_connection.metal"
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

#line 1 "hyper_connection_mix.metal"
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
#line 14 "hyper_connection_mix.metal"
#line 15 "hyper_connection_mix.metal"
#line 16 "hyper_connection_mix.metal"
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

#line 1 "indexer.metal"
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
#line 19 "indexer.metal"
#line 20 "indexer.metal"
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

#line 1 "indexer_top.metal"
// indexer_top.metal — which compressed rows a token attends to (report §2.3.1).
//
//   indexer_top_k   scores [n, stride]   -> selected [n, top], ascending; counts [n]
//
// The `top` highest stay (ties: the lower row). A token that sees no more than `top` rows keeps them all.
//
// Grid       tokens
// CPU twin   CKernels/indexer_top.c
// Origin     ours
#include <metal_stdlib>
#line 12 "indexer_top.metal"
using namespace metal;

#define TOP_THREADS 1024
#define TOP_MINE 8  // consecutive scores of a thread
#define TOP_BLOCK (TOP_THREADS * TOP_MINE)
#define TOP_BINS (256 + 256 / 8)

// Floats as integers of the same order; NaN becomes the lowest.
inline uint top_key(float x) {
    const uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0u; }
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// Keys of scores `first` … as a thread has them. Past the end they are the lowest, and last of those.
inline void top_load(thread uint *keys, device const float *score, uint first, uint count, bool is_aligned) {
    if (is_aligned && first + TOP_MINE <= count) {
        const float4 a = *(device const float4 *)(score + first), b = *(device const float4 *)(score + first + 4);
        keys[0] = top_key(a.x);
        keys[1] = top_key(a.y);
        keys[2] = top_key(a.z);
        keys[3] = top_key(a.w);
        keys[4] = top_key(b.x);
        keys[5] = top_key(b.y);
        keys[6] = top_key(b.z);
        keys[7] = top_key(b.w);
        return;
    }
    #pragma unroll
    for (ushort j = 0; j < TOP_MINE; ++j) { keys[j] = first + j < count ? top_key(score[first + j]) : 0u; }
}

// Eight neighbours lie in different banks for the lanes that add them up.
inline uint top_bin(uint digit) { return digit + digit / 8; }

// The lowest key that stays is found digit by digit, from counts of keys that begin as it does. Keys of up to
// TOP_BLOCK scores stay in registers all the while.
[[max_total_threads_per_threadgroup(TOP_THREADS)]]
kernel void indexer_top_k(device const float *scores         [[buffer(0)]],
                          device const int *positions        [[buffer(1)]],
                          device int *selected               [[buffer(2)]],
                          device int *counts                 [[buffer(3)]],
                          constant gpu_indexer &p            [[buffer(4)]],
                          uint token                         [[threadgroup_position_in_grid]],
                          ushort tid                         [[thread_index_in_threadgroup]],
                          ushort sg                          [[simdgroup_index_in_threadgroup]],
                          ushort lane                        [[thread_index_in_simdgroup]])
{
    threadgroup atomic_uint bins[2 * TOP_BINS];  // one half counts while the other is cleared
    threadgroup uint found[2];                   // prefix so far, how many still wanted
    threadgroup uint groups[2 * 32];
    const uint in_sight = uint(positions[token] + 1) / p.ratio;
    device const float *score = scores + ulong(token) * p.stride;
    device int *out = selected + ulong(token) * p.top;
    if (tid == 0) { counts[token] = int(min(in_sight, p.top)); }
    if (in_sight <= p.top) {
        for (uint i = tid; i < in_sight; i += TOP_THREADS) { out[i] = int(i); }
        return;
    }
    const bool is_aligned = p.stride % 4 == 0, is_short = in_sight <= TOP_BLOCK;
    uint keys[TOP_MINE];
    top_load(keys, score, tid * TOP_MINE, in_sight, is_aligned);
    if (tid < TOP_BINS) { atomic_store_explicit(&bins[tid], 0u, memory_order_relaxed); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint prefix = 0, mask = 0, wanted = p.top;
    for (int shift = 24; shift >= 0; shift -= 8) {
        threadgroup atomic_uint *here = shift % 16 == 8 ? bins : bins + TOP_BINS;
        threadgroup atomic_uint *other = shift % 16 == 8 ? bins + TOP_BINS : bins;
        for (uint base = 0; base < in_sight; base += TOP_BLOCK) {
            if (!is_short) { top_load(keys, score, base + tid * TOP_MINE, in_sight, is_aligned); }
            #pragma unroll
            for (ushort j = 0; j < TOP_MINE; ++j) {
                if ((keys[j] & mask) == prefix) {
                    atomic_fetch_add_explicit(&here[top_bin((keys[j] >> shift) & 255u)], 1u, memory_order_relaxed);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0) {
            // Lane l looks at bins 255 - 8·l downwards.
            uint count[8], mine = 0;
            #pragma unroll
            for (ushort i = 0; i < 8; ++i) {
                count[i] = atomic_load_explicit(&here[top_bin(255u - 8u * lane - i)], memory_order_relaxed);
                mine += count[i];
            }
            uint higher = simd_prefix_exclusive_sum(mine);
            #pragma unroll
            for (ushort i = 0; i < 8; ++i) {
                if (higher < wanted && wanted <= higher + count[i]) {
                    found[0] = prefix | (255u - 8u * lane - i) << shift;
                    found[1] = wanted - higher;
                }
                higher += count[i];
            }
        } else if (tid - 32u < TOP_BINS) {
            atomic_store_explicit(&other[tid - 32], 0u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix = found[0];
        wanted = found[1];
        mask |= 255u << shift;
    }
    // Everything above the threshold, and the first `wanted` that equal it, in ascending order. Counts of
    // both are added up at once, those above in the upper half.
    uint above = 0, equal = 0, slot = 0;
    for (uint base = 0; base < in_sight; base += TOP_BLOCK) {
        const uint first = base + tid * TOP_MINE;
        if (!is_short) { top_load(keys, score, first, in_sight, is_aligned); }
        uint mine = 0;
        #pragma unroll
        for (ushort j = 0; j < TOP_MINE; ++j) { mine += keys[j] > prefix ? 0x10000u : keys[j] == prefix ? 1u : 0u; }
        const uint before = simd_prefix_exclusive_sum(mine);
        if (lane == 31) { groups[slot + sg] = before + mine; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint group = groups[slot + lane], all = simd_sum(group);
        const uint earlier = before + simd_sum(lane < sg ? group : 0u);
        uint above_mine = above + (earlier >> 16), equal_mine = equal + (earlier & 0xffffu);
        #pragma unroll
        for (ushort j = 0; j < TOP_MINE; ++j) {
            const bool is_above = keys[j] > prefix, is_equal = keys[j] == prefix;
            if (is_above || (is_equal && equal_mine < wanted)) { out[above_mine + min(equal_mine, wanted)] = int(first + j); }
            above_mine += is_above ? 1u : 0u;
            equal_mine += is_equal ? 1u : 0u;
        }
        above += all >> 16;
        equal += all & 0xffffu;
        slot ^= 32u;
    }
}

#line 1 "kv_rows.metal"
// kv_rows.metal — making rows of attention memory.
//
//   kv_key_rows        kv [n, dim], norm, table      -> rows, normed, rotated, encoded
//   kv_index_queries   q [n, heads, dim], table      -> rotated and, if asked, rounded as FP4 rows are
//
// Grid       key rows: one threadgroup a token; index queries: x eight heads, a simdgroup each, y tokens
// Precision  f32 up to the rounding; agrees with the CPU but where a value lies between two codes
// CPU twin   CKernels/kv_rows.c
// Origin     ours
#include <metal_stdlib>
#line 12 "kv_rows.metal"
using namespace metal;

#define INDEX_THREADS 256

[[max_total_threads_per_threadgroup(KV_THREADS)]]
kernel void kv_key_rows(device const float *kv        [[buffer(0)]],
                        device const float *norm      [[buffer(1)]],
                        device const float2 *table    [[buffer(2)]],
                        device uchar *rows            [[buffer(3)]],
                        constant gpu_key_rows &p      [[buffer(4)]],
                        uint token                    [[threadgroup_position_in_grid]],
                        ushort tid                    [[thread_index_in_threadgroup]],
                        ushort sg                     [[simdgroup_index_in_threadgroup]],
                        ushort lane                   [[thread_index_in_simdgroup]])
{
    threadgroup float2 shared[KV_THREADS];
    threadgroup float partial[32];
    const uint dim = p.format.dim, plain = dim - p.format.rope;
    const bool isOwn = 2u * tid < dim, turns = isOwn && 2u * tid >= plain;
    float2 v = float2(0.0f), weight = float2(0.0f), turn = float2(1.0f, 0.0f);
    if (isOwn) {
        v = ((device const float2 *)(kv + ulong(token) * dim))[tid];
        weight = ((device const float2 *)norm)[tid];
    }
    if (turns) { turn = table[ulong(token) * (p.format.rope / 2) + tid - plain / 2]; }
    v = kv_norm(v, weight, dim, p.epsilon, partial, sg, lane);
    if (turns) { v = kv_turn(v, turn); }
    kv_encode(p.format, v, shared, rows + ulong(token) * p.format.bytes, tid, sg, lane);
}

// A lane holds values 128 · e + 4 · lane … of the row, 4 · EACH in all.
template <ushort EACH>
inline void index_query(device float *row, device const float2 *table, constant gpu_index_queries &p, ushort lane) {
    const uint plain = p.dim - p.rope;
    float4 v[EACH];
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        v[e] = i < p.dim ? *(device const float4 *)(row + i) : float4(0.0f);
    }
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        if (i >= plain && i < p.dim) { v[e].xy = kv_turn(v[e].xy, table[(i - plain) / 2]); }
        if (i + 2 >= plain && i < p.dim) { v[e].zw = kv_turn(v[e].zw, table[(i + 2 - plain) / 2]); }
    }
    if (p.rounded != 0u) {
        // Sylvester's matrix, as kv_hadamard.
        #pragma unroll
        for (ushort e = 0; e < EACH; ++e) {
            v[e] = float4(v[e].x + v[e].y, v[e].x - v[e].y, v[e].z + v[e].w, v[e].z - v[e].w);
            v[e] = float4(v[e].x + v[e].z, v[e].y + v[e].w, v[e].x - v[e].z, v[e].y - v[e].w);
            #pragma unroll
            for (ushort bit = 1; bit < 32; bit *= 2) {
                const bool isUpper = (lane & bit) != 0;
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) {
                    const float own = v[e][j], other = simd_shuffle_xor(own, bit);
                    v[e][j] = 4u * bit < p.dim ? kv_butterfly(own, other, isUpper) : own;
                }
            }
        }
        #pragma unroll
        for (ushort step = 1; step < EACH; step *= 2) {
            #pragma unroll
            for (ushort e = 0; e < EACH; ++e) {
                if ((e & step) == 0) {
                    const float4 low = v[e], high = v[e + step];
                    v[e] = low + high;
                    v[e + step] = low - high;
                }
            }
        }
        const float factor = 1.0f / sqrt(float(p.dim));
        #pragma unroll
        for (ushort e = 0; e < EACH; ++e) {
            const float4 x = v[e] * factor;
            float most = max(max(fabs(x.x), fabs(x.y)), max(fabs(x.z), fabs(x.w)));
            for (ushort bit = 1; bit < 8; bit *= 2) { most = max(most, simd_shuffle_xor(most, bit)); }
            const uint scale = kv_fp4_scale(most);
            const float inverse = kv_inverse_power(scale), power = kv_power(scale);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { v[e][j] = kv_e2m1_decode(kv_e2m1_encode(x[j] * inverse)) * power; }
        }
    }
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        if (i < p.dim) { *(device float4 *)(row + i) = v[e]; }
    }
}

[[max_total_threads_per_threadgroup(INDEX_THREADS)]]
kernel void kv_index_queries(device float *q                 [[buffer(0)]],
                             device const float2 *table      [[buffer(1)]],
                             constant gpu_index_queries &p   [[buffer(2)]],
                             uint2 tg                        [[threadgroup_position_in_grid]],
                             ushort sg                       [[simdgroup_index_in_threadgroup]],
                             ushort lane                     [[thread_index_in_simdgroup]])
{
    const uint head = tg.x * (INDEX_THREADS / 32) + sg;
    if (head >= p.heads) { return; }
    device float *row = q + (ulong(tg.y) * p.heads + head) * p.dim;
    table += ulong(tg.y) * (p.rope / 2);
    if (p.dim <= 128) {
        index_query<1>(row, table, p, lane);
    } else if (p.dim <= 256) {
        index_query<2>(row, table, p, lane);
    } else {
        index_query<4>(row, table, p, lane);
    }
}

#line 1 "matmul.metal"
// matmul.metal — matrix products.
//
//   matvec_1, matvec_4   up to 8 matrices × 1 (4) tokens at a time       -> y [n, rows] each
//   matvec_common        matvec_1 for F32, F16 and Q8_0 planes only: fewer registers, more loads in flight
//   matmul_tile          one matrix × many tokens on the matrix units    -> y [n, rows]
//   matmul_experts       the same for sorted assignments to experts      -> y [assignments, rows]
//   matmul_embed         rows of a table                                  -> x [n, columns]
//   quant_repack_*       GGUF blocks -> aligned planes, once at load
//
// Grid       matvec: x row tiles of MATVEC_ROWS over all jobs, y groups of tokens; tiles: x rows / 128,
//            y tokens / 64
// Precision  matvec: weights and activations f32. Tiles: both rounded to half, sums f32
// Arguments  gpu_matvec, gpu_matmul in kernel_args.h
// CPU twin   CKernels/matmul.c, which rounds activations to int8 instead
// Origin     ours
#include <metal_stdlib>
#line 18 "matmul.metal"
#line 19 "matmul.metal"
#line 1 "jobs.h"
// jobs.h — launches that multiply several matrices.
#ifndef PYDS4_JOBS_H
#define PYDS4_JOBS_H
#include <metal_stdlib>
#line 6 "jobs.h"
using namespace metal;

// Which job a row tile belongs to.
inline uint matvec_find(constant gpu_matvec &p, uint tile) {
    uint j = 0;
    while (j + 1u < p.jobs && tile >= p.job[j + 1u].first_tile) { j += 1u; }
    return j;
}

inline device const uchar *matvec_weights(uint j, device const uchar *w0, device const uchar *w1,
                                          device const uchar *w2, device const uchar *w3, device const uchar *w4,
                                          device const uchar *w5, device const uchar *w6, device const uchar *w7) {
    return j < 4u ? (j < 2u ? (j == 0u ? w0 : w1) : (j == 2u ? w2 : w3))
                  : (j < 6u ? (j == 4u ? w4 : w5) : (j == 6u ? w6 : w7));
}
#endif

#line 20 "matmul.metal"
using namespace metal;

#define MATVEC_SIMDGROUPS 4
#define MATVEC_SIMD_ROWS 2
#define MATVEC_ROWS (MATVEC_SIMDGROUPS * MATVEC_SIMD_ROWS)

// Adds 512 columns from k0 on: sums[r][t].
template <uint T, ushort R, ushort N, bool FULL>
inline void matvec_step(device const uchar *w, ulong plane, uint row, uint rows, uint columns, device const float *x,
                        uint ldx, uint n, uint k0, ushort lane, threadgroup const uint2 *grid,
                        thread float (&sums)[R][N]) {
    float4 v[R][4];
    #pragma unroll
    for (ushort r = 0; r < R; ++r) {
        // A row past the end repeats the last one; its sum is not written.
        quant_lane16<T, FULL>(w, plane, min(row + r, rows - 1), columns, k0, lane, grid, v[r]);
    }
    #pragma unroll
    for (ushort t = 0; t < N; ++t) {
        float4 a[4];
        quant_lane_x<T, FULL>(x + ulong(min(uint(t), n - 1)) * ldx, columns, k0, lane, a);
        #pragma unroll
        for (ushort r = 0; r < R; ++r) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { sums[r][t] += dot(v[r][j], a[j]); }
        }
    }
}

// Sum over lanes, rows and tokens of one simdgroup: sums[r][t].
template <uint T, ushort R, ushort N>
inline void matvec_sums(device const uchar *w, ulong plane, uint row, uint rows, uint columns, device const float *x,
                        uint ldx, uint n, ushort lane, threadgroup const uint2 *grid, thread float (&sums)[R][N]) {
    for (ushort r = 0; r < R; ++r) {
        for (ushort t = 0; t < N; ++t) { sums[r][t] = 0.0f; }
    }
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        matvec_step<T, R, N, true>(w, plane, row, rows, columns, x, ldx, n, k0, lane, grid, sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        matvec_step<T, R, N, false>(w, plane, row, rows, columns, x, ldx, n, k0, lane, grid, sums);
    }
    #pragma unroll
    for (ushort r = 0; r < R; ++r) {
        #pragma unroll
        for (ushort t = 0; t < N; ++t) { sums[r][t] = simd_sum(sums[r][t]); }
    }
}

template <uint T, ushort N>
inline void matvec_job(device const uchar *w, constant gpu_matrix_job &job, device const float *x, device float *y,
                       uint ldx, uint n, uint tile, ushort sg, ushort lane, threadgroup const uint2 *grid) {
    const uint row = tile * MATVEC_ROWS + sg * MATVEC_SIMD_ROWS;
    if (row >= job.rows) { return; }
    float sums[MATVEC_SIMD_ROWS][N];
    matvec_sums<T, MATVEC_SIMD_ROWS, N>(w, job.plane, row, job.rows, job.columns,
                                        x + ulong(row / job.group_rows) * job.columns, ldx, n, lane, grid, sums);
    if (lane == 0) {
        for (ushort r = 0; r < MATVEC_SIMD_ROWS; ++r) {
            for (ushort t = 0; t < N; ++t) {
                if (row + r < job.rows && t < n) { y[job.out + ulong(t) * job.rows + row + r] = sums[r][t]; }
            }
        }
    }
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
kernel void matvec_common(device const uchar *w0     [[buffer(0)]],
                          device const uchar *w1     [[buffer(1)]],
                          device const uchar *w2     [[buffer(2)]],
                          device const uchar *w3     [[buffer(3)]],
                          device const uchar *w4     [[buffer(4)]],
                          device const uchar *w5     [[buffer(5)]],
                          device const uchar *w6     [[buffer(6)]],
                          device const uchar *w7     [[buffer(7)]],
                          device const float *x      [[buffer(8)]],
                          device float *y            [[buffer(9)]],
                          constant gpu_matvec &p     [[buffer(10)]],
                          uint2 tg                   [[threadgroup_position_in_grid]],
                          ushort sg                  [[simdgroup_index_in_threadgroup]],
                          ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[1];  // of no use to these formats
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile;
    device const float *from = x + ulong(tg.y) * p.ldx;
    device float *to = y + ulong(tg.y) * p.job[j].rows;
    switch (p.job[j].type) {
    case GPU_F32: matvec_job<GPU_F32, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid); break;
    case GPU_F16: matvec_job<GPU_F16, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid); break;
    default: matvec_job<GPU_Q8_0_PLANES, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid);
    }
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
kernel void matvec_1(device const uchar *w0     [[buffer(0)]],
                     device const uchar *w1     [[buffer(1)]],
                     device const uchar *w2     [[buffer(2)]],
                     device const uchar *w3     [[buffer(3)]],
                     device const uchar *w4     [[buffer(4)]],
                     device const uchar *w5     [[buffer(5)]],
                     device const uchar *w6     [[buffer(6)]],
                     device const uchar *w7     [[buffer(7)]],
                     device const float *x      [[buffer(8)]],
                     device float *y            [[buffer(9)]],
                     constant gpu_matvec &p     [[buffer(10)]],
                     uint2 tg                   [[threadgroup_position_in_grid]],
                     ushort tid                 [[thread_index_in_threadgroup]],
                     ushort sg                  [[simdgroup_index_in_threadgroup]],
                     ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[256];
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile;
    device const float *from = x + ulong(tg.y) * p.ldx;
    device float *to = y + ulong(tg.y) * p.job[j].rows;
    if (p.job[j].type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, MATVEC_SIMDGROUPS * 32); }
#define MATVEC_BODY(T) matvec_job<T, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid)
    QUANT_SWITCH(p.job[j].type, MATVEC_BODY)
#undef MATVEC_BODY
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
kernel void matvec_4(device const uchar *w0     [[buffer(0)]],
                     device const uchar *w1     [[buffer(1)]],
                     device const uchar *w2     [[buffer(2)]],
                     device const uchar *w3     [[buffer(3)]],
                     device const uchar *w4     [[buffer(4)]],
                     device const uchar *w5     [[buffer(5)]],
                     device const uchar *w6     [[buffer(6)]],
                     device const uchar *w7     [[buffer(7)]],
                     device const float *x      [[buffer(8)]],
                     device float *y            [[buffer(9)]],
                     constant gpu_matvec &p     [[buffer(10)]],
                     uint2 tg                   [[threadgroup_position_in_grid]],
                     ushort tid                 [[thread_index_in_threadgroup]],
                     ushort sg                  [[simdgroup_index_in_threadgroup]],
                     ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint2 grid[256];
    const uint j = matvec_find(p, tg.x);
    device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile, first = tg.y * 4u;
    device const float *from = x + ulong(first) * p.ldx;
    device float *to = y + ulong(first) * p.job[j].rows;
    if (p.job[j].type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, MATVEC_SIMDGROUPS * 32); }
#define MATVEC_BODY(T) matvec_job<T, 4>(w, p.job[j], from, to, p.ldx, min(p.n - first, 4u), tile, sg, lane, \
                                     grid)
    QUANT_SWITCH(p.job[j].type, MATVEC_BODY)
#undef MATVEC_BODY
}

[[max_total_threads_per_threadgroup(256)]]
kernel void matmul_embed(device const uchar *table  [[buffer(0)]],
                         device const int *tokens   [[buffer(1)]],
                         device float *x            [[buffer(2)]],
                         constant gpu_embed &p      [[buffer(3)]],
                         uint token                 [[threadgroup_position_in_grid]],
                         ushort tid                 [[thread_index_in_threadgroup]])
{
    for (uint k = tid * 16u; k < p.columns; k += 4096u) {
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
#define EMBED_BODY(T) quant_load16<T>(table, p.plane, ulong(tokens[token]), p.columns, k, v)
        QUANT_SWITCH(p.type, EMBED_BODY)
#undef EMBED_BODY
        device float4 *out = (device float4 *)(x + ulong(token) * p.columns + k);
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]); }
    }
}

// One thread a block: 34 bytes -> 32 quants and a scale.
kernel void quant_repack_q8_0(device const ushort *blocks [[buffer(0)]],
                              device uchar *planes        [[buffer(1)]],
                              constant gpu_repack &p      [[buffer(2)]],
                              uint i                      [[thread_position_in_grid]])
{
    if (ulong(i) >= p.blocks) { return; }
    device const ushort *block = blocks + ulong(i) * 17;
    const ulong place = p.first_block + i;
    device ushort *quants = (device ushort *)(planes + place * 32);
    *(device ushort *)(planes + p.plane + place * 2) = block[0];
    for (ushort j = 0; j < 16; ++j) { quants[j] = block[1 + j]; }
}

// 84 bytes -> 64 of quants, 16 of sub-block scales, d and dmin.
kernel void quant_repack_q2_k(device const uint *blocks [[buffer(0)]],
                              device uchar *planes      [[buffer(1)]],
                              constant gpu_repack &p    [[buffer(2)]],
                              uint i                    [[thread_position_in_grid]])
{
    if (ulong(i) >= p.blocks) { return; }
    device const uint *block = blocks + ulong(i) * 21;
    const ulong place = p.first_block + i;
    device uint *scales = (device uint *)(planes + p.plane + place * 16);
    device uint *quants = (device uint *)(planes + place * 64);
    for (ushort j = 0; j < 4; ++j) { scales[j] = block[j]; }
    for (ushort j = 0; j < 16; ++j) { quants[j] = block[4 + j]; }
    *(device uint *)(planes + p.plane + p.plane / 4 + place * 4) = block[20];
}

// 66 bytes -> eight groups and a scale.
kernel void quant_repack_iq2_xxs(device const ushort *blocks [[buffer(0)]],
                                 device uchar *planes        [[buffer(1)]],
                                 constant gpu_repack &p      [[buffer(2)]],
                                 uint i                      [[thread_position_in_grid]])
{
    if (ulong(i) >= p.blocks) { return; }
    device const ushort *block = blocks + ulong(i) * 33;
    const ulong place = p.first_block + i;
    device ushort *groups = (device ushort *)(planes + place * 64);
    *(device ushort *)(planes + p.plane + place * 2) = block[0];
    for (ushort j = 0; j < 32; ++j) { groups[j] = block[1 + j]; }
}

// ---------------------------------------------------------------- tiles

#define TILE_GRID 256
#define TILE_TOKENS 64
#define TILE_ROWS 128
#define TILE_K 32
#define TILE_LD (TILE_K + 8)  // in halfs: rows fall into different banks and stay aligned to 16 bytes
#define TILE_THREADS 128
#define TILE_SLAB (TILE_TOKENS * TILE_LD + TILE_ROWS * TILE_LD)

inline void tile_put16(threadgroup half *to, thread const uint2 *v) {
    *(threadgroup uint4 *)to = uint4(v[0], v[1]);
    *(threadgroup uint4 *)(to + 8) = uint4(v[2], v[3]);
}

inline void tile_put16(threadgroup half *to, thread const float *v) {
    for (ushort j = 0; j < 2; ++j) {
        half4 a = half4(float4(v[8 * j], v[8 * j + 1], v[8 * j + 2], v[8 * j + 3]));
        half4 b = half4(float4(v[8 * j + 4], v[8 * j + 5], v[8 * j + 6], v[8 * j + 7]));
        const uint2 low = as_type<uint2>(a), high = as_type<uint2>(b);
        *(threadgroup uint4 *)(to + 8 * j) = uint4(low, high);
    }
}

// y[m, r] for 64 rows of x and 128 rows of w. `source`: the row of x for this thread, which fetches
// half of a 32-wide piece of one row of x and of two rows of w. `base`: rows of w before the first.
template <uint T>
inline void tile_product(device const uchar *w, ulong plane, ulong base, uint row, uint rows, uint columns,
                         device const float *source, threadgroup uint4 *memory, threadgroup const uint2 *grid,
                         device float *y, uint ldy, uint n, ushort tid, ushort sg, ushort lane) {
    threadgroup half *slabs = (threadgroup half *)memory;
    const ushort wm = (sg / 2) * 32, wn = (sg % 2) * 64;
    tile_c acc[2][4];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { tile_zero(acc[i][j]); }
    }
    const ushort piece = (tid & 1) * 16, line = tid / 2;
    const uint row0 = min(row + line, rows - 1), row1 = min(row + line + 64, rows - 1);
    float v[16];
    uint2 u[2][4];
    for (uint k0 = 0; k0 < columns + TILE_K; k0 += TILE_K) {
        threadgroup half *next = slabs + ((k0 / TILE_K) & 1u) * TILE_SLAB;
        if (k0 < columns) {
            device const float4 *x4 = (device const float4 *)(source + k0 + piece);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const float4 a = x4[j];
                v[4 * j] = a.x;
                v[4 * j + 1] = a.y;
                v[4 * j + 2] = a.z;
                v[4 * j + 3] = a.w;
            }
            quant_half16<T>(w, plane, base + row0, columns, k0 + piece, grid, u[0]);
            quant_half16<T>(w, plane, base + row1, columns, k0 + piece, grid, u[1]);
        }
        if (k0 > 0) {
            // The slab before, while the loads above are under way.
            threadgroup half *sa = slabs + (((k0 / TILE_K) & 1u) ^ 1u) * TILE_SLAB;
            threadgroup half *sb = sa + TILE_TOKENS * TILE_LD;
            #pragma unroll
            for (ushort kk = 0; kk < TILE_K; kk += TILE) {
                tile_a a[2];
                tile_b b[4];
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) { tile_load_a(a[i], sa + (wm + i * TILE) * TILE_LD + kk, TILE_LD, lane); }
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) { tile_load_bt(b[j], sb + (wn + j * TILE) * TILE_LD + kk, TILE_LD, lane); }
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) {
                    #pragma unroll
                    for (ushort j = 0; j < 4; ++j) { tile_mma(acc[i][j], a[i], b[j]); }
                }
            }
        }
        if (k0 < columns) {
            tile_put16(next + line * TILE_LD + piece, v);
            tile_put16(next + (TILE_TOKENS + line) * TILE_LD + piece, u[0]);
            tile_put16(next + (TILE_TOKENS + line + 64) * TILE_LD + piece, u[1]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Through threadgroup memory, 16 × 16 values a simdgroup: rows past the end are not written.
    threadgroup float *mine = (threadgroup float *)memory + sg * (TILE * TILE);
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_stage(acc[i][j], mine, TILE, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            const uint column = row + wn + j * TILE + (lane & 15);
            for (ushort e = lane / 16; e < TILE; e += 2) {
                const uint m = wm + i * TILE + e;
                if (m < n && column < rows) { y[ulong(m) * ldy + column] = mine[e * TILE + (lane & 15)]; }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

#define TILE_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    QUANT_CASE(GPU_MXFP4, BODY) \
    QUANT_CASE(GPU_Q2_K, BODY) \
    QUANT_CASE(GPU_Q2_K_PLANES, BODY) \
    QUANT_CASE(GPU_Q4_K, BODY) \
    QUANT_CASE(GPU_IQ2_XXS, BODY) \
    QUANT_CASE(GPU_IQ2_XXS_PLANES, BODY) \
    default: break; \
    }

[[max_total_threads_per_threadgroup(TILE_THREADS)]]
kernel void matmul_tile(device const uchar *w      [[buffer(0)]],
                        device const float *x      [[buffer(1)]],
                        device float *y            [[buffer(2)]],
                        constant gpu_matmul &p     [[buffer(3)]],
                        uint2 tg                   [[threadgroup_position_in_grid]],
                        ushort tid                 [[thread_index_in_threadgroup]],
                        ushort sg                  [[simdgroup_index_in_threadgroup]],
                        ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint4 slabs[2 * TILE_SLAB / 8];
    threadgroup uint2 grid[TILE_GRID];
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, TILE_THREADS); }
    const uint row = tg.x * TILE_ROWS, first = tg.y * TILE_TOKENS;
    const uint n = min(p.n - first, uint(TILE_TOKENS));
    device const float *source = x + ulong(first + min(uint(tid / 2), n - 1)) * p.ldx
                               + ulong(row / p.group_rows) * p.columns;
#define TILE_BODY(T) tile_product<T>(w, p.plane, 0, row, p.rows, p.columns, source, slabs, grid, \
                                     y + ulong(first) * p.ldy, p.ldy, n, tid, sg, lane)
    TILE_SWITCH(p.type, TILE_BODY)
#undef TILE_BODY
}

// tiles[i] = (expert, first place, places, 0); those past the last one have no places.
[[max_total_threads_per_threadgroup(TILE_THREADS)]]
kernel void matmul_experts(device const uchar *w      [[buffer(0)]],
                           device const float *x      [[buffer(1)]],
                           device float *y            [[buffer(2)]],
                           device const uint4 *tiles  [[buffer(3)]],
                           device const uint *order   [[buffer(4)]],
                           constant gpu_matmul &p     [[buffer(5)]],
                           uint2 tg                   [[threadgroup_position_in_grid]],
                           ushort tid                 [[thread_index_in_threadgroup]],
                           ushort sg                  [[simdgroup_index_in_threadgroup]],
                           ushort lane                [[thread_index_in_simdgroup]])
{
    threadgroup uint4 slabs[2 * TILE_SLAB / 8];
    threadgroup uint2 grid[TILE_GRID];
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, TILE_THREADS); }
    const uint row = tg.x * TILE_ROWS, place = tile.y + min(uint(tid / 2), tile.z - 1);
    device const float *source = x + ulong(p.gather == 0u ? place : order[place] / p.gather) * p.ldx;
#define TILE_BODY(T) tile_product<T>(w, p.plane, ulong(tile.x) * p.rows, row, p.rows, p.columns, source, \
                                     slabs, grid, y + ulong(tile.y) * p.ldy, p.ldy, tile.z, tid, sg, lane)
    TILE_SWITCH(p.type, TILE_BODY)
#undef TILE_BODY
}

#line 1 "rms_norm.metal"
// rms_norm.metal — y = x / sqrt(mean(x²) + eps) · weight
//
//   rms_norm_f32   x [n, width], weight [width]   -> y [n, width]; width a multiple of 4
//
// Grid       one threadgroup a row
// Precision  f32
// CPU twin   CKernels/rms_norm.c
// Origin     ours
#include <metal_stdlib>
#line 11 "rms_norm.metal"
#line 12 "rms_norm.metal"
using namespace metal;

#define NORM_THREADS 256
#define NORM_MOST 2  // quads a thread keeps from the sum to the product; what is beyond is read again

[[max_total_threads_per_threadgroup(NORM_THREADS)]]
kernel void rms_norm_f32(device const float *x          [[buffer(0)]],
                         device const float *weight     [[buffer(1)]],
                         device float *y                [[buffer(2)]],
                         constant gpu_rms_norm &p       [[buffer(3)]],
                         uint row                       [[threadgroup_position_in_grid]],
                         ushort tid                     [[thread_index_in_threadgroup]],
                         ushort sg                      [[simdgroup_index_in_threadgroup]],
                         ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup float partial[32];
    const uint quads = p.width / 4;
    device const float4 *from = (device const float4 *)(x + ulong(row) * p.width);
    device const float4 *factor = (device const float4 *)weight;
    device float4 *to = (device float4 *)(y + ulong(row) * p.width);
    float4 v[NORM_MOST];
    float4 w[NORM_MOST];
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) {
        const uint at = i * NORM_THREADS + tid;
        v[i] = float4(0.0f);
        w[i] = float4(0.0f);
        if (at < quads) {
            v[i] = from[at];
            w[i] = factor[at];
        }
    }
    float sum = 0.0f;
    for (uint i = NORM_MOST * NORM_THREADS + tid; i < quads; i += NORM_THREADS) { sum += dot(from[i], from[i]); }
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) { sum += dot(v[i], v[i]); }
    const float scale = reduce_rms(reduce_sum(sum, partial, NORM_THREADS / 32, sg, lane), p.width, p.epsilon);
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) {
        const uint at = i * NORM_THREADS + tid;
        if (at < quads) { to[at] = v[i] * scale * w[i]; }
    }
    for (uint i = NORM_MOST * NORM_THREADS + tid; i < quads; i += NORM_THREADS) { to[i] = from[i] * scale * factor[i]; }
}

#line 1 "rope.metal"
// rope.metal — rotary position embedding of the last `rope` values of a row, interleaved pairs.
//
//   rope_table_f32     positions [n], frequencies [pairs]   -> table [n, pairs, 2] of (cos, sin)
//   rope_queries_f32   q [n, heads, dim], table             -> each head normed, then rotated
//
// Grid       table: one thread a pair; queries: x eight heads, a simdgroup each, y tokens
// Precision  f32; the angle is rounded to f32 before the cosine, as the reference implementation does
// CPU twin   CKernels/rope.c, rms_norm.c
// Origin     ours
#include <metal_stdlib>
#line 12 "rope.metal"
#line 13 "rope.metal"
using namespace metal;

kernel void rope_table_f32(device const int *positions     [[buffer(0)]],
                           device const float *frequencies [[buffer(1)]],
                           device float2 *table            [[buffer(2)]],
                           constant gpu_rope_table &p      [[buffer(3)]],
                           uint i                          [[thread_position_in_grid]])
{
    if (i >= p.n * p.pairs) { return; }
    const float angle = float(positions[i / p.pairs]) * frequencies[i % p.pairs];
    table[i] = float2(precise::cos(angle), precise::sin(angle));
}

// Four pieces of 128 values at most: a lane has 4 · lane … of each, read once.
#define ROPE_PIECES 4
#define ROPE_THREADS 256

inline float2 rope_turn(float2 v, float2 turn) {
    return float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

[[max_total_threads_per_threadgroup(ROPE_THREADS)]]
kernel void rope_queries_f32(device float *q              [[buffer(0)]],
                             device const float2 *table   [[buffer(1)]],
                             constant gpu_queries &p      [[buffer(2)]],
                             uint2 tg                     [[threadgroup_position_in_grid]],
                             ushort sg                    [[simdgroup_index_in_threadgroup]],
                             ushort lane                  [[thread_index_in_simdgroup]])
{
    const uint head = tg.x * (ROPE_THREADS / 32) + sg, plain = p.dim - p.rope;
    if (head >= p.heads) { return; }
    device float *row = q + (ulong(tg.y) * p.heads + head) * p.dim;
    table += ulong(tg.y) * (p.rope / 2);
    float4 v[ROPE_PIECES];
    float4 turn[ROPE_PIECES];  // of the piece's two pairs
    float sum = 0.0f;
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) {
        const uint i = 128u * e + 4u * lane;
        v[e] = float4(0.0f);
        turn[e] = float4(1.0f, 0.0f, 1.0f, 0.0f);
        if (i < p.dim) { v[e] = *(device const float4 *)(row + i); }
        if (i < p.dim && i >= plain) { turn[e].xy = table[(i - plain) / 2]; }
        if (i < p.dim && i + 2 >= plain) { turn[e].zw = table[(i + 2 - plain) / 2]; }
    }
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) { sum += dot(v[e], v[e]); }
    const float scale = reduce_rms(simd_sum(sum), p.dim, p.epsilon);
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) {
        const uint i = 128u * e + 4u * lane;
        const float4 x = v[e] * scale;
        if (i < p.dim) {
            *(device float4 *)(row + i) = float4(rope_turn(x.xy, turn[e].xy), rope_turn(x.zw, turn[e].zw));
        }
    }
}

#line 1 "router.metal"
// router.metal — which experts a token takes, and with what weights.
//
//   router_top_k   logits [n, experts], bias [experts]        -> ids, weights [n, used]
//   router_hash    logits, table [vocabulary, used], tokens   -> ids, weights [n, used]
//
// scores = sqrt(softplus(logits)); the highest of score + bias (ties: the lower id); weights = their
// scores / sum · scale.
//
// Grid       one threadgroup a token; of router_hash one simdgroup
// Precision  f32
// CPU twin   CKernels/router.c
// Origin     ours
#include <metal_stdlib>
#line 15 "router.metal"
using namespace metal;

#define ROUTER_MOST 1024
#define ROUTER_THREADS 256

inline float router_score(float logit) {
    // log(1 + e^x): for small e^x the series is closer than the sum's rounding.
    const float e = exp(min(logit, 20.0f));
    const float soft = e < 1.0e-3f ? e * (1.0f - e * (0.5f - e * 0.33333333f)) : log(1.0f + e);
    return sqrt(logit > 20.0f ? logit : soft);
}

// Lane j < used holds the score of place j.
inline void router_weigh(float score, uint used, float scale, device float *weights, ushort lane) {
    const float sum = simd_sum(lane < used ? score : 0.0f);
    if (lane < used) { weights[lane] = score / sum * scale; }
}

// Larger for larger keys; a NaN comes behind all numbers, and 0 behind that. A key is never -0.
inline uint router_order(float key) {
    const uint bits = as_type<uint>(key);
    return key != key ? 1u : (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

inline uint router_most(uint v) {
#ifdef MSL_CUDA
    return __reduce_max_sync(0xffffffffu, v);
#else
    return simd_max(v);
#endif
}

inline uint router_least(uint v) {
#ifdef MSL_CUDA
    return __reduce_min_sync(0xffffffffu, v);
#else
    return simd_min(v);
#endif
}

// One simdgroup takes the `used` highest of up to 32 · EACH keys, one after the other. Lane j gets place j.
template <ushort EACH>
inline uint router_choose(threadgroup const uint *keys, uint experts, uint used, ushort lane) {
    uint own[EACH];
    #pragma unroll
    for (ushort i = 0; i < EACH; ++i) { own[i] = 32u * i + lane < experts ? keys[32 * i + lane] : 0u; }
    uint mine = 0;
    for (uint j = 0; j < used; ++j) {
        uint best = own[0], at = 0;
        #pragma unroll
        for (ushort i = 1; i < EACH; ++i) {
            at = own[i] > best ? i : at;
            best = max(best, own[i]);
        }
        const uint most = router_most(best), id = 32 * at + lane;
        const uint chosen = router_least(best == most ? id : 0xffffu);
        #pragma unroll
        for (ushort i = 0; i < EACH; ++i) { own[i] = 32u * i + lane == chosen ? 0u : own[i]; }
        mine = lane == j ? chosen : mine;
    }
    return mine;
}

[[max_total_threads_per_threadgroup(ROUTER_THREADS)]]
kernel void router_top_k(device const float *logits   [[buffer(0)]],
                         device const float *bias     [[buffer(1)]],
                         device int *ids              [[buffer(2)]],
                         device float *weights        [[buffer(3)]],
                         constant gpu_router &p       [[buffer(4)]],
                         uint token                   [[threadgroup_position_in_grid]],
                         ushort tid                   [[thread_index_in_threadgroup]],
                         ushort sg                    [[simdgroup_index_in_threadgroup]],
                         ushort lane                  [[thread_index_in_simdgroup]])
{
    threadgroup uint keys[ROUTER_MOST];
    threadgroup float scores[ROUTER_MOST];
    device const float *line = logits + ulong(token) * p.experts;
    for (uint e = tid; e < p.experts; e += ROUTER_THREADS) {
        const float offset = bias[e], logit = line[e], score = router_score(logit);
        keys[e] = router_order(logit == logit ? score + offset : logit);
        scores[e] = score;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg != 0) { return; }
    const uint mine = p.experts <= 256 ? router_choose<8>(keys, p.experts, p.used, lane)
                    : p.experts <= 512 ? router_choose<16>(keys, p.experts, p.used, lane)
                    : router_choose<32>(keys, p.experts, p.used, lane);
    if (lane < p.used) { ids[ulong(token) * p.used + lane] = int(mine); }
    router_weigh(scores[mine], p.used, p.scale, weights + ulong(token) * p.used, lane);
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
    const float score = router_score(logits[ulong(token) * p.experts + id]);
    router_weigh(score, p.used, p.scale, weights + ulong(token) * p.used, lane);
}

#line 1 "sampling.metal"
// sampling.metal — what is needed of a row of logits to choose a token, without taking the row along.
//
//   sampling_scan   logits [n, count], temperatures [n], selected [n, listed], counts [n]
//                     -> out [n, 3 + 2 · listed]: the id of the highest logit (ties: the lower id; -1 when all
//                        are NaN or -inf), that logit, Σ exp((logit - highest) / temperature) over those
//                        that a random number can hit, then ids and logits of the selected ones
//
// `selected` are the highest ones, ascending, by indexer_top_k; none where listed is 0.
//
// Grid       one threadgroup a row
// Precision  f32; the sum has one order
// CPU twin   CKernels/sampling.c; the walk over the list is in GPUSampling.swift
// Origin     ours
#include <metal_stdlib>
#line 16 "sampling.metal"
#line 17 "sampling.metal"
using namespace metal;

#define SAMPLING_THREADS 1024

[[max_total_threads_per_threadgroup(SAMPLING_THREADS)]]
kernel void sampling_scan(device const float *logits       [[buffer(0)]],
                          device const float *temperatures [[buffer(1)]],
                          device const int *selected       [[buffer(2)]],
                          device const int *counts         [[buffer(3)]],
                          device int *out                  [[buffer(4)]],
                          constant gpu_sampling &p         [[buffer(5)]],
                          uint row                         [[threadgroup_position_in_grid]],
                          ushort tid                       [[thread_index_in_threadgroup]],
                          ushort sg                        [[simdgroup_index_in_threadgroup]],
                          ushort lane                      [[thread_index_in_simdgroup]])
{
    threadgroup float tops[32];
    threadgroup uint ids[32];
    threadgroup float partial[32];
    const uint none = 0x7fffffffu;
    device const float *line = logits + ulong(row) * p.count;
    device int *result = out + ulong(row) * (3 + 2 * p.listed);
    float best = as_type<float>(0xff800000u);  // -inf
    uint id = none;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v > best) {
            best = v;
            id = i;
        }
    }
    float most = simd_max(best);
    uint lowest = simd_min(best == most ? id : none);
    if (lane == 0) {
        tops[sg] = most;
        ids[sg] = lowest;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    best = tops[lane];
    id = ids[lane];
    most = simd_max(best);
    lowest = simd_min(best == most ? id : none);

    const float temperature = temperatures[row], least = most - 40.0f * temperature;
    float sum = 0.0f;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v >= least) { sum += exp((v - most) / temperature); }
    }
    const float total = reduce_sum(sum, partial, SAMPLING_THREADS / 32, sg, lane);
    if (tid == 0) {
        result[0] = lowest == none ? -1 : int(lowest);
        result[1] = as_type<int>(most);
        result[2] = as_type<int>(total);
    }
    if (p.listed == 0u) { return; }
    for (uint i = tid; i < p.listed; i += SAMPLING_THREADS) {
        const int chosen = int(i) < counts[row] ? selected[ulong(row) * p.listed + i] : -1;
        result[3 + i] = chosen;
        result[3 + p.listed + i] = chosen < 0 ? 0 : as_type<int>(line[chosen]);
    }
}
