/* matmul_avx512_iq2.c — IQ2_XXS unpacked by byte permutations (VBMI) and bit matrices (GFNI).
 *
 * The 256 grid entries of eight 2-bit magnitude codes are two tables of 256 bytes, codes of weights
 * 0 … 3 and 4 … 7, kept in eight registers: VPERMI2B looks up 64 indices at once. A lane is a row, so
 * the codes of all 16 rows for 32 weights are two registers, and each of their bytes belongs to one
 * index. Two codes of a byte, with their two sign bits put beside them, are a number of six bits; one
 * byte permutation turns it into 128 ± magnitude of the first, another into that of the second. So a
 * register holds one weight of each of a row's four indices, numbers j, 8 + j, 16 + j and 24 + j: the
 * activations come interleaved accordingly (CK_ACTS_INTERLEAVED).
 */
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <pthread.h>

static _Alignas(64) uint8_t code_tables[2][256]; /* of weights 0 … 3 and 4 … 7 */
static _Alignas(64) uint8_t value_tables[2][64]; /* of the first and the second of two weights */
static _Alignas(64) uint8_t sign_index_shifts[64];
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
    for (int i = 0; i < 64; i++) /* bits 0, 1: the first's code, 2, 3: the second's, 4 and 5: signs */
        for (int w = 0; w < 2; w++) {
            int magnitude = magnitudes[i >> 2 * w & 3];
            value_tables[w][i] = (uint8_t)(128 + ((i >> (4 + w) & 1) ? -magnitude : magnitude));
        }
    for (int byte = 0; byte < 64; byte++) /* shifts count within 64 bits: two lanes */
        sign_index_shifts[byte] = (uint8_t)(byte % 8 / 4 * 32 + 7 * (byte % 4));
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

/* Signs of weights 2p and 2p + 1 from seven-bit sign indices to bits 4 and 5; the last weight's is the
 * parity of the index. A byte of the matrix is a row of it, that of bit 0 the last. */
CK_INLINE __m512i signs_of_pair(__m512i index, int p) {
    const long long row4 = 1ll << 2 * p, row5 = p == 3 ? 0x7f : 2ll << 2 * p;
    return _mm512_gf2p8affine_epi64_epi8(index, _mm512_set1_epi64(row4 << 24 | row5 << 16), 0);
}

CK_INLINE ck_unit unpack_iq2_xxs(const state_iq2_xxs *s, int sub) {
    __m512i index = s->words[2 * sub], packed = s->words[2 * sub + 1];
    __mmask64 upper = _mm512_movepi8_mask(index);
    __m512i codes[2] = {look_up(code_tables[0], index, upper), look_up(code_tables[1], index, upper)};
    __m512i signs = _mm512_multishift_epi64_epi8(_mm512_load_si512(sign_index_shifts), packed);

    const __m512i first = _mm512_load_si512(value_tables[0]), second = _mm512_load_si512(value_tables[1]);
    ck_unit u;
    for (int p = 0; p < 4; p++) {
        __m512i code = p % 2 ? _mm512_srli_epi16(codes[p / 2], 4) : codes[p / 2];
        code = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), code, signs_of_pair(signs, p), 0xca);
        u.q[2 * p] = _mm512_permutexvar_epi8(code, first); /* ignores bits 6 and 7 */
        u.q[2 * p + 1] = _mm512_permutexvar_epi8(code, second);
    }
    __m512i scale = _mm512_or_si512(_mm512_srli_epi32(packed, 27), _mm512_set1_epi32(1)); /* 2 · scale + 1 */
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
