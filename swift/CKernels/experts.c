/* experts.c — the routed feed-forward layer: gate and up, SwiGLU, down, sum.
 *
 * Tokens are grouped by expert, so that an expert's weights are read and unpacked once however many
 * tokens chose it. Three parallel sections:
 *   gate, up   a task is 32 inner rows of one expert: both products, SwiGLU and the token's weight,
 *              and the result quantised for `down`, all while in cache
 *   down       a task is 32 output rows of one expert, for a band of the output's columns at a time;
 *              one part per token and slot
 *   sum        the parts of a token in the order of its slots
 */
#include "matmul_kernels.h"
#include "cpu_features.h"
#include "runs.h"

#define CK_BODY "experts_body.h"
#include "vector_isa.h"

/* Memory for parts: a band of output columns is as wide as fits. */
enum { PARTS_BYTES = 64 << 20 };

typedef struct {
    ck_pool *pool;
    const ck_experts *e;
    int64_t n, inner, dim;
    const float *weights;
    float *y;
    /* Assignments sorted by expert, then by token: [n · used]. `slot` = token · used + j. */
    uint32_t *token_of, *slot_of, *position; /* position[i] = i, to index h */
    int32_t *active;                         /* experts chosen at least once, ascending … */
    int64_t *first;                          /* … and where their assignments begin; one more */
    int64_t n_active;
    ck_acts x_gate, x_up; /* the same unless the weights need other forms */
    ck_acts h;            /* one "token" per assignment */
    float *parts;         /* [n · used, band] */
    int64_t band_start, band;
    ck_runs runs; /* of the section under way, by chunks of 32 rows of an active expert */
} layer;

static ck_matrix expert_matrix(const ck_matrix *all, int32_t expert) {
    ck_matrix m = *all;
    m.data = (const uint8_t *)all->data + (size_t)expert * (size_t)all->rows * all->row_bytes;
    return m;
}

static void group_by_expert(layer *l, const int32_t *ids, int64_t *counts) {
    int64_t assignments = l->n * l->e->used;
    memset(counts, 0, (size_t)l->e->n_experts * sizeof *counts);
    for (int64_t i = 0; i < assignments; i++)
        counts[ids[i]]++;
    int64_t begin = 0;
    for (int32_t e = 0; e < l->e->n_experts; e++) {
        int64_t count = counts[e];
        counts[e] = begin;
        if (count == 0)
            continue;
        l->active[l->n_active] = e;
        l->first[l->n_active++] = begin;
        begin += count;
    }
    l->first[l->n_active] = begin;
    for (int64_t i = 0; i < assignments; i++) {
        int64_t place = counts[ids[i]]++;
        l->slot_of[place] = (uint32_t)i;
        l->token_of[place] = (uint32_t)(i / l->e->used);
        l->position[i] = (uint32_t)i;
    }
}

typedef struct {
    int64_t active, row; /* which active expert; first row of the chunk */
} place;

static place place_of(int64_t chunk, int64_t rows) {
    int64_t per_expert = ck_divide_up(rows, CK_TILE_ROWS);
    return (place){chunk / per_expert, chunk % per_expert * CK_TILE_ROWS};
}

/* gate and up of 16 inner rows for some assignments: out [n, 32] holds them side by side. */
static void gate_up_tile(const layer *l, int thread, const ck_matrix *gate, const ck_matrix *up,
                         int64_t row, const uint8_t *const next[2], int64_t begin, int64_t n, float *out) {
    ck_tile tile = {.type = gate->type, .row_bytes = gate->row_bytes, .n_rows = CK_TILE_ROWS,
                    .cols = gate->cols, .acts = l->x_gate, .tokens = l->token_of + begin,
                    .n = n, .out = out, .next = {next[0], next[1]}};
    tile.group[0] = ck_tile_group(l->pool, thread, gate, row, 0);
    if (gate->type == up->type && gate->row_bytes == up->row_bytes) {
        tile.group[1] = ck_tile_group(l->pool, thread, up, row, 1);
        matmul_tile(&tile);
        return;
    }
    /* Different formats cannot share a tile: half of each of two is thrown away. */
    _Alignas(64) float up_out[CK_TILE_TOKENS * CK_TILE_ROWS];
    tile.group[1] = tile.group[0];
    matmul_tile(&tile);
    tile.type = up->type;
    tile.row_bytes = up->row_bytes;
    tile.acts = l->x_up;
    tile.group[0] = tile.group[1] = ck_tile_group(l->pool, thread, up, row, 1);
    tile.out = up_out;
    matmul_tile(&tile);
    for (int64_t t = 0; t < n; t++)
        memcpy(out + t * CK_TILE_ROWS + CK_GROUP_ROWS, up_out + t * CK_TILE_ROWS,
               CK_GROUP_ROWS * sizeof *out);
}

