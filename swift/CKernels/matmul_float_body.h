/* matmul_float_body.h — see matmul_float.c. */

/* Sixteen weights to f32; only `have` of them exist, the others become 0. */
V_INLINE v16 CK(load_f32)(const uint8_t *p, int64_t have) {
    v16 v = {0};
    if (have >= 16)
        memcpy(&v, p, sizeof v);
    else
        memcpy(&v, p, (size_t)have * sizeof(float));
    return v;
}

V_INLINE u16x16 CK(load_u16)(const uint8_t *p, int64_t have) {
    u16x16 h = {0};
    if (have >= 16)
        memcpy(&h, p, sizeof h);
    else
        memcpy(&h, p, (size_t)have * sizeof(uint16_t));
    return h;
}

V_INLINE v16 CK(load_bf16)(const uint8_t *p, int64_t have) {
    return (v16)(__builtin_convertvector(CK(load_u16)(p, have), i16) << 16);
}

V_INLINE v16 CK(load_f16)(const uint8_t *p, int64_t have) {
    return CK(f32_of_f16)(CK(load_u16)(p, have));
}

V_INLINE v16 CK(load_weights)(int32_t type, const uint8_t *row, int64_t k, int64_t have) {
    if (type == CK_F32)
        return CK(load_f32)(row + 4 * k, have);
    return type == CK_F16 ? CK(load_f16)(row + 2 * k, have) : CK(load_bf16)(row + 2 * k, have);
}

typedef v16 CK(block_sums)[CK(MAX_ROWS)][MOST_ONE_PASS];

/* Adds columns k … k+have-1, at most 16; x[t] is their block of activations. */
V_INLINE void CK(float_step)(int32_t type, const uint8_t *const *w, int n_rows, const float *const *x,
                             int n_tokens, int64_t k, int64_t have, CK(block_sums) sums) {
    v16 weights[CK(MAX_ROWS)];
    for (int r = 0; r < n_rows; r++)
        weights[r] = CK(load_weights)(type, w[r], k, have);
    for (int t = 0; t < n_tokens; t++) {
        v16 v = CK(v_load)(x[t]);
        for (int r = 0; r < n_rows; r++)
            sums[r][t] = CK(v_fma)(weights[r], v, sums[r][t]);
    }
}

/* Adds columns [begin, end) to the lane sums of n_rows × n_tokens outputs; all but the columns are
 * constants after inlining. Between calls the sums rest in `kept`. */
V_INLINE void CK(float_block)(const ck_tile *tile, int32_t type, int row, int n_rows, int64_t token,
                              int n_tokens, int64_t begin, int64_t end, kept_sums *kept) {
    CK(block_sums) sums;
    const float *x[MOST_ONE_PASS];
    const uint8_t *w[CK(MAX_ROWS)];
    const size_t bytes = type == CK_F32 ? 4 : 2;
    const int64_t stride = tile->acts.stride;
    /* With few tokens memory is the limit: fetch rows below meanwhile, in a straight line if we can. */
    const bool fetch = token == 0 && tile->n <= 16, whole = end - begin == tile->cols;
    const int64_t bytes_at_once = n_rows * (int64_t)tile->row_bytes;
    const uint8_t *ahead = ck_tile_row(tile, row) + ck_divide_up(AHEAD_BYTES, bytes_at_once) * bytes_at_once;
    int slot = (int)(token % FLOAT_CHUNK_TOKENS);
    for (int r = 0; r < n_rows; r++)
        w[r] = ck_tile_row(tile, row + r);
    for (int t = 0; t < n_tokens; t++) {
        x[t] = tile->acts.floats + (begin / CK_FLOATS * stride + tile->tokens[token + t]) * CK_FLOATS;
        for (int r = 0; r < n_rows; r++)
            sums[r][t] = begin ? kept->sums[row + r][slot + t] : CK(v_set)(0.0f);
    }
    int64_t k = begin;
    for (; k + 16 <= end; k += 16) {
        for (size_t i = 0; fetch && whole && i < 16 * bytes * (size_t)n_rows; i += 64)
            __builtin_prefetch(ahead + bytes * (size_t)(n_rows * k) + i);
        for (int r = 0; fetch && !whole && r < n_rows; r++)
            __builtin_prefetch(w[r] + (size_t)CK(MAX_ROWS) * tile->row_bytes + bytes * (size_t)k);
        CK(float_step)(type, w, n_rows, x, n_tokens, k, 16, sums);
        for (int t = 0; t < n_tokens; t++)
            x[t] += stride * CK_FLOATS;
    }
    if (k < end)
        CK(float_step)(type, w, n_rows, x, n_tokens, k, end - k, sums);
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < n_rows; r++)
            if (end < tile->cols)
                kept->sums[row + r][slot + t] = sums[r][t];
            else
                tile->out[(token + t) * CK_TILE_ROWS + row + r] = CK(v_sum)(sums[r][t]);
}

