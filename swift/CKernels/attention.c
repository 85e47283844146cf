/* attention.c — attention with one shared key = value row a position, a sliding window, compressed
 * rows and a sink (report §2.3). CPU twin of attention.metal.
 *
 * For each token and head, over the visible rows in their fixed order, in tiles of TILE rows:
 *     s = scale · q·row;  m' = max(m, s…);  l = l·e^(m-m') + Σ e^(s-m');  o = o·e^(m-m') + Σ e^(s-m')·row
 * starting from m = sink, l = 1, o = 0; out = o / l. The tile borders depend on the token's own list
 * only, so the bits do not depend on chunking.
 *
 * Rows are decoded to f32 in the cache: window rows once for all tokens of a chunk, compressed rows a
 * tile at a time for all heads of a task, or once where a single token's heads are spread over tasks. */
#include "ckernels.h"
#include "kv_rows.h"

enum { TILE = 16, HEADS_A_STEP = 4, ROWS_A_TASK = 16, MOST_SHARED_ROWS = 2048 };

#define CK_BODY "attention_body.h"
#include "vector_isa.h"

typedef struct {
    const ck_attention *a;
    ck_pool *pool;
    float *window_rows; /* decoded: positions first … position + n - 1 */
    int64_t first, window_count;
    float *shared_rows; /* decoded: the compressed rows of a single token, or NULL */
    int64_t shared_count;
    int64_t head_groups, heads_a_group;
} attention_args;

static int64_t window_start(const ck_attention *a, int64_t position) {
    return position + 1 > a->window ? position + 1 - a->window : 0;
}

/* Row `place` of the compressed ones that a token attends to. */
static const uint8_t *compressed_row(const ck_attention *a, int64_t token, int64_t place) {
    return kv_paged_row(&a->rows, a->selected ? a->selected[token * a->top + place] : place);
}

/* Decodes rows first … end - 1 of the window's and then the shared ones. */
static void decode_rows(const attention_args *args, int64_t first, int64_t end) {
    const ck_attention *a = args->a;
    for (int64_t i = first; i < end; i++) {
        int64_t position = args->first + i, place = i - args->window_count;
        if (place >= 0) {
            kv_row_decode(a->rows.format, compressed_row(a, 0, place), a->dim, a->rope,
                          args->shared_rows + place * a->dim);
            continue;
        }
        const uint8_t *row = position < a->position
                                 ? a->ring + (size_t)(position % a->window) * a->window_row_bytes
                                 : a->chunk + (size_t)(position - a->position) * a->window_row_bytes;
        kv_row_decode(a->window_format, row, a->dim, a->rope, args->window_rows + i * a->dim);
    }
}

static void decode_task(void *context, int64_t task, int thread) {
    (void)thread;
    const attention_args *args = context;
    int64_t all = args->window_count + args->shared_count, end = (task + 1) * ROWS_A_TASK;
    decode_rows(args, task * ROWS_A_TASK, end < all ? end : all);
}

/* Fetches a tile's rows while the one before is computed: they lie anywhere, and each is read once. */
static void prefetch_rows(const ck_attention *a, int64_t token, int64_t first, int64_t last) {
    for (int64_t place = first; place < last; place++) {
        const uint8_t *bytes = compressed_row(a, token, place);
        for (size_t at = 0; at < a->rows.row_bytes; at += 64) __builtin_prefetch(bytes + at);
    }
}

/* Of a decoded tile, running maxima and sums, and scores of a tile. */
static size_t scratch_bytes(const ck_attention *a, int64_t heads) {
    return sizeof(float) * (size_t)(TILE * a->dim + heads * (2 + TILE));
}

