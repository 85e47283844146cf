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

/* The code nearest to v; on a tie the even code, as rounding hardware does. */
static uint8_t e2m1(float v)
{
    static const float above[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5};
    float magnitude = fabsf(v);
    uint8_t code = 0;
    for (int i = 0; i < 7; i++)
        code += i % 2 ? magnitude >= above[i] : magnitude > above[i];
    return (uint8_t)(code | (signbit(v) && code ? 8 : 0));
}

/* Scales are powers of two: the one that clips nothing, or one of the two below it. */
static void quantize_mxfp4(const float *x, const float *w, ck_block_mxfp4 *out)
{
    float top = 0;
    for (int i = 0; i < CK_BLOCK; i++)
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    memset(out, 0, sizeof *out);
    if (top == 0)
        return;
    int highest = (int)ceilf(log2f(top / 6)) + 127;
    double best = INFINITY;
    for (int e = highest; e >= highest - 2; e--) {
        if (e < 0 || e > 254)
            continue;
        float scale = 2 * ck_mxfp4_scale((uint8_t)e), inverse = 1 / scale;
        uint8_t codes[CK_BLOCK];
        double error = 0;
        for (int i = 0; i < CK_BLOCK; i++) {
            codes[i] = e2m1(x[i] * inverse);
            double off = 0.5 * scale * ck_mxfp4_values[codes[i]] - x[i];
            error += w[i] * off * off;
        }
        if (error >= best)
            continue;
        best = error;
        out->e = (uint8_t)e;
        for (int i = 0; i < 16; i++)
            out->q[i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
    }
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
    case CK_Q4_0: quantize_q4_0(x, w, out); break;
    case CK_MXFP4: quantize_mxfp4(x, w, out); break;
    case CK_Q2_K: quantize_q2_k(x, w, out); break;
    case CK_Q3_K: quantize_q3_k(x, w, out); break;
    case CK_Q4_K: quantize_q4_k(x, w, out); break;
    case CK_Q5_K: quantize_q5_k(x, w, out); break;
    case CK_Q6_K: quantize_q6_k(x, w, out); break;
    case CK_IQ2_XXS: quantize_iq2_xxs(x, w, out); break;
    default: __builtin_trap(); /* callers ask quantize_supported first */
    }
}

/* Importance with a mean of 1. Inputs that were never seen still count a little: their weights
 * should not become arbitrary. */
static void normalised(const float *importance, int64_t cols, float *w)
{
    double mean = 0;
    for (int64_t i = 0; importance && i < cols; i++)
        mean += importance[i];
    mean /= (double)cols;
    bool usable = mean > 0 && isfinite(mean);
    for (int64_t i = 0; i < cols; i++)
        w[i] = usable ? (float)(importance[i] / mean) + 1e-5f : 1;
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
    normalised(importance, cols, w);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < cols; i += size, out += bytes)
            quantize_block(type, x + row * cols + i, w + i, out);
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
