/* kv_rows.c — rows of attention memory in the model's own formats (ckernels.h draws them).
 * CPU twin of kv_rows.metal.
 *
 * The model was trained with these roundings, so rows kept this way lose nothing:
 *   FP8   e4m3 in blocks of 64, scale 2^ceil(log2(amax / 448)), amax >= 1e-4
 *   FP4   e2m1 in blocks of 32, scale 2^ceil(log2(amax / 6)), after a Hadamard rotation / √dim
 * The rotated values are not rounded by the model's training; 21 bits of a common power of two keep
 * them as good as f32 does (docs/decisions/rope-bits.md). */
#include "ckernels.h"
#include "kv_rows.h"

typedef uint32_t u32x16 __attribute__((vector_size(64)));

enum { FP8_BLOCK = 64, FP4_BLOCK = 32, FP4_MAX_DIM = 512 };

/* The biased exponent byte of the smallest power of two >= x; 0 stands for 2^-127. */
static uint8_t exponent_above(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t e = (bits >> 23) & 0xff;
    if (bits & 0x7fffff) e++;
    /* 2^119 at most: the largest code, 448, must not become infinite when it is decoded. */
    return (uint8_t)(e > 246 ? 246 : e);
}

static float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* 2^(e - 127) and its inverse; exact for 1 <= e <= 253. */
static float power_of_two(uint8_t e) { return e ? from_bits((uint32_t)e << 23) : 0x1p-127f; }
static float inverse_power_of_two(uint8_t e) {
    return e < 254 ? from_bits((uint32_t)(254 - e) << 23) : 0x1p-127f;
}

static uint8_t e4m3_encode(float x) {
    uint8_t sign = signbit(x) ? 0x80 : 0;
    float v = fabsf(x);
    if (!(v < 448.0f)) return sign | 0x7e; /* saturates; NaN too: a row must never hold a NaN code */
    if (v < 0x1p-6f) return sign | (uint8_t)rintf(v * 0x1p9f); /* subnormal; 8 is the first normal */
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits += 0x7ffff + ((bits >> 20) & 1); /* nearest even on three bits of mantissa */
    uint32_t code = (bits >> 20) - (120u << 3);
    return sign | (uint8_t)(code > 0x7e ? 0x7e : code);
}

/* Codes 0 … 7 mean 0, ½, 1, 1½, 2, 3, 4, 6; bit 3 is the sign. */
const float kv_e2m1[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};

