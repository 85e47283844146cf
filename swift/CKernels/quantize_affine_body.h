/* quantize_affine_body.h — the search of quantize_affine.c; a lane is a sub-block. Formats with eight
 * sub-blocks leave half of the lanes empty: their weights count nothing. */
#include "quantize_lanes_body.h"

typedef struct {
    v16 x[CK_BLOCK], w[CK_BLOCK];
    v16 sum_w, sum_x, sum_xx; /* Σ w, Σ w·x, Σ w·x² */
    int n;                    /* weights in a lane */
} CK(affine_lanes);

typedef struct {
    v16 qq, q, qx; /* Σ w·q², Σ w·q, Σ w·q·x */
} CK(affine_sums);

V_INLINE v16 CK(affine_inverse)(v16 s)
{
    v16 zero = CK(v_set)(0);
    return CK(v_select)(s > zero, 1.0f / s, zero);
}

V_INLINE v16 CK(affine_codes)(v16 x, v16 m, v16 inverse, v16 top)
{
    v16 q = __builtin_elementwise_roundeven((x + m) * inverse);
    return CK(v_min)(CK(v_max)(q, CK(v_set)(0)), top);
}

V_INLINE CK(affine_sums) CK(affine_pass)(const CK(affine_lanes) *l, float top, v16 s, v16 m)
{
    v16 zero = CK(v_set)(0), most = CK(v_set)(top), inverse = CK(affine_inverse)(s);
    CK(affine_sums) sums = {zero, zero, zero};
    for (int i = 0; i < l->n; i++) {
        v16 q = CK(affine_codes)(l->x[i], m, inverse, most), wq = q * l->w[i];
        sums.qq = CK(v_fma)(wq, q, sums.qq);
        sums.q += wq;
        sums.qx = CK(v_fma)(wq, l->x[i], sums.qx);
    }
    return sums;
}

/* Σ w·(s·q − m − x)² of those codes, whatever scale and min they were made with. */
V_INLINE v16 CK(affine_error)(const CK(affine_lanes) *l, const CK(affine_sums) *a, v16 s, v16 m)
{
    v16 error = CK(v_fma)(s, s * a->qq - 2 * (m * a->q + a->qx), l->sum_xx);
    return CK(v_fma)(m, m * l->sum_w + 2 * l->sum_x, error);
}

/* The scale and min >= 0 with the least error for given codes. */
V_INLINE void CK(affine_solve)(const CK(affine_lanes) *l, const CK(affine_sums) *a, v16 *s, v16 *m)
{
    v16 zero = CK(v_set)(0);
    v16 det = a->qq * l->sum_w - a->q * a->q;
    v16 new_s = (a->qx * l->sum_w - a->q * l->sum_x) / det;
    v16 new_m = (a->q * a->qx - a->qq * l->sum_x) / det;
    i16 below = new_m < zero;
    new_s = CK(v_select)(below, a->qx / a->qq, new_s); /* with no min */
    new_m = CK(v_select)(below, zero, new_m);
    i16 usable = (new_s > zero) & (new_s < 1e30f) & (new_m < 1e30f);
    *s = CK(v_select)(usable, new_s, *s);
    *m = CK(v_select)(usable, new_m, *m);
}

/* The best real scale and min of every lane. */
V_INLINE void CK(affine_fit)(const CK(affine_lanes) *l, float top, v16 *scale, v16 *min)
{
    v16 zero = CK(v_set)(0), low = zero, high = l->x[0], best = CK(v_set)(INFINITY);
    for (int i = 0; i < l->n; i++) {
        low = CK(v_min)(low, l->x[i]);
        high = CK(v_max)(high, l->x[i]);
    }
    v16 range = CK(v_select)(high > low, (high - low) / top, zero);
    *scale = zero;
    *min = -low;
    for (int c = 0; c < 16; c++) {
        float kept = 1.04f - (float)c * (top > 3 ? 0.025f : 0.04f); /* of the range on either side */
        v16 s = kept * range, m = kept * -low;
        for (int turn = 0; turn < 4; turn++) {
            CK(affine_sums) sums = CK(affine_pass)(l, top, s, m);
            CK(affine_solve)(l, &sums, &s, &m);
            v16 error = CK(affine_error)(l, &sums, s, m);
            i16 better = error < best;
            best = CK(v_select)(better, error, best);
            *scale = CK(v_select)(better, s, *scale);
            *min = CK(v_select)(better, m, *min);
        }
    }
}

typedef struct {
    v16 scale, min, error, qq, q, qx;
} CK(affine_choice);

