/* indexer_int8_body.h — see indexer_int8.c. Needs CK(look_up) and CK(add_products), CK_TILE_HEADS and
 * CK_TILE_PANELS. */

/* Sets what is held of head `h` of token `t`; false when it does not fit. */
static bool CK(quantise_head)(const ck_index_queries *x, int64_t head, const float *q, float w) {
    const int64_t dim = x->dim;
    int8_t *out = x->q + head * dim;
    uint32_t top = 0; /* magnitudes order as their bits do, and a NaN comes out above infinity */
    for (int64_t i = 0; i < dim; i++) {
        uint32_t bits = bits_of(q[i]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    uint32_t exponent = top >> 23;
    if (top && (exponent < 27 || exponent > 227)) return false;
    /* The largest is from 64 to 127 steps. */
    float steps = top ? float_of((260 - exponent) << 23) : 0.0f, step = top ? float_of((exponent - 6) << 23) : 0.0f;
    int32_t rounded_off = 0;
    for (int64_t b = 0; b < dim / CK_INDEX_BLOCK; b++) {
        int32_t sum = 0;
        for (int i = 0; i < CK_INDEX_BLOCK; i++) {
            float v = q[b * CK_INDEX_BLOCK + i] * steps;
            int32_t whole = (int32_t)v;
            rounded_off |= (float)whole != v;
            sum += whole;
            out[b * CK_INDEX_BLOCK + (i & ~7) + (i & 1) * 4 + (i >> 1 & 3)] = (int8_t)whole;
        }
        x->offset[head * (dim / CK_INDEX_BLOCK) + b] = -12 * sum;
    }
    x->w[head] = w * step;
    return !rounded_off;
}

static void CK(quantise)(const ck_index_queries *x, int64_t t, const float *q, const float *w, int64_t heads) {
    bool exact = true;
    for (int64_t h = 0; h < heads && exact; h++)
        exact = CK(quantise_head)(x, t * x->heads + h, q + h * x->dim, w[h]);
    x->exact[t] = exact;
}

static void CK(unpack)(const uint8_t *const *rows, int64_t dim, uint8_t *panel, float *scales) {
    static const int8_t plus12[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    b64 *out = (b64 *)panel;
    for (int64_t b = 0; b < dim / CK_INDEX_BLOCK; b++, out += 8) {
        i16 a[4], c[4], words[4];
        for (int i = 0; i < 4; i++) {
            i4 four[4];
            for (int j = 0; j < 4; j++) memcpy(&four[j], rows[4 * j + i] + 16 * b, sizeof four[j]);
            i8 low = __builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 4, 5, 6, 7);
            i8 high = __builtin_shufflevector(four[2], four[3], 0, 1, 2, 3, 4, 5, 6, 7);
            a[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        }
        for (int i = 0; i < 4; i += 2) {
            c[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
            c[i + 1] =
                __builtin_shufflevector(a[i], a[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
        }
        for (int i = 0; i < 2; i++) {
            words[2 * i] = __builtin_shufflevector(c[i], c[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13,
                                                   28, 29);
            words[2 * i + 1] = __builtin_shufflevector(c[i], c[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27,
                                                       14, 15, 30, 31);
        }
        for (int i = 0; i < 4; i++) {
            out[2 * i] = CK(look_up)(plus12, (b64)(words[i] & 0x0f0f0f0f));
            out[2 * i + 1] = CK(look_up)(plus12, (b64)(words[i] >> 4 & 0x0f0f0f0f));
        }
        i16 e;
        for (int r = 0; r < CK_INDEX_PANEL_ROWS; r++) e[r] = rows[r][dim / 2 + b];
        /* 2^(e - 128), half of the row's scale; 2^-128 for 0 as for kv_row_decode. */
        v16 whole = (v16)((e << 23) | ((e == 0) & 0x00400000));
        CK(v_store)(scales + CK_INDEX_PANEL_ROWS * b, whole * CK(v_set)(0.5f));
    }
}

V_INLINE void CK(score_tile)(const ck_index_queries *x, int64_t t, const uint8_t *panels, const float *scales,
                             float scale, float *out) {
    enum { HEADS = CK_TILE_HEADS, PANELS = CK_TILE_PANELS };
    const int64_t dim = x->dim, blocks = dim / CK_INDEX_BLOCK, heads = x->heads;
    const int8_t *q = x->q + t * heads * dim;
    const int32_t *offset = x->offset + t * heads * blocks;
    const float *w = x->w + t * heads;
    v16 score[PANELS];
    for (int p = 0; p < PANELS; p++) score[p] = CK(v_set)(0.0f);
    for (int64_t h = 0; h < heads; h += HEADS, q += HEADS * dim, offset += HEADS * blocks) {
        v16 dot[HEADS][PANELS];
        for (int i = 0; i < HEADS; i++)
            for (int p = 0; p < PANELS; p++) dot[i][p] = CK(v_set)(0.0f);
        for (int64_t b = 0; b < blocks; b++) {
            i16 sum[HEADS][PANELS];
            for (int i = 0; i < HEADS; i++) {
                int32_t from = offset[i * blocks + b];
                for (int p = 0; p < PANELS; p++)
                    sum[i][p] = (i16){from, from, from, from, from, from, from, from,
                                      from, from, from, from, from, from, from, from};
            }
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < HEADS; i++)
                    for (int p = 0; p < PANELS; p++)
                        sum[i][p] = CK(add_products)(
                            sum[i][p], (const b64 *)(panels + p * CK_INDEX_PANEL_ROWS * dim) + 8 * b + 4 * half,
                            q + i * dim + CK_INDEX_BLOCK * b + 16 * half);
            for (int p = 0; p < PANELS; p++) {
                v16 row = CK(v_load)(scales + CK_INDEX_PANEL_ROWS * (p * blocks + b));
                for (int i = 0; i < HEADS; i++)
                    dot[i][p] = CK(v_fma)(__builtin_convertvector(sum[i][p], v16), row, dot[i][p]);
            }
        }
        for (int i = 0; i < HEADS; i++)
            for (int p = 0; p < PANELS; p++)
                score[p] = CK(v_fma)(CK(v_set)(w[h + i]), CK(v_max)(dot[i][p], CK(v_set)(0.0f)), score[p]);
    }
    for (int p = 0; p < PANELS; p++)
        CK(v_store)(out + CK_INDEX_PANEL_ROWS * p, score[p] * CK(v_set)(scale));
}

static void CK(score)(const ck_index_queries *x, int64_t t, const uint8_t *panels, const float *scales,
                      int64_t rows, float scale, float *out) {
    const int64_t step = CK_TILE_PANELS * CK_INDEX_PANEL_ROWS;
    for (int64_t row = 0; row < rows; row += step)
        CK(score_tile)(x, t, panels + row * x->dim, scales + row * (x->dim / CK_INDEX_BLOCK), scale, out + row);
}
