/* matmul.c — matrix products: quantises the activations, cuts the work into tasks, picks the kernels. */
#include "matmul_kernels.h"
#include "cpu_features.h"

void matmul_tile(const ck_tile *tile)
{
    if (ck_type_is_float(tile->type)) {
        matmul_tile_float(tile);
        return;
    }
    switch (ck_isa()) {
#if defined(__x86_64__)
    case CK_ISA_AVX512:
        matmul_tile_avx512(tile);
        return;
#endif
    default:
        matmul_tile_plain(tile);
    }
}

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- products: one task is some rows × some tokens of one job */

/* Float weights occur in small matrices (24 rows of hyper-connections), so their tasks are smaller. */
enum { FLOAT_TILE_ROWS = 8 };

typedef struct {
    const ck_matmul_job *jobs;
    int64_t n;
    const int64_t *first_task; /* [jobs + 1] */
    const ck_acts *acts;       /* [jobs]; unused for float weights */
    const uint32_t *tokens;    /* 0, 1, 2, … */
} matmul_args;

static int64_t tile_rows(const ck_matmul_job *job)
{
    return ck_type_is_float(job->w.type) ? FLOAT_TILE_ROWS : CK_TILE_ROWS;
}

static void matmul_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const matmul_args *a = context;
    int j = 0;
    while (task >= a->first_task[j + 1])
        j++;
    const ck_matmul_job *job = &a->jobs[j];
    task -= a->first_task[j];
    int64_t token_tiles = divide_up(a->n, CK_TILE_TOKENS);
    int64_t row = task / token_tiles * tile_rows(job), token = task % token_tiles * CK_TILE_TOKENS;
    int64_t rows = at_most(tile_rows(job), job->w.rows - row), n = at_most(CK_TILE_TOKENS, a->n - token);

    _Alignas(64) float out[CK_TILE_TOKENS * CK_TILE_ROWS];
    ck_tile tile = {.type = job->w.type, .n_rows = (int)rows, .cols = job->w.cols, .acts = a->acts[j],
                    .x = job->x, .ldx = job->ldx, .tokens = a->tokens + token, .n = n, .out = out};
    ck_tile_set_rows(&tile, 0, &job->w, row);
    ck_tile_set_rows(&tile, 1, &job->w, row + CK_GROUP_ROWS);
    matmul_tile(&tile);
    for (int64_t t = 0; t < n; t++)
        memcpy(job->y + (token + t) * job->ldy + row, out + t * CK_TILE_ROWS,
               (size_t)rows * sizeof *out);
}

/* The first job whose quantised x is the one job j needs; j itself when it is the first. */
static int same_x(const ck_matmul_job *jobs, int j)
{
    for (int i = 0; i < j; i++)
        if (!ck_type_is_float(jobs[i].w.type) && jobs[i].x == jobs[j].x &&
            jobs[i].ldx == jobs[j].ldx && jobs[i].w.cols == jobs[j].w.cols)
            return i;
    return j;
}

void matmul(ck_pool *pool, const ck_matmul_job *jobs, int n_jobs, int64_t n)
{
    if (n_jobs == 0 || n == 0)
        return;
    int64_t first_task[n_jobs + 1];
    ck_acts acts[n_jobs];
    int64_t blocks = 0;
    first_task[0] = 0;
    for (int j = 0; j < n_jobs; j++) {
        first_task[j + 1] = first_task[j] + divide_up(jobs[j].w.rows, tile_rows(&jobs[j])) *
                                                divide_up(n, CK_TILE_TOKENS);
        if (!ck_type_is_float(jobs[j].w.type) && same_x(jobs, j) == j)
            blocks += jobs[j].w.cols / CK_BLOCK * ck_acts_stride(n);
    }
    size_t act_bytes = (size_t)blocks * sizeof(ck_act);
    ck_act *next = ck_pool_scratch(pool, CK_SCRATCH_ACTIVATIONS, act_bytes + (size_t)n * sizeof(uint32_t));
    uint32_t *tokens = (uint32_t *)((uint8_t *)next + act_bytes);
    for (int64_t t = 0; t < n; t++)
        tokens[t] = (uint32_t)t;
    for (int j = 0; j < n_jobs; j++) {
        acts[j] = (ck_acts){0};
        if (ck_type_is_float(jobs[j].w.type))
            continue;
        int shared = same_x(jobs, j);
        if (shared < j) {
            acts[j] = acts[shared];
            continue;
        }
        acts[j] = (ck_acts){next, ck_acts_stride(n)};
        next += jobs[j].w.cols / CK_BLOCK * acts[j].stride;
        quant_activation_rows(pool, jobs[j].x, jobs[j].ldx, n, jobs[j].w.cols, acts[j]);
    }
    matmul_args a = {jobs, n, first_task, acts, tokens};
    ck_pool_run(pool, first_task[n_jobs], matmul_task, &a);
}

/* ---- embedding */

typedef struct {
    const ck_matrix *table;
    const int32_t *ids;
    float *out;
} embed_args;

static void embed_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const embed_args *a = context;
    const ck_matrix *m = a->table;
    quant_decode_row(m->type, (const uint8_t *)m->data + (size_t)a->ids[task] * m->row_bytes,
                     a->out + task * m->cols, m->cols);
}

void matmul_embed(ck_pool *pool, const ck_matrix *table, const int32_t *ids, int64_t n, float *out)
{
    embed_args a = {table, ids, out};
    ck_pool_run(pool, n, embed_task, &a);
}
