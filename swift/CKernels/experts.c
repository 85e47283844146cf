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

#define CK_BODY "experts_body.h"
#include "vector_isa.h"

/* Memory for parts: a band of output columns is as wide as fits. */
enum { PARTS_BYTES = 64 << 20 };

typedef struct {
    const ck_experts *e;
    int64_t n, inner, dim;
    const float *x;
    const float *weights;
    float *y;
    /* Assignments sorted by expert, then by token: [n · used]. `slot` = token · used + j. */
    uint32_t *token_of, *slot_of, *position; /* position[i] = i, to index h */
    int32_t *active;                         /* experts chosen at least once, ascending … */
    int64_t *first;                          /* … and where their assignments begin; one more */
    int64_t n_active;
    ck_acts x_acts, h_acts; /* h: one "token" per assignment */
    float *h;               /* [n · used, inner] when `down` has float weights */
    float *parts;           /* [n · used, band] */
    int64_t band_start, band;
} layer;

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static ck_matrix expert_matrix(const ck_matrix *all, int32_t expert)
{
    ck_matrix m = *all;
    m.data = (const uint8_t *)all->data + (size_t)expert * (size_t)all->rows * all->row_bytes;
    return m;
}

static void group_by_expert(layer *l, const int32_t *ids, int64_t *counts)
{
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

/* h of 16 inner rows for one tile of assignments: out [n, 32] holds gate and up side by side. */
static void gate_up_rows(const layer *l, const ck_matrix *gate, const ck_matrix *up, int64_t row,
                         int64_t begin, int64_t n, float (*h)[CK_TILE_ROWS], int64_t column)
{
    _Alignas(64) float out[CK_TILE_TOKENS * CK_TILE_ROWS];
    ck_tile tile = {.type = gate->type, .n_rows = CK_TILE_ROWS, .cols = gate->cols, .acts = l->x_acts,
                    .x = l->x, .ldx = gate->cols, .tokens = l->token_of + begin, .n = n, .out = out};
    ck_tile_set_rows(&tile, 0, gate, row);
    ck_tile_set_rows(&tile, 1, up, row);
    matmul_tile(&tile);
    for (int64_t t = 0; t < n; t++) {
        const float *g = out + t * CK_TILE_ROWS;
        CK_DISPATCH(swiglu)(g, g + CK_GROUP_ROWS, CK_GROUP_ROWS, l->e->clamp,
                            l->weights[l->slot_of[begin + t]], h[t] + column);
    }
}

static void gate_up_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const layer *l = context;
    int64_t chunks = divide_up(l->inner, CK_TILE_ROWS);
    int64_t a = task / chunks, row = task % chunks * CK_TILE_ROWS;
    ck_matrix gate = expert_matrix(&l->e->gate, l->active[a]), up = expert_matrix(&l->e->up, l->active[a]);
    for (int64_t begin = l->first[a]; begin < l->first[a + 1]; begin += CK_TILE_TOKENS) {
        int64_t n = at_most(CK_TILE_TOKENS, l->first[a + 1] - begin);
        _Alignas(64) float h[CK_TILE_TOKENS][CK_TILE_ROWS];
        gate_up_rows(l, &gate, &up, row, begin, n, h, 0);
        gate_up_rows(l, &gate, &up, row + CK_GROUP_ROWS, begin, n, h, CK_GROUP_ROWS);
        for (int64_t t = 0; t < n; t++)
            if (l->h)
                memcpy(l->h + (begin + t) * l->inner + row, h[t],
                       (size_t)at_most(CK_TILE_ROWS, l->inner - row) * sizeof(float));
            else
                quant_activations(h[t], 1,
                                  l->h_acts.blocks + row / CK_BLOCK * l->h_acts.stride + begin + t, 0);
    }
}

static void down_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const layer *l = context;
    int64_t chunks = divide_up(l->band, CK_TILE_ROWS);
    int64_t a = task / chunks, column = task % chunks * CK_TILE_ROWS, row = l->band_start + column;
    ck_matrix down = expert_matrix(&l->e->down, l->active[a]);
    int64_t rows = at_most(CK_TILE_ROWS, l->band - column);
    _Alignas(64) float out[CK_TILE_TOKENS * CK_TILE_ROWS];
    for (int64_t begin = l->first[a]; begin < l->first[a + 1]; begin += CK_TILE_TOKENS) {
        int64_t n = at_most(CK_TILE_TOKENS, l->first[a + 1] - begin);
        ck_tile tile = {.type = down.type, .n_rows = (int)rows, .cols = l->inner, .acts = l->h_acts,
                        .x = l->h, .ldx = l->inner, .tokens = l->position + begin, .n = n, .out = out};
        ck_tile_set_rows(&tile, 0, &down, row);
        ck_tile_set_rows(&tile, 1, &down, row + CK_GROUP_ROWS);
        matmul_tile(&tile);
        for (int64_t t = 0; t < n; t++)
            memcpy(l->parts + l->slot_of[begin + t] * l->band + column, out + t * CK_TILE_ROWS,
                   (size_t)rows * sizeof *out);
    }
}

