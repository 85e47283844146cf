// jobs.h — launches that multiply several matrices.
#ifndef PYDS4_JOBS_H
#define PYDS4_JOBS_H
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

// Which job a row tile belongs to.
inline uint matvec_find(constant gpu_matvec &p, uint tile) {
    uint j = 0;
    while (j + 1u < p.jobs && tile >= p.job[j + 1u].first_tile) { j += 1u; }
    return j;
}

inline device const uchar *matvec_weights(uint j, device const uchar *w0, device const uchar *w1,
                                          device const uchar *w2, device const uchar *w3, device const uchar *w4,
                                          device const uchar *w5, device const uchar *w6, device const uchar *w7) {
    return j < 4u ? (j < 2u ? (j == 0u ? w0 : w1) : (j == 2u ? w2 : w3))
                  : (j < 6u ? (j == 4u ? w4 : w5) : (j == 6u ? w6 : w7));
}
#endif
