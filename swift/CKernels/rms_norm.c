/* rms_norm.c — y = x / sqrt(mean(x²) + eps) · weight. CPU twin of rms_norm.metal.
 *
 * Precision  sum of squares in 16 f32 lanes, reduced by halves */
#include "ckernels.h"

#define CK_BODY "rms_norm_body.h"
#include "vector_isa.h"

typedef struct {
    const float *x, *weight;
    float *y;
    int64_t dim;
    float eps;
} norm_args;

static void norm_task(void *context, int64_t task, int thread) {
    (void)thread;
    const norm_args *a = context;
    const float *x = a->x + task * a->dim;
    float scale = CK_DISPATCH(inverse_rms)(x, a->dim, a->eps);
    CK_DISPATCH(scale_row)(x, a->dim, scale, a->weight, a->y + task * a->dim);
}

void rms_norm_f32(ck_pool *pool, const float *x, int64_t n, int64_t dim, const float *weight, float eps,
                  float *y) {
    norm_args a = {x, weight, y, dim, eps};
    ck_pool_run_even(pool, n, norm_task, &a);
}

static void scale_task(void *context, int64_t task, int thread) {
    (void)thread;
    const norm_args *a = context;
    a->y[task] = CK_DISPATCH(inverse_rms)(a->x + task * a->dim, a->dim, a->eps);
}

void rms_norm_scale_f32(ck_pool *pool, const float *x, int64_t n, int64_t dim, float eps, float *out) {
    norm_args a = {x, NULL, out, dim, eps};
    ck_pool_run_even(pool, n, scale_task, &a);
}
