/* compressor_body.h — sixteen channels of a compressor; see compressor.c. */

typedef struct {
    v16 top, weight, sum;
} CK(running);

V_INLINE CK(running) CK(running_load)(const float *state, int64_t dim) {
    return (CK(running)){CK(v_load)(state), CK(v_load)(state + dim), CK(v_load)(state + 2 * dim)};
}
V_INLINE void CK(running_store)(CK(running) r, float *state, int64_t dim) {
    CK(v_store)(state, r.top);
    CK(v_store)(state + dim, r.weight);
    CK(v_store)(state + 2 * dim, r.sum);
}

/* A weight of zero means that nothing was added yet; it must not weigh in, whatever its top is. */
V_INLINE CK(running) CK(running_merge)(CK(running) a, CK(running) b) {
    v16 zero = CK(v_set)(0.0f);
    v16 top_a = CK(v_select)(a.weight == zero, b.top, a.top);
    v16 top_b = CK(v_select)(b.weight == zero, top_a, b.top);
    v16 top = CK(v_max)(top_a, top_b);
    v16 scale_a = CK(v_exp)(top_a - top), scale_b = CK(v_exp)(top_b - top);
    return (CK(running)){top, a.weight * scale_a + b.weight * scale_b, a.sum * scale_a + b.sum * scale_b};
}
V_INLINE CK(running) CK(running_add)(CK(running) r, v16 gate, v16 value) {
    return CK(running_merge)(r, (CK(running)){gate, CK(v_set)(1.0f), value});
}

static void CK(pool_separate)(const float *kv, const float *gate, const float *ape, int64_t n,
                              int64_t dim, int64_t width, int32_t ratio, int64_t position, float *state,
                              float *rows) {
    CK(running) own = CK(running_load)(state, dim);
    const CK(running) none = {CK(v_set)(0.0f), CK(v_set)(0.0f), CK(v_set)(0.0f)};
    for (int64_t t = 0; t < n; t++) {
        int64_t place = (position + t) % ratio;
        v16 g = CK(v_load)(gate + t * width) + CK(v_load)(ape + place * width);
        own = CK(running_add)(own, g, CK(v_load)(kv + t * width));
        if (place == ratio - 1) {
            CK(v_store)(rows, own.sum / own.weight);
            rows += dim;
            own = none;
        }
    }
    CK(running_store)(own, state, dim);
}

static void CK(pool_overlapping)(const float *kv, const float *gate, const float *ape, int64_t n,
                                 int64_t dim, int64_t width, int32_t ratio, int64_t position,
                                 float *state, float *rows) {
    CK(running) before = CK(running_load)(state, dim);
    CK(running) first = CK(running_load)(state + 3 * dim, dim);
    CK(running) second = CK(running_load)(state + 6 * dim, dim);
    const CK(running) none = {CK(v_set)(0.0f), CK(v_set)(0.0f), CK(v_set)(0.0f)};
    for (int64_t t = 0; t < n; t++) {
        int64_t place = (position + t) % ratio;
        const float *v = kv + t * width, *g = gate + t * width, *bias = ape + place * width;
        first = CK(running_add)(first, CK(v_load)(g) + CK(v_load)(bias), CK(v_load)(v));
        second = CK(running_add)(second, CK(v_load)(g + dim) + CK(v_load)(bias + dim),
                                 CK(v_load)(v + dim));
        if (place == ratio - 1) {
            CK(running) row = CK(running_merge)(before, second);
            CK(v_store)(rows, row.sum / row.weight);
            rows += dim;
            before = first;
            first = second = none;
        }
    }
    CK(running_store)(before, state, dim);
    CK(running_store)(first, state + 3 * dim, dim);
    CK(running_store)(second, state + 6 * dim, dim);
}