static void gate_up_chunk(const layer *l, int thread, place here, place next) {
    int32_t expert = l->active[here.active], next_expert = l->active[next.active];
    ck_matrix gate = expert_matrix(&l->e->gate, expert), up = expert_matrix(&l->e->up, expert);
    ck_matrix next_gate = expert_matrix(&l->e->gate, next_expert);
    ck_matrix next_up = expert_matrix(&l->e->up, next_expert);
    int64_t end = l->first[here.active + 1];
    for (int64_t begin = l->first[here.active]; begin < end; begin += CK_TILE_TOKENS) {
        int64_t n = ck_at_most(CK_TILE_TOKENS, end - begin);
        _Alignas(64) float out[CK_TILE_TOKENS * CK_TILE_ROWS];
        _Alignas(64) float h[CK_TILE_TOKENS][CK_TILE_ROWS];
        for (int half = 0; half < 2; half++) {
            int64_t row = here.row + half * CK_GROUP_ROWS;
            const uint8_t *after[2] = {ck_group_address(&gate, row + CK_GROUP_ROWS),
                                       ck_group_address(&up, row + CK_GROUP_ROWS)};
            if (half == 1) {
                after[0] = ck_group_address(&next_gate, next.row);
                after[1] = ck_group_address(&next_up, next.row);
            }
            gate_up_tile(l, thread, &gate, &up, row, after, begin, n, out);
            for (int64_t t = 0; t < n; t++) {
                const float *g = out + t * CK_TILE_ROWS;
                CK_DISPATCH(swiglu)(g, g + CK_GROUP_ROWS, CK_GROUP_ROWS, l->e->clamp,
                                    l->weights[l->slot_of[begin + t]], h[t] + half * CK_GROUP_ROWS);
            }
        }
        for (int64_t t = 0; t < n; t++)
            ck_acts_fill_block(&l->h, h[t], begin + t, here.row, l->inner);
    }
}

static void gate_up_task(void *context, int64_t task, int thread) {
    const layer *l = context;
    int64_t end = ck_runs_start(&l->runs, task + 1);
    for (int64_t chunk = ck_runs_start(&l->runs, task); chunk < end; chunk++)
        gate_up_chunk(l, thread, place_of(chunk, l->inner),
                      place_of(ck_runs_next(&l->runs, task, chunk), l->inner));
}

static void down_chunk(const layer *l, int thread, place here, place next) {
    ck_matrix down = expert_matrix(&l->e->down, l->active[here.active]);
    ck_matrix next_down = expert_matrix(&l->e->down, l->active[next.active]);
    int64_t rows = ck_at_most(CK_TILE_ROWS, l->band - here.row), end = l->first[here.active + 1];
    _Alignas(64) float out[CK_TILE_TOKENS * CK_TILE_ROWS];
    for (int64_t begin = l->first[here.active]; begin < end; begin += CK_TILE_TOKENS) {
        int64_t n = ck_at_most(CK_TILE_TOKENS, end - begin);
        ck_tile tile = {.type = down.type, .row_bytes = down.row_bytes, .n_rows = CK_TILE_ROWS,
                        .cols = l->inner, .acts = l->h, .tokens = l->position + begin, .n = n, .out = out};
        for (int g = 0; g < 2; g++) {
            int64_t row = l->band_start + g * CK_GROUP_ROWS;
            tile.group[g] = ck_tile_group(l->pool, thread, &down, row + here.row, g);
            tile.next[g] = ck_group_address(&next_down, row + next.row);
        }
        matmul_tile(&tile);
        for (int64_t t = 0; t < n; t++)
            memcpy(l->parts + l->slot_of[begin + t] * l->band + here.row, out + t * CK_TILE_ROWS,
                   (size_t)rows * sizeof *out);
    }
}

static void down_task(void *context, int64_t task, int thread) {
    const layer *l = context;
    int64_t end = ck_runs_start(&l->runs, task + 1);
    for (int64_t chunk = ck_runs_start(&l->runs, task); chunk < end; chunk++)
        down_chunk(l, thread, place_of(chunk, l->band),
                   place_of(ck_runs_next(&l->runs, task, chunk), l->band));
}

/* Runs `task` over all chunks of 32 of `rows` rows of the active experts. */
static void run_chunks(layer *l, int64_t rows, ck_task task) {
    l->runs = ck_runs_make(l->n_active * ck_divide_up(rows, CK_TILE_ROWS), ck_pool_threads(l->pool),
                           l->n * l->e->used / l->n_active);
    ck_pool_run(l->pool, l->runs.tasks, task, l);
}

static void sum_task(void *context, int64_t task, int thread) {
    (void)thread;
    const layer *l = context;
    CK_DISPATCH(sum_parts)(l->parts + task * l->e->used * l->band, l->e->used, l->band, l->band,
                           l->y + task * l->dim + l->band_start);
}

