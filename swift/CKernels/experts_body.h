/* experts_body.h — see experts.c. */

/* silu(g) · u · weight, `count` (a multiple of 16) values each. NaN in g or u stays. */
static void CK(swiglu)(const float *g, const float *u, int64_t count, float clamp, float weight, float *h) {
    v16 limit = CK(v_set)(clamp > 0 ? clamp : INFINITY), w = CK(v_set)(weight);
    for (int64_t i = 0; i < count; i += 16) {
        v16 gate = CK(v_load)(g + i), up = CK(v_load)(u + i);
        gate = CK(v_select)(gate > limit, limit, gate);
        up = CK(v_select)(up > limit, limit, up);
        up = CK(v_select)(up < -limit, -limit, up);
        /* v_exp is finite: exp(88) at most, where the quotient is 0 to f32 accuracy. */
        v16 silu = gate / (CK(v_set)(1.0f) + CK(v_exp)(-gate));
        CK(v_store)(h + i, silu * up * w);
    }
}

/* y[0 … count) = Σ_j parts[j · stride + …], j ascending. */
static void CK(sum_parts)(const float *parts, int64_t used, int64_t stride, int64_t count, float *y) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        v16 sum = CK(v_load)(parts + i);
        for (int64_t j = 1; j < used; j++)
            sum += CK(v_load)(parts + j * stride + i);
        CK(v_store)(y + i, sum);
    }
    for (; i < count; i++) {
        float sum = parts[i];
        for (int64_t j = 1; j < used; j++)
            sum += parts[j * stride + i];
        y[i] = sum;
    }
}
