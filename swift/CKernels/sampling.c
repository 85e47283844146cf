/* sampling.c — logits → a token.

   A vocabulary has 129,280 tokens, of which a handful carry the weight. Nothing is sorted: the sum of all
   weights takes one pass, and the best tokens come off a heap, one by one, until the draw is decided. */
#include "ckernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    float logit;
    int32_t id;
} candidate;

/* Higher logits first, lower ids first among equals: a total order, so the draw is deterministic. */
static int comes_before(candidate a, candidate b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

static void sift_down(candidate *heap, int64_t count, int64_t at) {
    candidate moved = heap[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && comes_before(heap[child + 1], heap[child])) child++;
        if (!comes_before(heap[child], moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
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

/* Below e^-40 of the best a token has no chance that a double random number could hit. */
static const float NO_CHANCE = 40.0f;
/* Most draws are decided among the tokens above e^-12 of the best. */
static const float LIKELY = 12.0f;

/* Tokens from the best downwards, a range of logits at a time. */
typedef struct {
    const float *logits;
    int64_t n;
    float top, temperature;
    candidate *heap;
    int64_t count;
    int next_range;
} descent;

static void fill(descent *d, float from, float below) {
    d->count = 0;
    for (int64_t i = 0; i < d->n; i++)
        if (d->logits[i] >= from && d->logits[i] < below) d->heap[d->count++] = (candidate){d->logits[i], (int32_t)i};
    for (int64_t i = d->count / 2 - 1; i >= 0; i--) sift_down(d->heap, d->count, i);
}

/* The next token into `out`; 0 when there is none left with a chance. */
static int next(descent *d, candidate *out) {
    while (d->count == 0) {
        float likely = d->top - LIKELY * d->temperature;
        if (d->next_range == 0) fill(d, likely, INFINITY);
        else if (d->next_range == 1) fill(d, d->top - NO_CHANCE * d->temperature, likely);
        else return 0;
        d->next_range++;
    }
    *out = d->heap[0];
    d->heap[0] = d->heap[--d->count];
    if (d->count > 0) sift_down(d->heap, d->count, 0);
    return 1;
}

static double weight(const descent *d, float logit) { return exp(((double)logit - d->top) / d->temperature); }

/* e^x for x in [-NO_CHANCE, 0], to 2e-7: plain operations in a fixed order, which compilers turn into vectors and
   every machine rounds alike. */
static inline float exp_of(float x) {
    const float magic = 12582912.0f; /* 1.5 · 2^23: adding it rounds to a whole number */
    float whole = (x * 1.44269504f + magic) - magic;
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float value = p * (r * r) + r + 1.0f, scale;
    int32_t bits = ((int32_t)whole + 127) << 23;
    memcpy(&scale, &bits, 4);
    return value * scale;
}

/* The sum of all weights, in eight sums whose order does not depend on the machine. */
static double sum_of_weights(const descent *d) {
    double sums[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= d->n; i += 8)
        for (int lane = 0; lane < 8; lane++) {
            /* What is no number compares false, and counts nothing. */
            float x = (d->logits[i + lane] - d->top) / d->temperature;
            float w = exp_of(x >= -NO_CHANCE ? x : -NO_CHANCE);
            sums[lane] += x >= -NO_CHANCE ? w : 0.0f;
        }
    for (; i < d->n; i++) {
        float x = (d->logits[i] - d->top) / d->temperature;
        if (x >= -NO_CHANCE) sums[0] += exp_of(x);
    }
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/* Walks down from the best until `random` of `total` is used up. Rounding may leave a last bit of it: then it
   is the best, since what stands last may be a token that is forbidden. */
static int32_t draw(descent *d, double random, double total, int32_t best) {
    double at = random * total;
    candidate c;
    while (next(d, &c)) {
        at -= weight(d, c.logit);
        if (at < 0) return c.id;
    }
    return best;
}

int32_t sampling_choose(const float *logits, int64_t n, const ck_sampling *s, double random) {
    int32_t best = greedy(logits, n);
    if (best < 0 || !(s->temperature > 0.0f) || s->top_k == 1) return best;
    float top = logits[best];
    if (top == INFINITY) return best;
    /* The heap, and behind it what was taken off while cutting the tail. */
    candidate *memory = malloc(2 * (size_t)n * sizeof *memory), *kept = memory + n;
    if (!memory) return best;
    descent d = {logits, n, top, s->temperature, memory, 0, 0};

    int64_t most = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    int is_cut = most < n || s->top_p < 1.0f || s->min_p > 0.0f;
    if (!is_cut) {
        int32_t chosen = draw(&d, random, sum_of_weights(&d), best);
        free(memory);
        return chosen;
    }
    /* top_p is a share of what top_k leaves. */
    int64_t count = 0, keep = 0;
    double total = 0, sum = 0;
    if (most < n) {
        for (; count < most && next(&d, &kept[count]); count++) total += weight(&d, kept[count].logit);
    } else if (s->top_p < 1.0f) {
        total = sum_of_weights(&d);
    }
    double enough = s->top_p < 1.0f ? s->top_p * total : INFINITY;
    for (;; keep++) {
        if (keep == count) {
            if (most < n || !next(&d, &kept[count])) break;
            count++;
        }
        double w = weight(&d, kept[keep].logit);
        if (keep > 0 && (sum >= enough || w < s->min_p)) break;
        sum += w;
    }
    double at = random * sum;
    int32_t chosen = kept[keep - 1].id;
    for (int64_t i = 0; i < keep; i++) {
        at -= weight(&d, kept[i].logit);
        if (at < 0) {
            chosen = kept[i].id;
            break;
        }
    }
    free(memory);
    return chosen;
}
