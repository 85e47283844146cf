/* quantize_symmetric_body.h — the search of quantize_symmetric.c; a lane is a sub-block. */
#include "quantize_lanes_body.h"

typedef struct {
    v16 qq, qx; /* Σ w·q², Σ w·q·x */
} CK(symmetric_sums);

V_INLINE v16 CK(symmetric_codes)(v16 x, v16 inverse, v16 low, v16 high)
{
    return CK(v_min)(CK(v_max)(__builtin_elementwise_roundeven(x * inverse), low), high);
}

V_INLINE v16 CK(symmetric_inverse)(v16 s)
{
    v16 zero = CK(v_set)(0);
    return CK(v_select)(s != zero, 1.0f / s, zero);
}

V_INLINE CK(symmetric_sums) CK(symmetric_pass)(const v16 *x, const v16 *w, int n, const symmetric_format *f,
                                               v16 inverse)
{
    v16 low = CK(v_set)(f->low), high = CK(v_set)(f->high);
    CK(symmetric_sums) sums = {CK(v_set)(0), CK(v_set)(0)};
    for (int i = 0; i < n; i++) {
        v16 q = CK(symmetric_codes)(x[i], inverse, low, high), wq = w ? q * w[i] : q;
        sums.qq = CK(v_fma)(wq, q, sums.qq);
        sums.qx = CK(v_fma)(wq, x[i], sums.qx);
    }
    return sums;
}

/* Takes what the codes of `inverse` can at best have where that is more than `best`. For given codes the
 * best scale is qx/qq, with an error of Σ w·x² − qx²/qq. */
V_INLINE v16 CK(symmetric_try)(const v16 *x, const v16 *w, int n, const symmetric_format *f, v16 inverse, v16 *scale,
                               v16 *best)
{
    CK(symmetric_sums) sums = CK(symmetric_pass)(x, w, n, f, inverse);
    v16 s = sums.qx / sums.qq, gain = s * sums.qx;
    i16 better = gain > *best; /* false where qq is 0 */
    *best = CK(v_select)(better, gain, *best);
    *scale = CK(v_select)(better, s, *scale);
    return s;
}

/* The best real scale of each lane's n weights. The largest of them comes to lie at −reach[c], on the side
 * that has one code more, for the first `count` trials, and at +reach[c] for `others` more; each is improved
 * by `turns` of rounding and least squares. w: NULL for equal weights. */
V_INLINE v16 CK(symmetric_fit)(const v16 *x, const v16 *w, int n, const symmetric_format *f, const float *reach,
                               int count, int others, int turns)
{
    v16 zero = CK(v_set)(0), high = zero, low = zero, scale = zero, best = zero;
    for (int i = 0; i < n; i++) {
        high = CK(v_max)(high, x[i]);
        low = CK(v_min)(low, x[i]);
    }
    v16 largest = CK(v_select)(high > -low, high, low);
    v16 unit = CK(v_select)(largest != zero, 1.0f / largest, zero);
    for (int c = 0; c < count + others; c++) {
        v16 inverse = unit * (c < count ? -reach[c] : reach[c]);
        for (int turn = 0; turn <= turns; turn++)
            inverse = 1.0f / CK(symmetric_try)(x, w, n, f, inverse, &scale, &best);
    }
    return scale;
}

/* Codes of each lane at scale s, from 0 on. */
V_INLINE void CK(symmetric_write)(const v16 *x, int n, const symmetric_format *f, v16 s, v16 *q)
{
    v16 low = CK(v_set)(f->low), high = CK(v_set)(f->high), inverse = CK(symmetric_inverse)(s);
    for (int i = 0; i < n; i++)
        q[i] = CK(symmetric_codes)(x[i], inverse, low, high) - low;
}

/* d of up to sixteen blocks of 32 weights, and their codes in nibbles. */
static void CK(symmetric_blocks)(const symmetric_format *f, const float *x, const float *w, int count, float *d,
                                 uint8_t *codes)
{
    v16 tx[CK_BLOCK], tw[CK_BLOCK], s;
    CK(lanes_load)(x, CK_BLOCK, count, tx);
    if (w) {
        static const float reach[] = {7.6f, 8, 8.4f, 8.9f, 9.5f, 6.9f, 7.3f, 7.9f, 8.6f};
        CK(lanes_load)(w, CK_BLOCK, count, tw);
        s = CK(symmetric_fit)(tx, tw, CK_BLOCK, f, reach, 5, 4, 1);
    } else {
        static const float reach[] = {7.7f, 8.2f, 9.0f, 7.2f, 8.0f};
        s = CK(symmetric_fit)(tx, NULL, CK_BLOCK, f, reach, 3, 2, 0);
    }
    s = CK(lanes_rounded_f16)(s);
    CK(v_store)(d, s);
    CK(symmetric_write)(tx, CK_BLOCK, f, s, tw);
    CK(lanes_store_nibbles)(tw, count, codes);
}

/* A super-block's d and integer scales, and its codes. */
static void CK(symmetric_search)(const symmetric_format *f, const float *x, const float *w, symmetric_block *best,
                                 uint8_t *codes)
{
    v16 tx[CK_BLOCK], tw[CK_BLOCK], zero = CK(v_set)(0);
    CK(lanes_load)(x, 16, 16, tx);
    CK(lanes_load)(w, 16, 16, tw);
    v16 real = CK(symmetric_fit)(tx, tw, 16, f, f->reach, 8, 8, 2);
    float top = 0;
    for (int g = 0; g < 16; g++)
        /* The sign of d is free: the largest scale gets the side that reaches further. */
        top = fabsf(real[g]) > fabsf(top) ? real[g] : top;
    float d = top / f->scale_low, least = INFINITY;
    v16 chosen = zero;
    best->d = 0;
    for (int turn = 0; turn < 3; turn++) {
        float half = ck_rounded_f16(d);
        v16 centre = half != 0 ? __builtin_elementwise_roundeven(real / half) : zero;
        v16 error = CK(v_set)(INFINITY), scale = zero, qq = zero, qx = zero;
        for (int off = -2; off <= 2; off++) {
            v16 s = CK(v_min)(CK(v_max)(centre + (float)off, CK(v_set)(f->scale_low)), CK(v_set)(f->scale_high));
            v16 step = s * half;
            CK(symmetric_sums) sums = CK(symmetric_pass)(tx, tw, 16, f, CK(symmetric_inverse)(step));
            v16 now = step * (step * sums.qq - 2 * sums.qx); /* without Σ w·x² */
            i16 better = now < error;
            error = CK(v_select)(better, now, error);
            scale = CK(v_select)(better, s, scale);
            qq = CK(v_select)(better, sums.qq, qq);
            qx = CK(v_select)(better, sums.qx, qx);
        }
        float total = CK(v_sum)(error);
        if (total < least) {
            least = total;
            best->d = half;
            chosen = scale;
        }
        double sum_qq = 0, sum_qx = 0;
        for (int g = 0; g < 16; g++) {
            sum_qq += (double)scale[g] * scale[g] * qq[g];
            sum_qx += (double)scale[g] * qx[g];
        }
        if (!(sum_qq > 0))
            break;
        d = (float)(sum_qx / sum_qq);
    }
    for (int g = 0; g < 16; g++)
        best->scale[g] = (int)chosen[g];
    CK(symmetric_write)(tx, 16, f, chosen * best->d, tw);
    CK(lanes_store)(tw, 16, 16, codes);
}
