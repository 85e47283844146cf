/* quant_decode.c — rows of weights to f32; agrees with the `gguf` package bit for bit. */
#include "quant_blocks.h"

static void decode_blocks(int32_t type, const void *row, float *out, int64_t n) {
    for (int64_t b = 0; b < n / CK_BLOCK; b++) {
        ck_unpacked u;
        quant_unpack(type, row, b, &u);
        for (int i = 0; i < CK_BLOCK; i++)
            out[b * CK_BLOCK + i] = u.scale[i / 16] * (float)u.q[i] - u.min[i / 16];
    }
}

void quant_decode_row(int32_t type, const void *source, float *out, int64_t n) {
    uint16_t h;
    switch (type) {
    case CK_F32:
        memcpy(out, source, (size_t)n * sizeof *out);
        break;
    case CK_F16:
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, (const uint8_t *)source + 2 * i, sizeof h);
            out[i] = ck_f32_of_f16(h);
        }
        break;
    case CK_BF16:
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, (const uint8_t *)source + 2 * i, sizeof h);
            out[i] = ck_f32_of_bf16(h);
        }
        break;
    default:
        decode_blocks(type, source, out, n);
    }
}
