/* matmul_panel.c — tiles of quantised weights with AVX2, AVX-VNNI and NEON dotprod.
 *
 * 16 rows × 32 weights are transposed so that a lane is a row, unpacked, and kept in the first-level
 * cache while all tokens pass. What a family needs of its own: look_up replaces bytes below 16 by those
 * of a table, finish_panel brings the weights into the form that dot likes, and dot adds up words `first`
 * … `last`-1 of 16 rows, exactly.
 */
#include "cpu_features.h"
#include "matmul_kernels.h"

#include <stddef.h>

typedef int32_t i4 __attribute__((vector_size(16), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4)));
typedef uint8_t b32 __attribute__((vector_size(32)));
typedef uint64_t u64x4 __attribute__((vector_size(32)));
typedef uint8_t b64 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t u16x32 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef _Float16 h16 __attribute__((vector_size(32)));

#define CK_GLUE2(a, b) a##_##b
#define CK_GLUE(a, b) CK_GLUE2(a, b)
#define CK(name) CK_GLUE(name, CK_SUFFIX)

#if defined(__x86_64__)
#include <immintrin.h>

/* ---- AVX2: 16-bit products. Panel: the even bytes of every word as 16 bits, then the odd ones. */

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define CK_SUFFIX avx2
#include "vector_body.h"

V_INLINE i16 i16_of_avx2(__m256i low, __m256i high) {
    i16 v;
    memcpy(&v, &low, sizeof low);
    memcpy((char *)&v + sizeof low, &high, sizeof high);
    return v;
}

V_INLINE __m256i even_avx2(__m256i bytes) {
    return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}

V_INLINE b64 look_up_avx2(const int8_t table[16], b64 index) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    for (int h = 0; h < 2; h++)
        ((__m256i *)&index)[h] = _mm256_shuffle_epi8(both, ((__m256i *)&index)[h]);
    return index;
}

V_INLINE void finish_panel_avx2(b64 *w) {
    for (int i = 0; i < 16; i++) {
        __m256i bytes = _mm256_load_si256((const __m256i *)w + i);
        _mm256_store_si256((__m256i *)w + i, even_avx2(bytes));
        _mm256_store_si256((__m256i *)w + 16 + i, _mm256_srai_epi16(bytes, 8));
    }
}

V_INLINE i16 dot_avx2(const uint8_t *w, const ck_act *x, int first, int last, int32_t minus128) {
    (void)minus128;
    const __m256i *even = (const __m256i *)w, *odd = even + 16;
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int i = first; i < last; i++) {
        int32_t four;
        memcpy(&four, x->q + 4 * i, sizeof four);
        __m256i v = _mm256_set1_epi32(four), v_even = even_avx2(v), v_odd = _mm256_srai_epi16(v, 8);
        for (int h = 0; h < 2; h++) {
            __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(even[2 * i + h], v_even),
                                             _mm256_madd_epi16(odd[2 * i + h], v_odd));
            sums[h] = _mm256_add_epi32(sums[h], pairs);
        }
    }
    return i16_of_avx2(sums[0], sums[1]);
}

#include "matmul_panel_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop

/* ---- AVX-VNNI. Panel: weights + 128. */

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#define CK_SUFFIX avxvnni
#include "vector_body.h"

V_INLINE b64 look_up_avxvnni(const int8_t table[16], b64 index) {
    return look_up_avx2(table, index);
}

V_INLINE void finish_panel_avxvnni(b64 *w) {
    for (int i = 0; i < 8; i++)
        w[i] ^= 0x80;
}

V_INLINE i16 dot_avxvnni(const uint8_t *w, const ck_act *x, int first, int last, int32_t minus128) {
    const __m256i *words = (const __m256i *)w;
    __m256i low = _mm256_set1_epi32(minus128), high = low;
    for (int i = first; i < last; i++) {
        int32_t four;
        memcpy(&four, x->q + 4 * i, sizeof four);
        __m256i v = _mm256_set1_epi32(four);
        low = _mm256_dpbusd_avx_epi32(low, words[2 * i], v);
        high = _mm256_dpbusd_avx_epi32(high, words[2 * i + 1], v);
    }
    i16 sums;
    memcpy(&sums, &low, sizeof low);
    memcpy((char *)&sums + sizeof low, &high, sizeof high);
    return sums;
}

#include "matmul_panel_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop

void matmul_tile_avx2(const ck_tile *tile) {
    if (ck_has_avx_vnni())
        panel_tile_avxvnni(tile);
    else
        panel_tile_avx2(tile);
}

#elif defined(__aarch64__)
#include <arm_neon.h>

/* ---- NEON. Panel: weights as they are. */

#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#define CK_SUFFIX neon
#include "vector_body.h"

V_INLINE b64 look_up_neon(const int8_t table[16], b64 index) {
    const uint8x16_t values = vreinterpretq_u8_s8(vld1q_s8(table));
    for (int h = 0; h < 4; h++)
        ((uint8x16_t *)&index)[h] = vqtbl1q_u8(values, ((uint8x16_t *)&index)[h]);
    return index;
}

V_INLINE void finish_panel_neon(b64 *w) {
    (void)w;
}

V_INLINE i16 dot_neon(const uint8_t *w, const ck_act *x, int first, int last, int32_t minus128) {
    (void)minus128;
    int32x4_t sums[4];
    for (int h = 0; h < 4; h++)
        sums[h] = vdupq_n_s32(0);
    for (int i = first; i < last; i++) {
        int32_t four;
        memcpy(&four, x->q + 4 * i, sizeof four);
        int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
        for (int h = 0; h < 4; h++)
            sums[h] = vdotq_s32(sums[h], vld1q_s8((const int8_t *)w + 64 * i + 16 * h), v);
    }
    i16 all;
    memcpy(&all, sums, sizeof all);
    return all;
}

#include "matmul_panel_body.h"
#undef CK_SUFFIX
#pragma clang attribute pop

void matmul_tile_neon(const ck_tile *tile) {
    panel_tile_neon(tile);
}

#endif
