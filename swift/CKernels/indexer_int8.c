/* indexer_int8.c — the integer products of indexer_int8.h on each instruction set.
 *
 * What a set needs of its own: look_up replaces bytes below 16 by those of a table; add_products adds four
 * words (16 values) of 16 rows times those of one query, exactly. Bytes of rows are 0 … 24 and those of
 * queries -127 … 127, so a pair of products fits 16 bits four times over, and either signedness of the
 * machine's instructions will do. */
#include "indexer_int8.h"
#include "cpu_features.h"

typedef int32_t i4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef uint8_t b64 __attribute__((vector_size(64)));

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int32_t load_word(const int8_t *q) {
    int32_t word;
    memcpy(&word, q, sizeof word);
    return word;
}

#define CK_GLUE2(a, b) a##_##b
#define CK_GLUE(a, b) CK_GLUE2(a, b)
#define CK(name) CK_GLUE(name, CK_SUFFIX)

/* ---- Plain. */

#define CK_SUFFIX plain
#define CK_TILE_HEADS 2
#define CK_TILE_PANELS 1
#include "vector_body.h"

V_INLINE b64 look_up_plain(const int8_t table[16], b64 index) {
    for (int i = 0; i < 64; i++) index[i] = (uint8_t)table[index[i]];
    return index;
}

V_INLINE i16 add_products_plain(i16 sum, const b64 *w, const int8_t *q) {
    const uint8_t *bytes = (const uint8_t *)w;
    for (int i = 0; i < 4; i++)
        for (int r = 0; r < CK_INDEX_PANEL_ROWS; r++)
            for (int j = 0; j < 4; j++) sum[r] += bytes[64 * i + 4 * r + j] * q[4 * i + j];
    return sum;
}

#include "indexer_int8_body.h"
#undef CK_SUFFIX

#if defined(__x86_64__)
#include <immintrin.h>

/* ---- AVX2: sums of pairs in 16 bits, four words before they are widened. */

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define CK_SUFFIX avx2
#include "vector_body.h"

V_INLINE b64 look_up_avx2(const int8_t table[16], b64 index) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    for (int h = 0; h < 2; h++) ((__m256i *)&index)[h] = _mm256_shuffle_epi8(both, ((__m256i *)&index)[h]);
    return index;
}

V_INLINE i16 add_products_avx2(i16 sum, const b64 *w, const int8_t *q) {
    const __m256i *words = (const __m256i *)w, ones = _mm256_set1_epi16(1);
    for (int h = 0; h < 2; h++) {
        __m256i pairs = _mm256_maddubs_epi16(words[h], _mm256_set1_epi32(load_word(q)));
        for (int i = 1; i < 4; i++)
            pairs = _mm256_add_epi16(
                pairs, _mm256_maddubs_epi16(words[2 * i + h], _mm256_set1_epi32(load_word(q + 4 * i))));
        ((__m256i_u *)&sum)[h] = _mm256_add_epi32(((__m256i_u *)&sum)[h], _mm256_madd_epi16(pairs, ones));
    }
    return sum;
}

#include "indexer_int8_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop

/* ---- AVX-VNNI. */

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#define CK_SUFFIX avxvnni
#include "vector_body.h"

V_INLINE b64 look_up_avxvnni(const int8_t table[16], b64 index) {
    return look_up_avx2(table, index);
}

V_INLINE i16 add_products_avxvnni(i16 sum, const b64 *w, const int8_t *q) {
    const __m256i *words = (const __m256i *)w;
    __m256i_u *sums = (__m256i_u *)&sum;
    for (int i = 0; i < 4; i++)
        for (int h = 0; h < 2; h++)
            sums[h] = _mm256_dpbusd_avx_epi32(sums[h], words[2 * i + h], _mm256_set1_epi32(load_word(q + 4 * i)));
    return sum;
}

#include "indexer_int8_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop
#undef CK_TILE_HEADS
#undef CK_TILE_PANELS

/* ---- AVX-512 VNNI. */

#pragma clang attribute push(                                                                         \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))),           \
    apply_to = function)
#define CK_SUFFIX avx512
#define CK_TILE_HEADS CK_INDEX_STEP_HEADS
#define CK_TILE_PANELS (CK_INDEX_STEP_ROWS / CK_INDEX_PANEL_ROWS)
#include "vector_body.h"

V_INLINE b64 look_up_avx512(const int8_t table[16], b64 index) {
    const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    return (b64)_mm512_shuffle_epi8(all, (__m512i)index);
}

