/* quantize.c — rows to blocks: which quantiser, what a squared error counts, and the simple formats.
 *
 * Q8_0 rounds as the `gguf` package does, bit for bit. */
#include "quantize.h"

#include <math.h>
#include <stdlib.h>

bool quantize_supported(int32_t type)
{
    return ck_type_supported(type);
}

static void quantize_q8_0(const float *x, ck_block_q8_0 *out)
{
    float top = 0;
    for (int i = 0; i < CK_BLOCK; i++)
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    float d = top / 127, inverse = d > 0 ? 1 / d : 0;
    out->d = ck_f16_of_f32(d);
    for (int i = 0; i < CK_BLOCK; i++)
        out->q[i] = (int8_t)roundf(x[i] * inverse);
}

static uint16_t bf16(float f)
{
    uint32_t bits = ck_bits_of_f32(f);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void quantize_float_row(int32_t type, const float *x, int64_t n, uint8_t *out)
{
    if (type == CK_F32) {
        memcpy(out, x, (size_t)n * sizeof *x);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t half = type == CK_F16 ? ck_f16_of_f32(x[i]) : bf16(x[i]);
        memcpy(out + 2 * i, &half, sizeof half);
    }
}

static void quantize_block(int32_t type, const float *x, const float *w, void *out)
{
    switch (type) {
    case CK_Q8_0: quantize_q8_0(x, out); break;
    case CK_Q2_K: quantize_q2_k(x, w, out); break;
    case CK_Q3_K: quantize_q3_k(x, w, out); break;
    case CK_Q4_K: quantize_q4_k(x, w, out); break;
    case CK_Q5_K: quantize_q5_k(x, w, out); break;
    case CK_Q6_K: quantize_q6_k(x, w, out); break;
    case CK_IQ2_XXS: quantize_iq2_xxs(x, w, out); break;
    default: __builtin_trap(); /* callers ask quantize_supported first */
    }
}

/* Importance with a mean of 1; false when it says nothing. Inputs that were never seen still count a
 * little: their weights should not become arbitrary. */
static bool normalised(const float *importance, int64_t cols, float *w)
{
    double mean = 0;
    for (int64_t i = 0; importance && i < cols; i++)
        mean += importance[i];
    mean /= (double)cols;
    bool usable = mean > 0 && isfinite(mean);
    for (int64_t i = 0; i < cols; i++)
        w[i] = usable ? (float)(importance[i] / mean) + 1e-5f : 1;
    return usable;
}

/* n weights in blocks of 32, sixteen at a time; w is NULL for equal weights. */
static void quantize_small_blocks(int32_t type, const float *x, const float *w, int64_t n, uint8_t *out)
{
    for (int64_t i = 0; i < n; i += 16 * CK_BLOCK) {
        int count = (int)((n - i < 16 * CK_BLOCK ? n - i : 16 * CK_BLOCK) / CK_BLOCK);
        uint8_t *to = out + i / CK_BLOCK * ck_type_block_bytes(type);
        if (type == CK_Q4_0)
            quantize_q4_0(x + i, w ? w + i : NULL, count, (ck_block_q4_0 *)to);
        else
            quantize_mxfp4(x + i, w ? w + i : NULL, count, (ck_block_mxfp4 *)to);
    }
}

void quantize_rows(int32_t type, const float *x, int64_t rows, int64_t cols, const float *importance,
                   void *blocks)
{
    uint8_t *out = blocks;
    int64_t size = ck_type_block_size(type), bytes = ck_type_block_bytes(type);
    if (size == 1) {
        quantize_float_row(type, x, rows * cols, out);
        return;
    }
    float *w = malloc((size_t)cols * sizeof *w);
    if (!w)
        abort();
    bool weighted = normalised(importance, cols, w);
    for (int64_t row = 0; row < rows; row++, x += cols, out += cols / size * bytes) {
        if (type == CK_Q4_0 || type == CK_MXFP4) {
            quantize_small_blocks(type, x, weighted ? w : NULL, cols, out);
            continue;
        }
        for (int64_t i = 0; i < cols; i += size)
            quantize_block(type, x + i, w + i, out + i / size * bytes);
    }
    free(w);
}

void quantize_error(int32_t type, const float *x, int64_t rows, int64_t cols, const float *importance,
                    const void *blocks, double *error, double *norm)
{
    int64_t row_bytes = cols / ck_type_block_size(type) * ck_type_block_bytes(type);
    float *back = malloc((size_t)cols * sizeof *back);
    if (!back)
        abort();
    *error = *norm = 0;
    for (int64_t row = 0; row < rows; row++) {
        quant_decode_row(type, (const uint8_t *)blocks + row * row_bytes, back, cols);
        for (int64_t i = 0; i < cols; i++) {
            double v = x[row * cols + i], off = v - back[i], w = importance ? importance[i] : 1;
            *error += w * off * off;
            *norm += w * v * v;
        }
    }
    free(back);
}
