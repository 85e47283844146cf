// experts.h — what the kernels of routed experts share.
#ifndef PYDS4_EXPERTS_H
#define PYDS4_EXPERTS_H
#include <metal_stdlib>
using namespace metal;

// silu(min(g, clamp)) · clip(u, ±clamp)
inline float experts_glu(float g, float u, float limit) {
    if (limit > 0.0f) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    return g / (1.0f + exp(-g)) * u;
}
#endif