/* Token t, heads head … head + heads - 1. */
static void attend_heads(const attention_args *args, int64_t t, int64_t head, int64_t heads, float *tile) {
    const ck_attention *a = args->a;
    const float *q = a->q + (t * a->heads + head) * a->dim;
    float *out = a->out + (t * a->heads + head) * a->dim;
    float *top = tile + TILE * a->dim, *sum = top + heads, *scores = sum + heads;
    for (int64_t h = 0; h < heads; h++) top[h] = a->sinks[head + h], sum[h] = 1.0f;
    memset(out, 0, sizeof(float) * (size_t)(heads * a->dim));

    int64_t start = window_start(a, a->position + t), in_window = a->position + t + 1 - start;
    int64_t compressed = a->counts ? a->counts[t] : 0;
    const float *rows[TILE];
    for (int64_t at = 0; at < in_window + compressed; at += TILE) {
        int n = (int)(in_window + compressed - at < TILE ? in_window + compressed - at : TILE);
        for (int i = 0; i < n; i++) {
            int64_t place = at + i;
            if (place < in_window) {
                rows[i] = args->window_rows + (start + place - args->first) * a->dim;
                continue;
            }
            place -= in_window;
            if (args->shared_rows) {
                rows[i] = args->shared_rows + place * a->dim;
                continue;
            }
            kv_row_decode(a->rows.format, compressed_row(a, t, place), a->dim, a->rope, tile + i * a->dim);
            rows[i] = tile + i * a->dim;
        }
        int64_t next = at + TILE - in_window, end = next + TILE < compressed ? next + TILE : compressed;
        if (!args->shared_rows) prefetch_rows(a, t, next > 0 ? next : 0, end);
        CK_DISPATCH(attend_tile)(q, heads, a->dim, rows, n, a->scale, scores, top, sum, out);
    }
    for (int64_t h = 0; h < heads; h++) {
        float inverse = 1.0f / sum[h];
        for (int64_t d = 0; d < a->dim; d++) out[h * a->dim + d] *= inverse;
    }
}

static void attend_task(void *context, int64_t task, int thread) {
    const attention_args *args = context;
    const ck_attention *a = args->a;
    int64_t head = task % args->head_groups * args->heads_a_group;
    int64_t heads = a->heads - head < args->heads_a_group ? a->heads - head : args->heads_a_group;
    attend_heads(args, task / args->head_groups, head, heads,
                 ck_pool_thread_scratch(args->pool, thread, scratch_bytes(a, heads)));
}

/* Which rows are decoded beforehand; returns the floats they take. */
static size_t choose_rows(attention_args *args) {
    const ck_attention *a = args->a;
    args->first = window_start(a, a->position);
    args->window_count = a->position + a->n - args->first;
    if (a->n == 1 && a->counts && a->counts[0] <= MOST_SHARED_ROWS) args->shared_count = a->counts[0];
    return (size_t)((args->window_count + args->shared_count) * a->dim);
}

static void place_rows(attention_args *args, float *memory) {
    args->window_rows = memory;
    if (args->shared_count > 0) args->shared_rows = memory + args->window_count * args->a->dim;
}

void attention_f32(ck_pool *pool, const ck_attention *a) {
    attention_args args = {.a = a, .pool = pool};
    size_t floats = choose_rows(&args);
    place_rows(&args, ck_pool_scratch(pool, CK_SCRATCH_ATTENTION, sizeof(float) * floats));
    int64_t decoded = args.window_count + args.shared_count;
    ck_pool_run(pool, (decoded + ROWS_A_TASK - 1) / ROWS_A_TASK, decode_task, &args);

    /* Few tokens: split their heads as well, so that every thread has work. */
    int64_t wanted = 4 * ck_pool_threads(pool);
    args.head_groups = a->n >= wanted ? 1 : (wanted + a->n - 1) / a->n;
    int64_t most = (a->heads + HEADS_A_STEP - 1) / HEADS_A_STEP;
    if (args.head_groups > most) args.head_groups = most;
    args.heads_a_group = (a->heads + args.head_groups - 1) / args.head_groups;
    args.heads_a_group = (args.heads_a_group + HEADS_A_STEP - 1) / HEADS_A_STEP * HEADS_A_STEP;
    args.head_groups = (a->heads + args.heads_a_group - 1) / args.heads_a_group;
    ck_pool_run(pool, a->n * args.head_groups, attend_task, &args);
}

/* ---- one token of each of several sessions */

typedef struct {
    ck_pool *pool;
    const ck_attention *calls;
} session_args;

static void session_task(void *context, int64_t task, int thread) {
    const session_args *s = context;
    const ck_attention *a = &s->calls[task];
    attention_args args = {.a = a, .pool = s->pool};
    size_t floats = choose_rows(&args);
    float *memory = ck_pool_thread_scratch(s->pool, thread, scratch_bytes(a, a->heads) + sizeof(float) * floats);
    place_rows(&args, memory);
    decode_rows(&args, 0, args.window_count + args.shared_count);
    /* What is not decoded beforehand should be decoded once for all heads. */
    bool is_decoded = !a->counts || args.shared_count == a->counts[0];
    int64_t step = is_decoded ? 2 * HEADS_A_STEP : a->heads;
    for (int64_t head = 0; head < a->heads; head += step)
        attend_heads(&args, 0, head, a->heads - head < step ? a->heads - head : step, memory + floats);
}

void attention_sessions_f32(ck_pool *pool, const ck_attention *calls, int64_t count) {
    session_args s = {pool, calls};
    ck_pool_run(pool, count, session_task, &s);
}
