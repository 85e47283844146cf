/* kv_rows_body.h — decoding one row; see kv_rows.c. */

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
