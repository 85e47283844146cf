/* digest.c — one line per weight type and shape: a hash of what matmul and experts_forward compute,
 * and one of the indexer's scores.
 *
 * Built for this machine and for another one (run under an emulator), the output must be the same text:
 * inputs come from integer arithmetic and results agree in every bit on every instruction set.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckernels.h"
#include "indexer_int8.h"

static uint64_t state = 1;

static uint32_t random_bits(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

/* Uniform in [-1, 1), exact. */
static float random_float(void) {
    return (float)((int32_t)(random_bits() & 0xffff) - 0x8000) / 0x8000;
}

static uint16_t random_half(void) {
    return (uint16_t)(random_bits() & 0x83ff) | (uint16_t)(8 + random_bits() % 8) << 10;
}

static void put(uint8_t *at, uint16_t half) {
    memcpy(at, &half, sizeof half);
}

/* Random blocks with finite scales of about 0.01. */
static uint8_t *random_weights(int32_t type, int64_t rows, int64_t cols) {
    size_t block_bytes = (size_t)ck_type_block_bytes(type);
    int64_t blocks = rows * cols / ck_type_block_size(type);
    uint8_t *data = malloc((size_t)blocks * block_bytes);
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t *block = data + (size_t)b * block_bytes;
        for (size_t i = 0; i < block_bytes; i++)
            block[i] = (uint8_t)random_bits();
        float f = random_float();
        if (type == CK_F32)
            memcpy(block, &f, sizeof f);
        else if (type == CK_BF16)
            memcpy(block, (uint8_t *)&f + 2, 2);
        else if (type == CK_MXFP4)
            block[0] = (uint8_t)(115 + random_bits() % 10);
        else if (type == CK_Q2_K || type == CK_Q3_K || type == CK_Q6_K)
            put(block + block_bytes - 2, random_half());
        else
            put(block, random_half());
        if (type == CK_Q2_K)
            put(block + 80, random_half());
        if (type == CK_Q4_K || type == CK_Q5_K)
            put(block + 2, random_half());
    }
    return data;
}

static uint32_t hash(const float *values, int64_t count) {
    uint32_t h = 2166136261u;
    for (int64_t i = 0; i < count * 4; i++)
        h = (h ^ ((const uint8_t *)values)[i]) * 16777619u;
    return h;
}

static ck_matrix matrix(int32_t type, int64_t rows, int64_t cols, int64_t count) {
    size_t row_bytes = (size_t)(cols / ck_type_block_size(type) * ck_type_block_bytes(type));
    return (ck_matrix){random_weights(type, rows * count, cols), type, rows, cols, row_bytes};
}

static float *random_floats(int64_t count) {
    float *x = malloc((size_t)count * sizeof *x);
    for (int64_t i = 0; i < count; i++)
        x[i] = random_float();
    return x;
}

/* Scores of FP4 queries and rows. */
static void digest_indexer(ck_pool *pool) {
    enum { HEADS = 6, INDEX_DIM = 128, ROWS = 32 };
    float *q = random_floats(HEADS * INDEX_DIM), *w = random_floats(HEADS);
    float *keys = random_floats(ROWS * INDEX_DIM), *scales, out[ROWS];
    kv_round_fp4(pool, q, HEADS, INDEX_DIM);
    size_t row_bytes = kv_row_bytes(CK_ROW_FP4, INDEX_DIM, 0);
    uint8_t *rows = malloc(ROWS * row_bytes), *panels = aligned_alloc(64, ROWS * INDEX_DIM);
    kv_row_encode(pool, CK_ROW_FP4, keys, ROWS, INDEX_DIM, 0, rows);
    ck_index_queries x = ck_index_queries_place(malloc(ck_index_queries_bytes(1, HEADS, INDEX_DIM)), 1, HEADS,
                                                INDEX_DIM);
    ck_index_quantise(&x, 0, q, w, HEADS);
    scales = malloc(sizeof *scales * ROWS * INDEX_DIM / CK_INDEX_BLOCK);
    for (int first = 0; first < ROWS; first += CK_INDEX_PANEL_ROWS) {
        const uint8_t *sixteen[CK_INDEX_PANEL_ROWS];
        for (int i = 0; i < CK_INDEX_PANEL_ROWS; i++)
            sixteen[i] = rows + (size_t)(first + i) * row_bytes;
        ck_index_unpack(sixteen, INDEX_DIM, panels + first * INDEX_DIM, scales + first * INDEX_DIM / CK_INDEX_BLOCK);
    }
    ck_index_score(&x, 0, panels, scales, ROWS, 1.0f, out);
    printf("indexer %d %08x\n", x.exact[0], hash(out, ROWS));
}

int main(void) {
    static const int32_t types[] = {CK_F32,  CK_F16,  CK_BF16, CK_Q8_0, CK_Q4_0, CK_MXFP4,
                                    CK_Q2_K, CK_Q3_K, CK_Q4_K, CK_Q5_K, CK_Q6_K, CK_IQ2_XXS};
    enum { ROWS = 35, COLS = 512, TOKENS = 9, EXPERTS = 4, USED = 2, DIM = 256 };
    ck_pool *pool = ck_pool_create(2);
    fprintf(stderr, "%s\n", ck_isa_name());
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        ck_matrix w = matrix(types[i], ROWS, COLS, 1);
        float *x = random_floats(TOKENS * COLS), *y = calloc(TOKENS * ROWS, sizeof *y);
        ck_matmul_job job = {w, x, COLS, y, ROWS};
        matmul(pool, &job, 1, TOKENS);

        ck_experts e = {matrix(types[i], DIM, DIM, EXPERTS), matrix(types[i], DIM, DIM, EXPERTS),
                        matrix(types[i], DIM, DIM, EXPERTS), EXPERTS, USED, 10.0f};
        float *in = random_floats(TOKENS * DIM), *out = calloc(TOKENS * DIM, sizeof *out);
        float *weights = random_floats(TOKENS * USED);
        int32_t ids[TOKENS * USED];
        for (int t = 0; t < TOKENS; t++) {
            ids[2 * t] = (int32_t)(random_bits() % EXPERTS);
            ids[2 * t + 1] = (ids[2 * t] + 1) % EXPERTS;
        }
        experts_forward(pool, &e, in, ids, weights, TOKENS, out);
        printf("%d %08x %08x\n", (int)types[i], hash(y, TOKENS * ROWS), hash(out, TOKENS * DIM));
    }
    digest_indexer(pool);
    ck_pool_destroy(pool);
    return 0;
}
