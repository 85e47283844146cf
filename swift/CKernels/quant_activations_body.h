/* quant_activations_body.h — see quant_activations.h. Plain loops that vectorise lane by lane: maxima
 * of bit patterns and integer sums are exact in any order. */

static void CK(quantise_block)(const float *x, ck_act *out) {
    /* Magnitudes order as their bits do, and a NaN comes out above infinity. */
    uint32_t top = 0;
    for (int i = 0; i < CK_BLOCK; i++) {
        uint32_t bits = ck_bits_of_f32(x[i]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    float amax = ck_f32_of_bits(top);
    *out = (ck_act){.d = amax / 127.0f};
    if (top >= 0x7f800000) {
        float nan = ck_f32_of_bits(0x7fc00000);
        out->d = out->sum[0] = out->sum[1] = out->sum_all = nan;
        return;
    }
    if (amax < 0x1p-100f) {
        out->d = 0;
        return;
    }
    const v16 inverse = CK(v_set)(127.0f / amax), magic = CK(v_set)(12582912.0f);
    int32_t sums[2];
    for (int g = 0; g < 2; g++) {
        /* Adding 1.5 · 2^23 rounds to the nearest integer, ties to even. */
        i16 q = __builtin_convertvector((CK(v_load)(x + 16 * g) * inverse + magic) - magic, i16);
        q16 bytes = __builtin_convertvector(q, q16);
        memcpy(out->q + 16 * g, &bytes, sizeof bytes);
        sums[g] = __builtin_reduce_add(q);
    }
    for (int g = 0; g < 2; g++) {
        out->minus128[g] = -128 * sums[g];
        out->sum[g] = out->d * (float)sums[g];
    }
    out->minus128_all = -128 * (sums[0] + sums[1]);
    out->sum_all = out->d * (float)(sums[0] + sums[1]);
}

static void CK(interleave)(ck_act *out) {
    q32 q;
    memcpy(&q, out->q, sizeof q);
    q = __builtin_shufflevector(q, q, 0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27, 4, 12, 20,
                                28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31);
    memcpy(out->q, &q, sizeof q);
}

static void CK(quantise_row)(const float *x, int64_t count, ck_act *out, int64_t stride, bool interleaved) {
    for (int64_t b = 0; b < count; b++) {
        CK(quantise_block)(x + b * CK_BLOCK, out + b * stride);
        if (interleaved)
            CK(interleave)(out + b * stride);
    }
}
