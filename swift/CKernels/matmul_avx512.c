/* matmul_avx512.c — tiles of quantised weights with 512-bit VNNI. See matmul_kernels.h.
 *
 * A unit is 16 rows × 32 weights: registers q[0 … 7], lane r of q[i] holding weights 4i … 4i+3 of row r
 * as unsigned bytes, ready for VPDPBUSD against four broadcast activations. Types with signed weights
 * store q + 128; the sum then starts at −128 · Σ x, which every ck_act carries.
 * Each type has a prepare step (per block or super-block: loads and transposition) and an unpack step
 * (per 32 weights: from prepared data to a unit); the loop over tokens is common.
 */
#include "matmul_avx512.h"

#if defined(__x86_64__)

#pragma clang attribute push(__attribute__((target(CK_AVX512_TARGET))), apply_to = function)

/* Lane r of out[i] = 32-bit word i at p + r · stride; 16 rows of 8 words. */
CK_INLINE void transpose_16x8(const uint8_t *p, size_t stride, __m512i out[8]) {
    __m512i a[8], b[8];
    for (size_t i = 0; i < 4; i++) {
        a[i] = load_pair(p + i * stride, p + (i + 4) * stride);
        a[i + 4] = load_pair(p + (i + 8) * stride, p + (i + 12) * stride);
    }
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        out[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    }
}

/* Halves in the low 16 bits of each lane to f32. */
CK_INLINE __m512 f32_of_halves(__m512i words) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
}

CK_INLINE __m512 negated(__m512 v) {
    return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f));
}

CK_INLINE __m512i plus_128(__m512i q) {
    return _mm512_xor_si512(q, _mm512_set1_epi8((char)0x80));
}

/* The byte `byte` of each lane, zero-extended. */
CK_INLINE __m512i byte_of_lanes(__m512i words, int byte) {
    return _mm512_and_si512(_mm512_srl_epi32(words, _mm_cvtsi32_si128(8 * byte)), _mm512_set1_epi32(255));
}

/* ---- Q8_0 */

typedef struct {
    const uint8_t *p;
    size_t stride;
} in_place;

CK_INLINE void prepare_in_place(const uint8_t *p, size_t stride, in_place *s) {
    *s = (in_place){p, stride};
}

CK_INLINE ck_unit unpack_q8_0(const in_place *s, int sub) {
    (void)sub;
    ck_unit u;
    transpose_16x8(s->p + 2, s->stride, u.q);
    for (int i = 0; i < 8; i++)
        u.q[i] = plus_128(u.q[i]);
    u.scale[0] = load_halves(s->p, s->stride);
    return u;
}

/* ---- Q4_0 and MXFP4: nibbles */

CK_INLINE void unpack_nibbles(const in_place *s, size_t offset, ck_unit *u) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i w[4];
    transpose_16x4(s->p + offset, s->stride, w);
    for (int i = 0; i < 4; i++) {
        u->q[i] = _mm512_and_si512(w[i], low);
        u->q[i + 4] = _mm512_and_si512(_mm512_srli_epi16(w[i], 4), low);
    }
}

CK_INLINE ck_unit unpack_q4_0(const in_place *s, int sub) {
    (void)sub;
    ck_unit u;
    unpack_nibbles(s, 2, &u);
    for (int i = 0; i < 8; i++)
        u.q[i] = _mm512_add_epi8(u.q[i], _mm512_set1_epi8(120)); /* − 8 + 128 */
    u.scale[0] = load_halves(s->p, s->stride);
    return u;
}

CK_INLINE ck_unit unpack_mxfp4(const in_place *s, int sub) {
    (void)sub;
    const __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)ck_mxfp4_values));
    const __m512i table = plus_128(values);
    ck_unit u;
    unpack_nibbles(s, 1, &u);
    for (int i = 0; i < 8; i++)
        u.q[i] = _mm512_shuffle_epi8(table, u.q[i]);
    float scales[CK_GROUP_ROWS];
    for (int r = 0; r < CK_GROUP_ROWS; r++)
        scales[r] = ck_mxfp4_scale(s->p[(size_t)r * s->stride]);
    u.scale[0] = _mm512_loadu_ps(scales);
    return u;
}

