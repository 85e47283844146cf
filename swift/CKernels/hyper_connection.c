/* hyper_connection.c — mixing the four residual streams (report §2.2). CPU twin of
 * hyper_connection.metal.
 *
 *   hc_split     mix [n, 24]                     → pre [n, 4], post [n, 4], comb [n, 4, 4]
 *   hc_collapse  streams [n, 4, dim], pre        → x [n, dim]
 *   hc_expand    y, post, comb, streams          → streams [n, 4, dim]
 *
 * comb[i][j] carries stream i into stream j. Order: softmax over j, + eps; columns; then
 * (iterations - 1) × (rows, columns), each division by (sum + eps). */
#include "ckernels.h"

#include <math.h>

enum { STREAMS = 4, MIX = 24 };

#define CK_BODY "hyper_connection_body.h"
#include "vector_isa.h"

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

static void normalise_columns(float c[STREAMS][STREAMS], float eps) {
    for (int j = 0; j < STREAMS; j++) {
        float sum = eps;
        for (int i = 0; i < STREAMS; i++) sum += c[i][j];
        for (int i = 0; i < STREAMS; i++) c[i][j] /= sum;
    }
}

static void normalise_rows(float c[STREAMS][STREAMS], float eps) {
    for (int i = 0; i < STREAMS; i++) {
        float sum = eps;
        for (int j = 0; j < STREAMS; j++) sum += c[i][j];
        for (int j = 0; j < STREAMS; j++) c[i][j] /= sum;
    }
}

static void sinkhorn(float c[STREAMS][STREAMS], int32_t iterations, float eps) {
    for (int i = 0; i < STREAMS; i++) {
        float top = c[i][0], sum = 0;
        for (int j = 1; j < STREAMS; j++) top = c[i][j] > top ? c[i][j] : top;
        for (int j = 0; j < STREAMS; j++) sum += c[i][j] = expf(c[i][j] - top);
        for (int j = 0; j < STREAMS; j++) c[i][j] = c[i][j] / sum + eps;
    }
    normalise_columns(c, eps);
    for (int k = 1; k < iterations; k++) {
        normalise_rows(c, eps);
        normalise_columns(c, eps);
    }
}

typedef struct {
    const float *mix, *inv_rms, *scale, *base;
    float *pre, *post, *comb;
    int32_t iterations;
    float eps;
} split_args;

static void split_task(void *context, int64_t t, int thread) {
    (void)thread;
    const split_args *a = context;
    const float *mix = a->mix + t * MIX;
    float inv = a->inv_rms[t];
    for (int i = 0; i < STREAMS; i++) {
        a->pre[t * STREAMS + i] = sigmoid(mix[i] * inv * a->scale[0] + a->base[i]) + a->eps;
        a->post[t * STREAMS + i] =
            2.0f * sigmoid(mix[STREAMS + i] * inv * a->scale[1] + a->base[STREAMS + i]);
    }
    float(*comb)[STREAMS] = (float(*)[STREAMS])(a->comb + t * STREAMS * STREAMS);
    for (int i = 0; i < STREAMS * STREAMS; i++)
        comb[i / STREAMS][i % STREAMS] =
            mix[2 * STREAMS + i] * inv * a->scale[2] + a->base[2 * STREAMS + i];
    sinkhorn(comb, a->iterations, a->eps);
}

void hc_split_f32(ck_pool *pool, const float *mix, const float *inv_rms, const float *scale,
                  const float *base, int64_t n, int32_t iterations, float eps, float *pre, float *post,
                  float *comb) {
    split_args a = {mix, inv_rms, scale, base, pre, post, comb, iterations, eps};
    ck_pool_run_even(pool, n, split_task, &a);
}

void hc_head_f32(const float *mix, const float *inv_rms, const float *scale, const float *base, int64_t n,
                 float eps, float *pre) {
    for (int64_t t = 0; t < n; t++)
        for (int i = 0; i < STREAMS; i++)
            pre[t * STREAMS + i] =
                sigmoid(mix[t * STREAMS + i] * inv_rms[t] * scale[0] + base[i]) + eps;
}

/* The two below stream over memory; a task is a slice of the channels of one token, so that a single
 * token still uses every thread. */
enum { SLICE = 2048 };

typedef struct {
    const float *pre, *post, *comb, *y;
    float *streams, *x;
    int64_t dim, slices;
} mix_args;

static void collapse_task(void *context, int64_t task, int thread) {
    (void)thread;
    const mix_args *a = context;
    int64_t t = task / a->slices, from = task % a->slices * SLICE;
    int64_t to = from + SLICE < a->dim ? from + SLICE : a->dim;
    CK_DISPATCH(collapse)(a->streams + t * STREAMS * a->dim, a->pre + t * STREAMS, a->dim, from, to,
                          a->x + t * a->dim);
}

void hc_collapse_f32(ck_pool *pool, const float *streams, const float *pre, int64_t n, int64_t dim,
                     float *x) {
    mix_args a = {pre, NULL, NULL, NULL, (float *)streams, x, dim, (dim + SLICE - 1) / SLICE};
    ck_pool_run_even(pool, n * a.slices, collapse_task, &a);
}

static void expand_task(void *context, int64_t task, int thread) {
    (void)thread;
    const mix_args *a = context;
    int64_t t = task / a->slices, from = task % a->slices * SLICE, dim = a->dim;
    int64_t to = from + SLICE < dim ? from + SLICE : dim;
    CK_DISPATCH(expand)(a->y + t * dim, a->post + t * STREAMS, a->comb + t * STREAMS * STREAMS, dim, from, to,
                        a->streams + t * STREAMS * dim);
}

void hc_expand_f32(ck_pool *pool, const float *y, const float *post, const float *comb, int64_t n,
                   int64_t dim, float *streams) {
    mix_args a = {NULL, post, comb, y, streams, NULL, dim, (dim + SLICE - 1) / SLICE};
    ck_pool_run_even(pool, n * a.slices, expand_task, &a);
}
