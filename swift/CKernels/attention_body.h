/* attention_body.h — one tile of rows for several heads; see attention.c.
 * dim is a multiple of 64. */

/* The sums of the lanes of sixteen vectors, each in the order of v_sum: lane 4h + i that of v[h][i].
 * Every step adds the halves of what two vectors hold. */
V_INLINE v16 CK(sum_each)(const v16 v[4][4]) {
    v16 fours[4], twos[2];
    for (int h = 0; h < 4; h++) {
        v16 eights[2];
        for (int j = 0; j < 2; j++) {
            v16 a = v[h][2 * j], b = v[h][2 * j + 1];
            eights[j] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                        __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        }
        v16 a = eights[0], b = eights[1];
        fours[h] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                   __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
    for (int j = 0; j < 2; j++) {
        v16 a = fours[2 * j], b = fours[2 * j + 1];
        twos[j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                  __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    v16 a = twos[0], b = twos[1];
    v16 by_row = __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
                 __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
    return __builtin_shufflevector(by_row, by_row, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

/* The highest lane, at least `lowest`; what is no number does not count. */
V_INLINE float CK(highest)(v16 v, float lowest) {
    v = CK(v_max)(v, CK(v_set)(lowest));
    v = CK(v_max)(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = CK(v_max)(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = CK(v_max)(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return v[0] > v[1] ? v[0] : v[1];
}

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
    if (hs == 4 && n == 4) {
        v16 sums = CK(sum_each)(acc) * CK(v_set)(scale);
        for (int h = 0; h < 4; h++) memcpy(scores + h * TILE, (const float *)&sums + 4 * h, 4 * sizeof *scores);
        return;
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

/* A head's weights of a tile from its scores `p`, and what it has so far faded to its new maximum. */
V_INLINE void CK(weigh)(float *p, int n, int64_t dim, float *top, float *sum, float *out) {
    const float lowest = -__FLT_MAX__ / 2;
    for (int i = n; i < TILE; i++) p[i] = lowest;
    float highest = CK(highest)(CK(v_load)(p), lowest);
    if (highest > *top) {
        v16 fade = CK(v_exp)(CK(v_set)(*top - highest));
        for (int64_t d = 0; d < dim; d += 16) CK(v_store)(out + d, CK(v_load)(out + d) * fade);
        *sum *= fade[0];
        *top = highest;
    }
    v16 weights = CK(v_exp)(CK(v_load)(p) - CK(v_set)(*top));
    CK(v_store)(p, weights);
    *sum += CK(v_sum)(weights);
}

/* Three passes over the heads, so that the rows stay in the first-level cache: beside them only the
 * queries pass through it, then only what is summed up. */
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
    }
    for (int64_t h = 0; h < heads; h++) CK(weigh)(scores + h * TILE, n, dim, top + h, sum + h, out + h * dim);
    for (int64_t h = 0; h < heads; h += HEADS_A_STEP) {
        int hs = (int)(heads - h < HEADS_A_STEP ? heads - h : HEADS_A_STEP);
        if (hs == 4) CK(add_block)(scores + h * TILE, dim, rows, 4, n, out + h * dim);
        else CK(add_block)(scores + h * TILE, dim, rows, hs, n, out + h * dim);
    }
}
