/* vector_isa.h — compiles CK_BODY once an instruction set. See vector.h. No include guard: on purpose. */
#include "vector.h"

#define CK_GLUE2(a, b) a##_##b
#define CK_GLUE(a, b) CK_GLUE2(a, b)
#define CK(name) CK_GLUE(name, CK_SUFFIX)

#define CK_SUFFIX plain
#include "vector_body.h"
#include CK_BODY
#undef CK_SUFFIX

#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define CK_SUFFIX avx2
#include "vector_body.h"
#include CK_BODY
#undef CK_SUFFIX
#pragma clang attribute pop

#pragma clang attribute push(                                                                         \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#define CK_SUFFIX avx512
#include "vector_body.h"
#include CK_BODY
#undef CK_SUFFIX
#pragma clang attribute pop
#endif
