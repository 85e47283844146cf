// copy.metal — many small copies at once.
//
//   copy_many   up to GPU_MOST_COPIES pieces of words from one place to another
//
// Grid       one threadgroup a piece
// Origin     ours
#include <metal_stdlib>
#include "kernel_args.h"
using namespace metal;

struct copy_job {
    device const uint *from;
    device uint *to;
    ulong quads;  // of words, where both addresses allow it
    ulong words;
};

struct copy_jobs {
    copy_job job[GPU_MOST_COPIES];
};

[[max_total_threads_per_threadgroup(256)]]
kernel void copy_many(constant copy_jobs &p    [[buffer(0)]],
                      uint piece               [[threadgroup_position_in_grid]],
                      ushort tid               [[thread_index_in_threadgroup]])
{
    device const uint *from = p.job[piece].from;
    device uint *to = p.job[piece].to;
    const ulong quads = p.job[piece].quads, words = p.job[piece].words;
    #pragma unroll(4)
    for (ulong i = tid; i < quads; i += 256) { ((device uint4 *)to)[i] = ((device const uint4 *)from)[i]; }
    for (ulong i = 4 * quads + tid; i < words; i += 256) { to[i] = from[i]; }
}
