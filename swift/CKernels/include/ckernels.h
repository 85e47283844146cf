/* ckernels.h — the CPU kernels: plain C functions over memory that the caller owns.
 *
 * Conventions
 *   shapes    written [rows, columns], row-major, f32 unless said otherwise
 *   pool      every kernel that takes a ck_pool splits itself over its threads; each output element
 *             is computed whole by one thread in one fixed order, so the bits do not depend on the
 *             number of threads, on how a prompt is cut into chunks or on what shares the batch
 *   errors    none: arguments are checked by the Swift side, wrong ones are bugs
 *   names     family_operation[_format], as the .metal files
 */
#ifndef PYDS4_CKERNELS_H
#define PYDS4_CKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ thread_pool.c */

typedef struct ck_pool ck_pool;
typedef void (*ck_task)(void *context, int64_t task, int thread);

/* `threads` counts the caller; 1 starts none. NULL only when memory or threads run out. */
ck_pool *ck_pool_create(int threads);
void ck_pool_destroy(ck_pool *pool);
int ck_pool_threads(const ck_pool *pool);
/* Runs task 0 … tasks-1, each once, on whichever thread is free; returns when all are done. A worker
 * that the system does not schedule delays nobody: the others take its tasks. Not reentrant. */
void ck_pool_run(ck_pool *pool, int64_t tasks, ck_task run, void *context);
/* The same for tasks that take equally long: neighbours go to one thread, and of few tasks the same ones
 * each time, so that a kernel finds in its cache what the one before it wrote of the same tokens. */
void ck_pool_run_even(ck_pool *pool, int64_t tasks, ck_task run, void *context);
/* At least `bytes` of 64-byte aligned scratch memory, kept for the next call. One slot per purpose
 * (enum ck_scratch) shared by all threads, or one block per thread. Never shrinks until
 * ck_pool_trim. Aborts the process only when the system has no memory left at all. */
enum ck_scratch { CK_SCRATCH_ACTIVATIONS, CK_SCRATCH_EXPERTS, CK_SCRATCH_ATTENTION, CK_SCRATCH_INDEXER,
                  CK_SCRATCH_MISC, CK_SCRATCH_COUNT };
void *ck_pool_scratch(ck_pool *pool, enum ck_scratch purpose, size_t bytes);
void *ck_pool_thread_scratch(ck_pool *pool, int thread, size_t bytes);
void ck_pool_trim(ck_pool *pool);

/* ------------------------------------------------------------------ processors.c */

/* Processors this process may run on: its affinity mask and its container's quota counted, not only
 * what the machine has. More threads than that only take turns. */
int ck_available_processors(void);

/* ------------------------------------------------------------------ cpu_features.c */

/* The instruction set in use: "plain", "avx2", "avx512" (F, BW, VL, VNNI), "neon" (dotprod).
 * Chosen once: the best the machine has, or PYDS4_ISA=name, which is ignored when not available. */
const char *ck_isa_name(void);

/* ------------------------------------------------------------------ quant_*.c: GGUF blocks */

/* ggml type ids as in GGUF files; the values are part of the format. */
enum ck_type { CK_F32 = 0, CK_F16 = 1, CK_Q4_0 = 2, CK_Q8_0 = 8, CK_Q2_K = 10, CK_Q3_K = 11, CK_Q4_K = 12,
               CK_Q5_K = 13, CK_Q6_K = 14, CK_IQ2_XXS = 16, CK_I32 = 26, CK_BF16 = 30, CK_MXFP4 = 39 };

/* False for types that no kernel computes with (CK_I32 included). */
bool ck_type_supported(int32_t type);
/* Weights in one block and its bytes; 0 for an unknown type. */
int64_t ck_type_block_size(int32_t type);
int64_t ck_type_block_bytes(int32_t type);
/* `n` weights (a multiple of the block size) to f32. */
void quant_decode_row(int32_t type, const void *source, float *out, int64_t n);

/* ------------------------------------------------------------------ matmul*.c */

/* A matrix as it lies in the file: `rows` rows of `cols` weights, each `row_bytes` long. */
typedef struct {
    const void *data;
    int32_t type;
    int64_t rows, cols;
    size_t row_bytes;
} ck_matrix;

/* y[t, r] = Σ_k w[r, k] · x[t, k] for t < n. `ldx`, `ldy`: distance of rows in floats. */
typedef struct {
    ck_matrix w;
    const float *x;
    int64_t ldx;
    float *y;
    int64_t ldy;
} ck_matmul_job;

/* All jobs over the same `n` tokens, as one parallel section; jobs that share `x` share its
 * quantisation. F32, F16, BF16 weights: f32 arithmetic. Quantised weights: x is rounded to int8 in
 * blocks of 32 with an f32 scale (amax / 127, nearest even), products are summed exactly in int32
 * within a block, blocks are added in ascending order in f32. */
