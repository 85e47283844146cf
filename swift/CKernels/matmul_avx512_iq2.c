/* matmul_avx512_iq2.c — IQ2_XXS unpacked by byte permutations (VBMI) and bit matrices (GFNI).
 *
 * The 256 grid entries of eight 2-bit magnitude codes are two tables of 256 bytes, codes of weights
 * 0 … 3 and 4 … 7, kept in eight registers: VPERMI2B looks up 64 indices at once. A lane is a row, so
 * the codes of all 16 rows for 32 weights are two registers. Four codes of each lane are then spread
 * over its four bytes (VPMULTISHIFTQB), the sign bits likewise as bit 2, and a last byte permutation
 * turns the 3-bit codes into 128 ± magnitude.
 */
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <pthread.h>

static _Alignas(64) uint8_t code_tables[2][256]; /* of weights 0 … 3 and 4 … 7 */
static _Alignas(64) uint8_t value_table[64];
static _Alignas(64) uint8_t code_shifts[4][64], sign_shifts[8][64], sign_index_shifts[64];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void make_tables(void) {
    static const int magnitudes[4] = {8, 25, 43, 0};
    for (int i = 0; i < 256; i++)
        for (int j = 0; j < 8; j++) {
            int magnitude = (int)(ck_iq2_xxs_grid[i] >> 8 * j & 255), code = 0;
            while (magnitudes[code] != magnitude)
                code++;
            code_tables[j / 4][i] |= (uint8_t)(code << 2 * (j % 4));
        }
    for (int i = 0; i < 64; i++) { /* bits 0, 1: code; bit 2: sign; bits 3 … 5: whatever was there */
        int magnitude = magnitudes[i & 3];
        value_table[i] = (uint8_t)(128 + ((i & 4) ? -magnitude : magnitude));
    }
    for (int byte = 0; byte < 64; byte++) {
        int lane = byte % 8 / 4 * 32, i = byte % 4; /* shifts count within 64 bits: two lanes */
        sign_index_shifts[byte] = (uint8_t)(lane + 7 * i);
        for (int e = 0; e < 4; e++)
            code_shifts[e][byte] = (uint8_t)(lane + 8 * e + 2 * i);
        for (int half = 0; half < 8; half++) /* bit i of nibble `half` to bit 2 */
            sign_shifts[half][byte] = (uint8_t)((lane + 4 * half + i - 2) & 63);
    }
}

#pragma clang attribute push(__attribute__((target(CK_AVX512_TARGET ",avx512vbmi,gfni"))),            \
                             apply_to = function)

typedef struct {
    __m512i words[16]; /* word 2s of every row: its grid indices, word 2s + 1: signs and scale */
    __m512 d;          /* d / 8 */
} state_iq2_xxs;

CK_INLINE void prepare_iq2_xxs(const uint8_t *p, size_t stride, state_iq2_xxs *s) {
    s->d = _mm512_mul_ps(load_halves(p, stride), _mm512_set1_ps(0.125f));
    for (size_t c = 0; c < 4; c++)
        transpose_16x4(p + 2 + 16 * c, stride, s->words + 4 * c);
}

CK_INLINE __m512i look_up(const uint8_t table[256], __m512i index, __mmask64 upper) {
    __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
    return _mm512_mask_blend_epi8(upper, low,
                                  _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), index,
                                                           _mm512_load_si512(table + 192)));
}

CK_INLINE ck_unit unpack_iq2_xxs(const state_iq2_xxs *s, int sub) {
    __m512i index = s->words[2 * sub], packed = s->words[2 * sub + 1];
    __mmask64 upper = _mm512_movepi8_mask(index);
    __m512i codes[2] = {look_up(code_tables[0], index, upper), look_up(code_tables[1], index, upper)};
    /* 7-bit sign indices to bytes; bit 7 becomes the parity of the others (rows of the bit matrix
     * from the last byte up: bit 0 … bit 6, then 0x7f). */
    __m512i signs = _mm512_multishift_epi64_epi8(_mm512_load_si512(sign_index_shifts), packed);
    signs = _mm512_gf2p8affine_epi64_epi8(signs, _mm512_set1_epi64(0x010204081020407f), 0);

    const __m512i values = _mm512_load_si512(value_table), three = _mm512_set1_epi8(3);
    ck_unit u;
    for (int i = 0; i < 8; i++) {
        __m512i code = _mm512_multishift_epi64_epi8(_mm512_load_si512(code_shifts[i / 2]), codes[i % 2]);
        __m512i sign = _mm512_multishift_epi64_epi8(_mm512_load_si512(sign_shifts[i]), signs);
        code = _mm512_ternarylogic_epi32(three, code, sign, 0xca); /* bits 0, 1 of code, others of sign */
        u.q[i] = _mm512_permutexvar_epi8(code, values);
    }
    __m512i scale = _mm512_add_epi32(_mm512_slli_epi32(_mm512_srli_epi32(packed, 28), 1),
                                     _mm512_set1_epi32(1));
    u.scale[0] = _mm512_mul_ps(s->d, _mm512_cvtepi32_ps(scale));
    return u;
}

CK_AVX512_TILE(iq2_xxs, state_iq2_xxs, prepare_iq2_xxs, unpack_iq2_xxs, 66, 8, true, 1, 0)

#pragma clang attribute pop

void matmul_tile_iq2_xxs_permute(const ck_tile *tile) {
    pthread_once(&tables_once, make_tables);
    tile_iq2_xxs(tile);
}

#endif