V_INLINE void CK(float_rows)(const ck_tile *tile, int32_t type, int64_t token, int n_tokens,
                             int64_t begin, int64_t end, kept_sums *kept) {
    int row = 0;
    for (; row + CK(MAX_ROWS) <= tile->n_rows; row += CK(MAX_ROWS))
        CK(float_block)(tile, type, row, CK(MAX_ROWS), token, n_tokens, begin, end, kept);
    for (; row < tile->n_rows; row++)
        CK(float_block)(tile, type, row, 1, token, n_tokens, begin, end, kept);
}

/* All of few tokens: weights are read in one straight line, two rows at a time (more would be too many). */
V_INLINE void CK(float_one_pass)(const ck_tile *tile, int32_t type, int n_tokens) {
    int row = 0;
    for (; row + 2 <= tile->n_rows; row += 2)
        CK(float_block)(tile, type, row, 2, 0, n_tokens, 0, tile->cols, NULL);
    for (; row < tile->n_rows; row++)
        CK(float_block)(tile, type, row, 1, 0, n_tokens, 0, tile->cols, NULL);
}

/* A run of columns of x for a few tokens stays in the first-level cache while all rows pass. */
V_INLINE void CK(float_tile_of)(const ck_tile *tile, int32_t type) {
    switch (tile->n <= CK(ONE_PASS_TOKENS) ? tile->n : 0) {
#define CK_ONE_PASS(n)                                                                                \
    case n:                                                                                           \
        CK(float_one_pass)(tile, type, n);                                                            \
        return;
        CK_ONE_PASS(1)
        CK_ONE_PASS(2)
        CK_ONE_PASS(3)
        CK_ONE_PASS(4)
        CK_ONE_PASS(5)
        CK_ONE_PASS(6)
        CK_ONE_PASS(7)
        CK_ONE_PASS(8)
#undef CK_ONE_PASS
    }
    kept_sums kept;
    const int64_t run = FLOAT_RUN;
    for (int64_t first = 0; first < tile->n; first += FLOAT_CHUNK_TOKENS) {
        int64_t last = ck_at_most(first + FLOAT_CHUNK_TOKENS, tile->n);
        for (int64_t begin = 0; begin < tile->cols; begin += run) {
            int64_t end = ck_at_most(begin + run, tile->cols), token = first;
            for (; token + CK(MAX_TOKENS) <= last; token += CK(MAX_TOKENS))
                CK(float_rows)(tile, type, token, CK(MAX_TOKENS), begin, end, &kept);
            for (; token + 2 <= last; token += 2)
                CK(float_rows)(tile, type, token, 2, begin, end, &kept);
            for (; token < last; token++)
                CK(float_rows)(tile, type, token, 1, begin, end, &kept);
        }
    }
}

static void CK(float_tile_f32)(const ck_tile *tile) {
    CK(float_tile_of)(tile, CK_F32);
}

static void CK(float_tile_f16)(const ck_tile *tile) {
    CK(float_tile_of)(tile, CK_F16);
}

static void CK(float_tile_bf16)(const ck_tile *tile) {
    CK(float_tile_of)(tile, CK_BF16);
}