/* ---- Q2_K */

typedef struct {
    __m512i q[2][8];  /* bytes of each half, transposed; two bits each for four blocks */
    __m512i scale[4]; /* byte j of lane r in [i]: scale 4i + j of row r … */
    __m512i min[4];   /* … and min */
    __m512 d, minus_dmin;
} state_q2_k;

CK_INLINE void prepare_q2_k(const uint8_t *p, size_t stride, state_q2_k *s) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i w[4];
    transpose_16x4(p + offsetof(ck_block_q2_k, scales), stride, w);
    for (int i = 0; i < 4; i++) {
        s->scale[i] = _mm512_and_si512(w[i], low);
        s->min[i] = _mm512_and_si512(_mm512_srli_epi16(w[i], 4), low);
    }
    transpose_16x8(p + offsetof(ck_block_q2_k, q), stride, s->q[0]);
    transpose_16x8(p + offsetof(ck_block_q2_k, q) + 32, stride, s->q[1]);
    transpose_16x4(p + offsetof(ck_block_q2_k, d) - 12, stride, w); /* d and dmin are the last word */
    s->d = f32_of_halves(w[3]);
    s->minus_dmin = negated(f32_of_halves(_mm512_srli_epi32(w[3], 16)));
}

CK_INLINE ck_unit unpack_q2_k(const state_q2_k *s, int sub) {
    const __m128i shift = _mm_cvtsi32_si128(2 * (sub & 3));
    const __m512i *q = s->q[sub >> 2];
    ck_unit u;
    u.scale[0] = s->d;
    for (int g = 0; g < 2; g++) {
        int byte = 2 * (sub & 1) + g; /* of this sub-block of 16, in every lane */
        __m512i min = byte_of_lanes(s->min[sub >> 1], byte);
        __m512i scale = byte_of_lanes(s->scale[sub >> 1], byte);
        scale = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
        u.minus_min[g] = _mm512_mul_ps(s->minus_dmin, _mm512_cvtepi32_ps(min));
        /* 16-bit products of two weights at once: 3 · 15 does not carry into the second */
        for (int i = 4 * g; i < 4 * g + 4; i++)
            u.q[i] = _mm512_mullo_epi16(
                _mm512_and_si512(_mm512_srl_epi16(q[i], shift), _mm512_set1_epi8(3)), scale);
    }
    return u;
}

/* A lone token's product with 32 weights of 16 rows. Here the scales multiply the two halves' sums (at most
 * 16 · 3 · 127) instead of the weights, which need not even be shifted: the same integers in fewer steps. */
CK_INLINE __m512 single_q2_k(const state_q2_k *s, int sub, const ck_act *x, __m512 y) {
    const __m128i shift = _mm_cvtsi32_si128(2 * (sub & 3));
    const __m512i two_bits = _mm512_set1_epi8((char)(3 << 2 * (sub & 3)));
    const __m512i *q = s->q[sub >> 2];
    __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int i = 0; i < 8; i++) {
        int32_t four;
        memcpy(&four, x->q + 4 * i, sizeof four);
        sums[i / 4] = _mm512_dpbusd_epi32(sums[i / 4], _mm512_and_si512(q[i], two_bits), _mm512_set1_epi32(four));
    }
    for (int g = 0; g < 2; g++)
        sums[g] = _mm512_sra_epi32(sums[g], shift);
    /* of each lane the bytes 2 (sub & 1) and 2 (sub & 1) + 1 as 16 bits: scales, mins of the halves */
    const __m512i pick = _mm512_set1_epi32(sub & 1 ? (int)0x80038002 : (int)0x80018000);
    __m512i in_lane = _mm512_add_epi8(pick, _mm512_set4_epi32(0x000c000c, 0x00080008, 0x00040004, 0));
    __m512i scales = _mm512_shuffle_epi8(s->scale[sub >> 1], in_lane);
    __m512i mins = _mm512_shuffle_epi8(s->min[sub >> 1], in_lane);
    __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, sums[0], _mm512_slli_epi32(sums[1], 16));
    __m512i sum = _mm512_madd_epi16(both, scales);
    y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(s->d, _mm512_set1_ps(x->d)), y);
    __m512 first = _mm512_cvtepi32_ps(_mm512_and_si512(mins, _mm512_set1_epi32(0xffff)));
    __m512 second = _mm512_cvtepi32_ps(_mm512_srli_epi32(mins, 16));
    y = _mm512_fmadd_ps(_mm512_mul_ps(s->minus_dmin, first), _mm512_set1_ps(x->sum[0]), y);
    return _mm512_fmadd_ps(_mm512_mul_ps(s->minus_dmin, second), _mm512_set1_ps(x->sum[1]), y);
}