static size_t rounded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Cuts `bytes` from the scratch block; with a NULL base only counts. */
static void *cut(uint8_t **base, size_t *used, size_t bytes) {
    void *p = *base ? *base + *used : NULL;
    *used += rounded(bytes);
    return p;
}

static ck_acts cut_acts(uint8_t **base, size_t *used, ck_acts_form form, int64_t n, int64_t cols) {
    return ck_acts_place(cut(base, used, ck_acts_bytes(form, n, cols)), form, n, cols);
}

/* Lays the layer's arrays out from `base`; returns the bytes needed. */
static size_t place_arrays(layer *l, uint8_t *base, int64_t **counts) {
    size_t used = 0, assignments = (size_t)(l->n * l->e->used), experts = (size_t)l->e->n_experts;
    ck_acts_form gate_form = ck_acts_form_of(l->e->gate.type), up_form = ck_acts_form_of(l->e->up.type);
    l->token_of = cut(&base, &used, assignments * sizeof(uint32_t));
    l->slot_of = cut(&base, &used, assignments * sizeof(uint32_t));
    l->position = cut(&base, &used, assignments * sizeof(uint32_t));
    l->active = cut(&base, &used, experts * sizeof(int32_t));
    l->first = cut(&base, &used, (experts + 1) * sizeof(int64_t));
    *counts = cut(&base, &used, experts * sizeof(int64_t));
    l->parts = cut(&base, &used, assignments * (size_t)l->band * sizeof(float));
    l->x_gate = cut_acts(&base, &used, gate_form, l->n, l->e->gate.cols);
    l->x_up = up_form == gate_form ? l->x_gate : cut_acts(&base, &used, up_form, l->n, l->e->up.cols);
    l->h = cut_acts(&base, &used, ck_acts_form_of(l->e->down.type), (int64_t)assignments, l->inner);
    return used;
}

/* As many output columns as PARTS_BYTES holds parts of, in whole tiles. */
static int64_t band_width(int64_t assignments, int64_t dim) {
    int64_t fit = PARTS_BYTES / (int64_t)sizeof(float) / assignments / CK_TILE_ROWS * CK_TILE_ROWS;
    return ck_at_most(dim, fit < 8 * CK_TILE_ROWS ? 8 * CK_TILE_ROWS : fit);
}

void experts_forward(ck_pool *pool, const ck_experts *e, const float *x, const int32_t *ids,
                     const float *weights, int64_t n, float *y) {
    if (n == 0)
        return;
    layer l = {.pool = pool, .e = e, .n = n, .inner = e->gate.rows, .dim = e->down.rows,
               .weights = weights, .y = y};
    int64_t band = l.band = band_width(n * e->used, l.dim), *counts;
    size_t bytes = place_arrays(&l, NULL, &counts);
    place_arrays(&l, ck_pool_scratch(pool, CK_SCRATCH_EXPERTS, bytes), &counts);

    group_by_expert(&l, ids, counts);
    ck_acts_fill(pool, &l.x_gate, x, e->gate.cols, n, e->gate.cols);
    if (l.x_up.form != l.x_gate.form)
        ck_acts_fill(pool, &l.x_up, x, e->up.cols, n, e->up.cols);
    run_chunks(&l, l.inner, gate_up_task);
    for (l.band_start = 0; l.band_start < l.dim; l.band_start += band) {
        l.band = ck_at_most(band, l.dim - l.band_start);
        run_chunks(&l, l.band, down_task);
        ck_pool_run_even(pool, n, sum_task, &l);
    }
}

/* ---- SwiGLU alone, for the shared expert */

typedef struct {
    const float *gate, *up;
    int64_t dim;
    float clamp, *h;
} swiglu_args;

static void swiglu_task(void *context, int64_t task, int thread) {
    (void)thread;
    const swiglu_args *a = context;
    int64_t whole = a->dim / 16 * 16, rest = a->dim - whole, at = task * a->dim;
    CK_DISPATCH(swiglu)(a->gate + at, a->up + at, whole, a->clamp, 1.0f, a->h + at);
    if (rest) {
        float g[16] = {0}, u[16] = {0}, h[16];
        memcpy(g, a->gate + at + whole, (size_t)rest * sizeof *g);
        memcpy(u, a->up + at + whole, (size_t)rest * sizeof *u);
        CK_DISPATCH(swiglu)(g, u, 16, a->clamp, 1.0f, h);
        memcpy(a->h + at + whole, h, (size_t)rest * sizeof *h);
    }
}

void experts_swiglu(ck_pool *pool, const float *gate, const float *up, int64_t n, int64_t dim,
                    float clamp, float *h) {
    swiglu_args a = {gate, up, dim, clamp, h};
    ck_pool_run_even(pool, n, swiglu_task, &a);
}
