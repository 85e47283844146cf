/* indexer.c — which compressed rows a token attends to (report §2.3.1). CPU twin of indexer.metal.
 *
 * Scores are written to scratch memory for a group of tokens at a time (at most SCORE_BYTES of it),
 * then each token keeps its `top` best by a radix search for the threshold: no sorting. */
#include "ckernels.h"
#include "kv_rows.h"

enum { BLOCK_ROWS = 32, GROUP_TOKENS = 16, HEADS_A_STEP = 4 };
static const size_t SCORE_BYTES = 8 << 20;

#define CK_BODY "indexer_body.h"
#include "vector_isa.h"

typedef struct {
    ck_pool *pool;
    const float *q, *w;
    int64_t n, heads, dim;
    const ck_paged_rows *rows;
    const int32_t *visible;
    int32_t top;
    float scale;
    int32_t *selected, *counts;
    int64_t most; /* the longest list of visible rows, the stride of scores */
    float *scores;
} indexer_args;

static void score_task(void *context, int64_t task, int thread) {
    const indexer_args *a = context;
    int64_t groups = (a->n + GROUP_TOKENS - 1) / GROUP_TOKENS;
    int64_t from = task / groups * BLOCK_ROWS, group = task % groups * GROUP_TOKENS;
    int64_t to = from + BLOCK_ROWS < a->most ? from + BLOCK_ROWS : a->most;
    int64_t last = group + GROUP_TOKENS < a->n ? group + GROUP_TOKENS : a->n;
    float *k = ck_pool_thread_scratch(a->pool, thread, sizeof(float) * (size_t)(BLOCK_ROWS * a->dim));
    for (int64_t row = from; row < to; row++)
        kv_row_decode(a->rows->format, kv_paged_row(a->rows, row), a->dim, 0, k + (row - from) * a->dim);
    for (int64_t t = group; t < last; t++) {
        int64_t end = a->visible[t] < to ? a->visible[t] : to;
        if (end > from)
            CK_DISPATCH(score_rows)(a->q + t * a->heads * a->dim, a->w + t * a->heads, a->heads, a->dim, k,
                                    end - from, a->scale, a->scores + t * a->most + from);
    }
}

/* Floats as integers of the same order; NaN of either sign becomes the lowest. */
static uint32_t order_key(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The key of the `top`-th highest score, found byte by byte; *above receives how many are higher. */
static uint32_t threshold_key(const float *scores, int32_t n, int32_t top, int32_t *above) {
    uint32_t prefix = 0, mask = 0;
    int32_t wanted = top;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int32_t count[256] = {0};
        for (int32_t i = 0; i < n; i++) {
            uint32_t key = order_key(scores[i]);
            if ((key & mask) == prefix) count[key >> shift & 255]++;
        }
        int digit = 255;
        for (; digit > 0 && count[digit] < wanted; digit--) wanted -= count[digit];
        prefix |= (uint32_t)digit << shift;
        mask |= 255u << shift;
    }
    *above = top - wanted;
    return prefix;
}

static void select_task(void *context, int64_t t, int thread) {
    (void)thread;
    const indexer_args *a = context;
    int32_t n = a->visible[t], *out = a->selected + t * a->top;
    a->counts[t] = n < a->top ? n : a->top;
    if (n <= a->top) {
        for (int32_t i = 0; i < n; i++) out[i] = i;
        return;
    }
    const float *scores = a->scores + t * a->most;
    int32_t above, found = 0;
    uint32_t threshold = threshold_key(scores, n, a->top, &above);
    int32_t equal = a->top - above;
    for (int32_t i = 0; i < n && found < a->top; i++) {
        uint32_t key = order_key(scores[i]);
        if (key > threshold || (key == threshold && equal-- > 0)) out[found++] = i;
    }
}

void indexer_select(ck_pool *pool, const float *q, const float *w, int64_t n, int64_t heads, int64_t dim,
                    const ck_paged_rows *rows, const int32_t *visible, int32_t top, float scale,
                    int32_t *selected, int32_t *counts) {
    for (int64_t done = 0; done < n;) {
        int32_t most = 0;
        int64_t m = 0;
        for (; done + m < n; m++) { /* as many tokens as the scratch holds, at least one */
            int32_t longest = visible[done + m] > most ? visible[done + m] : most;
            if (m > 0 && (size_t)(m + 1) * (size_t)longest * sizeof(float) > SCORE_BYTES) break;
            most = longest;
        }
        indexer_args a = {pool, q + done * heads * dim, w + done * heads, m, heads, dim, rows,
                          visible + done, top, scale, selected + done * top, counts + done, most, NULL};
        if (most > top) { /* otherwise every row is kept, whatever its score */
            a.scores = ck_pool_scratch(pool, CK_SCRATCH_INDEXER, (size_t)m * (size_t)most * sizeof(float));
            int64_t blocks = (most + BLOCK_ROWS - 1) / BLOCK_ROWS;
            ck_pool_run(pool, blocks * ((m + GROUP_TOKENS - 1) / GROUP_TOKENS), score_task, &a);
        }
        ck_pool_run(pool, m, select_task, &a);
        done += m;
    }
}
