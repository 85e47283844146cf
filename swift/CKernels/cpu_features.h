/* cpu_features.h — which set of kernels runs; see cpu_features.c. Private to CKernels. */
#ifndef PYDS4_CPU_FEATURES_H
#define PYDS4_CPU_FEATURES_H

#include <stdbool.h>

#include "vector.h" /* enum ck_isa and ck_isa(): the same answer on every call */

/* Extras within an instruction set; false when `ck_isa` is another one. Results never depend on
 * them, only speed. */
bool ck_has_avx_vnni(void);      /* 256-bit VPDPBUSD, with CK_ISA_AVX2 */
bool ck_has_avx512_permute(void); /* VBMI and GFNI, with CK_ISA_AVX512 */

#endif
