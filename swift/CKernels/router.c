/* router.c — which experts a token takes, and with what weights. CPU twin of router.metal. */
#include "ckernels.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    const float *logits, *bias;
    const int32_t *table, *tokens;
    int32_t experts, used;
    float scale;
    int32_t *ids;
    float *weights;
} router_args;

static float score(float logit) {
    /* softplus; above 20 it is the identity to f32, and expf would overflow from 89 on */
    return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit)));
}

static void weigh(const router_args *a, int64_t t) {
    const float *logits = a->logits + t * a->experts;
    const int32_t *ids = a->ids + t * a->used;
    float *weights = a->weights + t * a->used, sum = 0;
    for (int32_t j = 0; j < a->used; j++) sum += weights[j] = score(logits[ids[j]]);
    for (int32_t j = 0; j < a->used; j++) weights[j] = weights[j] / sum * a->scale;
}

static void top_k_task(void *context, int64_t t, int thread) {
    (void)thread;
    const router_args *a = context;
    const float *logits = a->logits + t * a->experts;
    int32_t *ids = a->ids + t * a->used, found = 0;
    float *keys = a->weights + t * a->used; /* their keys in descending order, until weigh() */
    for (int32_t e = 0; e < a->experts; e++) {
        float key = score(logits[e]) + (a->bias ? a->bias[e] : 0.0f);
        if (key != key) key = -INFINITY; /* a NaN sorts last, it must not break the order */
        int32_t j = found < a->used ? found++ : a->used;
        if (j == a->used) {
            if (!(key > keys[j - 1])) continue;
            j--;
        }
        for (; j > 0 && key > keys[j - 1]; j--) {
            keys[j] = keys[j - 1];
            ids[j] = ids[j - 1];
        }
        keys[j] = key;
        ids[j] = e;
    }
    weigh(a, t);
}

void router_top_k(ck_pool *pool, const float *logits, const float *bias, int64_t n, int32_t experts,
                  int32_t used, float scale, int32_t *ids, float *weights) {
    router_args a = {logits, bias, NULL, NULL, experts, used, scale, ids, weights};
    ck_pool_run(pool, n, top_k_task, &a);
}

static void hash_task(void *context, int64_t t, int thread) {
    (void)thread;
    const router_args *a = context;
    for (int32_t j = 0; j < a->used; j++)
        a->ids[t * a->used + j] = a->table[(int64_t)a->tokens[t] * a->used + j];
    weigh(a, t);
}

void router_hash(ck_pool *pool, const float *logits, const int32_t *table, const int32_t *tokens,
                 int64_t n, int32_t experts, int32_t used, float scale, int32_t *ids, float *weights) {
    router_args a = {logits, NULL, table, tokens, experts, used, scale, ids, weights};
    ck_pool_run(pool, n, hash_task, &a);
}
