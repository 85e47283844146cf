/* matmul_panel_body.h — see matmul_panel.c. Needs CK(finish_panel), CK(dot) and CK(look_up). */

#include "quant_unpack_body.h"

#include "matmul_panel_unpack.h"

V_INLINE v16 CK(add_scaled)(v16 y, const CK(panel) *p, int g, i16 sum, float d) {
    return CK(v_fma)(__builtin_convertvector(sum, v16), p->scale[g] * CK(v_set)(d), y);
}

/* Multiplies the panel by its block of every token; `scales` and `mins` are constants. */
V_INLINE void CK(multiply_panel)(const CK(panel) *p, const ck_act *x, const uint32_t *tokens, int64_t n,
                                 float *out, int scales, int mins) {
    for (int64_t t = 0; t < n; t++, out += CK_TILE_ROWS) {
        const ck_act *act = x + tokens[t];
        v16 y = CK(v_load)(out);
        if (scales == 1) {
            y = CK(add_scaled)(y, p, 0, CK(dot)((const uint8_t *)p->w, act, 0, 8, act->minus128_all), act->d);
        } else {
            y = CK(add_scaled)(y, p, 0, CK(dot)((const uint8_t *)p->w, act, 0, 4, act->minus128[0]), act->d);
            y = CK(add_scaled)(y, p, 1, CK(dot)((const uint8_t *)p->w, act, 4, 8, act->minus128[1]), act->d);
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

/* Fetches this unit's share of the groups that come next. */
V_INLINE void CK(prefetch)(const ck_tile *tile, size_t unit, size_t share) {
    for (int g = 0; g < 2; g++)
        for (size_t i = 0; i < share; i += 64)
            __builtin_prefetch(tile->next[g] + unit * share + i);
}

/* static void CK(tile_NAME): `units` units of 32 weights in each block of `bytes`. */
#define CK_PANEL_TILE(name, state, prepare, bytes, units, scales, mins)                               \
    static void CK(tile_##name)(const ck_tile *tile)                                                  \
    {                                                                                                 \
        memset(tile->out, 0, (size_t)tile->n * CK_TILE_ROWS * sizeof *tile->out);                     \
        const ck_act *x = tile->acts.blocks;                                                          \
        size_t blocks = (size_t)tile->cols / (32 * (units));                                          \
        for (size_t block = 0; block < blocks; block++) {                                             \
            CK(state) states[2];                                                                      \
            for (int g = 0; g < 2; g++)                                                               \
                CK(prepare)(tile->group[g] + block * (bytes), tile->row_bytes, &states[g]);           \
            for (int sub = 0; sub < (units); sub++, x += tile->acts.stride) {                         \
                CK(prefetch)(tile, block * (units) + (size_t)sub, CK_GROUP_ROWS * (bytes) / (units)); \
                for (int g = 0; g < 2; g++) {                                                         \
                    CK(panel) panel;                                                                  \
                    CK(unpack_##name)(&states[g], sub, &panel);                                       \
                    CK(finish_panel)(panel.w);                                                        \
                    CK(multiply_panel)(&panel, x, tile->tokens, tile->n,                              \
                                       tile->out + g * CK_GROUP_ROWS, scales, mins);                  \
                }                                                                                     \
            }                                                                                         \
        }                                                                                             \
    }

CK_PANEL_TILE(q8_0, in_place, prepare_in_place, 34, 1, 1, 0)
CK_PANEL_TILE(q4_0, in_place, prepare_in_place, 18, 1, 1, 0)
CK_PANEL_TILE(mxfp4, in_place, prepare_in_place, 17, 1, 1, 0)
CK_PANEL_TILE(q2_k, state_q2_k, prepare_q2_k, 84, 8, 1, 2)
CK_PANEL_TILE(q3_k, in_place, prepare_in_place, 110, 8, 2, 0)
CK_PANEL_TILE(q4_k, state_k4, prepare_q4_k, 144, 8, 1, 1)
CK_PANEL_TILE(q5_k, state_k4, prepare_q5_k, 176, 8, 1, 1)
CK_PANEL_TILE(q6_k, in_place, prepare_in_place, 210, 8, 2, 0)
CK_PANEL_TILE(iq2_xxs, state_iq2_xxs, prepare_iq2_xxs, 66, 8, 1, 0)
#undef CK_PANEL_TILE

static void CK(panel_tile)(const ck_tile *tile) {
    switch (tile->type) {
    case CK_Q8_0:
        CK(tile_q8_0)(tile);
        break;
    case CK_Q4_0:
        CK(tile_q4_0)(tile);
        break;
    case CK_MXFP4:
        CK(tile_mxfp4)(tile);
        break;
    case CK_Q2_K:
        CK(tile_q2_k)(tile);
        break;
    case CK_Q3_K:
        CK(tile_q3_k)(tile);
        break;
    case CK_Q4_K:
        CK(tile_q4_k)(tile);
        break;
    case CK_Q5_K:
        CK(tile_q5_k)(tile);
        break;
    case CK_Q6_K:
        CK(tile_q6_k)(tile);
        break;
    default:
        CK(tile_iq2_xxs)(tile);
    }
}
