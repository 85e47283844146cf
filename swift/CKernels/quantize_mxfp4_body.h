/* quantize_mxfp4_body.h — the search of quantize_mxfp4.c; a lane is a block. */
#include "quantize_lanes_body.h"

/* y >= 0 to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6. Steps are 0.5 below 2, 1 below 4, then 2: half of
 * the power of two below y, and adding 1.5 · 2^23 steps rounds to multiples of a step. */
V_INLINE v16 CK(e2m1_nearest)(v16 y)
{
    i16 octave = (i16)CK(v_max)(y, CK(v_set)(1)) & 0x7f800000;
    v16 shift = (v16)(octave + ((22 << 23) | 0x400000));
    return CK(v_min)((y + shift) - shift, CK(v_set)(6));
}

/* Its code: the bits of the number above 1, twice the number below. */
V_INLINE v16 CK(e2m1_code)(v16 r)
{
    i16 bits = ((i16)r >> 22) - 252;
    return CK(v_select)(r >= 1.0f, __builtin_convertvector(bits, v16), r + r);
}

V_INLINE v16 CK(power_of_two)(i16 exponent) /* 2^(exponent − 127), 1…254 */
{
    return (v16)(exponent << 23);
}

V_INLINE void CK(mxfp4_choose)(const v16 *x, const v16 *w, int count, uint8_t *exponents, uint8_t *codes)
{
    v16 zero = CK(v_set)(0), top = zero;
    for (int i = 0; i < CK_BLOCK; i++)
        top = CK(v_max)(CK(v_max)(top, x[i]), -x[i]);
    /* The least power of two not below top / 6. Blocks below 2^-120 are written as zeros. */
    i16 highest = ((i16)(top / 6.0f) + 0x7fffff) >> 23;
    i16 usable = highest > 6;
    highest = (highest & usable) | (7 & ~usable);
    v16 best = CK(v_set)(INFINITY);
    i16 chosen = highest;
    for (int down = 0; down < 3; down++) {
        i16 e = highest - down;
        v16 scale = CK(power_of_two)(e), inverse = CK(power_of_two)(254 - e), error = zero;
        for (int i = 0; i < CK_BLOCK; i++) {
            v16 y = __builtin_elementwise_abs(x[i]) * inverse, off = CK(e2m1_nearest)(y) - y;
            error = CK(v_fma)(w ? off * w[i] : off, off, error);
        }
        error *= scale * scale;
        i16 better = error < best;
        best = CK(v_select)(better, error, best);
        chosen = (e & better) | (chosen & ~better);
    }
    v16 q[CK_BLOCK], inverse = CK(power_of_two)(254 - chosen);
    for (int i = 0; i < CK_BLOCK; i++) {
        v16 y = CK(e2m1_nearest)(__builtin_elementwise_abs(x[i]) * inverse), code = CK(e2m1_code)(y);
        i16 negative = (x[i] < zero) & (code > zero) & usable;
        q[i] = CK(v_select)(usable, code, zero) + CK(v_select)(negative, CK(v_set)(8), zero);
    }
    CK(lanes_store_nibbles)(q, count, codes);
    i16 written = chosen & usable;
    for (int b = 0; b < count; b++)
        exponents[b] = (uint8_t)written[b];
}

/* Exponents, and codes in nibbles, of up to sixteen blocks. */
static void CK(mxfp4_blocks)(const float *x, const float *w, int count, uint8_t *exponents, uint8_t *codes)
{
    v16 tx[CK_BLOCK], tw[CK_BLOCK];
    CK(lanes_load)(x, CK_BLOCK, count, tx);
    if (w) {
        CK(lanes_load)(w, CK_BLOCK, count, tw);
        CK(mxfp4_choose)(tx, tw, count, exponents, codes);
    } else {
        CK(mxfp4_choose)(tx, NULL, count, exponents, codes);
    }
}
