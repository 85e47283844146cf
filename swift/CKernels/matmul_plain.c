/* matmul_plain.c — a tile of quantised weights in portable C: the definition of the result. */
#include "matmul_kernels.h"

static float add_block(float y, const ck_unpacked *w, const ck_act *x, int scales, int mins) {
    int32_t sums[2] = {0, 0};
    for (int g = 0; g < 2; g++)
        for (int i = 16 * g; i < 16 * g + 16; i++)
            sums[g] += (int32_t)w->q[i] * x->q[i];
    if (scales == 1)
        y = __builtin_fmaf((float)(sums[0] + sums[1]), w->scale[0] * x->d, y);
    for (int g = 0; scales == 2 && g < 2; g++)
        y = __builtin_fmaf((float)sums[g], w->scale[g] * x->d, y);
    if (mins == 1)
        y = __builtin_fmaf(-w->min[0], x->sum_all, y);
    for (int g = 0; mins == 2 && g < 2; g++)
        y = __builtin_fmaf(-w->min[g], x->sum[g], y);
    return y;
}

void matmul_tile_plain(const ck_tile *tile) {
    int scales = quant_scale_groups(tile->type), mins = quant_min_groups(tile->type);
    memset(tile->out, 0, (size_t)tile->n * CK_TILE_ROWS * sizeof *tile->out);
    for (int64_t b = 0; b < tile->cols / CK_BLOCK; b++) {
        const ck_act *x = tile->acts.blocks + b * tile->acts.stride;
        for (int r = 0; r < CK_TILE_ROWS; r++) {
            ck_unpacked w;
            quant_unpack(tile->type, ck_tile_row(tile, r), b, &w);
            for (int64_t t = 0; t < tile->n; t++) {
                float *y = tile->out + t * CK_TILE_ROWS + r;
                *y = add_block(*y, &w, x + tile->tokens[t], scales, mins);
            }
        }
    }
}
