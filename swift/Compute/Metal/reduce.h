// reduce.h — sums over a threadgroup.
#ifndef PYDS4_REDUCE_H
#define PYDS4_REDUCE_H
#include <metal_stdlib>
using namespace metal;

// The sum of `value` over all `simdgroups`, the same in every thread. `partial` [32] may be used again
// behind the next barrier only.
inline float reduce_sum(float value, threadgroup float *partial, ushort simdgroups, ushort sg, ushort lane) {
    const float sum = simd_sum(value);
    if (lane == 0) { partial[sg] = sum; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
}

inline float reduce_rms(float squares, uint count, float epsilon) {
    return rsqrt(squares * (1.0f / float(count)) + epsilon);
}

#endif
