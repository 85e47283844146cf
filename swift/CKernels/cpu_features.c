/* cpu_features.c — chooses the instruction set of the kernels, once per process.
 *
 * Every set computes the same bits (see quant_activations.h), so the choice is about speed only, and
 * forcing another one by PYDS4_ISA is how the tests compare them. "avx2-basic" and "avx512-basic" are
 * the same sets without the extras that newer machines have.
 */
#include "cpu_features.h"
#include "ckernels.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

static const char *const isa_names[] = {"plain", "avx2", "avx512", "neon"};

static pthread_once_t chosen_once = PTHREAD_ONCE_INIT;
static enum ck_isa chosen;
static bool avx_vnni, avx512_permute;

static bool available(enum ck_isa isa) {
    switch (isa) {
    case CK_ISA_PLAIN:
        return true;
#if defined(__x86_64__)
    case CK_ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    case CK_ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__) && defined(__APPLE__)
    case CK_ISA_NEON:
        return true; /* every Apple CPU that runs our minimum macOS has dotprod */
#elif defined(__aarch64__) && defined(__linux__)
    case CK_ISA_NEON:
        return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
    default:
        return false;
    }
}

static void choose(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    chosen = CK_ISA_PLAIN;
    if (available(CK_ISA_AVX2))
        chosen = CK_ISA_AVX2;
    if (available(CK_ISA_AVX512))
        chosen = CK_ISA_AVX512;
    if (available(CK_ISA_NEON))
        chosen = CK_ISA_NEON;
    const char *wanted = getenv("PYDS4_ISA");
    size_t length = wanted ? strcspn(wanted, "-") : 0;
    bool basic = wanted && strcmp(wanted + length, "-basic") == 0;
    for (int i = 0; wanted && i <= CK_ISA_NEON; i++)
        if (strlen(isa_names[i]) == length && strncmp(wanted, isa_names[i], length) == 0 &&
            (wanted[length] == 0 || basic) && available((enum ck_isa)i))
            chosen = (enum ck_isa)i;
#if defined(__x86_64__)
    avx_vnni = !basic && chosen == CK_ISA_AVX2 && __builtin_cpu_supports("avxvnni");
    avx512_permute = !basic && chosen == CK_ISA_AVX512 && __builtin_cpu_supports("avx512vbmi") &&
                     __builtin_cpu_supports("gfni");
#endif
}

enum ck_isa ck_isa(void) {
    pthread_once(&chosen_once, choose);
    return chosen;
}

bool ck_has_avx_vnni(void) {
    return ck_isa() == CK_ISA_AVX2 && avx_vnni;
}

bool ck_has_avx512_permute(void) {
    return ck_isa() == CK_ISA_AVX512 && avx512_permute;
}

const char *ck_isa_name(void) {
    return isa_names[ck_isa()];
}
