/* quant_activations.h — activations as int8, the other side of every product with quantised weights.
 *
 * Private to CKernels. Arithmetic that all instruction sets share, bit for bit. For one output element
 * y = Σ w·x the blocks of 32 weights are taken in ascending order; in each, with q the weights' integers
 * (ck_unpacked) and x the activations' (ck_act):
 *
 *   for each scale group g:  y = fma(float(Σ_g q·x), scale_g · x.d, y)      Σ exact, in int32
 *   for each min group g:    y = fma(−min_g, x.d · float(Σ_g x), y)
 *
 * One scale per 32 activations for every type: against one per 256 (llama.cpp's choice for the K and IQ
 * types) it costs some 10 % of the arithmetic and has 0.7 times the error on normally distributed
 * activations, less still when there are outliers.
 */
#ifndef PYDS4_QUANT_ACTIVATIONS_H
#define PYDS4_QUANT_ACTIVATIONS_H

#include "quant_blocks.h"

/* 32 activations x ≈ d · q: one cache line.
 * A block with an infinity or a NaN has d = NaN and q = 0: everything it touches becomes NaN. Blocks
 * below 2^-100 count as zero. */
typedef struct {
    int8_t q[CK_BLOCK];
    float d;             /* max |x| / 127 */
    int32_t minus128[2]; /* −128 · Σ q of each half: undoes weights stored as q + 128 */
    int32_t minus128_all;
    float sum[2]; /* d · Σ q of each half … */
    float sum_all; /* … and of all 32 */
    float unused;
} ck_act;

static_assert(sizeof(ck_act) == 64, "one cache line");

/* What lies in memory for the weights that it meets. */
typedef enum {
    CK_ACTS_FLOATS,      /* f32: float weights */
    CK_ACTS_IN_ORDER,    /* ck_act: quantised weights … */
    CK_ACTS_INTERLEAVED, /* … whose unpacking yields every eighth one together: q[4j + e] is number 8e + j */
} ck_acts_form;

/* A lone token's blocks once more, by field, for kernels that read rows of weights one after another.
 * Only where there is a whole number of CK_SINGLE_BLOCKS. */
typedef struct {
    int8_t *q;
    float *d;
    int32_t *minus128;
} ck_single;

enum { CK_FLOATS = 16, CK_SINGLE_BLOCKS = 16 };

/* Activations of some tokens, block by block, in the form that the weights need: for quantised ones
 * block b of token t is blocks[b · stride + t], for float ones 16 values from floats + 16 · (b · stride + t).
 * Tokens that are multiplied together lie together (rows 16 KB apart would fight over cache sets), and an
 * odd stride spreads the blocks of one token. */
typedef struct {
    ck_acts_form form;
    ck_act *blocks;
    float *floats;
    int64_t stride;
    ck_single single; /* of NULLs where it is not wanted */
} ck_acts;

/* Whether PYDS4_CPU_EXACT asks for activations as they are, everywhere. */
bool ck_is_exact(void);

/* The form that weights of `type` need. */
ck_acts_form ck_acts_form_of(int32_t type);

/* Bytes for `n` tokens of `cols` activations. */
size_t ck_acts_bytes(ck_acts_form form, int64_t n, int64_t cols);

/* What fits `memory` of that size, aligned to 64 bytes; still to be filled. */
ck_acts ck_acts_place(void *memory, ck_acts_form form, int64_t n, int64_t cols);

/* Fills `acts` from x [n, cols] of row distance `ldx`, split over the pool. */
void ck_acts_fill(ck_pool *pool, const ck_acts *acts, const float *x, int64_t ldx, int64_t n, int64_t cols);

/* Fills columns first … first+31 of one token; where the matrix has fewer, only `cols` exist. */
void ck_acts_fill_block(const ck_acts *acts, const float x[CK_BLOCK], int64_t token, int64_t first,
                        int64_t cols);

#endif
