/* vector.h — sixteen floats, on every instruction set.
 *
 * Clang lowers a 16-float vector to one AVX-512, two AVX2, four NEON or four SSE registers, with the
 * same lanes and the same order of operations, hence the same bits. A kernel body that uses these
 * types stands in NAME_body.h and is compiled once an instruction set by NAME.c:
 *
 *     #define CK_BODY "attention_body.h"
 *     #include "vector_isa.h"      // includes the body with CK(name) = name_plain, name_avx2, …
 *
 * and dispatched by CK_DISPATCH(name). */
#ifndef PYDS4_VECTOR_H
#define PYDS4_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Every function that passes vectors is inlined, so their calling convention never matters. */
#pragma clang diagnostic ignored "-Wpsabi"

typedef float v16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4)));
typedef uint8_t b16 __attribute__((vector_size(16), aligned(1)));
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef float v2 __attribute__((vector_size(8), aligned(4)));

/* Which body to call; the order is that of cpu_features.c. */
enum ck_isa { CK_ISA_PLAIN, CK_ISA_AVX2, CK_ISA_AVX512, CK_ISA_NEON };
enum ck_isa ck_isa(void);

#if defined(__x86_64__)
#define CK_DISPATCH(name)                                                                             \
    (ck_isa() == CK_ISA_AVX512 ? name##_avx512 : ck_isa() == CK_ISA_AVX2 ? name##_avx2 : name##_plain)
#else
#define CK_DISPATCH(name) name##_plain
#endif

#define V_INLINE static inline __attribute__((always_inline))

#endif
