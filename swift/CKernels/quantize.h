/* quantize.h — shared by quantize_*.c; private to CKernels. The public part is include/quantize.h. */
#ifndef PYDS4_QUANTIZE_PRIVATE_H
#define PYDS4_QUANTIZE_PRIVATE_H

#include "include/quantize.h"
#include "quant_blocks.h"

/* One super-block of 256 weights each; w is what a squared error of each counts. */
void quantize_q2_k(const float *x, const float *w, ck_block_q2_k *out);
void quantize_q4_k(const float *x, const float *w, ck_block_q4_k *out);
void quantize_q5_k(const float *x, const float *w, ck_block_q5_k *out);
void quantize_q3_k(const float *x, const float *w, ck_block_q3_k *out);
void quantize_q6_k(const float *x, const float *w, ck_block_q6_k *out);
void quantize_iq2_xxs(const float *x, const float *w, ck_block_iq2_xxs *out);

/* Up to sixteen blocks of 32 weights behind one another; w is NULL for equal weights. */
void quantize_q4_0(const float *x, const float *w, int count, ck_block_q4_0 *out);
void quantize_mxfp4(const float *x, const float *w, int count, ck_block_mxfp4 *out);

/* Nearest even; overflows to infinity, as IEEE says. */
static inline uint16_t ck_f16_of_f32(float f)
{
    uint32_t bits = ck_bits_of_f32(f), sign = bits >> 16 & 0x8000;
    float magnitude = ck_f32_of_bits(bits & 0x7fffffff);
    if (!(magnitude < 65520.0f))
        return (uint16_t)(sign | (magnitude == magnitude ? 0x7c00 : 0x7e00));
    if (magnitude < 0x1p-14f) /* subnormal: a multiple of 2^-24, which adding 0.5 rounds to */
        return (uint16_t)(sign | (ck_bits_of_f32(magnitude + 0.5f) - 0x3f000000));
    uint32_t b = ck_bits_of_f32(magnitude);
    b += 0xfff + (b >> 13 & 1);
    return (uint16_t)(sign | ((b >> 13) - (112u << 10)));
}

static inline float ck_rounded_f16(float f)
{
    return ck_f32_of_f16(ck_f16_of_f32(f));
}

#endif
