/* sampling.c — logits → a token. */
#include "ckernels.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    float logit;
    int32_t id;
} candidate;

/* Higher logits first, lower ids first among equals: a total order, so the sort is deterministic. */
static int by_logit(const void *x, const void *y) {
    const candidate *a = x, *b = y;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static int32_t greedy(const float *logits, int64_t n) {
    int32_t best = -1;
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (logits[i] > top) {
            top = logits[i];
            best = (int32_t)i;
        }
    return best;
}

int32_t sampling_choose(const float *logits, int64_t n, const ck_sampling *s, double random) {
    int32_t best = greedy(logits, n);
    if (best < 0 || !(s->temperature > 0.0f) || s->top_k == 1) return best;
    /* Below e^-40 of the best a token has no chance that a double random number could hit. */
    float top = logits[best];
    if (top == INFINITY) return best;
    float least = top - 40.0f * s->temperature;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count += logits[i] >= least;
    candidate *c = malloc((size_t)count * sizeof *c);
    if (!c) return best;
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++)
        if (logits[i] >= least) c[m++] = (candidate){logits[i], (int32_t)i};
    qsort(c, (size_t)m, sizeof *c, by_logit);
    if (s->top_k > 0 && m > s->top_k) m = s->top_k;

    double total = 0, kept = 0;
    for (int64_t i = 0; i < m; i++) total += exp(((double)c[i].logit - top) / s->temperature);
    int64_t keep = 0;
    for (; keep < m; keep++) {
        double weight = exp(((double)c[keep].logit - top) / s->temperature);
        if (keep > 0 && (kept >= s->top_p * total || weight < s->min_p)) break;
        kept += weight;
    }
    double at = random * kept;
    int32_t chosen = c[keep - 1].id;
    for (int64_t i = 0; i < keep; i++) {
        at -= exp(((double)c[i].logit - top) / s->temperature);
        if (at < 0) {
            chosen = c[i].id;
            break;
        }
    }
    free(c);
    return chosen;
}
