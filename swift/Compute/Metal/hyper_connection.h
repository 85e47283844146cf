// hyper_connection.h — what both files of hyper-connection kernels know.
#ifndef PYDS4_HYPER_CONNECTION_H
#define PYDS4_HYPER_CONNECTION_H
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

#define HC_PARTS 4  // of an output, as many as streams
#define HC_OUTPUTS 24
#define HC_LINE(outputs) ((outputs) + 4)  // floats from one line of a mix to the next

// What leaves a token's channels: stream j takes post_j · y + Σ_i comb_ij · stream_i.
struct hc_way {
    float4 comb[4];
    float4 post;
};

inline hc_way hc_load_way(device const float *post, device const float *comb, uint token) {
    hc_way way;
    for (ushort i = 0; i < 4; ++i) { way.comb[i] = ((device const float4 *)(comb + ulong(token) * 16))[i]; }
    way.post = *(device const float4 *)(post + ulong(token) * 4);
    return way;
}

#endif
