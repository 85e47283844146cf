/* compressor.c — pooling windows of tokens into one row (report §2.3). CPU twin of compressor.metal.
 *
 * A window's softmax is kept as running sums, one token after the other, so that a half-filled window
 * costs three floats a channel instead of the keys and gates of all its tokens, and the bits do not
 * depend on how the tokens arrive:
 *
 *     m' = max(m, g);  s' = s·e^(m-m') + e^(g-m');  a' = a·e^(m-m') + v·e^(g-m');  row = a / s
 *
 * With overlap a row merges the first series of the window before with the second of its own. */
#include "ckernels.h"

#define CK_BODY "compressor_body.h"
#include "vector_isa.h"

enum { LANES = 16, CHANNELS_A_TASK = 64 };

typedef struct {
    const float *kv, *gate, *ape;
    int64_t n, dim, position;
    int32_t ratio;
    bool overlap;
    float *state, *rows;
} pool_args;

static void pool_task(void *context, int64_t task, int thread) {
    (void)thread;
    const pool_args *a = context;
    int64_t from = task * CHANNELS_A_TASK;
    int64_t to = from + CHANNELS_A_TASK < a->dim ? from + CHANNELS_A_TASK : a->dim;
    int64_t width = a->overlap ? 2 * a->dim : a->dim;
    for (int64_t c = from; c < to; c += LANES)
        (a->overlap ? CK_DISPATCH(pool_overlapping) : CK_DISPATCH(pool_separate))(
            a->kv + c, a->gate + c, a->ape + c, a->n, a->dim, width, a->ratio, a->position, a->state + c,
            a->rows + c);
}

void compressor_pool_f32(ck_pool *pool, const float *kv, const float *gate, const float *ape, int64_t n,
                         int64_t dim, int32_t ratio, bool overlap, int64_t position, float *state,
                         float *rows) {
    pool_args a = {kv, gate, ape, n, dim, position, ratio, overlap, state, rows};
    ck_pool_run(pool, (dim + CHANNELS_A_TASK - 1) / CHANNELS_A_TASK, pool_task, &a);
}
