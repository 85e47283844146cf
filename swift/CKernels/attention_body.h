/* attention_body.h — one tile of rows for several heads; see attention.c.
 * dim is a multiple of 64. */

/* scores[h][i] = scale · q[h]·rows[i] for `hs` heads and `n` rows; register tiles of 4 × 4. */
V_INLINE void CK(dot_block)(const float *q, int64_t dim, const float *const *rows, int hs, int n,
                            float scale, float *scores) {
    v16 acc[HEADS_A_STEP][4];
    for (int h = 0; h < hs; h++)
        for (int i = 0; i < n; i++) acc[h][i] = CK(v_set)(0.0f);
    for (int64_t d = 0; d < dim; d += 16) {
        v16 k[4];
        for (int i = 0; i < n; i++) k[i] = CK(v_load)(rows[i] + d);
        for (int h = 0; h < hs; h++) {
            v16 v = CK(v_load)(q + h * dim + d);
            for (int i = 0; i < n; i++) acc[h][i] = CK(v_fma)(v, k[i], acc[h][i]);
        }
    }
    for (int h = 0; h < hs; h++)
        for (int i = 0; i < n; i++) scores[h * TILE + i] = CK(v_sum)(acc[h][i]) * scale;
}

/* o[h] += Σ_i p[h][i] · rows[i] for `hs` heads, 64 channels at a time. */
V_INLINE void CK(add_block)(const float *p, int64_t dim, const float *const *rows, int hs, int n,
                            float *out) {
    for (int64_t d = 0; d < dim; d += 64) {
        v16 acc[HEADS_A_STEP][4];
        for (int h = 0; h < hs; h++)
            for (int j = 0; j < 4; j++) acc[h][j] = CK(v_load)(out + h * dim + d + 16 * j);
        for (int i = 0; i < n; i++) {
            v16 v[4];
            for (int j = 0; j < 4; j++) v[j] = CK(v_load)(rows[i] + d + 16 * j);
            for (int h = 0; h < hs; h++) {
                v16 weight = CK(v_set)(p[h * TILE + i]);
                for (int j = 0; j < 4; j++) acc[h][j] = CK(v_fma)(weight, v[j], acc[h][j]);
            }
        }
        for (int h = 0; h < hs; h++)
            for (int j = 0; j < 4; j++) CK(v_store)(out + h * dim + d + 16 * j, acc[h][j]);
    }
}

static void CK(attend_tile)(const float *q, int64_t heads, int64_t dim, const float *const *rows, int n,
                            float scale, float *scores, float *top, float *sum, float *out) {
    for (int64_t h = 0; h < heads; h += HEADS_A_STEP) {
        int hs = (int)(heads - h < HEADS_A_STEP ? heads - h : HEADS_A_STEP);
        float *s = scores + h * TILE;
        for (int i = 0; i < n; i += 4) {
            int four = n - i < 4 ? n - i : 4;
            if (hs == 4 && four == 4) CK(dot_block)(q + h * dim, dim, rows + i, 4, 4, scale, s + i);
            else CK(dot_block)(q + h * dim, dim, rows + i, hs, four, scale, s + i);
        }
        for (int k = 0; k < hs; k++) {
            float *p = s + k * TILE, *o = out + (h + k) * dim;
            float highest = top[h + k];
            for (int i = 0; i < n; i++) highest = p[i] > highest ? p[i] : highest;
            for (int i = n; i < TILE; i++) p[i] = -__FLT_MAX__ / 2;
            if (highest > top[h + k]) {
                v16 fade = CK(v_exp)(CK(v_set)(top[h + k] - highest));
                for (int64_t d = 0; d < dim; d += 16) CK(v_store)(o + d, CK(v_load)(o + d) * fade);
                sum[h + k] *= fade[0];
                top[h + k] = highest;
            }
            v16 weights = CK(v_exp)(CK(v_load)(p) - CK(v_set)(highest));
            CK(v_store)(p, weights);
            sum[h + k] += CK(v_sum)(weights);
        }
        if (hs == 4) CK(add_block)(s, dim, rows, 4, n, out + h * dim);
        else CK(add_block)(s, dim, rows, hs, n, out + h * dim);
    }
}
