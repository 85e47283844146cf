/* matmul_panel_body.h — see matmul_panel.c. Needs CK(dot) and CK(finish_panel). */

/* 16 rows × 32 weights; what is in `w` is between finish_panel and dot. */
typedef struct {
    _Alignas(64) uint8_t w[2 * 16 * CK_BLOCK];
    v16 scale[2], minus_min[2];
} CK(panel);

/* Lane r of word i of w = weights 4i … 4i+3 of row r. */
static void CK(fill_panel)(int32_t type, const uint8_t *rows, size_t row_bytes, int64_t block,
                           CK(panel) *p)
{
    ck_unpacked u[CK_GROUP_ROWS];
    float scale[2][CK_GROUP_ROWS], min[2][CK_GROUP_ROWS];
    for (int r = 0; r < CK_GROUP_ROWS; r++) {
        quant_unpack(type, rows + (size_t)r * row_bytes, block, &u[r]);
        for (int g = 0; g < 2; g++) {
            scale[g][r] = u[r].scale[g];
            min[g][r] = -u[r].min[g];
        }
    }
    for (int g = 0; g < 2; g++) {
        p->scale[g] = CK(v_load)(scale[g]);
        p->minus_min[g] = CK(v_load)(min[g]);
    }
    for (int r = 0; r < CK_GROUP_ROWS; r += 4)
        for (int c = 0; c < 2; c++) {
            i4 a[4], b[4], out[4];
            for (int i = 0; i < 4; i++)
                memcpy(&a[i], u[r + i].q + 16 * c, sizeof a[i]);
            for (int i = 0; i < 4; i += 2) {
                b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 4, 1, 5);
                b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 6, 3, 7);
            }
            for (int i = 0; i < 2; i++) {
                out[2 * i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 4, 5);
                out[2 * i + 1] = __builtin_shufflevector(b[i], b[i + 2], 2, 3, 6, 7);
            }
            for (int i = 0; i < 4; i++)
                memcpy(p->w + 64 * (4 * c + i) + 4 * r, &out[i], sizeof out[i]);
        }
    CK(finish_panel)(p->w);
}

V_INLINE v16 CK(add_scaled)(v16 y, const CK(panel) *p, int g, i16 sum, float d)
{
    return CK(v_fma)(__builtin_convertvector(sum, v16), p->scale[g] * CK(v_set)(d), y);
}

/* Multiplies the panel by its block of every token; `scales` and `mins` are constants. */
V_INLINE void CK(multiply_panel)(const CK(panel) *p, const ck_act *x, const uint32_t *tokens, int64_t n,
                                 float *out, int scales, int mins)
{
    for (int64_t t = 0; t < n; t++, out += CK_TILE_ROWS) {
        const ck_act *act = x + tokens[t];
        v16 y = CK(v_load)(out);
        if (scales == 1) {
            y = CK(add_scaled)(y, p, 0, CK(dot)(p->w, act, 0, 8, act->minus128_all), act->d);
        } else {
            y = CK(add_scaled)(y, p, 0, CK(dot)(p->w, act, 0, 4, act->minus128[0]), act->d);
            y = CK(add_scaled)(y, p, 1, CK(dot)(p->w, act, 4, 8, act->minus128[1]), act->d);
        }
        if (mins == 1)
            y = CK(v_fma)(p->minus_min[0], CK(v_set)(act->sum_all), y);
        if (mins == 2) {
            y = CK(v_fma)(p->minus_min[0], CK(v_set)(act->sum[0]), y);
            y = CK(v_fma)(p->minus_min[1], CK(v_set)(act->sum[1]), y);
        }
        CK(v_store)(out, y);
    }
}

/* Fetches what this step of the next tile will need. */
V_INLINE void CK(prefetch_step)(const ck_tile *tile, int g, int64_t block)
{
    size_t share = CK_GROUP_ROWS * tile->row_bytes / (size_t)(tile->cols / CK_BLOCK);
    const uint8_t *next = tile->next[g] + (size_t)block * share;
    for (size_t i = 0; i < share; i += 64)
        __builtin_prefetch(next + i);
}

static void CK(panel_tile)(const ck_tile *tile)
{
    int scales = quant_scale_groups(tile->type), mins = quant_min_groups(tile->type);
    memset(tile->out, 0, (size_t)tile->n * CK_TILE_ROWS * sizeof *tile->out);
    for (int64_t b = 0; b < tile->cols / CK_BLOCK; b++) {
        const ck_act *x = tile->acts.blocks + b * tile->acts.stride;
        for (int g = 0; g < 2; g++) {
            CK(panel) p;
            float *out = tile->out + g * CK_GROUP_ROWS;
            CK(prefetch_step)(tile, g, b);
            CK(fill_panel)(tile->type, tile->group[g], tile->row_bytes, b, &p);
            if (scales == 2)
                CK(multiply_panel)(&p, x, tile->tokens, tile->n, out, 2, 0);
            else if (mins == 0)
                CK(multiply_panel)(&p, x, tile->tokens, tile->n, out, 1, 0);
            else if (mins == 1)
                CK(multiply_panel)(&p, x, tile->tokens, tile->n, out, 1, 1);
            else
                CK(multiply_panel)(&p, x, tile->tokens, tile->n, out, 1, 2);
        }
    }
}
