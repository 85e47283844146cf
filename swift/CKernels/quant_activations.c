/* quant_activations.c — f32 activations to int8 blocks of 32. */
#include "quant_activations.h"

#define CK_BODY "quant_activations_body.h"
#include "vector_isa.h"

void quant_activations(const float *x, int64_t count, ck_act *out, int64_t stride)
{
    CK_DISPATCH(quantise_row)(x, count, out, stride);
}

/* One task is one token. */
typedef struct {
    const float *x;
    int64_t ldx, cols;
    ck_acts acts;
} quantise_args;

static void quantise_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const quantise_args *a = context;
    quant_activations(a->x + task * a->ldx, a->cols / CK_BLOCK, a->acts.blocks + task, a->acts.stride);
}

void quant_activation_rows(ck_pool *pool, const float *x, int64_t ldx, int64_t n, int64_t cols,
                           ck_acts acts)
{
    quantise_args a = {x, ldx, cols, acts};
    ck_pool_run(pool, n, quantise_task, &a);
}
