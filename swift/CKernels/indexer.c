/* indexer.c — which compressed rows a token attends to (report §2.3.1). CPU twin of indexer.metal.
 *
 * Scores are written to scratch memory for a group of tokens at a time (at most SCORE_BYTES of it),
 * then each token keeps its `top` best (indexer_top.c). FP4 rows and queries meet as integers
 * (indexer_int8.h), others as floats. */
#include "ckernels.h"
#include "indexer_int8.h"

enum { BLOCK_ROWS = 128, GROUP_TOKENS = 16, HEADS_A_STEP = 4 };
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
    int64_t most;   /* the longest list of visible rows */
    int64_t stride; /* that, rounded up to whole steps */
    float *scores;  /* [n, stride] */
    bool integers;  /* rows are FP4, and `queries` filled where they fit */
    ck_index_queries queries;
} indexer_args;

static bool is_exact(const indexer_args *a, int64_t t) {
    return a->integers && a->queries.exact[t];
}

static void quantise_task(void *context, int64_t t, int thread) {
    (void)thread;
    const indexer_args *a = context;
    ck_index_quantise(&a->queries, t, a->q + t * a->heads * a->dim, a->w + t * a->heads, a->heads);
}

/* Rows from … to-1 for tokens first … last-1, as integers. */
static void score_integers(const indexer_args *a, int64_t from, int64_t to, int64_t first, int64_t last,
                           uint8_t *panels, float *scales) {
    int64_t whole = (to - from + CK_INDEX_STEP_ROWS - 1) / CK_INDEX_STEP_ROWS * CK_INDEX_STEP_ROWS;
    for (int64_t row = from; row < from + whole; row += CK_INDEX_PANEL_ROWS) {
        const uint8_t *rows[CK_INDEX_PANEL_ROWS];
        for (int64_t i = 0; i < CK_INDEX_PANEL_ROWS; i++) /* past the end: the last one again */
            rows[i] = kv_paged_row(a->rows, row + i < to ? row + i : to - 1);
        ck_index_unpack(rows, a->dim, panels + (row - from) * a->dim,
                        scales + (row - from) * (a->dim / CK_INDEX_BLOCK));
    }
    for (int64_t t = first; t < last; t++) {
        int64_t end = a->visible[t] < to ? a->visible[t] : to;
        int64_t steps = (end - from + CK_INDEX_STEP_ROWS - 1) / CK_INDEX_STEP_ROWS;
        if (end > from && is_exact(a, t))
            ck_index_score(&a->queries, t, panels, scales, steps * CK_INDEX_STEP_ROWS, a->scale,
                           a->scores + t * a->stride + from);
    }
}

static void score_floats(const indexer_args *a, int64_t from, int64_t to, int64_t first, int64_t last, float *k) {
    for (int64_t row = from; row < to; row++)
        kv_row_decode(a->rows->format, kv_paged_row(a->rows, row), a->dim, 0, k + (row - from) * a->dim);
    for (int64_t t = first; t < last; t++) {
        int64_t end = a->visible[t] < to ? a->visible[t] : to;
        if (end > from && !is_exact(a, t))
            CK_DISPATCH(score_rows)(a->q + t * a->heads * a->dim, a->w + t * a->heads, a->heads, a->dim, k,
                                    end - from, a->scale, a->scores + t * a->stride + from);
    }
}

static void score_task(void *context, int64_t task, int thread) {
    const indexer_args *a = context;
    int64_t groups = (a->n + GROUP_TOKENS - 1) / GROUP_TOKENS;
    int64_t from = task / groups * BLOCK_ROWS, first = task % groups * GROUP_TOKENS;
    int64_t to = from + BLOCK_ROWS < a->most ? from + BLOCK_ROWS : a->most;
    int64_t last = first + GROUP_TOKENS < a->n ? first + GROUP_TOKENS : a->n, exact = 0, longest = 0;
    for (int64_t t = first; t < last; t++) {
        exact += is_exact(a, t);
        longest = a->visible[t] > longest ? a->visible[t] : longest;
    }
    to = longest < to ? longest : to;
    if (to <= from) return;
    /* Either the rows as floats, or a panel for every 16 of them and its scales. */
    float *k = ck_pool_thread_scratch(a->pool, thread, sizeof(float) * (size_t)(BLOCK_ROWS * a->dim));
    uint8_t *panels = (uint8_t *)k;
    if (exact > 0)
        score_integers(a, from, to, first, last, panels, (float *)(panels + BLOCK_ROWS * a->dim));
    if (exact < last - first) score_floats(a, from, to, first, last, k);
}

static void select_task(void *context, int64_t t, int thread) {
    const indexer_args *a = context;
    int32_t n = a->visible[t], *out = a->selected + t * a->top;
    a->counts[t] = n < a->top ? n : a->top;
    if (n > a->top) {
        int32_t *keys = ck_pool_thread_scratch(a->pool, thread, sizeof(int32_t) * (size_t)n);
        ck_index_top(a->scores + t * a->stride, n, a->top, keys, out);
    } else {
        for (int32_t i = 0; i < n; i++) out[i] = i;
    }
}

/* Scores of all tokens of `a` for all of their rows. */
static void score(indexer_args *a) {
    size_t score_bytes = sizeof(float) * (size_t)(a->n * a->stride);
    size_t query_bytes = a->integers ? ck_index_queries_bytes(a->n, a->heads, a->dim) : 0;
    a->scores = ck_pool_scratch(a->pool, CK_SCRATCH_INDEXER, score_bytes + query_bytes);
    if (a->integers) {
        a->queries = ck_index_queries_place((uint8_t *)a->scores + score_bytes, a->n, a->heads, a->dim);
        ck_pool_run(a->pool, a->n, quantise_task, a);
    }
    int64_t blocks = (a->most + BLOCK_ROWS - 1) / BLOCK_ROWS;
    ck_pool_run(a->pool, blocks * ((a->n + GROUP_TOKENS - 1) / GROUP_TOKENS), score_task, a);
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
        indexer_args a = {.pool = pool, .q = q + done * heads * dim, .w = w + done * heads, .n = m,
                          .heads = heads, .dim = dim, .rows = rows, .visible = visible + done, .top = top,
                          .scale = scale, .selected = selected + done * top, .counts = counts + done,
                          .most = most, .integers = rows->format == CK_ROW_FP4};
        a.stride = (most + CK_INDEX_STEP_ROWS - 1) / CK_INDEX_STEP_ROWS * CK_INDEX_STEP_ROWS;
        if (most > top) score(&a); /* otherwise every row is kept, whatever its score */
        ck_pool_run(pool, m, select_task, &a);
        done += m;
    }
}