static void tile_q2_k_single(const ck_tile *tile) {
    const ck_act *x = tile->acts.blocks + tile->tokens[0];
    const size_t blocks = (size_t)tile->cols / CK_SUPER;
    __m512 y[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (size_t block = 0; block < blocks; block++, x += 8 * tile->acts.stride)
        for (int g = 0; g < 2; g++) {
            state_q2_k s;
            prepare_q2_k(tile->group[g] + block * sizeof(ck_block_q2_k), tile->row_bytes, &s);
#pragma clang loop unroll(full)
            for (int sub = 0; sub < 8; sub++) {
                if (g == 0)
                    prefetch(tile, block, sizeof(ck_block_q2_k), (size_t)sub, 8);
                y[g] = single_q2_k(&s, sub, x + sub * tile->acts.stride, y[g]);
            }
        }
    _mm512_store_ps(tile->out, y[0]);
    _mm512_store_ps(tile->out + CK_GROUP_ROWS, y[1]);
}

/* ---- Q4_K and Q5_K */

typedef struct {
    __m512i q[4][8];
    __m512i high[8];     /* Q5_K: bit `sub` of each byte */
    __m512 scale[8], minus_min[8];
} state_k4;

/* Scales and mins of the 8 blocks; the header is d, dmin and 12 bytes of packed six-bit numbers. */
CK_INLINE void prepare_k4_scales(const uint8_t *p, size_t stride, state_k4 *s) {
    const __m512i six = _mm512_set1_epi8(63), four = _mm512_set1_epi8(15), top = _mm512_set1_epi8(48);
    __m512i head[4], scales[2], mins[2];
    transpose_16x4(p, stride, head);
    __m512 d = f32_of_halves(head[0]), minus_dmin = negated(f32_of_halves(_mm512_srli_epi32(head[0], 16)));
    scales[0] = _mm512_and_si512(head[1], six);
    mins[0] = _mm512_and_si512(head[2], six);
    scales[1] = _mm512_or_si512(_mm512_and_si512(head[3], four),
                                _mm512_and_si512(_mm512_srli_epi16(head[1], 2), top));
    mins[1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(head[3], 4), four),
                              _mm512_and_si512(_mm512_srli_epi16(head[2], 2), top));
    for (int sub = 0; sub < 8; sub++) {
        __m512i scale = byte_of_lanes(scales[sub >> 2], sub & 3);
        __m512i min = byte_of_lanes(mins[sub >> 2], sub & 3);
        s->scale[sub] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(scale));
        s->minus_min[sub] = _mm512_mul_ps(minus_dmin, _mm512_cvtepi32_ps(min));
    }
}

CK_INLINE void prepare_q4_k(const uint8_t *p, size_t stride, state_k4 *s) {
    prepare_k4_scales(p, stride, s);
    for (size_t c = 0; c < 4; c++)
        transpose_16x8(p + offsetof(ck_block_q4_k, q) + 32 * c, stride, s->q[c]);
}

CK_INLINE ck_unit unpack_q4_k(const state_k4 *s, int sub) {
    const __m128i shift = _mm_cvtsi32_si128(4 * (sub & 1));
    ck_unit u;
    for (int i = 0; i < 8; i++)
        u.q[i] = _mm512_and_si512(_mm512_srl_epi16(s->q[sub >> 1][i], shift), _mm512_set1_epi8(15));
    u.scale[0] = s->scale[sub];
    u.minus_min[0] = s->minus_min[sub];
    return u;
}

