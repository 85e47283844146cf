/* quant_activations.c — activations from rows of f32 to the form that products read. */
#include "quant_activations.h"
#include "cpu_features.h"

typedef int8_t q16 __attribute__((vector_size(16)));
typedef int8_t q32 __attribute__((vector_size(32)));

#define CK_BODY "quant_activations_body.h"
#include "vector_isa.h"

ck_acts_form ck_acts_form_of(int32_t type) {
    if (type == CK_F32 || type == CK_F16 || type == CK_BF16 || ck_is_exact())
        return CK_ACTS_FLOATS;
    return type == CK_IQ2_XXS && ck_has_avx512_permute() ? CK_ACTS_INTERLEAVED : CK_ACTS_IN_ORDER;
}

static bool has_single(ck_acts_form form, int64_t n, int64_t cols) {
    return form == CK_ACTS_IN_ORDER && n == 1 && cols % (CK_SINGLE_BLOCKS * CK_BLOCK) == 0 &&
           ck_isa() == CK_ISA_AVX512;
}

static size_t block_bytes(ck_acts_form form, int64_t n, int64_t cols) {
    if (form == CK_ACTS_FLOATS)
        return (size_t)((cols + CK_FLOATS - 1) / CK_FLOATS * (n | 1)) * CK_FLOATS * sizeof(float);
    return (size_t)(cols / CK_BLOCK * (n | 1)) * sizeof(ck_act);
}

size_t ck_acts_bytes(ck_acts_form form, int64_t n, int64_t cols) {
    size_t again = CK_BLOCK + sizeof(float) + sizeof(int32_t); /* of a block */
    return block_bytes(form, n, cols) + (has_single(form, n, cols) ? (size_t)(cols / CK_BLOCK) * again : 0);
}

ck_acts ck_acts_place(void *memory, ck_acts_form form, int64_t n, int64_t cols) {
    ck_acts acts = {.form = form, .stride = n | 1};
    if (form == CK_ACTS_FLOATS)
        acts.floats = memory;
    else
        acts.blocks = memory;
    if (memory && has_single(form, n, cols)) {
        int64_t blocks = cols / CK_BLOCK;
        acts.single.q = (int8_t *)memory + block_bytes(form, n, cols);
        acts.single.d = (float *)(acts.single.q + CK_BLOCK * blocks);
        acts.single.minus128 = (int32_t *)(acts.single.d + blocks);
    }
    return acts;
}

static void copy_single(const ck_act *blocks, int64_t first, int64_t count, int64_t stride, const ck_single *to) {
    for (int64_t b = 0; b < count; b++) {
        const ck_act *act = blocks + b * stride;
        memcpy(to->q + CK_BLOCK * (first + b), act->q, CK_BLOCK);
        to->d[first + b] = act->d;
        to->minus128[first + b] = act->minus128_all;
    }
}

/* `cols` values of token `token` from column `first`, a multiple of the block size, on. */
static void fill(const ck_acts *acts, const float *x, int64_t token, int64_t first, int64_t cols) {
    if (acts->blocks) {
        ck_act *out = acts->blocks + first / CK_BLOCK * acts->stride + token;
        CK_DISPATCH(quantise_row)(x, cols / CK_BLOCK, out, acts->stride, acts->form == CK_ACTS_INTERLEAVED);
        if (acts->single.q)
            copy_single(out, first / CK_BLOCK, cols / CK_BLOCK, acts->stride, &acts->single);
        return;
    }
    float *out = acts->floats + (first / CK_FLOATS * acts->stride + token) * CK_FLOATS;
    int64_t i = 0;
    for (; i + CK_FLOATS <= cols; i += CK_FLOATS, out += acts->stride * CK_FLOATS)
        memcpy(out, x + i, CK_FLOATS * sizeof *x);
    if (i < cols) {
        memset(out, 0, CK_FLOATS * sizeof *x);
        memcpy(out, x + i, (size_t)(cols - i) * sizeof *x);
    }
}

/* One task is one token. */
typedef struct {
    const ck_acts *acts;
    const float *x;
    int64_t ldx, cols;
} fill_args;

static void fill_task(void *context, int64_t task, int thread) {
    (void)thread;
    const fill_args *a = context;
    fill(a->acts, a->x + task * a->ldx, task, 0, a->cols);
}

void ck_acts_fill(ck_pool *pool, const ck_acts *acts, const float *x, int64_t ldx, int64_t n, int64_t cols) {
    fill_args a = {acts, x, ldx, cols};
    ck_pool_run_even(pool, n, fill_task, &a);
}

void ck_acts_fill_block(const ck_acts *acts, const float x[CK_BLOCK], int64_t token, int64_t first,
                        int64_t cols) {
    fill(acts, x, token, first, cols - first < CK_BLOCK ? cols - first : CK_BLOCK);
}
