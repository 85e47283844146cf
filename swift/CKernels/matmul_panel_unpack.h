/* matmul_panel_unpack.h — from blocks of 16 rows to panels, in vectors of 64 bytes; included once a
 * family by matmul_panel_body.h. The steps are those of matmul_avx512.c: a prepare function for each
 * block (loads, transposition), an unpack function for each 32 weights; weights are signed here. */

/* 16 rows × 32 weights: lane r of word i = weights 4i … 4i+3 of row r, then as finish_panel likes. */
typedef struct {
    b64 w[2 * 8]; /* the second half is room for finish_panel */
    v16 scale[2], minus_min[2];
} CK(panel);

/* Lane r of out[i] = 32-bit word i at p + r · stride, for 4 · columns words. */
V_INLINE void CK(transpose)(const uint8_t *p, size_t stride, int columns, b64 *out) {
    for (int c = 0; c < columns; c++)
        for (int half = 0; half < 2; half++) {
            i8 a[4], b[4], words[4];
            for (int i = 0; i < 4; i++) {
                const uint8_t *row = p + (size_t)(8 * half + i) * stride + 16 * c;
                i4 low, high;
                memcpy(&low, row, sizeof low);
                memcpy(&high, row + 4 * stride, sizeof high);
                a[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
            }
            for (int i = 0; i < 4; i += 2) {
                b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
                b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
            }
            for (int i = 0; i < 2; i++) {
                words[2 * i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
                words[2 * i + 1] = __builtin_shufflevector(b[i], b[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
            }
            for (int i = 0; i < 4; i++)
                memcpy((uint8_t *)&out[4 * c + i] + 32 * half, &words[i], sizeof words[i]);
        }
}

/* Sixteen halves, `stride` bytes apart. */
V_INLINE v16 CK(load_halves)(const uint8_t *p, size_t stride) {
    h16 halves;
    for (int r = 0; r < CK_GROUP_ROWS; r++)
        memcpy((uint16_t *)&halves + r, p + (size_t)r * stride, sizeof(uint16_t));
    return __builtin_convertvector(halves, v16);
}

/* Halves in bits `shift` … of each lane. */
V_INLINE v16 CK(halves_of_words)(b64 words, int shift) {
    u16x16 bits = __builtin_convertvector((u32x16)words >> shift & 0xffff, u16x16);
    return __builtin_convertvector((h16)bits, v16);
}

V_INLINE v16 CK(byte_of_lanes)(b64 words, int byte) {
    return __builtin_convertvector((i16)((u32x16)words >> 8 * byte & 255), v16);
}

V_INLINE b64 CK(bits)(b64 v, int shift, int mask) {
    return (b64)((u16x32)v >> (uint16_t)shift) & (uint8_t)mask;
}

/* ---- one block of 32 */

typedef struct {
    const uint8_t *p;
    size_t stride;
} CK(in_place);

V_INLINE void CK(prepare_in_place)(const uint8_t *p, size_t stride, CK(in_place) *s) {
    *s = (CK(in_place)){p, stride};
}

V_INLINE void CK(unpack_q8_0)(const CK(in_place) *s, int sub, CK(panel) *out) {
    (void)sub;
    CK(transpose)(s->p + 2, s->stride, 2, out->w);
    out->scale[0] = CK(load_halves)(s->p, s->stride);
}

V_INLINE void CK(unpack_nibbles)(const CK(in_place) *s, size_t offset, CK(panel) *out) {
    b64 words[4];
    CK(transpose)(s->p + offset, s->stride, 1, words);
    for (int i = 0; i < 4; i++) {
        out->w[i] = words[i] & 15;
        out->w[i + 4] = CK(bits)(words[i], 4, 15);
    }
}

V_INLINE void CK(unpack_q4_0)(const CK(in_place) *s, int sub, CK(panel) *out) {
    (void)sub;
    CK(unpack_nibbles)(s, 2, out);
    for (int i = 0; i < 8; i++)
        out->w[i] -= 8;
    out->scale[0] = CK(load_halves)(s->p, s->stride);
}

V_INLINE void CK(unpack_mxfp4)(const CK(in_place) *s, int sub, CK(panel) *out) {
    (void)sub;
    CK(unpack_nibbles)(s, 1, out);
    for (int i = 0; i < 8; i++)
        out->w[i] = CK(look_up)(ck_mxfp4_values, out->w[i]);
    float scale[CK_GROUP_ROWS];
    for (int r = 0; r < CK_GROUP_ROWS; r++)
        scale[r] = ck_mxfp4_scale(s->p[(size_t)r * s->stride]);
    out->scale[0] = CK(v_load)(scale);
}

/* ---- Q2_K */

typedef struct {
    b64 q[2][8], scales[4];
    v16 d, minus_dmin;
} CK(state_q2_k);

V_INLINE void CK(prepare_q2_k)(const uint8_t *p, size_t stride, CK(state_q2_k) *s) {
    b64 last[4];
    CK(transpose)(p + offsetof(ck_block_q2_k, scales), stride, 1, s->scales);
    CK(transpose)(p + offsetof(ck_block_q2_k, q), stride, 2, s->q[0]);
    CK(transpose)(p + offsetof(ck_block_q2_k, q) + 32, stride, 2, s->q[1]);
    CK(transpose)(p + offsetof(ck_block_q2_k, d) - 12, stride, 1, last); /* d, dmin: the last word */
    s->d = CK(halves_of_words)(last[3], 0);
    s->minus_dmin = -CK(halves_of_words)(last[3], 16);
}

V_INLINE void CK(unpack_q2_k)(const CK(state_q2_k) *s, int sub, CK(panel) *out) {
    out->scale[0] = s->d;
    for (int g = 0; g < 2; g++) {
        int byte = 2 * (sub & 1) + g;
        u32x16 packed = (u32x16)s->scales[sub >> 1] >> 8 * byte, scale = packed & 15;
        out->minus_min[g] = s->minus_dmin * __builtin_convertvector((i16)(packed >> 4 & 15), v16);
        /* 16-bit products of two weights at once: 3 · 15 does not carry into the second */
        u16x32 twice = (u16x32)(scale | scale << 16);
        for (int i = 4 * g; i < 4 * g + 4; i++)
            out->w[i] = (b64)((u16x32)CK(bits)(s->q[sub >> 2][i], 2 * (sub & 3), 3) * twice);
    }
}

/* ---- Q4_K and Q5_K */

typedef struct {
    b64 q[4][8], high[8];
    v16 scale[8], minus_min[8];
} CK(state_k4);

V_INLINE void CK(prepare_k4_scales)(const uint8_t *p, size_t stride, CK(state_k4) *s) {
    b64 head[4];
    CK(transpose)(p, stride, 1, head);
    v16 d = CK(halves_of_words)(head[0], 0), minus_dmin = -CK(halves_of_words)(head[0], 16);
    b64 scales[2] = {head[1] & 63, (head[3] & 15) | CK(bits)(head[1], 2, 48)};
    b64 mins[2] = {head[2] & 63, CK(bits)(head[3], 4, 15) | CK(bits)(head[2], 2, 48)};
    for (int sub = 0; sub < 8; sub++) {
        s->scale[sub] = d * CK(byte_of_lanes)(scales[sub >> 2], sub & 3);
        s->minus_min[sub] = minus_dmin * CK(byte_of_lanes)(mins[sub >> 2], sub & 3);
    }
}

V_INLINE void CK(prepare_q4_k)(const uint8_t *p, size_t stride, CK(state_k4) *s) {
    CK(prepare_k4_scales)(p, stride, s);
    for (size_t c = 0; c < 4; c++)
        CK(transpose)(p + offsetof(ck_block_q4_k, q) + 32 * c, stride, 2, s->q[c]);
}

V_INLINE void CK(unpack_q4_k)(const CK(state_k4) *s, int sub, CK(panel) *out) {
    for (int i = 0; i < 8; i++)
        out->w[i] = CK(bits)(s->q[sub >> 1][i], 4 * (sub & 1), 15);
    out->scale[0] = s->scale[sub];
    out->minus_min[0] = s->minus_min[sub];
}

V_INLINE void CK(prepare_q5_k)(const uint8_t *p, size_t stride, CK(state_k4) *s) {
    CK(prepare_k4_scales)(p, stride, s);
    CK(transpose)(p + offsetof(ck_block_q5_k, high), stride, 2, s->high);
    for (size_t c = 0; c < 4; c++)
        CK(transpose)(p + offsetof(ck_block_q5_k, q) + 32 * c, stride, 2, s->q[c]);
}

V_INLINE void CK(unpack_q5_k)(const CK(state_k4) *s, int sub, CK(panel) *out) {
    CK(unpack_q4_k)(s, sub, out);
    for (int i = 0; i < 8; i++)
        out->w[i] |= CK(bits)(s->high[i], sub, 1) << 4;
}

/* ---- the others, row by row */

V_INLINE void CK(unpack_rows)(int32_t type, const CK(in_place) *s, int sub, CK(panel) *out) {
    ck_unpacked rows[CK_GROUP_ROWS];
    float scale[2][CK_GROUP_ROWS];
    for (int r = 0; r < CK_GROUP_ROWS; r++) {
        CK(unpack)(type, s->p + (size_t)r * s->stride, sub, &rows[r]);
        scale[0][r] = rows[r].scale[0];
        scale[1][r] = rows[r].scale[1];
    }
    CK(transpose)((const uint8_t *)rows, sizeof *rows, 2, out->w);
    out->scale[0] = CK(v_load)(scale[0]);
    out->scale[1] = CK(v_load)(scale[1]);
}

V_INLINE void CK(unpack_q3_k)(const CK(in_place) *s, int sub, CK(panel) *out) {
    CK(unpack_rows)(CK_Q3_K, s, sub, out);
}

V_INLINE void CK(unpack_q6_k)(const CK(in_place) *s, int sub, CK(panel) *out) {
    CK(unpack_rows)(CK_Q6_K, s, sub, out);
}

/* ---- IQ2_XXS: grid entries row by row, signs and scales as vectors */

typedef struct {
    const ck_block_iq2_xxs *p;
    size_t stride;
    v16 eighth_d;
} CK(state_iq2_xxs);

V_INLINE void CK(prepare_iq2_xxs)(const uint8_t *p, size_t stride, CK(state_iq2_xxs) *s) {
    *s = (CK(state_iq2_xxs)){(const ck_block_iq2_xxs *)p, stride, CK(load_halves)(p, stride) * 0.125f};
}

/* 32 signed weights of one row. */
V_INLINE b32 CK(iq2_xxs_weights)(const uint8_t grid[4], uint32_t signs) {
    /* Four indices of 7 bits to bytes, each completed by its parity in bit 7. */
    uint32_t bytes = (signs & 0x7f) | (signs & 0x3f80) << 1 | (signs & 0x1fc000) << 2 |
                     (signs & 0xfe00000) << 3;
    uint32_t parity = bytes ^ bytes >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    bytes |= (parity & 0x01010101) << 7;
    b16 four = (b16)(i4){(int32_t)bytes, 0, 0, 0};
    b32 each = __builtin_shufflevector(four, four, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                       2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const b32 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                     1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    b32 negative = (b32)((each & bit) == bit);
    u64x4 magnitudes = {ck_iq2_xxs_grid[grid[0]], ck_iq2_xxs_grid[grid[1]], ck_iq2_xxs_grid[grid[2]],
                        ck_iq2_xxs_grid[grid[3]]};
    return ((b32)magnitudes ^ negative) - negative;
}

V_INLINE void CK(unpack_iq2_xxs)(const CK(state_iq2_xxs) *s, int sub, CK(panel) *out) {
    b32 rows[CK_GROUP_ROWS];
    uint32_t signs_scale[CK_GROUP_ROWS];
    u32x16 packed;
    for (int r = 0; r < CK_GROUP_ROWS; r++) {
        const ck_block_iq2_xxs *b =
            (const ck_block_iq2_xxs *)((const uint8_t *)s->p + (size_t)r * s->stride);
        signs_scale[r] = b->sub[sub].signs_scale;
        rows[r] = CK(iq2_xxs_weights)(b->sub[sub].grid, signs_scale[r]);
    }
    memcpy(&packed, signs_scale, sizeof packed);
    CK(transpose)((const uint8_t *)rows, sizeof *rows, 2, out->w);
    out->scale[0] = s->eighth_d * __builtin_convertvector((i16)(2 * (packed >> 28) + 1), v16);
}
