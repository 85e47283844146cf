/* quantize_affine_body.h — the search of quantize_affine.c, sixteen candidates at a time: a lane is
 * a pair of scale and min, so no sum runs across lanes and every instruction set gives the same. */

typedef struct {
    v16 qq, q, qx, error; /* Σ w·q², Σ w·q, Σ w·q·x, Σ w·(s·q − m − x)² */
} CK(affine_sums);

V_INLINE CK(affine_sums) CK(affine_pass)(const float *x, const float *w, int n, float top, v16 s, v16 m)
{
    v16 zero = CK(v_set)(0), most = CK(v_set)(top);
    v16 inverse = CK(v_select)(s > zero, 1.0f / s, zero);
    CK(affine_sums) sums = {zero, zero, zero, zero};
    for (int i = 0; i < n; i++) {
        v16 shifted = m + x[i];
        v16 q = __builtin_elementwise_roundeven(shifted * inverse);
        q = CK(v_min)(CK(v_max)(q, zero), most);
        v16 off = CK(v_fma)(s, q, -shifted), wq = q * w[i];
        sums.qq = CK(v_fma)(wq, q, sums.qq);
        sums.q += wq;
        sums.qx = CK(v_fma)(wq, CK(v_set)(x[i]), sums.qx);
        sums.error = CK(v_fma)(off * w[i], off, sums.error);
    }
    return sums;
}

static int CK(affine_lowest)(v16 error)
{
    int best = 0;
    for (int c = 1; c < 16; c++)
        if (error[c] < error[best])
            best = c;
    return best;
}

/* The best real scale and min >= 0 of one sub-block. */
static void CK(affine_fit)(const float *x, const float *w, int n, float top, float *scale, float *min)
{
    float low = 0, high = x[0], sum_w = 0, sum_x = 0;
    for (int i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    *scale = 0;
    *min = -low;
    if (high <= low)
        return;
    v16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16 kept = 1.04f - lane * (top > 3 ? 0.025f : 0.04f); /* of the range on either side */
    v16 s = kept * ((high - low) / top), m = kept * -low;
    v16 zero = CK(v_set)(0);
    float best = INFINITY;
    for (int turn = 0; turn < 4; turn++) {
        CK(affine_sums) sums = CK(affine_pass)(x, w, n, top, s, m);
        int c = CK(affine_lowest)(sums.error);
        if (sums.error[c] < best) {
            best = sums.error[c];
            *scale = s[c];
            *min = m[c];
        }
        v16 det = sums.qq * sum_w - sums.q * sums.q;
        v16 new_s = (sums.qx * sum_w - sums.q * sum_x) / det;
        v16 new_m = (sums.q * sums.qx - sums.qq * sum_x) / det;
        v16 alone = sums.qx / sums.qq; /* with no min */
        i16 below = new_m < zero;
        new_s = CK(v_select)(below, alone, new_s);
        new_m = CK(v_select)(below, zero, new_m);
        i16 usable = (new_s > zero) & (new_s < 1e30f) & (new_m < 1e30f);
        s = CK(v_select)(usable, new_s, s);
        m = CK(v_select)(usable, new_m, m);
    }
}

typedef struct {
    float qq, q, qx, error;
} CK(affine_choice);

/* The best integers around `scale` and `min`, to `*s`, `*m`: with few of them all scales and many
 * mins are tried, else four by four. */
static CK(affine_choice) CK(affine_choose)(const affine_format *f, const float *x, const float *w,
                                           const affine_block *b, float scale, float min, int reach,
                                           int *s, int *m)
{
    v16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    v16 fours = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    v16 zero = CK(v_set)(0), most = CK(v_set)(f->scale_top);
    bool few = f->scale_top < 16;
    float centre_s = b->d > 0 ? floorf(scale / b->d) : 0, centre_m = b->dmin > 0 ? floorf(min / b->dmin) : 0;
    CK(affine_choice) best = {0, 0, 0, INFINITY};
    for (int turn = few ? -reach : 0; turn <= (few ? reach + 1 : 0); turn++) {
        v16 si = few ? lane : centre_s - 1 + fours;
        v16 mi = few ? CK(v_set)(centre_m + (float)turn) : centre_m - 1 + (lane - 4 * fours);
        si = CK(v_min)(CK(v_max)(si, zero), most);
        mi = CK(v_min)(CK(v_max)(mi, zero), most);
        CK(affine_sums) sums = CK(affine_pass)(x, w, f->sub, f->top, si * b->d, mi * b->dmin);
        int c = CK(affine_lowest)(sums.error);
        if (sums.error[c] < best.error) {
            best = (CK(affine_choice)){sums.qq[c], sums.q[c], sums.qx[c], sums.error[c]};
            *s = (int)si[c];
            *m = (int)mi[c];
        }
    }
    return best;
}

/* Chooses all integers for b's d and dmin, sets its error, and solves for a better pair. */
static void CK(affine_turn)(const affine_format *f, const float *x, const float *w, const float *scale,
                            const float *min, int reach, affine_block *b, float *d, float *dmin)
{
    double p = 0, q = 0, r = 0, u = 0, v = 0;
    b->error = 0;
    for (int g = 0; g < CK_SUPER / f->sub; g++) {
        const float *gx = x + g * f->sub, *gw = w + g * f->sub;
        CK(affine_choice) c =
            CK(affine_choose)(f, gx, gw, b, scale[g], min[g], reach, &b->scale[g], &b->min[g]);
        double s = b->scale[g], m = b->min[g], sum_w = 0, sum_x = 0;
        for (int i = 0; i < f->sub; i++) {
            sum_w += gw[i];
            sum_x += (double)gw[i] * gx[i];
        }
        p += s * s * c.qq;
        q += s * m * c.q;
        r += m * m * sum_w;
        u += s * c.qx;
        v += m * sum_x;
        b->error += c.error;
    }
    double det = p * r - q * q;
    *d = b->d;
    *dmin = b->dmin;
    if (det > 1e-9 * p * r) {
        *d = (float)((u * r - q * v) / det);
        *dmin = (float)((q * u - v * p) / det);
    } else if (p > 0) {
        *d = (float)(u / p);
    }
}

static void CK(affine_search)(const affine_format *f, const float *x, const float *w, affine_block *best)
{
    float scale[16], min[16], top_scale = 0, top_min = 0;
    for (int g = 0; g < CK_SUPER / f->sub; g++) {
        CK(affine_fit)(x + g * f->sub, w + g * f->sub, f->sub, f->top, &scale[g], &min[g]);
        top_scale = scale[g] > top_scale ? scale[g] : top_scale;
        top_min = min[g] > top_min ? min[g] : top_min;
    }
    affine_block b = {0};
    float d = top_scale / f->scale_top, dmin = top_min / f->scale_top;
    best->error = INFINITY;
    for (int turn = 0; turn < 4; turn++) {
        b.d = ck_rounded_f16(d);
        b.dmin = ck_rounded_f16(dmin);
        CK(affine_turn)(f, x, w, scale, min, turn == 0 ? 1 : 0, &b, &d, &dmin);
        if (b.error < best->error)
            *best = b;
        if (!(d >= 0 && dmin >= 0 && d < 65504 && dmin < 65504))
            break;
    }
}
