/* matmul_kernels.h — the inner loops of matmul.c and experts.c, one set per instruction set.
 *
 * Private to CKernels. A tile is up to 32 rows of weights, in two groups of 16, times some tokens.
 * Quantised weights are read from the file's blocks, once, 16 rows × 32 weights at a time: unpacked
 * and transposed into registers, so that a lane is a row, then multiplied by that block of every token.
 * The same loop therefore serves one token (weights stream through at memory speed) and hundreds (the
 * unpacking is spread over them), and no rearranged copy of the weights ever exists.
 */
#ifndef PYDS4_MATMUL_KERNELS_H
#define PYDS4_MATMUL_KERNELS_H

#include "quant_activations.h"

enum { CK_TILE_ROWS = 32, CK_GROUP_ROWS = 16, CK_TILE_TOKENS = 128 };

typedef struct {
    int32_t type;
    const uint8_t *rows[CK_TILE_ROWS]; /* starts of the rows; repeated where the matrix has fewer */
    int n_rows;                        /* float weights: rows to compute; quantised: always all */
    int64_t cols;
    ck_acts acts;   /* quantised weights: the activations … */
    const float *x; /* … float weights: the same as [tokens, ldx] */
    int64_t ldx;
    const uint32_t *tokens; /* [n] which of them */
    int64_t n;              /* at most CK_TILE_TOKENS */
    float *out;             /* [n, CK_TILE_ROWS], written; 64-byte aligned */
} ck_tile;

/* Computes a tile with the best kernel for its type. */
void matmul_tile(const ck_tile *tile);

static inline bool ck_type_is_float(int32_t type)
{
    return type == CK_F32 || type == CK_F16 || type == CK_BF16;
}

/* Rows `first` … of `w` as the tile's group `group` (0 or 1); past the end the last row repeats. */
static inline void ck_tile_set_rows(ck_tile *tile, int group, const ck_matrix *w, int64_t first)
{
    for (int64_t i = 0; i < CK_GROUP_ROWS; i++) {
        int64_t row = first + i < w->rows ? first + i : w->rows - 1;
        tile->rows[group * CK_GROUP_ROWS + i] = (const uint8_t *)w->data + (size_t)row * w->row_bytes;
    }
}

/* What matmul_tile chooses from. */
void matmul_tile_plain(const ck_tile *tile);
#if defined(__x86_64__)
void matmul_tile_avx2(const ck_tile *tile);
void matmul_tile_avx512(const ck_tile *tile);
#elif defined(__aarch64__)
void matmul_tile_neon(const ck_tile *tile);
#endif

/* F32, F16 and BF16 weights. 16 lanes: lane l sums k ≡ l (mod 16) in ascending order by fused
 * multiply-adds, then the lanes are added by halves (16 → 8 → 4 → 2 → 1). */
void matmul_tile_float(const ck_tile *tile);

#endif
