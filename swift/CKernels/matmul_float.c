/* matmul_float.c — products with F32, F16 and BF16 weights, in f32. */
#include "matmul_kernels.h"
#include "cpu_features.h"

typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(1)));

/* Half to single by integer arithmetic, exact for every value (see ck_f32_of_f16). */
V_INLINE v16 f32_of_f16_plain(u16x16 h)
{
    i16 w = __builtin_convertvector(h, i16);
    i16 sign = (w & 0x8000) << 16, magnitude = w & 0x7fff;
    v16 scaled = (v16)(magnitude << 13) * 0x1p112f;
    i16 special = (i16)(magnitude >= 0x7c00);
    i16 bits = (special & (0x7f800000 | (magnitude & 0x3ff) << 13)) | (~special & (i16)scaled);
    return (v16)(sign | bits);
}

#if defined(__x86_64__)
typedef _Float16 h16 __attribute__((vector_size(32), aligned(1)));

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
V_INLINE v16 f32_of_f16_avx2(u16x16 h)
{
    return __builtin_convertvector((h16)h, v16);
}
#pragma clang attribute pop

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f"))), apply_to = function)
V_INLINE v16 f32_of_f16_avx512(u16x16 h)
{
    return __builtin_convertvector((h16)h, v16);
}
#pragma clang attribute pop
#endif

#define CK_BODY "matmul_float_body.h"
#include "vector_isa.h"

void matmul_tile_float(const ck_tile *tile)
{
    CK_DISPATCH(float_tile)(tile);
}
