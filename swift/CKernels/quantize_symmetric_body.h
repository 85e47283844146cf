/* quantize_symmetric_body.h — the search of quantize_symmetric.c; a lane is a scale. */

typedef struct {
    v16 qq, qx, error;
} CK(symmetric_sums);

V_INLINE CK(symmetric_sums) CK(symmetric_pass)(const float *x, const float *w, int n,
                                               const symmetric_format *f, v16 s)
{
    v16 zero = CK(v_set)(0), low = CK(v_set)(f->low), high = CK(v_set)(f->high);
    v16 inverse = CK(v_select)(s != zero, 1.0f / s, zero);
    CK(symmetric_sums) sums = {zero, zero, zero};
    for (int i = 0; i < n; i++) {
        v16 v = CK(v_set)(x[i]);
        v16 q = __builtin_elementwise_roundeven(v * inverse);
        q = CK(v_min)(CK(v_max)(q, low), high);
        v16 off = CK(v_fma)(s, q, -v), wq = q * w[i];
        sums.qq = CK(v_fma)(wq, q, sums.qq);
        sums.qx = CK(v_fma)(wq, v, sums.qx);
        sums.error = CK(v_fma)(off * w[i], off, sums.error);
    }
    return sums;
}

static int CK(symmetric_lowest)(v16 error)
{
    int best = 0;
    for (int c = 1; c < 16; c++)
        if (error[c] < error[best])
            best = c;
    return best;
}

/* The best real scale of n weights. */
static float CK(symmetric_fit)(const float *x, const float *w, int n, const symmetric_format *f)
{
    float top = 0, best = INFINITY, scale = 0;
    for (int i = 0; i < n; i++)
        top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    if (top == 0)
        return 0;
    v16 step = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7};
    v16 sign = {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
    v16 zero = CK(v_set)(0);
    v16 s = sign * (1.03f - step * (f->high > 7 ? 0.03f : 0.06f)) * (top / -f->low);
    for (int turn = 0; turn < 4; turn++) {
        CK(symmetric_sums) sums = CK(symmetric_pass)(x, w, n, f, s);
        int c = CK(symmetric_lowest)(sums.error);
        if (sums.error[c] < best) {
            best = sums.error[c];
            scale = s[c];
        }
        v16 better = sums.qx / sums.qq;
        s = CK(v_select)((sums.qq > zero) & (better != zero), better, s);
    }
    return scale;
}

static void CK(symmetric_search)(const symmetric_format *f, const float *x, const float *w,
                                 symmetric_block *best)
{
    float scale[16], top = 0;
    for (int g = 0; g < 16; g++) {
        scale[g] = CK(symmetric_fit)(x + 16 * g, w + 16 * g, 16, f);
        /* The sign of d is free: the largest scale gets the side that reaches further. */
        if (fabsf(scale[g]) > fabsf(top))
            top = scale[g];
    }
    *best = (symmetric_block){.error = INFINITY};
    symmetric_block b;
    float d = top / f->scale_low;
    v16 lane = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    for (int turn = 0; turn < 3; turn++) {
        b = (symmetric_block){.d = ck_rounded_f16(d)};
        double qq = 0, qx = 0;
        for (int g = 0; g < 16; g++) {
            float centre = b.d != 0 ? rintf(scale[g] / b.d) : 0;
            v16 s = CK(v_min)(CK(v_max)(lane + centre, CK(v_set)(f->scale_low)), CK(v_set)(f->scale_high));
            CK(symmetric_sums) sums = CK(symmetric_pass)(x + 16 * g, w + 16 * g, 16, f, s * b.d);
            int c = CK(symmetric_lowest)(sums.error);
            b.scale[g] = (int)s[c];
            b.error += sums.error[c];
            qq += (double)s[c] * s[c] * sums.qq[c];
            qx += (double)s[c] * sums.qx[c];
        }
        if (b.error < best->error)
            *best = b;
        if (!(qq > 0))
            break;
        d = (float)(qx / qq);
    }
}