CK_INLINE void prepare_q5_k(const uint8_t *p, size_t stride, state_k4 *s) {
    prepare_k4_scales(p, stride, s);
    transpose_16x8(p + offsetof(ck_block_q5_k, high), stride, s->high);
    for (size_t c = 0; c < 4; c++)
        transpose_16x8(p + offsetof(ck_block_q5_k, q) + 32 * c, stride, s->q[c]);
}

CK_INLINE ck_unit unpack_q5_k(const state_k4 *s, int sub) {
    ck_unit u = unpack_q4_k(s, sub);
    const __m512i bit = _mm512_set1_epi8((char)(1 << sub)), sixteen = _mm512_set1_epi8(16);
    for (int i = 0; i < 8; i++)
        u.q[i] = _mm512_mask_add_epi8(u.q[i], _mm512_test_epi8_mask(s->high[i], bit), u.q[i], sixteen);
    return u;
}

/* ---- Q6_K and Q3_K: sixteen signed scales */

typedef struct {
    __m512i low[4][8], high[2][8]; /* transposed; Q3_K: q in low[0], low[1], its mask in high[0] */
    __m512i scales[4];             /* byte j of lane r in [i]: scale 4i + j of row r, signed */
    __m512 d;
} state_k16;

CK_INLINE void scales_of_k16(const state_k16 *s, int sub, ck_unit *u) {
    for (int g = 0; g < 2; g++) {
        __m128i up = _mm_cvtsi32_si128(24 - 8 * (2 * (sub & 1) + g));
        __m512i scale = _mm512_srai_epi32(_mm512_sll_epi32(s->scales[sub >> 1], up), 24);
        u->scale[g] = _mm512_mul_ps(s->d, _mm512_cvtepi32_ps(scale));
    }
}

CK_INLINE void prepare_q6_k(const uint8_t *p, size_t stride, state_k16 *s) {
    __m512i last[4];
    for (size_t c = 0; c < 4; c++)
        transpose_16x8(p + offsetof(ck_block_q6_k, low) + 32 * c, stride, s->low[c]);
    for (size_t c = 0; c < 2; c++)
        transpose_16x8(p + offsetof(ck_block_q6_k, high) + 32 * c, stride, s->high[c]);
    transpose_16x4(p + offsetof(ck_block_q6_k, scales), stride, s->scales);
    transpose_16x4(p + offsetof(ck_block_q6_k, d) - 14, stride, last);
    s->d = f32_of_halves(_mm512_srli_epi32(last[3], 16));
}

CK_INLINE ck_unit unpack_q6_k(const state_k16 *s, int sub) {
    const int half = sub >> 2, quarter = sub & 3;
    const __m128i low = _mm_cvtsi32_si128(4 * (quarter >> 1)), high = _mm_cvtsi32_si128(2 * quarter);
    const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(3);
    ck_unit u;
    scales_of_k16(s, sub, &u);
    for (int i = 0; i < 8; i++) {
        __m512i q = _mm512_and_si512(_mm512_srl_epi16(s->low[2 * half + (quarter & 1)][i], low), four);
        __m512i top = _mm512_and_si512(_mm512_srl_epi16(s->high[half][i], high), two);
        q = _mm512_or_si512(q, _mm512_slli_epi16(top, 4));
        u.q[i] = _mm512_add_epi8(q, _mm512_set1_epi8(96)); /* − 32 + 128 */
    }
    return u;
}

/* Bits of bytes: (v >> shift) & mask. */
CK_INLINE __m512i bits_of(__m512i v, int shift, char mask) {
    return _mm512_and_si512(_mm512_srli_epi16(v, (unsigned)shift), _mm512_set1_epi8(mask));
}

