/* kernel_args.h — the argument structs of the GPU kernels, shared by C, Swift and the .metal files.
 *
 * Members are 4 or 8 bytes wide and lie at multiples of their size, so that every compiler agrees.
 * Shapes as in ckernels.h. "ld" is the distance of two rows, in values.
 */
#ifndef PYDS4_KERNEL_ARGS_H
#define PYDS4_KERNEL_ARGS_H

#ifndef __METAL_VERSION__
#include <stdint.h>
#endif

/* How a GPU keeps weights: a ggml type id, or a rearrangement of one into aligned planes.
 *   Q8_0 planes     all quants (int8, row-major), then all scales (half)
 *   Q2_K planes     all quants (64 bytes a block), then all sub-block scales (16), then all d and dmin (2 halfs)
 *   IQ2_XXS planes  all groups of 32 (8 bytes), then all scales (half) */
enum { GPU_F32 = 0, GPU_F16 = 1, GPU_Q4_0 = 2, GPU_Q8_0 = 8, GPU_Q2_K = 10, GPU_Q3_K = 11, GPU_Q4_K = 12,
       GPU_Q5_K = 13, GPU_Q6_K = 14, GPU_IQ2_XXS = 16, GPU_BF16 = 30, GPU_MXFP4 = 39, GPU_Q8_0_PLANES = 108,
       GPU_Q2_K_PLANES = 110, GPU_IQ2_XXS_PLANES = 116 };

#ifndef __METAL_VERSION__
/* The bit of a type in QUANT_TYPES; the same as QUANT_BIT in quant.h. */
static inline uint32_t gpu_type_bit(uint32_t type) {
    return type < 32 ? type : type == GPU_MXFP4 ? 9 : type == GPU_Q8_0_PLANES ? 3 : type == GPU_Q2_K_PLANES ? 5 : 4;
}
#endif

enum { GPU_ROW_F32 = 0, GPU_ROW_FP8 = 1, GPU_ROW_FP4 = 2 };
enum { GPU_MOST_JOBS = 8 };

/* One matrix of a launch that multiplies several. */
struct gpu_matrix_job {
    uint32_t type;
    uint32_t rows;
    uint32_t columns;
    uint32_t group_rows; /* rows that read the same slice of x; `rows` when all do */
    uint32_t first_tile; /* of its row tiles, counted through all jobs */
    uint32_t tile_rows;  /* of matvec_int8: a multiple of 32 / slices */
    uint32_t slices;     /* of a row, each a simdgroup's: 1, 2, 4 or 8 */
    uint32_t unused;
    uint64_t plane;      /* byte offset of the scales in planes */
    uint64_t out;        /* float offset of its y [n, rows] */
};

struct gpu_matvec {
    uint32_t n;
    uint32_t ldx;
    uint32_t jobs;
    uint32_t unused;
    struct gpu_matrix_job job[GPU_MOST_JOBS];
};

struct gpu_embed {
    uint32_t type;
    uint32_t columns;
    uint64_t plane;
};

struct gpu_repack {
    uint64_t blocks;
    uint64_t first_block; /* of this part of the matrix */
    uint64_t plane;
};

/* y[m, r] = Σ_k w[r, k] · x[m, k] on the matrix units. With tiles: m counts places of the sorted
 * assignments, x is row token[m] / divide. */
struct gpu_matmul {
    uint32_t type;
    uint32_t n;
    uint32_t rows;
    uint32_t columns;
    uint32_t ldx;
    uint32_t ldy;
    uint32_t group_rows;
    uint32_t gather; /* 0: row m of x itself; else row order[m] / gather */
    uint64_t plane;
};

/* x, rounded to half, in the order that wide products read it. */
struct gpu_pack {
    uint32_t n;      /* tokens, or places of sorted assignments */
    uint32_t ldx;
    uint32_t stride; /* tokens between units of eight columns */
    uint32_t gather; /* 0: token m is row m of x; else row order[m] / gather */
};

struct gpu_wide_experts {
    uint32_t rows;    /* of one expert */
    uint32_t columns;
    uint32_t stride;  /* of the packed input, and of gate_up's output */
    float clamp;
    uint64_t plane;
};

struct gpu_rms_norm {
    uint32_t width;
    float epsilon;
};

struct gpu_rope_table {
    uint32_t n;
    uint32_t pairs;
};

struct gpu_queries {
    uint32_t heads;
    uint32_t dim;
    uint32_t rope;
    float epsilon;
};

struct gpu_index_queries {
    uint32_t heads;
    uint32_t dim;
    uint32_t rope;
    uint32_t rounded;
};

struct gpu_hc {
    uint32_t n;
    uint32_t dim;
    uint32_t outputs; /* 24, the head's 4 */
    uint32_t iterations;
    float norm_epsilon;  /* of the flattened streams */
    float epsilon;
    float input_epsilon; /* of the sublayer's norm */
    uint32_t type;       /* of fn */
    uint64_t plane;
};

struct gpu_row_format {
    uint32_t kind;
    uint32_t dim;
    uint32_t rope;
    uint32_t bytes;
};

struct gpu_key_rows {
    struct gpu_row_format format;
    float epsilon;
    uint32_t unused;
};

/* What a kernel reads of sessions it finds by a table of addresses, one line a session: the ring or the
 * running sums, then the pages of compressed rows. `table_stride` is the length of a line where every
 * token is of a session of its own, and 0 where all are consecutive tokens of one. */

struct gpu_compressor {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t ratio;
    uint32_t overlaps;
    uint32_t rows_per_page;
    uint32_t rope; /* values that carry the position, at the row's end */
    float epsilon;
    uint32_t table_stride;
    uint32_t unused;
};

struct gpu_indexer {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t heads;
    uint32_t ratio;
    uint32_t rows_per_page;
    uint32_t stride; /* of scores */
    uint32_t top;
    float scale;
    uint32_t table_stride;
    uint32_t tokens; /* consecutive ones that a threadgroup of scores takes; 0: one */
    uint32_t unused;
};

struct gpu_attention {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t heads;
    uint32_t window;
    uint32_t ratio; /* 0: no compressed rows */
    uint32_t rows_per_page;
    uint32_t top; /* 0: all visible rows */
    uint32_t splits; /* 0: there are none to merge */
    float scale;
    uint32_t table_stride;
    uint32_t first; /* token to merge */
};

struct gpu_router {
    uint32_t experts;
    uint32_t used;
    float scale;
    uint32_t unused;
};

struct gpu_experts {
    uint32_t type;      /* of gate and up */
    uint32_t down_type;
    uint32_t shared_type;
    uint32_t n;
    uint32_t used;
    uint32_t experts;
    uint32_t hidden;    /* columns of gate, rows of down */
    uint32_t inner;
    uint32_t shared_inner;
    float clamp;
    float shared_clamp;
    uint32_t tile;      /* assignments in a tile of the sorted lists; rows of one of the integer kernels */
    uint64_t plane;     /* of gate and up */
    uint64_t down_plane;
    uint64_t shared_plane;
};

struct gpu_sampling {
    uint32_t count;
    uint32_t listed;
};

enum { GPU_MOST_COPIES = 96 };

#endif
