/* matmul.c — matrix products: quantises the activations, cuts the work into tasks, picks the kernels. */
#include "matmul_kernels.h"
#include "cpu_features.h"
#include "runs.h"

void matmul_tile(const ck_tile *tile) {
    if (ck_type_is_float(tile->type)) {
        matmul_tile_float(tile);
        return;
    }
    if (ck_is_exact()) {
        matmul_tile_exact(tile);
        return;
    }
    switch (ck_isa()) {
#if defined(__x86_64__)
    case CK_ISA_AVX512:
        matmul_tile_avx512(tile);
        return;
    case CK_ISA_AVX2:
        matmul_tile_avx2(tile);
        return;
#elif defined(__aarch64__)
    case CK_ISA_NEON:
        matmul_tile_neon(tile);
        return;
#endif
    default:
        matmul_tile_plain(tile);
    }
}

const uint8_t *ck_tile_group(ck_pool *pool, int thread, const ck_matrix *w, int64_t first, int group) {
    if (first + CK_GROUP_ROWS <= w->rows)
        return ck_group_address(w, first);
    size_t group_bytes = CK_GROUP_ROWS * w->row_bytes;
    uint8_t *copy = ck_pool_thread_scratch(pool, thread, 2 * group_bytes);
    copy += (size_t)group * group_bytes;
    if (first < w->rows)
        memcpy(copy, ck_group_address(w, first), (size_t)(w->rows - first) * w->row_bytes);
    return copy;
}

/* ---- products: a tile is some rows × some tokens of one job */

/* Float weights occur in small matrices (24 rows of hyper-connections): for those, and with few tokens,
 * tiles are smaller. */
enum { FLOAT_TILE_ROWS = 4 };

typedef struct {
    ck_pool *pool;
    const ck_matmul_job *jobs;
    int64_t n;
    ck_runs runs;
    const int64_t *first_tile; /* [jobs + 1] */
    const ck_acts *acts;       /* [jobs] */
    const uint32_t *tokens;    /* 0, 1, 2, … */
} matmul_args;

typedef struct {
    int job;
    int64_t row, token;
} place;

static int64_t tile_rows(const ck_matmul_job *job, int64_t n) {
    bool small = n < 16 || job->w.rows < 256;
    return ck_type_is_float(job->w.type) && small ? FLOAT_TILE_ROWS : CK_TILE_ROWS;
}

static place place_of(const matmul_args *a, int64_t tile) {
    place p = {0};
    while (tile >= a->first_tile[p.job + 1])
        p.job++;
    tile -= a->first_tile[p.job];
    int64_t token_tiles = ck_divide_up(a->n, CK_TILE_TOKENS);
    p.row = tile / token_tiles * tile_rows(&a->jobs[p.job], a->n);
    p.token = tile % token_tiles * CK_TILE_TOKENS;
    return p;
}

static void compute_tile(const matmul_args *a, int thread, place here, place next) {
    const ck_matmul_job *job = &a->jobs[here.job], *next_job = &a->jobs[next.job];
    int64_t rows = ck_at_most(tile_rows(job, a->n), job->w.rows - here.row);
    int64_t n = ck_at_most(CK_TILE_TOKENS, a->n - here.token);
    _Alignas(64) float out[CK_TILE_TOKENS * CK_TILE_ROWS];
    ck_tile tile = {.type = job->w.type, .row_bytes = job->w.row_bytes, .n_rows = (int)rows,
                    .cols = job->w.cols, .acts = a->acts[here.job], .tokens = a->tokens + here.token,
                    .n = n, .out = out};
    for (int g = 0; g < 2; g++) {
        int64_t row = here.row + g * CK_GROUP_ROWS;
        tile.group[g] = ck_type_is_float(job->w.type) /* only n_rows are touched */
                            ? ck_group_address(&job->w, row)
                            : ck_tile_group(a->pool, thread, &job->w, row, g);
        tile.next[g] = ck_group_address(&next_job->w, next.row + g * CK_GROUP_ROWS);
    }
    matmul_tile(&tile);
    for (int64_t t = 0; t < n; t++)
        memcpy(job->y + (here.token + t) * job->ldy + here.row, out + t * CK_TILE_ROWS,
               (size_t)rows * sizeof *out);
}