static float block_amax(const float *x, int n) {
    float top = 0;
    for (int i = 0; i < n; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    return top;
}

/* ---------------------------------------------------------------- FP8 + 21 bits */

enum { ROPE_BITS = 21, ROPE_A_WORD = 3 };

/* One scale a block and one for the rotated values, padded so that what follows is aligned. */
static int64_t fp8_scale_bytes(int64_t dim, int64_t rope) {
    return ((dim - rope) / FP8_BLOCK + 1 + 7) / 8 * 8;
}
static int64_t rope_words(int64_t rope) { return (rope + ROPE_A_WORD - 1) / ROPE_A_WORD; }

/* Fixed point below the smallest power of two >= amax: 20 bits and a sign. */
static float rope_step(uint8_t scale) { return power_of_two(scale) * 0x1p-20f; }

static void rope_encode(const float *x, int64_t rope, uint8_t *scale, uint8_t *words) {
    float amax = block_amax(x, (int)rope);
    *scale = exponent_above(amax > 0x1p-80f ? amax : 0x1p-80f);
    float inverse = 1.0f / rope_step(*scale);
    for (int64_t w = 0; w < rope_words(rope); w++) {
        uint64_t word = 0;
        for (int64_t i = w * ROPE_A_WORD; i < rope && i < (w + 1) * ROPE_A_WORD; i++) {
            float v = x[i] == x[i] ? rintf(x[i] * inverse) : 0.0f;
            /* Limited before the conversion, which no integer of an infinity survives. */
            int64_t q = (int64_t)(v > 0xfffff ? 0xfffff : v < -0x100000 ? -0x100000 : v);
            word |= ((uint64_t)q & 0x1fffff) << (ROPE_BITS * (i % ROPE_A_WORD));
        }
        memcpy(words + 8 * w, &word, sizeof word);
    }
}

static void fp8_encode(const float *x, int64_t dim, int64_t rope, uint8_t *row) {
    int64_t plain = dim - rope, blocks = plain / FP8_BLOCK;
    uint8_t *scales = row + plain;
    memset(scales, 0, (size_t)fp8_scale_bytes(dim, rope));
    for (int64_t b = 0; b < blocks; b++) {
        float amax = block_amax(x + b * FP8_BLOCK, FP8_BLOCK);
        scales[b] = exponent_above((amax > 1e-4f ? amax : 1e-4f) / 448.0f);
        float inverse = inverse_power_of_two(scales[b]);
        for (int64_t i = b * FP8_BLOCK; i < (b + 1) * FP8_BLOCK; i++) row[i] = e4m3_encode(x[i] * inverse);
    }
    rope_encode(x + plain, rope, scales + blocks, scales + fp8_scale_bytes(dim, rope));
}

/* ---------------------------------------------------------------- any format */

#define CK_BODY "kv_rows_body.h"
#include "vector_isa.h"

size_t kv_row_bytes(int32_t format, int64_t dim, int64_t rope) {
    switch (format) {
    case CK_ROW_FP8: return (size_t)(dim - rope + fp8_scale_bytes(dim, rope) + 8 * rope_words(rope));
    case CK_ROW_FP4: return (size_t)(dim / 2 + dim / FP4_BLOCK);
    default: return (size_t)dim * sizeof(float);
    }
}

typedef struct {
    int32_t format;
    const float *x;
    int64_t n, dim, rope;
    size_t row_bytes;
    uint8_t *rows;
} encode_args;

static void encode_task(void *context, int64_t t, int thread) {
    (void)thread;
    const encode_args *a = context;
    const float *x = a->x + t * a->dim;
    uint8_t *row = a->rows + (size_t)t * a->row_bytes;
    switch (a->format) {
    case CK_ROW_FP8: fp8_encode(x, a->dim, a->rope, row); break;
    case CK_ROW_FP4: CK_DISPATCH(fp4_encode)(x, a->dim, row); break;
    default: memcpy(row, x, a->row_bytes);
    }
}

void kv_row_encode(ck_pool *pool, int32_t format, const float *x, int64_t n, int64_t dim, int64_t rope,
                   uint8_t *rows) {
    encode_args a = {format, x, n, dim, rope, kv_row_bytes(format, dim, rope), rows};
    ck_pool_run_even(pool, n, encode_task, &a);
}

void kv_row_decode(int32_t format, const uint8_t *row, int64_t dim, int64_t rope, float *out) {
    CK_DISPATCH(row_decode)(format, row, dim, rope, out);
}

typedef struct {
    float *x;
    int64_t n, dim, rows_per_task;
} round_args;

static void round_task(void *context, int64_t task, int thread) {
    (void)thread;
    const round_args *a = context;
    int64_t end = (task + 1) * a->rows_per_task;
    uint8_t row[FP4_MAX_DIM];
    for (int64_t t = task * a->rows_per_task; t < (end < a->n ? end : a->n); t++) {
        CK_DISPATCH(fp4_encode)(a->x + t * a->dim, a->dim, row);
        kv_row_decode(CK_ROW_FP4, row, a->dim, 0, a->x + t * a->dim);
    }
}

void kv_round_fp4(ck_pool *pool, float *x, int64_t n, int64_t dim) {
    round_args a = {x, n, dim, 16};
    ck_pool_run(pool, (n + a.rows_per_task - 1) / a.rows_per_task, round_task, &a);
}
