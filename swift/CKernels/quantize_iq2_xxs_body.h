/* quantize_iq2_xxs_body.h — the search of quantize_iq2_xxs.c; a lane is a table entry. */

/* A and B of all entries for eight weights. */
static void CK(iq2_group)(const iq2_table *t, const float *x, const float *w, float *a, float *b)
{
    float wx[8];
    int negative = 0;
    for (int j = 0; j < 8; j++) {
        wx[j] = w[j] * fabsf(x[j]);
        negative += x[j] < 0;
    }
    for (int k = 0; k < ENTRIES; k += 16) {
        v16 sum_a = CK(v_set)(0), sum_b = CK(v_set)(0), least = CK(v_set)(INFINITY);
        for (int j = 0; j < 8; j++) {
            v16 g = CK(v_load)(t->grid[j] + k), term = g * wx[j];
            sum_a += term;
            sum_b = CK(v_fma)(g * w[j], g, sum_b);
            least = CK(v_min)(least, term);
        }
        if (negative % 2)
            sum_a -= 2 * least;
        CK(v_store)(a + k, sum_a);
        CK(v_store)(b + k, sum_b);
    }
}

typedef struct {
    float error; /* without Σ w·x² */
    float a, b;  /* sums over the entries chosen */
} CK(iq2_choice);

/* The best entries of the four groups of a sub-block at scale s. */
static CK(iq2_choice) CK(iq2_at_scale)(const float (*a)[ENTRIES], const float (*b)[ENTRIES], float s)
{
    CK(iq2_choice) out = {0, 0, 0};
    for (int e = 0; e < 4; e++) {
        v16 low = CK(v_set)(INFINITY), low_a = CK(v_set)(0), low_b = low_a;
        for (int k = 0; k < ENTRIES; k += 16) {
            v16 va = CK(v_load)(a[e] + k), vb = CK(v_load)(b[e] + k);
            v16 error = CK(v_fma)(vb, CK(v_set)(s), -2 * va);
            i16 less = error < low;
            low = CK(v_select)(less, error, low);
            low_a = CK(v_select)(less, va, low_a);
            low_b = CK(v_select)(less, vb, low_b);
        }
        int best = 0;
        for (int c = 1; c < 16; c++)
            if (low[c] < low[best])
                best = c;
        out.error += s * low[best];
        out.a += low_a[best];
        out.b += low_b[best];
    }
    return out;
}

/* The error alone, for comparing scales. */
static float CK(iq2_error)(const float (*a)[ENTRIES], const float (*b)[ENTRIES], float s)
{
    float error = 0;
    for (int e = 0; e < 4; e++) {
        v16 low = CK(v_set)(INFINITY);
        for (int k = 0; k < ENTRIES; k += 16)
            low = CK(v_min)(low, CK(v_fma)(CK(v_load)(b[e] + k), CK(v_set)(s), -2 * CK(v_load)(a[e] + k)));
        float least = low[0];
        for (int c = 1; c < 16; c++)
            least = low[c] < least ? low[c] : least;
        error += s * least;
    }
    return error;
}

/* The best real scale of a sub-block. */
static float CK(iq2_fit)(const float (*a)[ENTRIES], const float (*b)[ENTRIES], float top)
{
    float scale = 0, best = 0;
    for (int c = 0; c < 9; c++) {
        float s = top / 43 * (0.55f + 0.1f * (float)c), error = CK(iq2_error)(a, b, s);
        if (error < best) {
            best = error;
            scale = s;
        }
    }
    for (int turn = 0; turn < 2 && scale > 0; turn++) {
        CK(iq2_choice) choice = CK(iq2_at_scale)(a, b, scale);
        if (!(choice.a > 0 && choice.b > 0))
            break;
        scale = choice.a / choice.b;
    }
    return scale;
}

/* Chooses the integer scales for d and solves for a better d. Returns the error. */
static float CK(iq2_turn)(const iq2_sums *sums, const float *real, float d, int *scale, float *better)
{
    float total = 0, a = 0, b = 0;
    for (int sub = 0; sub < SUBS; sub++) {
        int centre = d > 0 ? (int)rintf((8 * real[sub] / d - 1) / 2) : 0;
        centre = centre > 15 ? 15 : centre < 0 ? 0 : centre;
        const float (*sub_a)[ENTRIES] = sums->a + 4 * sub, (*sub_b)[ENTRIES] = sums->b + 4 * sub;
        float least = INFINITY;
        for (int l = centre > 0 ? centre - 1 : 0; l <= centre + 1 && l < 16; l++) {
            float error = CK(iq2_error)(sub_a, sub_b, d * step_of(l));
            if (error < least) {
                least = error;
                scale[sub] = l;
            }
        }
        float step = step_of(scale[sub]);
        CK(iq2_choice) best = CK(iq2_at_scale)(sub_a, sub_b, d * step);
        total += best.error;
        a += step * best.a;
        b += step * step * best.b;
    }
    *better = b > 0 && a > 0 ? a / b : d;
    return total;
}

static float CK(iq2_search)(const iq2_table *t, const float *x, const float *w, iq2_sums *sums, int *scale)
{
    float real[SUBS], widest = 0, best = INFINITY, found = 0;
    for (int sub = 0; sub < SUBS; sub++) {
        float top = 0;
        for (int i = 32 * sub; i < 32 * sub + 32; i++)
            top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
        for (int g = 4 * sub; g < 4 * sub + 4; g++)
            CK(iq2_group)(t, x + 8 * g, w + 8 * g, sums->a[g], sums->b[g]);
        real[sub] = CK(iq2_fit)(sums->a + 4 * sub, sums->b + 4 * sub, top);
        widest = real[sub] > widest ? real[sub] : widest;
    }
    memset(scale, 0, SUBS * sizeof *scale);
    float d = widest / step_of(15);
    for (int turn = 0; turn < 3 && widest > 0; turn++) {
        int chosen[SUBS];
        float half = ck_rounded_f16(d), error = CK(iq2_turn)(sums, real, half, chosen, &d);
        if (error < best) {
            best = error;
            found = half;
            memcpy(scale, chosen, sizeof chosen);
        }
    }
    return found;
}
