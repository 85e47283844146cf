/* kv_rows_body.h — FP4 encoding and the decoding of any row; see kv_rows.c. */

/* One butterfly of Sylvester's matrix inside a vector: lanes `step` apart become a + b and a - b. */
#define CK_BUTTERFLY(v, step)                                                                         \
    {                                                                                                 \
        v16 other = __builtin_shufflevector(v, v, 0 ^ step, 1 ^ step, 2 ^ step, 3 ^ step, 4 ^ step,   \
                                            5 ^ step, 6 ^ step, 7 ^ step, 8 ^ step, 9 ^ step,         \
                                            10 ^ step, 11 ^ step, 12 ^ step, 13 ^ step, 14 ^ step,    \
                                            15 ^ step);                                               \
        v = CK(v_select)((lane & step) != 0, other - v, v + other);                                   \
    }

/* out = x · H / √dim, dim a power of two from 32 on. */
V_INLINE void CK(hadamard)(const float *x, int64_t dim, float *out) {
    const i16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t i = 0; i < dim; i += 16) {
        v16 v = CK(v_load)(x + i);
        CK_BUTTERFLY(v, 1)
        CK_BUTTERFLY(v, 2)
        CK_BUTTERFLY(v, 4)
        CK_BUTTERFLY(v, 8)
        CK(v_store)(out + i, v);
    }
    for (int64_t step = 16; step < dim; step *= 2)
        for (int64_t i = 0; i < dim; i += 2 * step)
            for (int64_t j = i; j < i + step; j += 16) {
                v16 a = CK(v_load)(out + j), b = CK(v_load)(out + j + step);
                CK(v_store)(out + j, a + b);
                CK(v_store)(out + j + step, a - b);
            }
    v16 scale = CK(v_set)(1.0f / sqrtf((float)dim));
    for (int64_t i = 0; i < dim; i += 16) CK(v_store)(out + i, CK(v_load)(out + i) * scale);
}

/* The e2m1 code of each lane: one more for each border passed. Ties go to the even code, so borders
 * below an odd code are passed only from above. */
V_INLINE i16 CK(e2m1)(v16 x) {
    v16 v = (v16)((i16)x & 0x7fffffff);
    i16 code = -((v > CK(v_set)(0.25f)) + (v >= CK(v_set)(0.75f)) + (v > CK(v_set)(1.25f)) +
                 (v >= CK(v_set)(1.75f)) + (v > CK(v_set)(2.5f)) + (v >= CK(v_set)(3.5f)) +
                 (v > CK(v_set)(5.0f)));
    return code | (((i16)x >> 28) & 8);
}

static void CK(fp4_encode)(const float *x, int64_t dim, uint8_t *row) {
    float v[FP4_MAX_DIM];
    CK(hadamard)(x, dim, v);
    uint8_t *scales = row + dim / 2;
    for (int64_t b = 0; b < dim / FP4_BLOCK; b++) {
        float amax = block_amax(v + b * FP4_BLOCK, FP4_BLOCK), least = 6 * 0x1p-126f;
        scales[b] = exponent_above((amax > least ? amax : least) / 6.0f);
        v16 inverse = CK(v_set)(inverse_power_of_two(scales[b]));
        for (int64_t i = b * FP4_BLOCK; i < (b + 1) * FP4_BLOCK; i += 16) {
            i16 code = CK(e2m1)(CK(v_load)(v + i) * inverse);
            for (int pair = 0; pair < 8; pair++)
                row[i / 2 + pair] = (uint8_t)(code[2 * pair] | code[2 * pair + 1] << 4);
        }
    }
}
#undef CK_BUTTERFLY

static void CK(row_decode)(int32_t format, const uint8_t *row, int64_t dim, int64_t rope, float *out) {
    if (format == CK_ROW_FP8) {
        int64_t plain = dim - rope;
        const uint8_t *scales = row + plain, *tail = scales + fp8_scale_bytes(dim, rope);
        for (int64_t b = 0; b < plain / FP8_BLOCK; b++) {
            v16 scale = CK(v_set)(power_of_two(scales[b]));
            for (int64_t i = b * FP8_BLOCK; i < (b + 1) * FP8_BLOCK; i += 16)
                CK(v_store)(out + i, CK(v_e4m3)(row + i) * scale);
        }
        rope_decode(tail, rope, scales[plain / FP8_BLOCK], out + plain);
    } else if (format == CK_ROW_FP4) {
        const uint8_t *scales = row + dim / 2;
        for (int64_t b = 0; b < dim / FP4_BLOCK; b++) {
            float scale = power_of_two(scales[b]);
            for (int64_t i = b * FP4_BLOCK; i < (b + 1) * FP4_BLOCK; i += 2) {
                out[i] = kv_e2m1[row[i / 2] & 15] * scale;
                out[i + 1] = kv_e2m1[row[i / 2] >> 4] * scale;
            }
        }
    } else {
        memcpy(out, row, (size_t)dim * sizeof *out);
    }
}
