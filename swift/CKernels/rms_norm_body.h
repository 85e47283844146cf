/* rms_norm_body.h — see rms_norm.c. Tails shorter than a vector are summed after the lanes. */

static float CK(inverse_rms)(const float *x, int64_t dim, float eps) {
    v16 lanes = CK(v_set)(0.0f);
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        v16 v = CK(v_load)(x + i);
        lanes = CK(v_fma)(v, v, lanes);
    }
    float sum = CK(v_sum)(lanes);
    for (; i < dim; i++) sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(sum / (float)dim + eps);
}

static void CK(scale_row)(const float *x, int64_t dim, float scale, const float *weight, float *y) {
    int64_t i = 0;
    v16 s = CK(v_set)(scale);
    for (; i + 16 <= dim; i += 16) {
        v16 v = CK(v_load)(x + i) * s;
        CK(v_store)(y + i, weight ? v * CK(v_load)(weight + i) : v);
    }
    for (; i < dim; i++) y[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
}
