/* indexer_int8.h — scores of FP4 rows for FP4 queries, by exact integer products. Private to CKernels.
 *
 * Twice an e2m1 value is an integer of at most 12, so a block of 32 of a row is integers and a power of
 * two. The queries were rounded the same way; a head of them is written as integers of at most 127 and one
 * power of two, which goes into the head's weight. Then, for one row, with b the blocks ascending:
 *
 *     dot   = fma(float(Σ_b q·k), scale_b, dot)              Σ exact, in int32
 *     score = fma(w_h · 2^e_h, max(dot, 0), score)           h ascending
 *
 * the same operations for every row on every instruction set, hence the same bits. Queries that do not fit
 * (not rounded, or blocks of one head more than a factor 8 apart) are left to the floating-point path of
 * indexer.c; that depends on the token alone. */
#ifndef PYDS4_INDEXER_INT8_H
#define PYDS4_INDEXER_INT8_H

#include "kv_rows.h"

enum {
    CK_INDEX_BLOCK = 32,      /* values with a common scale */
    CK_INDEX_PANEL_ROWS = 16, /* a lane is a row */
    CK_INDEX_STEP_ROWS = 32,  /* rows scored at once */
    CK_INDEX_STEP_HEADS = 4
};

/* Queries of some tokens. A word of 32 bits is four values that meet a word of a panel: of eight values
 * first those at even places, then those at odd ones. */
typedef struct {
    int64_t heads, dim; /* heads: rounded up to CK_INDEX_STEP_HEADS, those added being 0 */
    int8_t *q;          /* [n, heads, dim] */
    int32_t *offset;    /* [n, heads, dim / 32], −12 · Σ q: undoes that rows are stored as k + 12 */
    float *w;           /* [n, heads] */
    bool *exact;        /* [n], false: left to the floating-point path */
} ck_index_queries;

/* Bytes for `n` tokens, and what fits memory of that size. */
size_t ck_index_queries_bytes(int64_t n, int64_t heads, int64_t dim);
ck_index_queries ck_index_queries_place(void *memory, int64_t n, int64_t heads, int64_t dim);

/* Fills token `t` from q [heads, dim] and w [heads]; `heads` as they are. */
void ck_index_quantise(const ck_index_queries *x, int64_t t, const float *q, const float *w, int64_t heads);

/* Sixteen FP4 rows as bytes k + 12, transposed: lane r of word i, [dim / 4, 16] words, is four values of
 * rows[r]; scales [dim / 32, 16] are what the integers count. */
void ck_index_unpack(const uint8_t *const rows[CK_INDEX_PANEL_ROWS], int64_t dim, uint8_t *panel, float *scales);

/* out[i] = scale · score of row i for token `t`, which must be exact, and `rows` rows of neighbouring
 * panels: a multiple of CK_INDEX_STEP_ROWS. */
void ck_index_score(const ck_index_queries *x, int64_t t, const uint8_t *panels, const float *scales,
                    int64_t rows, float scale, float *out);

/* indexer_top.c: the places of the `top` < n highest scores in ascending order; of equals, the first, and
 * what is no number last. `keys` is room for n. */
void ck_index_top(const float *scores, int32_t n, int32_t top, int32_t *keys, int32_t *out);

#endif