CK_INLINE void prepare_q3_k(const uint8_t *p, size_t stride, state_k16 *s) {
    __m512i w[4], packed[3];
    transpose_16x8(p + offsetof(ck_block_q3_k, high), stride, s->high[0]);
    for (size_t c = 0; c < 2; c++)
        transpose_16x8(p + offsetof(ck_block_q3_k, q) + 32 * c, stride, s->low[c]);
    /* the block's last 16 bytes: two of q, the scales, d */
    transpose_16x4(p + offsetof(ck_block_q3_k, d) - 14, stride, w);
    s->d = f32_of_halves(_mm512_srli_epi32(w[3], 16));
    for (int i = 0; i < 3; i++)
        packed[i] = _mm512_or_si512(_mm512_srli_epi32(w[i], 16), _mm512_slli_epi32(w[i + 1], 16));
    for (int i = 0; i < 4; i++) {
        __m512i scale = _mm512_or_si512(bits_of(packed[i & 1], 4 * (i >> 1), 15),
                                        _mm512_slli_epi16(bits_of(packed[2], 2 * i, 3), 4));
        s->scales[i] = _mm512_sub_epi8(scale, _mm512_set1_epi8(32));
    }
}

CK_INLINE ck_unit unpack_q3_k(const state_k16 *s, int sub) {
    const __m128i shift = _mm_cvtsi32_si128(2 * (sub & 3));
    const __m512i bit = _mm512_set1_epi8((char)(1 << sub)), two = _mm512_set1_epi8(3);
    ck_unit u;
    scales_of_k16(s, sub, &u);
    for (int i = 0; i < 8; i++) {
        __m512i q = _mm512_and_si512(_mm512_srl_epi16(s->low[sub >> 2][i], shift), two);
        q = _mm512_add_epi8(q, _mm512_set1_epi8(124)); /* − 4 + 128 */
        u.q[i] = _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(s->high[0][i], bit), q,
                                      _mm512_set1_epi8(4));
    }
    return u;
}

/* ---- tiles */

CK_AVX512_TILE(q8_0, in_place, prepare_in_place, unpack_q8_0, 34, 1, true, 1, 0)
CK_AVX512_TILE(q4_0, in_place, prepare_in_place, unpack_q4_0, 18, 1, true, 1, 0)
CK_AVX512_TILE(mxfp4, in_place, prepare_in_place, unpack_mxfp4, 17, 1, true, 1, 0)
CK_AVX512_TILE(q2_k, state_q2_k, prepare_q2_k, unpack_q2_k, 84, 8, false, 1, 2)
CK_AVX512_TILE(q4_k, state_k4, prepare_q4_k, unpack_q4_k, 144, 8, false, 1, 1)
CK_AVX512_TILE(q5_k, state_k4, prepare_q5_k, unpack_q5_k, 176, 8, false, 1, 1)
CK_AVX512_TILE(q3_k, state_k16, prepare_q3_k, unpack_q3_k, 110, 8, true, 2, 0)
CK_AVX512_TILE(q6_k, state_k16, prepare_q6_k, unpack_q6_k, 210, 8, true, 2, 0)

#pragma clang attribute pop

void matmul_tile_avx512(const ck_tile *tile) {
    switch (tile->type) {
    case CK_Q8_0:
        if (tile->acts.single.q)
            matmul_tile_q8_0_rows(tile);
        else
            tile_q8_0(tile);
        break;
    case CK_Q4_0:
        tile_q4_0(tile);
        break;
    case CK_MXFP4:
        tile_mxfp4(tile);
        break;
    case CK_Q2_K:
        if (tile->n == 1)
            tile_q2_k_single(tile);
        else
            tile_q2_k(tile);
        break;
    case CK_Q3_K:
        tile_q3_k(tile);
        break;
    case CK_Q4_K:
        tile_q4_k(tile);
        break;
    case CK_Q5_K:
        tile_q5_k(tile);
        break;
    case CK_Q6_K:
        tile_q6_k(tile);
        break;
    default:
        if (ck_has_avx512_permute())
            matmul_tile_iq2_xxs_permute(tile);
        else
            matmul_tile_avx2(tile); /* its grid look-ups are the quicker ones without VBMI */
    }
}

#endif
