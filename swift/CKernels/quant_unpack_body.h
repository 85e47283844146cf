/* quant_unpack_body.h — see quant_unpack.c. Loops of 32 that the compiler turns into vectors. */

static void CK(repeat)(float pair[2], float value) {
    pair[0] = pair[1] = value;
}

static void CK(row_q8_0)(const ck_block_q8_0 *b, ck_unpacked *out) {
    memcpy(out->q, b->q, CK_BLOCK);
    CK(repeat)(out->scale, ck_f32_of_f16(b->d));
}

static void CK(row_q4_0)(const ck_block_q4_0 *b, ck_unpacked *out) {
    for (int i = 0; i < 16; i++) {
        out->q[i] = (int8_t)((b->q[i] & 15) - 8);
        out->q[i + 16] = (int8_t)((b->q[i] >> 4) - 8);
    }
    CK(repeat)(out->scale, ck_f32_of_f16(b->d));
}

static void CK(row_mxfp4)(const ck_block_mxfp4 *b, ck_unpacked *out) {
    for (int i = 0; i < 16; i++) {
        out->q[i] = ck_mxfp4_values[b->q[i] & 15];
        out->q[i + 16] = ck_mxfp4_values[b->q[i] >> 4];
    }
    CK(repeat)(out->scale, ck_mxfp4_scale(b->e));
}

static void CK(row_q2_k)(const ck_block_q2_k *b, int64_t sub, ck_unpacked *out) {
    const uint8_t *q = b->q + 32 * (sub / 4);
    float dmin = ck_f32_of_f16(b->dmin);
    for (int i = 0; i < CK_BLOCK; i++)
        out->q[i] = (int8_t)((q[i] >> 2 * (sub % 4) & 3) * (b->scales[2 * sub + i / 16] & 15));
    CK(repeat)(out->scale, ck_f32_of_f16(b->d));
    for (int g = 0; g < 2; g++)
        out->min[g] = dmin * (float)(b->scales[2 * sub + g] >> 4);
}

static void CK(row_q3_k)(const ck_block_q3_k *b, int64_t sub, ck_unpacked *out) {
    const uint8_t *q = b->q + 32 * (sub / 4);
    for (int i = 0; i < CK_BLOCK; i++)
        out->q[i] = (int8_t)((q[i] >> 2 * (sub % 4) & 3) - ((b->high[i] >> sub & 1) ? 0 : 4));
    for (int g = 0; g < 2; g++) {
        /* 6 bits: the low four in the nibbles of bytes 0…7, the high two in bytes 8…11 */
        int64_t j = 2 * sub + g;
        int low = j < 8 ? b->scales[j] & 15 : b->scales[j - 8] >> 4;
        int high = b->scales[8 + j % 4] >> 2 * (j / 4) & 3;
        out->scale[g] = ck_f32_of_f16(b->d) * (float)((low | high << 4) - 32);
    }
}

static void CK(row_q4_k)(const ck_block_q4_k *b, int64_t sub, ck_unpacked *out) {
    const uint8_t *q = b->q + 32 * (sub / 2);
    for (int i = 0; i < CK_BLOCK; i++)
        out->q[i] = (int8_t)(sub % 2 ? q[i] >> 4 : q[i] & 15);
    CK(repeat)(out->scale, ck_f32_of_f16(b->d) * (float)ck_k4_scale(b->scales, sub));
    CK(repeat)(out->min, ck_f32_of_f16(b->dmin) * (float)ck_k4_min(b->scales, sub));
}

static void CK(row_q5_k)(const ck_block_q5_k *b, int64_t sub, ck_unpacked *out) {
    const uint8_t *q = b->q + 32 * (sub / 2);
    for (int i = 0; i < CK_BLOCK; i++)
        out->q[i] = (int8_t)((sub % 2 ? q[i] >> 4 : q[i] & 15) | (b->high[i] >> sub & 1) << 4);
    CK(repeat)(out->scale, ck_f32_of_f16(b->d) * (float)ck_k4_scale(b->scales, sub));
    CK(repeat)(out->min, ck_f32_of_f16(b->dmin) * (float)ck_k4_min(b->scales, sub));
}

static void CK(row_q6_k)(const ck_block_q6_k *b, int64_t sub, ck_unpacked *out) {
    int64_t half = sub / 4, s = sub % 4;
    const uint8_t *low = b->low + 64 * half + 32 * (s & 1), *high = b->high + 32 * half;
    for (int i = 0; i < CK_BLOCK; i++) {
        int nibble = s < 2 ? low[i] & 15 : low[i] >> 4;
        out->q[i] = (int8_t)((nibble | (high[i] >> 2 * s & 3) << 4) - 32);
    }
    for (int g = 0; g < 2; g++)
        out->scale[g] = ck_f32_of_f16(b->d) * (float)b->scales[2 * sub + g];
}

static void CK(row_iq2_xxs)(const ck_block_iq2_xxs *b, int64_t sub, ck_unpacked *out) {
    const uint64_t each = 0x0101010101010101;
    uint32_t packed = b->sub[sub].signs_scale;
    for (int e = 0; e < 4; e++) {
        /* bit i of the signs to all bits of byte i, then two's complement byte by byte */
        uint64_t bits = ck_iq2_xxs_signs(packed >> 7 * e & 127) * each & 0x8040201008040201;
        uint64_t ones = ((bits + 0x7f * each) | bits) >> 7 & each;
        uint64_t values = (ck_iq2_xxs_grid[b->sub[sub].grid[e]] ^ ones * 255) + ones;
        memcpy(out->q + 8 * e, &values, sizeof values);
    }
    CK(repeat)(out->scale, ck_f32_of_f16(b->d) * (float)(2 * (packed >> 28) + 1) * 0.125f);
}

static void CK(unpack)(int32_t type, const void *row, int64_t block, ck_unpacked *out) {
    int64_t super = block / 8, sub = block % 8;
    out->min[0] = out->min[1] = 0;
    switch (type) {
    case CK_Q8_0:
        CK(row_q8_0)((const ck_block_q8_0 *)row + block, out);
        break;
    case CK_Q4_0:
        CK(row_q4_0)((const ck_block_q4_0 *)row + block, out);
        break;
    case CK_MXFP4:
        CK(row_mxfp4)((const ck_block_mxfp4 *)row + block, out);
        break;
    case CK_Q2_K:
        CK(row_q2_k)((const ck_block_q2_k *)row + super, sub, out);
        break;
    case CK_Q3_K:
        CK(row_q3_k)((const ck_block_q3_k *)row + super, sub, out);
        break;
    case CK_Q4_K:
        CK(row_q4_k)((const ck_block_q4_k *)row + super, sub, out);
        break;
    case CK_Q5_K:
        CK(row_q5_k)((const ck_block_q5_k *)row + super, sub, out);
        break;
    case CK_Q6_K:
        CK(row_q6_k)((const ck_block_q6_k *)row + super, sub, out);
        break;
    case CK_IQ2_XXS:
        CK(row_iq2_xxs)((const ck_block_iq2_xxs *)row + super, sub, out);
        break;
    default:
        __builtin_trap(); /* callers pass quantised types only */
    }
}