static void matmul_task(void *context, int64_t task, int thread) {
    const matmul_args *a = context;
    int64_t end = ck_runs_start(&a->runs, task + 1);
    for (int64_t tile = ck_runs_start(&a->runs, task); tile < end; tile++)
        compute_tile(a, thread, place_of(a, tile), place_of(a, ck_runs_next(&a->runs, task, tile)));
}

static ck_acts_form form_of(const ck_matmul_job *job) {
    return ck_acts_form_of(job->w.type);
}

/* The first job whose prepared x is the one job j needs; j itself when it is the first. */
static int same_x(const ck_matmul_job *jobs, int j) {
    for (int i = 0; i < j; i++)
        if (jobs[i].x == jobs[j].x && jobs[i].ldx == jobs[j].ldx && jobs[i].w.cols == jobs[j].w.cols &&
            form_of(&jobs[i]) == form_of(&jobs[j]))
            return i;
    return j;
}

void matmul(ck_pool *pool, const ck_matmul_job *jobs, int n_jobs, int64_t n) {
    if (n_jobs == 0 || n == 0)
        return;
    int64_t first_tile[n_jobs + 1];
    ck_acts acts[n_jobs];
    size_t bytes = 0;
    first_tile[0] = 0;
    for (int j = 0; j < n_jobs; j++) {
        first_tile[j + 1] = first_tile[j] + ck_divide_up(jobs[j].w.rows, tile_rows(&jobs[j], n)) *
                                                ck_divide_up(n, CK_TILE_TOKENS);
        if (same_x(jobs, j) == j)
            bytes += ck_acts_bytes(form_of(&jobs[j]), n, jobs[j].w.cols);
    }
    uint8_t *next = ck_pool_scratch(pool, CK_SCRATCH_ACTIVATIONS, bytes + (size_t)n * sizeof(uint32_t));
    uint32_t *tokens = (uint32_t *)(next + bytes);
    for (int64_t t = 0; t < n; t++)
        tokens[t] = (uint32_t)t;
    for (int j = 0; j < n_jobs; j++) {
        int shared = same_x(jobs, j);
        if (shared < j) {
            acts[j] = acts[shared];
            continue;
        }
        acts[j] = ck_acts_place(next, form_of(&jobs[j]), n, jobs[j].w.cols);
        next += ck_acts_bytes(form_of(&jobs[j]), n, jobs[j].w.cols);
        ck_acts_fill(pool, &acts[j], jobs[j].x, jobs[j].ldx, n, jobs[j].w.cols);
    }
    matmul_args a = {.pool = pool, .jobs = jobs, .n = n, .first_tile = first_tile, .acts = acts, .tokens = tokens,
                     .runs = ck_runs_make(first_tile[n_jobs], ck_pool_threads(pool), n)};
    ck_pool_run(pool, a.runs.tasks, matmul_task, &a);
}

/* ---- embedding */

typedef struct {
    const ck_matrix *table;
    const int32_t *ids;
    float *out;
} embed_args;

static void embed_task(void *context, int64_t task, int thread) {
    (void)thread;
    const embed_args *a = context;
    const ck_matrix *m = a->table;
    quant_decode_row(m->type, (const uint8_t *)m->data + (size_t)a->ids[task] * m->row_bytes,
                     a->out + task * m->cols, m->cols);
}

void matmul_embed(ck_pool *pool, const ck_matrix *table, const int32_t *ids, int64_t n, float *out) {
    embed_args a = {table, ids, out};
    ck_pool_run(pool, n, embed_task, &a);
}