V_INLINE i16 add_products_avx512(i16 sum, const b64 *w, const int8_t *q) {
    __m512i sums = (__m512i)sum;
    for (int i = 0; i < 4; i++)
        sums = _mm512_dpbusd_epi32(sums, (__m512i)w[i], _mm512_set1_epi32(load_word(q + 4 * i)));
    return (i16)sums;
}

#include "indexer_int8_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop

#elif defined(__aarch64__)
#include <arm_neon.h>

/* ---- NEON dotprod. */

#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#define CK_SUFFIX neon
#include "vector_body.h"

V_INLINE b64 look_up_neon(const int8_t table[16], b64 index) {
    const uint8x16_t values = vreinterpretq_u8_s8(vld1q_s8(table));
    for (int h = 0; h < 4; h++) ((uint8x16_t *)&index)[h] = vqtbl1q_u8(values, ((uint8x16_t *)&index)[h]);
    return index;
}

V_INLINE i16 add_products_neon(i16 sum, const b64 *w, const int8_t *q) {
    int32x4_t sums[4];
    memcpy(sums, &sum, sizeof sums);
    for (int i = 0; i < 4; i++) {
        int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(load_word(q + 4 * i)));
        for (int h = 0; h < 4; h++)
            sums[h] = vdotq_s32(sums[h], vld1q_s8((const int8_t *)(w + i) + 16 * h), v);
    }
    memcpy(&sum, sums, sizeof sums);
    return sum;
}

#include "indexer_int8_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop
#endif

/* ---- Which of them. */

typedef struct {
    void (*quantise)(const ck_index_queries *, int64_t, const float *, const float *, int64_t);
    void (*unpack)(const uint8_t *const *, int64_t, uint8_t *, float *);
    void (*score)(const ck_index_queries *, int64_t, const uint8_t *, const float *, int64_t, float, float *);
} index_kernels;

static const index_kernels *kernels(void) {
    static const index_kernels plain = {quantise_plain, unpack_plain, score_plain};
#if defined(__x86_64__)
    static const index_kernels avx2 = {quantise_avx2, unpack_avx2, score_avx2};
    static const index_kernels avxvnni = {quantise_avxvnni, unpack_avxvnni, score_avxvnni};
    static const index_kernels avx512 = {quantise_avx512, unpack_avx512, score_avx512};
    if (ck_isa() == CK_ISA_AVX512) return &avx512;
    if (ck_isa() == CK_ISA_AVX2) return ck_has_avx_vnni() ? &avxvnni : &avx2;
#elif defined(__aarch64__)
    static const index_kernels neon = {quantise_neon, unpack_neon, score_neon};
    if (ck_isa() == CK_ISA_NEON) return &neon;
#endif
    return &plain;
}

void ck_index_quantise(const ck_index_queries *x, int64_t t, const float *q, const float *w, int64_t heads) {
    kernels()->quantise(x, t, q, w, heads);
}

void ck_index_unpack(const uint8_t *const rows[CK_INDEX_PANEL_ROWS], int64_t dim, uint8_t *panel, float *scales) {
    kernels()->unpack(rows, dim, panel, scales);
}

void ck_index_score(const ck_index_queries *x, int64_t t, const uint8_t *panels, const float *scales,
                    int64_t rows, float scale, float *out) {
    kernels()->score(x, t, panels, scales, rows, scale, out);
}

/* ---- Memory. */

static int64_t padded_heads(int64_t heads) {
    return (heads + CK_INDEX_STEP_HEADS - 1) / CK_INDEX_STEP_HEADS * CK_INDEX_STEP_HEADS;
}

size_t ck_index_queries_bytes(int64_t n, int64_t heads, int64_t dim) {
    int64_t all = n * padded_heads(heads);
    return (size_t)(all * (dim + 4 * (dim / CK_INDEX_BLOCK) + 4) + n);
}

ck_index_queries ck_index_queries_place(void *memory, int64_t n, int64_t heads, int64_t dim) {
    int64_t all = n * padded_heads(heads);
    ck_index_queries x = {.heads = padded_heads(heads), .dim = dim, .q = memory};
    x.offset = (int32_t *)(x.q + all * dim);
    x.w = (float *)(x.offset + all * (dim / CK_INDEX_BLOCK));
    x.exact = (bool *)(x.w + all);
    for (int64_t t = 0; t < n; t++) /* the heads that are added */
        for (int64_t h = t * x.heads + heads; h < (t + 1) * x.heads; h++) {
            memset(x.q + h * dim, 0, (size_t)dim);
            memset(x.offset + h * (dim / CK_INDEX_BLOCK), 0, sizeof(int32_t) * (size_t)(dim / CK_INDEX_BLOCK));
            x.w[h] = 0;
        }
    return x;
}
