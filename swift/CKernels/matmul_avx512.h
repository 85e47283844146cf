/* matmul_avx512.h — what the AVX-512 tiles share. Private to matmul_avx512*.c. */
#ifndef PYDS4_MATMUL_AVX512_H
#define PYDS4_MATMUL_AVX512_H

#include "cpu_features.h"
#include "matmul_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>

#define CK_AVX512_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
#define CK_INLINE static inline __attribute__((always_inline))

/* How far ahead of its blocks a row is fetched from the second-level cache. */
#ifndef CK_PREFETCH_BYTES
#define CK_PREFETCH_BYTES 128
#endif

/* Q8_0 for a single token. */
void matmul_tile_q8_0_rows(const ck_tile *tile);

/* IQ2_XXS by byte permutations; needs ck_has_avx512_permute(). */
void matmul_tile_iq2_xxs_permute(const ck_tile *tile);

typedef struct {
    __m512i q[8];
    __m512 scale[2], minus_min[2]; /* as many as the type has groups */
} ck_unit;

#pragma clang attribute push(__attribute__((target(CK_AVX512_TARGET))), apply_to = function)

CK_INLINE uint16_t load_u16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* 32 bytes of each of two rows. A masked broadcast merges without using a shuffle unit. */
CK_INLINE __m512i load_pair(const uint8_t *low, const uint8_t *high) {
    __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low));
    return _mm512_mask_broadcast_i64x4(v, 0xf0, _mm256_loadu_si256((const __m256i *)high));
}

/* Sixteen halves, `stride` bytes apart, to f32. */
CK_INLINE __m512 load_halves(const uint8_t *p, size_t stride) {
    __m128i low = _mm_setzero_si128(), high = low;
#define CK_HALF(i)                                                                                    \
    low = _mm_insert_epi16(low, load_u16(p + (i) * stride), i);                                       \
    high = _mm_insert_epi16(high, load_u16(p + ((i) + 8) * stride), i)
    CK_HALF(0);
    CK_HALF(1);
    CK_HALF(2);
    CK_HALF(3);
    CK_HALF(4);
    CK_HALF(5);
    CK_HALF(6);
    CK_HALF(7);
#undef CK_HALF
    return _mm512_cvtph_ps(_mm256_set_m128i(high, low));
}

/* 16 bytes of each of four rows, `stride` bytes apart. */
CK_INLINE __m512i load_four(const uint8_t *p, size_t stride) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, _mm_loadu_si128((const __m128i *)(p + stride)));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, _mm_loadu_si128((const __m128i *)(p + 2 * stride)));
    return _mm512_mask_broadcast_i32x4(v, 0xf000, _mm_loadu_si128((const __m128i *)(p + 3 * stride)));
}

/* Lane r of out[i] = 32-bit word i at p + r · stride; 16 rows of 4 words. */
CK_INLINE void transpose_16x4(const uint8_t *p, size_t stride, __m512i out[4]) {
    __m512i a[4], b[4];
    for (int i = 0; i < 4; i++)
        a[i] = load_four(p + (size_t)i * stride, 4 * stride);
    for (int i = 0; i < 4; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    out[0] = _mm512_unpacklo_epi64(b[0], b[2]);
    out[1] = _mm512_unpackhi_epi64(b[0], b[2]);
    out[2] = _mm512_unpacklo_epi64(b[1], b[3]);
    out[3] = _mm512_unpackhi_epi64(b[1], b[3]);
}

/* Fetches this unit's share of the groups that come next into the second-level cache, and rows of these
 * groups a little ahead into the first; spread over the units, since the queue for it is short. */
CK_INLINE void prefetch(const ck_tile *tile, size_t block, size_t block_bytes, size_t sub, size_t units) {
    const size_t share = block_bytes * CK_GROUP_ROWS / units, rows = CK_GROUP_ROWS / units;
    for (int g = 0; g < 2; g++) {
        const uint8_t *next = tile->next[g] + (block * units + sub) * share;
        const uint8_t *here = tile->group[g] + block * block_bytes + CK_PREFETCH_BYTES;
        for (size_t i = 0; i < share; i += 64)
            _mm_prefetch((const char *)next + i, _MM_HINT_T0);
        for (size_t r = rows * sub; r < rows * (sub + 1); r++)
            for (size_t i = 0; i < block_bytes; i += 64)
                _mm_prefetch((const char *)here + r * tile->row_bytes + i, _MM_HINT_T0);
    }
}

CK_INLINE __m512 add_scaled(__m512 y, const ck_unit *u, int g, __m512i sum, __m512 d) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(u->scale[g], d), y);
}