void matmul(ck_pool *pool, const ck_matmul_job *jobs, int n_jobs, int64_t n);

/* Rows `ids` of `table` to f32: out[t, :]. */
void matmul_embed(ck_pool *pool, const ck_matrix *table, const int32_t *ids, int64_t n, float *out);

/* ------------------------------------------------------------------ experts.c */

/* One routed feed-forward layer. The three matrices hold `n_experts` matrices behind one another
 * (rows and row_bytes are those of one expert).
 *   ids      [n, used] int32, weights [n, used]
 *   y[t, :]  = Σ_j down[id_j] · (weight_j · silu(min(g, clamp)) · clip(u, ±clamp)), j ascending
 * with g = gate[id_j]·x[t], u = up[id_j]·x[t]. clamp <= 0: none. */
typedef struct {
    ck_matrix gate, up, down;
    int32_t n_experts, used;
    float clamp;
} ck_experts;
void experts_forward(ck_pool *pool, const ck_experts *e, const float *x, const int32_t *ids,
                     const float *weights, int64_t n, float *y);

/* h[t, i] = silu(min(gate, clamp)) · clip(up, ±clamp); h may be gate. */
void experts_swiglu(ck_pool *pool, const float *gate, const float *up, int64_t n, int64_t dim,
                    float clamp, float *h);

/* ------------------------------------------------------------------ router.c */

/* scores = sqrt(softplus(logits)) [n, experts]; the `used` highest of score + bias (ties: the lower
 * id), weights = their scores / sum · scale. bias may be NULL. ids come in descending score+bias. */
void router_top_k(ck_pool *pool, const float *logits, const float *bias, int64_t n, int32_t experts,
                  int32_t used, float scale, int32_t *ids, float *weights);
/* The same weights with the experts of table[token]. table [vocab, used]. */
void router_hash(ck_pool *pool, const float *logits, const int32_t *table, const int32_t *tokens,
                 int64_t n, int32_t experts, int32_t used, float scale, int32_t *ids, float *weights);

/* ------------------------------------------------------------------ rms_norm.c */

/* y = x / sqrt(mean(x²) + eps) · weight; weight NULL: 1; y may be x. [n, dim] */
void rms_norm_f32(ck_pool *pool, const float *x, int64_t n, int64_t dim, const float *weight,
                  float eps, float *y);
/* out[t] = 1 / sqrt(mean(x[t]²) + eps) */
void rms_norm_scale_f32(ck_pool *pool, const float *x, int64_t n, int64_t dim, float eps, float *out);

/* ------------------------------------------------------------------ rope.c */

/* table[t] = (cos, sin) of position · inv_freq for each of the rope/2 pairs: [n, rope/2, 2]. The angle
 * is rounded to f32 before the cosine, as the reference implementation does. */
void rope_table_f32(const int32_t *positions, int64_t n, const float *inv_freq, int64_t rope,
                    float *table);
/* Rotates the last `rope` of `dim` values of each row in place, interleaved pairs, by the angles of
 * table[t]; `inverse` the other way. x [n, heads, dim]. */
void rope_apply_f32(ck_pool *pool, float *x, int64_t n, int64_t heads, int64_t dim, int64_t rope,
                    const float *table, bool inverse);

/* ------------------------------------------------------------------ hyper_connection.c */

/* mix [n, 24] = fn·flat, inv_rms [n], scale [3], base [24] → pre [n, 4], post [n, 4], comb [n, 4, 4]. */
void hc_split_f32(ck_pool *pool, const float *mix, const float *inv_rms, const float *scale,
                  const float *base, int64_t n, int32_t iterations, float eps, float *pre, float *post,
                  float *comb);
/* x[t] = Σ_i pre[t, i] · streams[t, i]; streams [n, 4, dim]. */
void hc_collapse_f32(ck_pool *pool, const float *streams, const float *pre, int64_t n, int64_t dim,
                     float *x);
/* streams[t, j] = post[t, j] · y[t] + Σ_i comb[t, i, j] · streams[t, i], in place. */
void hc_expand_f32(ck_pool *pool, const float *y, const float *post, const float *comb, int64_t n,
                   int64_t dim, float *streams);
/* The head's weights: pre[t, i] = σ(mix·inv_rms·scale + base[i]) + eps. */
void hc_head_f32(const float *mix, const float *inv_rms, const float *scale, const float *base,
                 int64_t n, float eps, float *pre);

/* ------------------------------------------------------------------ kv_rows.c */

