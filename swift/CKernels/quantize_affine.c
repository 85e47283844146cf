/* quantize_affine.c — Q2_K, Q4_K, Q5_K: w = d · scale · q − dmin · min, scale and min small integers.
 *
 * First every sub-block gets the best real scale and min: sixteen clipped ranges, each improved by turns
 * of rounding and least squares.
 * Then d and dmin are fitted to those, and by turns the integers of each sub-block are searched around
 * where they should be, with the true error, and d and dmin are solved for anew from all 256 weights.
 * The best state seen is kept. */
#include "quantize.h"

typedef struct {
    int sub;              /* weights in a sub-block */
    float top, scale_top; /* largest q, largest integer scale and min */
    int tried;            /* integer scales, and mins, around the real ones */
} affine_format;

typedef struct {
    float d, dmin; /* as halves will read */
    int scale[16], min[16];
} affine_block;

#define CK_BODY "quantize_affine_body.h"
#include "vector_isa.h"

void quantize_q2_k(const float *x, const float *w, ck_block_q2_k *out)
{
    static const affine_format format = {16, 3, 15, 6};
    affine_block b;
    uint8_t q[CK_SUPER];
    CK_DISPATCH(affine_search)(&format, x, w, &b, q);
    for (int g = 0; g < 16; g++)
        out->scales[g] = (uint8_t)(b.scale[g] | b.min[g] << 4);
    for (int i = 0; i < 64; i++) {
        const uint8_t *p = q + i / 32 * 128 + i % 32;
        out->q[i] = (uint8_t)(p[0] | p[32] << 2 | p[64] << 4 | p[96] << 6);
    }
    out->d = ck_f16_of_f32(b.d);
    out->dmin = ck_f16_of_f32(b.dmin);
}

/* Eight six-bit scales and mins; the inverse of ck_k4_scale and ck_k4_min. */
static void pack_k4(const affine_block *b, uint8_t out[12])
{
    for (int g = 0; g < 4; g++) {
        out[g] = (uint8_t)(b->scale[g] | b->scale[g + 4] >> 4 << 6);
        out[g + 4] = (uint8_t)(b->min[g] | b->min[g + 4] >> 4 << 6);
        out[g + 8] = (uint8_t)((b->scale[g + 4] & 15) | (b->min[g + 4] & 15) << 4);
    }
}

void quantize_q4_k(const float *x, const float *w, ck_block_q4_k *out)
{
    static const affine_format format = {32, 15, 63, 4};
    affine_block b;
    uint8_t q[CK_SUPER];
    CK_DISPATCH(affine_search)(&format, x, w, &b, q);
    pack_k4(&b, out->scales);
    for (int i = 0; i < 128; i++) {
        const uint8_t *p = q + i / 32 * 64 + i % 32;
        out->q[i] = (uint8_t)(p[0] | p[32] << 4);
    }
    out->d = ck_f16_of_f32(b.d);
    out->dmin = ck_f16_of_f32(b.dmin);
}

void quantize_q5_k(const float *x, const float *w, ck_block_q5_k *out)
{
    static const affine_format format = {32, 31, 63, 4};
    affine_block b;
    uint8_t q[CK_SUPER];
    CK_DISPATCH(affine_search)(&format, x, w, &b, q);
    pack_k4(&b, out->scales);
    memset(out->high, 0, sizeof out->high);
    for (int i = 0; i < CK_SUPER; i++)
        out->high[i % 32] |= (uint8_t)(q[i] >> 4 << i / 32);
    for (int i = 0; i < 128; i++) {
        const uint8_t *p = q + i / 32 * 64 + i % 32;
        out->q[i] = (uint8_t)((p[0] & 15) | (p[32] & 15) << 4);
    }
    out->d = ck_f16_of_f32(b.d);
    out->dmin = ck_f16_of_f32(b.dmin);
}