/* The best integers of every lane for d and dmin, among some scales by as many mins around the real ones. */
V_INLINE CK(affine_choice) CK(affine_choose)(const CK(affine_lanes) *l, const affine_format *f, float d, float dmin,
                                             v16 real_s, v16 real_m)
{
    v16 zero = CK(v_set)(0), most = CK(v_set)(f->scale_top);
    v16 centre_s = d > 0 ? __builtin_elementwise_floor(real_s / d) : zero;
    v16 centre_m = dmin > 0 ? __builtin_elementwise_floor(real_m / dmin) : zero;
    CK(affine_choice) best = {zero, zero, CK(v_set)(INFINITY), zero, zero, zero};
    int first = 1 - f->tried / 2;
    for (int c = 0; c < f->tried * f->tried; c++) {
        v16 si = CK(v_min)(CK(v_max)(centre_s + (float)(first + c / f->tried), zero), most);
        v16 mi = CK(v_min)(CK(v_max)(centre_m + (float)(first + c % f->tried), zero), most);
        CK(affine_sums) sums = CK(affine_pass)(l, f->top, si * d, mi * dmin);
        v16 error = CK(affine_error)(l, &sums, si * d, mi * dmin);
        i16 better = error < best.error;
        best.error = CK(v_select)(better, error, best.error);
        best.scale = CK(v_select)(better, si, best.scale);
        best.min = CK(v_select)(better, mi, best.min);
        best.qq = CK(v_select)(better, sums.qq, best.qq);
        best.q = CK(v_select)(better, sums.q, best.q);
        best.qx = CK(v_select)(better, sums.qx, best.qx);
    }
    return best;
}

/* The d and dmin with the least error for those codes and integers. */
V_INLINE void CK(affine_refit)(const CK(affine_lanes) *l, const CK(affine_choice) *c, int lanes, float *d, float *dmin)
{
    double p = 0, q = 0, r = 0, u = 0, v = 0;
    for (int g = 0; g < lanes; g++) {
        double s = c->scale[g], m = c->min[g];
        p += s * s * c->qq[g];
        q += s * m * c->q[g];
        r += m * m * l->sum_w[g];
        u += s * c->qx[g];
        v += m * l->sum_x[g];
    }
    double det = p * r - q * q;
    if (det > 1e-9 * p * r) {
        *d = (float)((u * r - q * v) / det);
        *dmin = (float)((q * u - v * p) / det);
    } else if (p > 0) {
        *d = (float)(u / p);
    }
}

/* A super-block's d, dmin and integers, and its codes. */
static void CK(affine_search)(const affine_format *f, const float *x, const float *w, affine_block *best,
                              uint8_t *codes)
{
    CK(affine_lanes) l = {.n = f->sub};
    int lanes = CK_SUPER / f->sub;
    CK(lanes_load)(x, l.n, lanes, l.x);
    CK(lanes_load)(w, l.n, lanes, l.w);
    for (int i = 0; i < l.n; i++) {
        v16 wx = l.w[i] * l.x[i];
        l.sum_w += l.w[i];
        l.sum_x += wx;
        l.sum_xx = CK(v_fma)(wx, l.x[i], l.sum_xx);
    }
    v16 scale, min, chosen_s = CK(v_set)(0), chosen_m = chosen_s;
    CK(affine_fit)(&l, f->top, &scale, &min);
    float top_scale = 0, top_min = 0, least = INFINITY;
    for (int g = 0; g < lanes; g++) {
        top_scale = scale[g] > top_scale ? scale[g] : top_scale;
        top_min = min[g] > top_min ? min[g] : top_min;
    }
    best->d = best->dmin = 0;
    float d = top_scale / f->scale_top, dmin = top_min / f->scale_top;
    for (int turn = 0; turn < 3; turn++) {
        float half_d = ck_rounded_f16(d), half_min = ck_rounded_f16(dmin);
        CK(affine_choice) choice = CK(affine_choose)(&l, f, half_d, half_min, scale, min);
        float error = CK(v_sum)(choice.error);
        if (error < least) {
            least = error;
            best->d = half_d;
            best->dmin = half_min;
            chosen_s = choice.scale;
            chosen_m = choice.min;
        }
        d = half_d;
        dmin = half_min;
        CK(affine_refit)(&l, &choice, lanes, &d, &dmin);
        if (!(d >= 0 && dmin >= 0 && d < 65504 && dmin < 65504))
            break;
    }
    v16 q[CK_BLOCK], m = chosen_m * best->dmin, inverse = CK(affine_inverse)(chosen_s * best->d);
    for (int i = 0; i < l.n; i++)
        q[i] = CK(affine_codes)(l.x[i], m, inverse, CK(v_set)(f->top));
    CK(lanes_store)(q, l.n, lanes, codes);
    for (int g = 0; g < lanes; g++) {
        best->scale[g] = (int)chosen_s[g];
        best->min[g] = (int)chosen_m[g];
    }
}
