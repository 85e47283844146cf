/* quant_activations.c — activations from rows of f32 to the form that products read. */
#include "quant_activations.h"

#define CK_BODY "quant_activations_body.h"
#include "vector_isa.h"

size_t ck_acts_bytes(bool floats, int64_t n, int64_t cols) {
    int64_t blocks = floats ? (cols + CK_FLOATS - 1) / CK_FLOATS : cols / CK_BLOCK;
    return (size_t)(blocks * (n | 1)) * (floats ? CK_FLOATS * sizeof(float) : sizeof(ck_act));
}

ck_acts ck_acts_place(void *memory, bool floats, int64_t n) {
    return (ck_acts){.blocks = floats ? NULL : memory, .floats = floats ? memory : NULL, .stride = n | 1};
}

/* `cols` values of token `token` from column `first`, a multiple of the block size, on. */
static void fill(const ck_acts *acts, const float *x, int64_t token, int64_t first, int64_t cols) {
    if (acts->blocks) {
        ck_act *out = acts->blocks + first / CK_BLOCK * acts->stride + token;
        CK_DISPATCH(quantise_row)(x, cols / CK_BLOCK, out, acts->stride);
        return;
    }
    float *out = acts->floats + (first / CK_FLOATS * acts->stride + token) * CK_FLOATS;
    for (int64_t i = 0; i < cols; i += CK_FLOATS, out += acts->stride * CK_FLOATS) {
        int64_t have = cols - i < CK_FLOATS ? cols - i : CK_FLOATS;
        memcpy(out, x + i, (size_t)have * sizeof *x);
        memset(out + have, 0, (size_t)(CK_FLOATS - have) * sizeof *x);
    }
}

/* One task is one token. */
typedef struct {
    const ck_acts *acts;
    const float *x;
    int64_t ldx, cols;
} fill_args;

static void fill_task(void *context, int64_t task, int thread) {
    (void)thread;
    const fill_args *a = context;
    fill(a->acts, a->x + task * a->ldx, task, 0, a->cols);
}

void ck_acts_fill(ck_pool *pool, const ck_acts *acts, const float *x, int64_t ldx, int64_t n, int64_t cols) {
    fill_args a = {acts, x, ldx, cols};
    ck_pool_run(pool, n, fill_task, &a);
}

void ck_acts_fill_block(const ck_acts *acts, const float x[CK_BLOCK], int64_t token, int64_t first,
                        int64_t cols) {
    fill(acts, x, token, first, cols - first < CK_BLOCK ? cols - first : CK_BLOCK);
}
