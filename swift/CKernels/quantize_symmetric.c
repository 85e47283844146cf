/* quantize_symmetric.c — Q3_K, Q6_K, Q4_0: w = scale · q, q from −2^(b−1) to 2^(b−1) − 1.
 *
 * Scales of either sign are tried, as only one side reaches −2^(b−1). For the K types the integer
 * scales and d are then improved by turns, as in quantize_affine.c. */
#include "quantize.h"

#include <math.h>

typedef struct {
    float low, high;   /* q */
    float scale_low, scale_high; /* integer scales; K types only */
    float reach[16]; /* where the largest weight shall lie, for either sign */
} symmetric_format;

typedef struct {
    float d;
    int scale[16];
} symmetric_block;

#define CK_BODY "quantize_symmetric_body.h"
#include "vector_isa.h"

void quantize_q4_0(const float *x, const float *w, int count, ck_block_q4_0 *out)
{
    static const symmetric_format format = {-8, 7, 0, 0, {0}};
    float d[16];
    uint8_t codes[16 * 16];
    CK_DISPATCH(symmetric_blocks)(&format, x, w, count, d, codes);
    for (int b = 0; b < count; b++) {
        out[b].d = ck_f16_of_f32(d[b]);
        memcpy(out[b].q, codes + 16 * b, 16);
    }
}

void quantize_q3_k(const float *x, const float *w, ck_block_q3_k *out)
{
    static const symmetric_format format = {-4, 3, -32, 31, {3.5f, 3.75f, 4, 4.25f, 4.5f, 5, 5.6f, 6.3f, 3.1f, 3.4f, 3.7f, 4, 4.4f, 4.9f, 5.5f, 6.3f}};
    symmetric_block b;
    uint8_t q[CK_SUPER];
    CK_DISPATCH(symmetric_search)(&format, x, w, &b, q);
    memset(out, 0, sizeof *out);
    out->d = ck_f16_of_f32(b.d);
    for (int g = 0; g < 16; g++) {
        int s = b.scale[g] + 32;
        out->scales[g % 8] |= (uint8_t)((s & 15) << (g < 8 ? 0 : 4));
        out->scales[8 + g % 4] |= (uint8_t)(s >> 4 << 2 * (g / 4));
    }
    for (int part = 0; part < 8; part++)
        for (int l = 0; l < 32; l++) {
            uint8_t code = q[32 * part + l];
            out->q[part / 4 * 32 + l] |= (uint8_t)((code & 3) << 2 * (part % 4));
            out->high[l] |= (uint8_t)(code >> 2 << part);
        }
}

void quantize_q6_k(const float *x, const float *w, ck_block_q6_k *out)
{
    static const symmetric_format format = {-32, 31, -128, 127, {31, 31.5f, 32, 32.5f, 33, 34, 35.5f, 37, 30.5f, 31, 31.4f, 31.8f, 32.3f, 33, 34, 36}};
    symmetric_block b;
    uint8_t q[CK_SUPER];
    CK_DISPATCH(symmetric_search)(&format, x, w, &b, q);
    memset(out, 0, sizeof *out);
    out->d = ck_f16_of_f32(b.d);
    for (int g = 0; g < 16; g++)
        out->scales[g] = (int8_t)b.scale[g];
    for (int part = 0; part < 8; part++)
        for (int l = 0; l < 32; l++) {
            uint8_t code = q[32 * part + l];
            int half = part / 4, s = part % 4;
            out->low[64 * half + 32 * (s & 1) + l] |= (uint8_t)((code & 15) << (s < 2 ? 0 : 4));
            out->high[32 * half + l] |= (uint8_t)(code >> 4 << 2 * s);
        }
}