CK_INLINE __m512 add_mins(__m512 y, const ck_unit *u, const ck_act *x, int mins) {
    if (mins == 1)
        y = _mm512_fmadd_ps(u->minus_min[0], _mm512_set1_ps(x->sum_all), y);
    for (int g = 0; mins == 2 && g < 2; g++)
        y = _mm512_fmadd_ps(u->minus_min[g], _mm512_set1_ps(x->sum[g]), y);
    return y;
}

/* Multiplies two units, one of each row group, by their block x[…] of every token: out[t] += … */
CK_INLINE void multiply_units(const ck_unit *a, const ck_unit *b, const ck_act *x, const ck_tile *tile,
                              bool plus128, int scales, int mins) {
    const uint32_t *tokens = tile->tokens;
    float *out = tile->out;
    const int64_t n = tile->n, stride = tile->acts.stride;
    for (int64_t t = 0; t < n; t++, out += CK_TILE_ROWS) {
        const ck_act *act = x + tokens[t];
        _mm_prefetch((const char *)(act + stride), _MM_HINT_T0);
        __m512 d = _mm512_set1_ps(act->d), ya = _mm512_load_ps(out), yb = _mm512_load_ps(out + 16);
        __m512i sa, sb;
        sa = sb = plus128 ? _mm512_set1_epi32(scales == 1 ? act->minus128_all : act->minus128[0])
                          : _mm512_setzero_si512();
        for (int i = 0; i < 8; i++) {
            int32_t four;
            memcpy(&four, act->q + 4 * i, sizeof four);
            __m512i v = _mm512_set1_epi32(four);
            if (scales == 2 && i == 4) {
                ya = add_scaled(ya, a, 0, sa, d);
                yb = add_scaled(yb, b, 0, sb, d);
                sa = sb = plus128 ? _mm512_set1_epi32(act->minus128[1]) : _mm512_setzero_si512();
            }
            sa = _mm512_dpbusd_epi32(sa, a->q[i], v);
            sb = _mm512_dpbusd_epi32(sb, b->q[i], v);
        }
        ya = add_mins(add_scaled(ya, a, scales - 1, sa, d), a, act, mins);
        yb = add_mins(add_scaled(yb, b, scales - 1, sb, d), b, act, mins);
        _mm512_store_ps(out, ya);
        _mm512_store_ps(out + 16, yb);
    }
}

#pragma clang attribute pop

/* static void tile_NAME: `units` units of 32 weights in each block of `bytes`. */
#define CK_AVX512_TILE(name, state, prepare, unpack, bytes, units, plus128, scales, mins)             \
    static void tile_##name(const ck_tile *tile)                                                      \
    {                                                                                                 \
        memset(tile->out, 0, (size_t)tile->n * CK_TILE_ROWS * sizeof *tile->out);                     \
        const ck_act *x = tile->acts.blocks;                                                          \
        size_t blocks = (size_t)tile->cols / (32 * (units));                                          \
        for (size_t block = 0; block < blocks; block++) {                                             \
            state low, high;                                                                          \
            prepare(tile->group[0] + block * (bytes), tile->row_bytes, &low);                         \
            prepare(tile->group[1] + block * (bytes), tile->row_bytes, &high);                        \
            for (int sub = 0; sub < (units); sub++, x += tile->acts.stride) {                         \
                prefetch(tile, block, bytes, (size_t)sub, units);                                     \
                ck_unit a = unpack(&low, sub), b = unpack(&high, sub);                                \
                multiply_units(&a, &b, x, tile, plus128, scales, mins);                               \
            }                                                                                         \
        }                                                                                             \
    }

#endif
#endif
