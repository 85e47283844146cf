/* matmul_float.c — products with F32, F16 and BF16 weights, in f32. */
#include "matmul_kernels.h"
#include "cpu_features.h"

typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(1)));

/* Half to single by integer arithmetic, exact for every value (see ck_f32_of_f16). */
V_INLINE v16 f32_of_f16_plain(u16x16 h) {
    i16 w = __builtin_convertvector(h, i16);
    i16 sign = (w & 0x8000) << 16, magnitude = w & 0x7fff;
    v16 scaled = (v16)(magnitude << 13) * 0x1p112f;
    i16 special = (i16)(magnitude >= 0x7c00);
    i16 bits = (special & (0x7f800000 | (magnitude & 0x3ff) << 13)) | (~special & (i16)scaled);
    return (v16)(sign | bits);
}

#if defined(__x86_64__)
typedef _Float16 h16 __attribute__((vector_size(32), aligned(1)));

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
V_INLINE v16 f32_of_f16_avx2(u16x16 h) {
    return __builtin_convertvector((h16)h, v16);
}
#pragma clang attribute pop

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f"))), apply_to = function)
V_INLINE v16 f32_of_f16_avx512(u16x16 h) {
    return __builtin_convertvector((h16)h, v16);
}
#pragma clang attribute pop
#endif

/* Tokens whose sums are kept at once, and columns between two visits: the sums of a tile fit the
 * second-level cache, 6 tokens' run of columns the first. */
enum { FLOAT_CHUNK_TOKENS = 24, FLOAT_RUN = 512 };

/* How far ahead rows are fetched, at least. */
enum { AHEAD_BYTES = 8192 };

typedef struct {
    v16 sums[CK_TILE_ROWS][FLOAT_CHUNK_TOKENS];
} kept_sums;

/* Outputs computed at once, by how many fit the registers; token counts divide FLOAT_CHUNK_TOKENS. */
enum { MAX_ROWS_plain = 2, MAX_TOKENS_plain = 2 };
enum { MAX_ROWS_avx2 = 2, MAX_TOKENS_avx2 = 3 };
enum { MAX_ROWS_avx512 = 4, MAX_TOKENS_avx512 = 6 };

/* So many tokens pass all columns of two rows at once: their sums fit the registers. */
enum { ONE_PASS_TOKENS_plain = 2, ONE_PASS_TOKENS_avx2 = 3, ONE_PASS_TOKENS_avx512 = 8, MOST_ONE_PASS = 8 };

#define CK_BODY "matmul_float_body.h"
#include "vector_isa.h"

void matmul_tile_float(const ck_tile *tile) {
    if (tile->type == CK_F32)
        CK_DISPATCH(float_tile_f32)(tile);
    else if (tile->type == CK_F16)
        CK_DISPATCH(float_tile_f16)(tile);
    else
        CK_DISPATCH(float_tile_bf16)(tile);
}
