/* matmul_float_body.h — see matmul_float.c. */

/* Sixteen weights to f32; only `have` of them exist, the others become 0. */
V_INLINE v16 CK(load_f32)(const uint8_t *p, int64_t have)
{
    v16 v = {0};
    if (have >= 16)
        memcpy(&v, p, sizeof v);
    else
        memcpy(&v, p, (size_t)have * sizeof(float));
    return v;
}

V_INLINE u16x16 CK(load_u16)(const uint8_t *p, int64_t have)
{
    u16x16 h = {0};
    if (have >= 16)
        memcpy(&h, p, sizeof h);
    else
        memcpy(&h, p, (size_t)have * sizeof(uint16_t));
    return h;
}

V_INLINE v16 CK(load_bf16)(const uint8_t *p, int64_t have)
{
    return (v16)(__builtin_convertvector(CK(load_u16)(p, have), i16) << 16);
}

V_INLINE v16 CK(load_f16)(const uint8_t *p, int64_t have)
{
    return CK(f32_of_f16)(CK(load_u16)(p, have));
}

V_INLINE v16 CK(load_weights)(int32_t type, const uint8_t *row, int64_t k, int64_t have)
{
    if (type == CK_F32)
        return CK(load_f32)(row + 4 * k, have);
    return type == CK_F16 ? CK(load_f16)(row + 2 * k, have) : CK(load_bf16)(row + 2 * k, have);
}

/* Outputs of n_rows × n_tokens, both constants after inlining. */
V_INLINE void CK(float_block)(const ck_tile *tile, int32_t type, int row, int n_rows, int64_t token,
                              int n_tokens)
{
    v16 sums[4][4];
    const float *x[4];
    for (int t = 0; t < n_tokens; t++) {
        x[t] = tile->x + (int64_t)tile->tokens[token + t] * tile->ldx;
        for (int r = 0; r < n_rows; r++)
            sums[r][t] = CK(v_set)(0.0f);
    }
    for (int64_t k = 0; k < tile->cols; k += 16) {
        int64_t have = tile->cols - k;
        v16 weights[4];
        for (int r = 0; r < n_rows; r++)
            weights[r] = CK(load_weights)(type, ck_tile_row(tile, row + r), k, have);
        for (int t = 0; t < n_tokens; t++) {
            v16 v = CK(load_f32)((const uint8_t *)(x[t] + k), have);
            for (int r = 0; r < n_rows; r++)
                sums[r][t] = CK(v_fma)(weights[r], v, sums[r][t]);
        }
    }
    for (int t = 0; t < n_tokens; t++)
        for (int r = 0; r < n_rows; r++)
            tile->out[(token + t) * CK_TILE_ROWS + row + r] = CK(v_sum)(sums[r][t]);
}

V_INLINE void CK(float_tile_of)(const ck_tile *tile, int32_t type)
{
    int row = 0;
    for (; row + 4 <= tile->n_rows; row += 4) {
        int64_t token = 0;
        for (; token + 4 <= tile->n; token += 4)
            CK(float_block)(tile, type, row, 4, token, 4);
        for (; token < tile->n; token++)
            CK(float_block)(tile, type, row, 4, token, 1);
    }
    for (; row < tile->n_rows; row++)
        for (int64_t token = 0; token < tile->n; token++)
            CK(float_block)(tile, type, row, 1, token, 1);
}

static void CK(float_tile)(const ck_tile *tile)
{
    switch (tile->type) {
    case CK_F32:
        CK(float_tile_of)(tile, CK_F32);
        break;
    case CK_F16:
        CK(float_tile_of)(tile, CK_F16);
        break;
    default:
        CK(float_tile_of)(tile, CK_BF16);
    }
}
