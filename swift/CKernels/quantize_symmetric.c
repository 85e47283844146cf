/* quantize_symmetric.c — Q3_K, Q6_K, Q4_0: w = scale · q, q from −2^(b−1) to 2^(b−1) − 1.
 *
 * Scales of either sign are tried, as only one side reaches −2^(b−1). For the K types the integer
 * scales and d are then improved by turns, as in quantize_affine.c. */
#include "quantize.h"

#include <math.h>

typedef struct {
    float low, high;   /* q */
    float scale_low, scale_high; /* integer scales; K types only */
} symmetric_format;

typedef struct {
    float d;
    int scale[16];
    float error;
} symmetric_block;

#define CK_BODY "quantize_symmetric_body.h"
#include "vector_isa.h"

static int code(float x, float scale, const symmetric_format *f)
{
    float v = scale != 0 ? rintf(x / scale) : 0;
    return (int)(v < f->low ? f->low : v > f->high ? f->high : v);
}

void quantize_q4_0(const float *x, const float *w, ck_block_q4_0 *out)
{
    static const symmetric_format format = {-8, 7, 0, 0};
    float scale = CK_DISPATCH(symmetric_fit)(x, w, CK_BLOCK, &format);
    out->d = ck_f16_of_f32(scale);
    scale = ck_f32_of_f16(out->d);
    for (int i = 0; i < 16; i++)
        out->q[i] = (uint8_t)((code(x[i], scale, &format) + 8) | (code(x[i + 16], scale, &format) + 8) << 4);
}

void quantize_q3_k(const float *x, const float *w, ck_block_q3_k *out)
{
    static const symmetric_format format = {-4, 3, -32, 31};
    symmetric_block b;
    CK_DISPATCH(symmetric_search)(&format, x, w, &b);
    memset(out, 0, sizeof *out);
    out->d = ck_f16_of_f32(b.d);
    for (int g = 0; g < 16; g++) {
        int s = b.scale[g] + 32;
        out->scales[g % 8] |= (uint8_t)((s & 15) << (g < 8 ? 0 : 4));
        out->scales[8 + g % 4] |= (uint8_t)(s >> 4 << 2 * (g / 4));
    }
    for (int i = 0; i < CK_SUPER; i++) {
        int q = code(x[i], b.d * (float)b.scale[i / 16], &format) + 4;
        out->q[i / 128 * 32 + i % 32] |= (uint8_t)((q & 3) << 2 * (i / 32 % 4));
        out->high[i % 32] |= (uint8_t)(q >> 2 << i / 32);
    }
}

void quantize_q6_k(const float *x, const float *w, ck_block_q6_k *out)
{
    static const symmetric_format format = {-32, 31, -128, 127};
    symmetric_block b;
    CK_DISPATCH(symmetric_search)(&format, x, w, &b);
    memset(out, 0, sizeof *out);
    out->d = ck_f16_of_f32(b.d);
    for (int g = 0; g < 16; g++)
        out->scales[g] = (int8_t)b.scale[g];
    for (int i = 0; i < CK_SUPER; i++) {
        int q = code(x[i], b.d * (float)b.scale[i / 16], &format) + 32;
        int half = i / 128, s = i / 32 % 4;
        out->low[64 * half + 32 * (s & 1) + i % 32] |= (uint8_t)((q & 15) << (s < 2 ? 0 : 4));
        out->high[32 * half + i % 32] |= (uint8_t)(q >> 4 << 2 * s);
    }
}
