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
    const uint8_t *group[2]; /* first rows of the groups; 16 rows each can be read */
    size_t row_bytes;
    int n_rows; /* float weights: rows to compute; quantised: always all */
    int64_t cols;
    /* Groups that this thread will probably compute after these, fetched meanwhile. */
    const uint8_t *next[2];
    ck_acts acts;
    const uint32_t *tokens; /* [n] which of them */
    int64_t n;              /* at most CK_TILE_TOKENS */
    float *out;             /* [n, CK_TILE_ROWS], written; 64-byte aligned */
} ck_tile;

/* Computes a tile with the best kernel for its type. */
void matmul_tile(const ck_tile *tile);

static inline bool ck_type_is_float(int32_t type) {
    return type == CK_F32 || type == CK_F16 || type == CK_BF16;
}

static inline const uint8_t *ck_tile_row(const ck_tile *tile, int row) {
    return tile->group[row / CK_GROUP_ROWS] + (size_t)(row % CK_GROUP_ROWS) * tile->row_bytes;
}

/* Rows `first` … of `w` as 16 readable rows. Where the matrix ends sooner, a copy in the thread's
 * scratch memory, whose other rows are anything; `group` (0 or 1) says which half of it. */
const uint8_t *ck_tile_group(ck_pool *pool, int thread, const ck_matrix *w, int64_t first, int group);

/* Where the same group lies, for prefetching only. */
static inline const uint8_t *ck_group_address(const ck_matrix *w, int64_t first) {
    return (const uint8_t *)w->data + (size_t)first * w->row_bytes;
}

static inline int64_t ck_divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static inline int64_t ck_at_most(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* What matmul_tile chooses from. */
void matmul_tile_plain(const ck_tile *tile);
#if defined(__x86_64__)
void matmul_tile_avx2(const ck_tile *tile);
void matmul_tile_avx512(const ck_tile *tile);
#elif defined(__aarch64__)
void matmul_tile_neon(const ck_tile *tile);
#endif

/* Quantised weights and f32 activations, instead of the kernels above: matmul_exact.c. */
void matmul_tile_exact(const ck_tile *tile);

/* F32, F16 and BF16 weights. 16 lanes: lane l sums k ≡ l (mod 16) in ascending order by fused
 * multiply-adds, then the lanes are added by halves (16 → 8 → 4 → 2 → 1). */
void matmul_tile_float(const ck_tile *tile);

#endif
