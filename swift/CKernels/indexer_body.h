/* indexer_body.h — scores of decoded rows for one token; see indexer.c. dim is a multiple of 16. */

V_INLINE void CK(index_block)(const float *q, const float *w, int64_t dim, const float *k, int hs, int n,
                              float *scores) {
    v16 acc[HEADS_A_STEP][4];
    for (int h = 0; h < hs; h++)
        for (int i = 0; i < n; i++) acc[h][i] = CK(v_set)(0.0f);
    for (int64_t d = 0; d < dim; d += 16) {
        v16 row[4];
        for (int i = 0; i < n; i++) row[i] = CK(v_load)(k + i * dim + d);
        for (int h = 0; h < hs; h++) {
            v16 v = CK(v_load)(q + h * dim + d);
            for (int i = 0; i < n; i++) acc[h][i] = CK(v_fma)(v, row[i], acc[h][i]);
        }
    }
    for (int h = 0; h < hs; h++)
        for (int i = 0; i < n; i++) {
            float dot = CK(v_sum)(acc[h][i]);
            if (dot > 0.0f) scores[i] = fmaf(w[h], dot, scores[i]);
        }
}

static void CK(score_rows)(const float *q, const float *w, int64_t heads, int64_t dim, const float *k,
                           int64_t n, float scale, float *scores) {
    for (int64_t i = 0; i < n; i += 4) {
        int four = (int)(n - i < 4 ? n - i : 4);
        float sums[4] = {0};
        for (int64_t h = 0; h < heads; h += HEADS_A_STEP) {
            int hs = (int)(heads - h < HEADS_A_STEP ? heads - h : HEADS_A_STEP);
            if (hs == 4 && four == 4) CK(index_block)(q + h * dim, w + h, dim, k + i * dim, 4, 4, sums);
            else CK(index_block)(q + h * dim, w + h, dim, k + i * dim, hs, four, sums);
        }
        for (int j = 0; j < four; j++) scores[i + j] = sums[j] * scale;
    }
}
