/* quant_blocks.h — the GGUF weight blocks as they lie in files, and what every kernel makes of them.
 *
 * Private to CKernels. The structs are packed: rows of a mapped file have no alignment to rely on.
 */
#ifndef PYDS4_QUANT_BLOCKS_H
#define PYDS4_QUANT_BLOCKS_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "ckernels.h"

#define CK_PACKED __attribute__((packed))

enum { CK_BLOCK = 32, CK_SUPER = 256 };

/* w = d · q */
typedef struct CK_PACKED { uint16_t d; int8_t q[32]; } ck_block_q8_0;
/* w = d · (q − 8); low nibbles are weights 0…15, high nibbles 16…31 */
typedef struct CK_PACKED { uint16_t d; uint8_t q[16]; } ck_block_q4_0;
/* w = 2^(e−128) · e2m1[q]·2; nibbles as Q4_0 */
typedef struct CK_PACKED { uint8_t e; uint8_t q[16]; } ck_block_mxfp4;
/* w = d · (scale & 15) · q − dmin · (scale >> 4), 16 scales of 16 weights; weight 128h + 32s + l has
 * bits 2s, 2s+1 of q[32h + l] */
typedef struct CK_PACKED { uint8_t scales[16]; uint8_t q[64]; uint16_t d, dmin; } ck_block_q2_k;
/* w = d · (scale − 32) · (q − 4 · !high); q as Q2_K, high is bit 4h + s of high[l] */
typedef struct CK_PACKED { uint8_t high[32], q[64], scales[12]; uint16_t d; } ck_block_q3_k;
/* w = d · scale · q − dmin · min, 8 six-bit scales and mins of 32 weights; weights 64c + l are the low
 * nibbles of q[32c + l], weights 64c + 32 + l the high ones */
typedef struct CK_PACKED { uint16_t d, dmin; uint8_t scales[12], q[128]; } ck_block_q4_k;
/* as Q4_K with a fifth bit: bit s of high[l] for weight 32s + l */
typedef struct CK_PACKED { uint16_t d, dmin; uint8_t scales[12], high[32], q[128]; } ck_block_q5_k;
/* w = d · scale · (q − 32), 16 scales of 16 weights; weight 128h + 32s + l has nibble s/2 of
 * low[64h + 32·(s & 1) + l] and bits 2s, 2s+1 of high[32h + l] */
typedef struct CK_PACKED { uint8_t low[128], high[64]; int8_t scales[16]; uint16_t d; } ck_block_q6_k;
/* For each 32 weights 4 grid indices (bytes), 4 sign indices (7 bits) and a scale (4 bits):
 * w = d · (2·scale + 1)/8 · grid · sign */
typedef struct CK_PACKED { uint16_t d; struct CK_PACKED { uint8_t grid[4]; uint32_t signs_scale; } sub[8]; }
    ck_block_iq2_xxs;

static_assert(sizeof(ck_block_q8_0) == 34 && sizeof(ck_block_q4_0) == 18, "GGUF layout");
static_assert(sizeof(ck_block_mxfp4) == 17 && sizeof(ck_block_q2_k) == 84, "GGUF layout");
static_assert(sizeof(ck_block_q3_k) == 110 && sizeof(ck_block_q4_k) == 144, "GGUF layout");
static_assert(sizeof(ck_block_q5_k) == 176 && sizeof(ck_block_q6_k) == 210, "GGUF layout");
static_assert(sizeof(ck_block_iq2_xxs) == 66, "GGUF layout");

/* Grid entry i of IQ2_XXS: eight magnitudes 8, 25 or 43, the first in the lowest byte. */
extern const uint64_t ck_iq2_xxs_grid[256];
extern const int8_t ck_mxfp4_values[16];

static inline float ck_f32_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t ck_bits_of_f32(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* IEEE half to single, exact; NaN stays NaN. */
static inline float ck_f32_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00)
        return ck_f32_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    /* 2^112 moves the exponent bias from 15 to 127 and normalises subnormals on the way. */
    float scaled = ck_f32_of_bits(magnitude << 13) * 0x1p112f;
    return ck_f32_of_bits(sign | ck_bits_of_f32(scaled));
}

static inline float ck_f32_of_bf16(uint16_t h) {
    return ck_f32_of_bits((uint32_t)h << 16);
}

/* 2^(e−128): half the e8m0 value, as ck_mxfp4_values are doubled. */
static inline float ck_mxfp4_scale(uint8_t e) {
    return ck_f32_of_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* The six-bit scales and mins of Q4_K and Q5_K. */
static inline uint8_t ck_k4_scale(const uint8_t packed[12], int64_t sub) {
    return sub < 4 ? packed[sub] & 63 : (packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4;
}

static inline uint8_t ck_k4_min(const uint8_t packed[12], int64_t sub) {
    return sub < 4 ? packed[sub + 4] & 63 : packed[sub + 4] >> 4 | (packed[sub] >> 6) << 4;
}

/* All seven sign bits of IQ2_XXS plus the eighth, which makes their number even. */
static inline uint8_t ck_iq2_xxs_signs(uint32_t index) {
    return (uint8_t)(index | (uint32_t)__builtin_parity(index) << 7);
}

/* 32 consecutive weights in the form that the arithmetic is defined on:
 *   w[i] = scale[i / 16] · q[i] − min[i / 16]
 * Formats with one scale or min per 32 weights repeat it. Products such as d · scale are exact. */
typedef struct {
    int8_t q[CK_BLOCK];
    float scale[2], min[2];
} ck_unpacked;

/* Weights 32·block … 32·block+31 of a row. Quantised types only. */
void quant_unpack(int32_t type, const void *row, int64_t block, ck_unpacked *out);

/* How many scales and mins per 32 weights differ: 1 or 2, and 0, 1 or 2. */
int quant_scale_groups(int32_t type);
int quant_min_groups(int32_t type);

#endif
