/* quantize_mxfp4.c — scales are powers of two: the one that clips nothing, or one of the two below it.
 * Codes are the nearest; on a tie the even one, as rounding hardware does. */
#include "quantize.h"

#define CK_BODY "quantize_mxfp4_body.h"
#include "vector_isa.h"

void quantize_mxfp4(const float *x, const float *w, int count, ck_block_mxfp4 *out)
{
    uint8_t exponents[16], codes[16 * 16];
    CK_DISPATCH(mxfp4_blocks)(x, w, count, exponents, codes);
    for (int b = 0; b < count; b++) {
        out[b].e = exponents[b];
        memcpy(out[b].q, codes + 16 * b, 16);
    }
}
