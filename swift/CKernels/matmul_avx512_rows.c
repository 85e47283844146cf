/* matmul_avx512_rows.c — Q8_0 times a lone token, one row after another. See matmul_kernels.h.
 *
 * With one token memory is the limit, and it gives most when it is read in one straight line: rows are
 * read as they lie in the file, some kilobytes ahead. A register holds the exact sums of 16 blocks of a
 * row; they and their scales are set down in the first-level cache. Adding them up, block by block as
 * every kernel does, is a chain of dependent steps, so the chains of two rows go side by side, a little
 * after each chunk of the two rows that follow. (Chains of 4 and of 16 rows take fewer operations, but
 * what they set down is then driven out of the cache by the weights.)
 */
#include "matmul_avx512.h"

#if defined(__x86_64__)

enum { BLOCK_BYTES = 34, CHUNK = CK_SINGLE_BLOCKS, CHUNK_BYTES = CHUNK * BLOCK_BYTES, AHEAD_BYTES = 8192 };

/* Of 16 blocks of a row: Σ q · x and the weights' scale times the activations'. */
typedef struct {
    _Alignas(64) float sums[CHUNK], scales[CHUNK];
} chunk_terms;

#pragma clang attribute push(__attribute__((target(CK_AVX512_TARGET))), apply_to = function)

/* Neighbouring lanes added: those of a to even lanes, those of b to odd ones. */
CK_INLINE __m512i add_lanes(__m512i a, __m512i b) {
    __m512i straight = _mm512_mask_blend_epi32(0xaaaa, a, b);
    __m512i crossed = _mm512_mask_blend_epi32(0xaaaa, b, a);
    return _mm512_add_epi32(straight, _mm512_ror_epi64(crossed, 32));
}

/* Neighbouring pairs of lanes added: those of a to even pairs, those of b to odd ones. */
CK_INLINE __m512i add_pairs(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Neighbouring quarters added: those of a to the first two, those of b to the last two. */
CK_INLINE __m512i add_quarters(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* The terms of 16 blocks from p on, blocks `first` … of the activations. */
CK_INLINE void compute_chunk(const uint8_t *p, const ck_single *x, int64_t first, chunk_terms *terms) {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    __m512i s[8];
    for (int i = 0; i < 8; i++) { /* eight parts of the sum of each of two blocks */
        const uint8_t *q = p + 2 * BLOCK_BYTES * i + offsetof(ck_block_q8_0, q);
        __m512i plus128 = _mm512_xor_si512(load_pair(q, q + BLOCK_BYTES), _mm512_set1_epi8((char)0x80));
        s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), plus128,
                                   _mm512_loadu_si512(x->q + CK_BLOCK * (first + 2 * i)));
    }
    for (int i = 0; i < 4; i++)
        s[i] = add_lanes(s[2 * i], s[2 * i + 1]);
    __m512i sums = add_quarters(add_pairs(s[0], s[1]), add_pairs(s[2], s[3]));
    sums = _mm512_add_epi32(_mm512_permutexvar_epi32(order, sums), _mm512_loadu_si512(x->minus128 + first));
    _mm512_store_ps(terms->sums, _mm512_cvtepi32_ps(sums));
    _mm512_store_ps(terms->scales, _mm512_mul_ps(load_halves(p, BLOCK_BYTES), _mm512_loadu_ps(x->d + first)));
}

#define QUARTER(v, i) ((i) ? _mm512_extractf32x4_ps(v, i) : _mm512_castps512_ps128(v))
#define PAIR(v, i, half) ((half) ? _mm_movehl_ps(QUARTER(v, i), QUARTER(v, i)) : QUARTER(v, i))

/* y += 16 terms of two rows, in order; lanes 0 and 1 are the rows. */
CK_INLINE __m128 add_terms(__m128 y, const chunk_terms *a, const chunk_terms *b) {
    __m512 sums_a = _mm512_load_ps(a->sums), scales_a = _mm512_load_ps(a->scales);
    __m512 sums_b = _mm512_load_ps(b->sums), scales_b = _mm512_load_ps(b->scales);
    /* quarter i of the low registers: pairs of terms 4i and 4i + 1, of the high ones: of the next two */
    __m512 low_sums = _mm512_unpacklo_ps(sums_a, sums_b), low_scales = _mm512_unpacklo_ps(scales_a, scales_b);
    __m512 high_sums = _mm512_unpackhi_ps(sums_a, sums_b), high_scales = _mm512_unpackhi_ps(scales_a, scales_b);
#define ADD(where, i, half) y = _mm_fmadd_ps(PAIR(where##_sums, i, half), PAIR(where##_scales, i, half), y)
#define ADD_QUARTER(i)                                                                                    ADD(low, i, 0);                                                                                       ADD(low, i, 1);                                                                                       ADD(high, i, 0);                                                                                      ADD(high, i, 1)
    ADD_QUARTER(0);
    ADD_QUARTER(1);
    ADD_QUARTER(2);
    ADD_QUARTER(3);
#undef ADD_QUARTER
#undef ADD
    return y;
}

/* The row that comes `row` rows after the tile's first, if need be in the tile that comes next. */
CK_INLINE const uint8_t *row_of(const ck_tile *tile, int64_t row) {
    const uint8_t *const *group = row < CK_TILE_ROWS ? tile->group : tile->next;
    row %= CK_TILE_ROWS;
    return group[row / CK_GROUP_ROWS] + (size_t)(row % CK_GROUP_ROWS) * tile->row_bytes;
}

CK_INLINE void fetch_chunk(const uint8_t *p) {
    for (int i = 0; i < CHUNK_BYTES; i += 64)
        _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}

void matmul_tile_q8_0_rows(const ck_tile *tile) {
    const int64_t chunks = tile->cols / (CHUNK * CK_BLOCK);
    const int64_t rows_ahead = ck_at_most(ck_divide_up(AHEAD_BYTES, chunks * CHUNK_BYTES), CK_TILE_ROWS - 1);
    const ck_single x = tile->acts.single;
    chunk_terms terms[2][2 * chunks]; /* of the pair of rows computed and of that being added up */
    for (int64_t row = 0; row < CK_TILE_ROWS + 2; row += 2) {
        chunk_terms *now = terms[row / 2 % 2], *before = terms[1 - row / 2 % 2];
        __m128 y = _mm_setzero_ps();
        for (int64_t r = row, step = 0; r < row + 2 && row < CK_TILE_ROWS; r++) {
            const uint8_t *p = row_of(tile, r), *ahead = row_of(tile, r + rows_ahead);
            for (int64_t chunk = 0; chunk < chunks; chunk++, step++, p += CHUNK_BYTES, ahead += CHUNK_BYTES) {
                compute_chunk(p, &x, CHUNK * chunk, now++);
                fetch_chunk(ahead);
                if (row > 0 && step % 2)
                    y = add_terms(y, before, before + chunks), before++;
            }
        }
        for (; row == CK_TILE_ROWS && before < terms[1] + chunks; before++)
            y = add_terms(y, before, before + chunks);
        if (row > 0)
            _mm_storel_pi((__m64 *)(tile->out + row - 2), y);
    }
}

#pragma clang attribute pop

#endif
