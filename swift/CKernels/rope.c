/* rope.c — rotary position embedding on the last `rope` values of a row, interleaved pairs.
 * CPU twin of rope.metal. */
#include "ckernels.h"

#include <math.h>

void rope_table_f32(const int32_t *positions, int64_t n, const float *inv_freq, int64_t rope,
                    float *table) {
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < rope / 2; i++) {
            /* The product is f32 as in the reference; its cosine is then exact to f32. */
            float angle = (float)positions[t] * inv_freq[i];
            float *pair = table + (t * (rope / 2) + i) * 2;
            pair[0] = (float)cos((double)angle);
            pair[1] = (float)sin((double)angle);
        }
}

typedef struct {
    float *x;
    const float *table;
    int64_t heads, dim, rope;
    bool inverse;
} rope_args;

static void rope_task(void *context, int64_t task, int thread) {
    (void)thread;
    const rope_args *a = context;
    int64_t half = a->rope / 2;
    const float *table = a->table + task * half * 2;
    float sign = a->inverse ? -1.0f : 1.0f;
    for (int64_t h = 0; h < a->heads; h++) {
        float *x = a->x + (task * a->heads + h) * a->dim + a->dim - a->rope;
        for (int64_t i = 0; i < half; i++) {
            float c = table[2 * i], s = sign * table[2 * i + 1];
            float even = x[2 * i], odd = x[2 * i + 1];
            x[2 * i] = even * c - odd * s;
            x[2 * i + 1] = even * s + odd * c;
        }
    }
}

void rope_apply_f32(ck_pool *pool, float *x, int64_t n, int64_t heads, int64_t dim, int64_t rope,
                    const float *table, bool inverse) {
    rope_args a = {x, table, heads, dim, rope, inverse};
    ck_pool_run_even(pool, n, rope_task, &a);
}