static void sum_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const layer *l = context;
    CK_DISPATCH(sum_parts)(l->parts + task * l->e->used * l->band, l->e->used, l->band, l->band,
                           l->y + task * l->dim + l->band_start);
}

static size_t rounded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Cuts `bytes` from the scratch block; with a NULL base only counts. */
static void *cut(uint8_t **base, size_t *used, size_t bytes)
{
    void *p = *base ? *base + *used : NULL;
    *used += rounded(bytes);
    return p;
}

/* Lays the layer's arrays out from `base`; returns the bytes needed. */
static size_t place_arrays(layer *l, uint8_t *base, int64_t **counts)
{
    size_t used = 0, assignments = (size_t)(l->n * l->e->used), experts = (size_t)l->e->n_experts;
    l->token_of = cut(&base, &used, assignments * sizeof(uint32_t));
    l->slot_of = cut(&base, &used, assignments * sizeof(uint32_t));
    l->position = cut(&base, &used, assignments * sizeof(uint32_t));
    l->active = cut(&base, &used, experts * sizeof(int32_t));
    l->first = cut(&base, &used, (experts + 1) * sizeof(int64_t));
    *counts = cut(&base, &used, experts * sizeof(int64_t));
    l->parts = cut(&base, &used, assignments * (size_t)l->band * sizeof(float));
    if (!ck_type_is_float(l->e->gate.type))
        l->x_acts.blocks = cut(&base, &used,
                               (size_t)(l->e->gate.cols / CK_BLOCK * l->x_acts.stride) * sizeof(ck_act));
    if (ck_type_is_float(l->e->down.type))
        l->h = cut(&base, &used, assignments * (size_t)l->inner * sizeof(float));
    else
        l->h_acts.blocks = cut(&base, &used,
                               (size_t)(l->inner / CK_BLOCK * l->h_acts.stride) * sizeof(ck_act));
    return used;
}

/* As many output columns as PARTS_BYTES holds parts of, in whole tiles. */
static int64_t band_width(int64_t assignments, int64_t dim)
{
    int64_t fit = PARTS_BYTES / (int64_t)sizeof(float) / assignments / CK_TILE_ROWS * CK_TILE_ROWS;
    return at_most(dim, fit < 8 * CK_TILE_ROWS ? 8 * CK_TILE_ROWS : fit);
}

void experts_forward(ck_pool *pool, const ck_experts *e, const float *x, const int32_t *ids,
                     const float *weights, int64_t n, float *y)
{
    if (n == 0)
        return;
    layer l = {.e = e, .n = n, .inner = e->gate.rows, .dim = e->down.rows, .x = x, .weights = weights,
               .y = y};
    l.x_acts.stride = ck_acts_stride(n);
    l.h_acts.stride = ck_acts_stride(n * e->used);
    int64_t band = l.band = band_width(n * e->used, l.dim), *counts;
    size_t bytes = place_arrays(&l, NULL, &counts);
    place_arrays(&l, ck_pool_scratch(pool, CK_SCRATCH_EXPERTS, bytes), &counts);

    group_by_expert(&l, ids, counts);
    if (l.x_acts.blocks)
        quant_activation_rows(pool, x, e->gate.cols, n, e->gate.cols, l.x_acts);
    ck_pool_run(pool, l.n_active * divide_up(l.inner, CK_TILE_ROWS), gate_up_task, &l);
    for (l.band_start = 0; l.band_start < l.dim; l.band_start += band) {
        l.band = at_most(band, l.dim - l.band_start);
        ck_pool_run(pool, l.n_active * divide_up(l.band, CK_TILE_ROWS), down_task, &l);
        ck_pool_run(pool, n, sum_task, &l);
    }
}

/* ---- SwiGLU alone, for the shared expert */

typedef struct {
    const float *gate, *up;
    int64_t dim;
    float clamp, *h;
} swiglu_args;

static void swiglu_task(void *context, int64_t task, int thread)
{
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
                    float clamp, float *h)
{
    swiglu_args a = {gate, up, dim, clamp, h};
    ck_pool_run(pool, n, swiglu_task, &a);
}