/* How one row of attention memory is kept.
 *   CK_ROW_F32  head_dim floats
 *   CK_ROW_FP8  (dim-rope) e4m3 bytes; one e8m0 scale byte for each block of 64 of them and one for
 *               the rotated values, padded to a multiple of 8; the rope rotated values, 21 bits each,
 *               three to a little-endian 64-bit word. 512/64: 448 + 8 + 176 = 632 bytes.
 *   CK_ROW_FP4  indexer rows: dim/2 bytes of e2m1 pairs (low nibble first), dim/32 e8m0 bytes. 68. */
enum ck_row_format { CK_ROW_F32 = 0, CK_ROW_FP8 = 1, CK_ROW_FP4 = 2 };
size_t kv_row_bytes(int32_t format, int64_t dim, int64_t rope);
/* x [n, dim] → rows of kv_row_bytes each. FP4 rows: x is first rotated by the Hadamard matrix / √dim. */
void kv_row_encode(ck_pool *pool, int32_t format, const float *x, int64_t n, int64_t dim, int64_t rope,
                   uint8_t *rows);
void kv_row_decode(int32_t format, const uint8_t *row, int64_t dim, int64_t rope, float *out);
/* x [n, dim] rounded in place as kv_row_encode + decode would (indexer queries). */
void kv_round_fp4(ck_pool *pool, float *x, int64_t n, int64_t dim);

/* Rows in blocks of `rows_per_page`; page i holds rows [i·rows_per_page, …). */
typedef struct {
    const uint8_t *const *pages;
    int64_t rows_per_page;
    int32_t format;
    size_t row_bytes;
} ck_paged_rows;

/* ------------------------------------------------------------------ compressor.c */

/* Pools windows of `ratio` tokens of one session. Between calls only running softmax sums are kept:
 * for each series of a window and each channel the maximum, the sum of weights, the weighted sum:
 * state [series, 3, dim]. Ratio 4 overlaps and has three series (first series of the window before,
 * first and second series of this window), ratio 128 one. A fresh state is all zeros: a sum of zero
 * means "nothing yet".
 *   kv, gate [n, coff·dim] with coff = 2 if overlap else 1; ape [ratio, coff·dim]
 *   rows     [(position+n)/ratio - position/ratio, dim], written, neither normed nor rotated */
void compressor_pool_f32(ck_pool *pool, const float *kv, const float *gate, const float *ape, int64_t n,
                         int64_t dim, int32_t ratio, bool overlap, int64_t position, float *state,
                         float *rows);

/* ------------------------------------------------------------------ indexer.c */

/* score[t, s] = scale · Σ_h w[t, h] · max(0, q[t, h]·k[s]) for the visible rows s < visible[t]; the
 * `top` highest (ties: the lower row) in ascending row order.
 * FP4 rows and queries that are FP4 values too (kv_round_fp4) meet as integers; other queries cost
 * several times as much.
 *   q [n, heads, dim] (already rounded when rows are FP4), w [n, heads], visible [n]
 *   selected [n, top] int32, counts [n] = min(top, visible[t]) */
void indexer_select(ck_pool *pool, const float *q, const float *w, int64_t n, int64_t heads, int64_t dim,
                    const ck_paged_rows *rows, const int32_t *visible, int32_t top, float scale,
                    int32_t *selected, int32_t *counts);

/* ------------------------------------------------------------------ attention.c */

/* Attention of `n` consecutive tokens of one session; key and value are the same row.
 * Token i sits at position + i and sees, in this order:
 *   window      positions (p-window, p]: those before `position` from `ring` (slot = position mod
 *               window), the others from `chunk` [n] rows; both in format window_format
 *   compressed  rows selected[i, 0 … counts[i]) of `rows`, or, when selected is NULL, rows
 *               0 … counts[i])
 * plus sink[h] in the denominator. out [n, heads, dim]. */
typedef struct {
    const float *q; /* [n, heads, dim] */
    int64_t n, heads, dim, rope;
    int64_t position;
    int32_t window;
    int32_t window_format;
    size_t window_row_bytes;
    const uint8_t *ring, *chunk;
    ck_paged_rows rows;
    const int32_t *selected; /* [n, top] or NULL */
    int32_t top;
    const int32_t *counts; /* [n] or NULL: no compressed rows */
    const float *sinks;    /* [heads] */
    float scale;
    float *out;
} ck_attention;
void attention_f32(ck_pool *pool, const ck_attention *a);
/* `count` calls of one token each: each is one thread's work, so that threads wait for one another once. */
void attention_sessions_f32(ck_pool *pool, const ck_attention *calls, int64_t count);

/* ------------------------------------------------------------------ sampling.c */

typedef struct {
    float temperature; /* 0: greedy */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* 0: off */
} ck_sampling;
/* A token id; `random` uniform in [0, 1). Order: top_k, then softmax at temperature, top_p, min_p.
 * Greedy and ties: the lowest id. NaN logits are never chosen; -1 when all are NaN or -inf. */
int32_t sampling_choose(const float *logits, int64_t n, const ck_sampling *s, double random);

#endif
