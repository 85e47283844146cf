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

/* One block. Two multiplications can be one as long as their product is finite: the same values. */
V_INLINE void CK(e4m3_block)(const uint8_t *bytes, uint8_t scale, float *out) {
    float by = power_of_two(scale), second = scale < 134 ? 1.0f : by;
    v16 first = CK(v_set)(scale < 134 ? 0x1p120f * by : 0x1p120f);
    for (int i = 0; i < FP8_BLOCK; i += 16) {
        v16 v = (v16)CK(v_e4m3_bits)(bytes + i) * first;
        CK(v_store)(out + i, scale < 134 ? v : v * CK(v_set)(second));
    }
}

/* Eight words: three times eight values, each word's behind one another. */
V_INLINE void CK(rope_decode_eight)(const uint8_t *words, v16 step, float *out) {
    i16 pairs, first, last;
    memcpy(&pairs, words, sizeof pairs);
    i16 low = __builtin_shufflevector(pairs, pairs, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
    i16 high = __builtin_shufflevector(pairs, pairs, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    i16 middle = (i16)((u32x16)low >> ROPE_BITS | (u32x16)high << (32 - ROPE_BITS));
    i16 a = low << (32 - ROPE_BITS) >> (32 - ROPE_BITS), b = middle << (32 - ROPE_BITS) >> (32 - ROPE_BITS);
    i16 c = high << 1 >> (32 - ROPE_BITS);
    i16 ab = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    first = __builtin_shufflevector(ab, c, 0, 1, 16, 2, 3, 17, 4, 5, 18, 6, 7, 19, 8, 9, 20, 10);
    last = __builtin_shufflevector(ab, c, 11, 21, 12, 13, 22, 14, 15, 23, 0, 0, 0, 0, 0, 0, 0, 0);
    CK(v_store)(out, __builtin_convertvector(first, v16) * step);
    v16 rest = __builtin_convertvector(last, v16) * step;
    memcpy(out + 16, &rest, 8 * sizeof *out);
}

V_INLINE void CK(rope_decode)(const uint8_t *words, int64_t rope, uint8_t scale, float *out) {
    const int64_t eight = 8 * ROPE_A_WORD;
    v16 step = CK(v_set)(rope_step(scale));
    for (; rope >= eight; rope -= eight, words += 64, out += eight) CK(rope_decode_eight)(words, step, out);
    if (rope > 0) {
        uint8_t left[64] = {0};
        float values[8 * ROPE_A_WORD];
        memcpy(left, words, 8 * (size_t)rope_words(rope));
        CK(rope_decode_eight)(left, step, values);
        memcpy(out, values, sizeof *out * (size_t)rope);
    }
}

static void CK(row_decode)(int32_t format, const uint8_t *row, int64_t dim, int64_t rope, float *out) {
    if (format == CK_ROW_FP8) {
        int64_t plain = dim - rope;
        const uint8_t *scales = row + plain, *tail = scales + fp8_scale_bytes(dim, rope);
        for (int64_t b = 0; b < plain / FP8_BLOCK; b++) {
            CK(e4m3_block)(row + b * FP8_BLOCK, scales[b], out + b * FP8_BLOCK);
        }
        CK(rope_decode)(tail, rope, scales[plain / FP8_BLOCK], out + plain);
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
