/* quant_unpack.c — 32 weights of any quantised type to small integers, scales and mins.
 *
 * The definition that the vector unpackers of matmul_avx512.c and matmul_panel_unpack.h are tested
 * against. Little-endian only, as are the files. Sub-scales of Q2_K are multiplied into the integers (at
 * most 3 · 15): one scale less per block.
 */
#include "quant_blocks.h"

#define CK_BODY "quant_unpack_body.h"
#include "vector_isa.h"

void quant_unpack(int32_t type, const void *row, int64_t block, ck_unpacked *out) {
    CK_DISPATCH(unpack)(type, row, block, out);
}
