// experts_int8.metal — the routed feed-forward layer for few tokens, activations as 16-bit integers.
//
//   experts_gate_up_int8   as experts_gate_up, for IQ2_XXS planes
//   experts_down_int8      as experts_down, for Q2_K planes and a shared expert in Q8_0 planes
//
// gate_up: four simdgroups share a row of 4,096 columns, a group of 32 columns a lane; two such teams take
// rows in turn, four of gate and four of up at a time. down: each simdgroup takes the assignments of its
// number, 64 columns a lane, and the shared expert in pieces of 1,024 columns.
//
// Grid       gate_up: x row tiles of `tile`, y n · used + n; down: the same, y tokens
// Arguments  gpu_experts in kernel_args.h
// CPU twin   CKernels/experts.c
// Origin     ours
#include <metal_stdlib>
#include "int8.h"
#include "experts.h"
using namespace metal;

#define MSL_BLOCKS_experts_down_int8 2  // threadgroups on a multiprocessor at once (CUDA)

#define MSL_BLOCKS_experts_gate_up_int8 3  // threadgroups on a multiprocessor at once (CUDA)

#define EXPERT_INT8_MOST 64  // rows of a tile
#define EXPERT_INT8_SLICES 4096u

// ---------------------------------------------------------------- gate and up

// Four rows of gate and of up, a group of 32 columns of each a lane.
struct experts_int8_pair {
    uint2 g[4];
    uint2 u[4];
    ushort dg[4];
    ushort du[4];
};

// `quants`, `scales`: of the first row and this lane, in bytes. A matrix of all experts has less than 4 GiB.
inline void experts_int8_load(device const uchar *gate, device const uchar *up, uint quants, uint scales, uint columns,
                              thread experts_int8_pair &out) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const uint q = quants + i * (columns / 4), d = scales + i * (columns / 128);
        out.g[i] = *(device const uint2 *)(gate + q);
        out.u[i] = *(device const uint2 *)(up + q);
        out.dg[i] = *(device const ushort *)(gate + d);
        out.du[i] = *(device const ushort *)(up + d);
    }
}

[[max_total_threads_per_threadgroup(INT8_THREADS)]]
kernel void experts_gate_up_int8(device const uchar *gate       [[buffer(0)]],
                                 device const uchar *up         [[buffer(1)]],
                                 device const float *x          [[buffer(2)]],
                                 device const int *ids          [[buffer(3)]],
                                 device const float *weights    [[buffer(4)]],
                                 device const float *shared_gate [[buffer(5)]],
                                 device const float *shared_up  [[buffer(6)]],
                                 device float *h                [[buffer(7)]],
                                 constant gpu_experts &p        [[buffer(8)]],
                                 uint2 tg                       [[threadgroup_position_in_grid]],
                                 ushort tid                     [[thread_index_in_threadgroup]],
                                 ushort sg                      [[simdgroup_index_in_threadgroup]],
                                 ushort lane                    [[thread_index_in_simdgroup]])
{
    threadgroup uint4 table[INT8_TABLE / 4];
    threadgroup float parts[4][2 * EXPERT_INT8_MOST];  // gate's rows, then up's
    threadgroup int8_x memory;
    const uint rows = p.tile;
    if (tg.y >= p.n * p.used) {
        // Behind the routed rows of h: those of the shared expert, whose products were made before.
        const uint token = tg.y - p.n * p.used;
        const ulong from = ulong(token) * p.shared_inner;
        device float *out = h + ulong(p.n) * p.used * p.inner + from;
        const uint step = p.inner / rows * INT8_THREADS;
        for (uint i = tg.x * INT8_THREADS + tid; i < p.shared_inner; i += step) {
            out[i] = experts_glu(shared_gate[from + i], shared_up[from + i], p.shared_clamp);
        }
        return;
    }
    const uint slice = sg & 3, team = sg / 4, columns = p.hidden;
    const uint line = uint(ids[tg.y]) * p.inner + tg.x * rows + 4 * team;
    device const float *token = x + ulong(tg.y / p.used) * columns;
    const uint copy = lane % 8 * 4u;
    for (uint base = 0; base < columns; base += EXPERT_INT8_SLICES) {
        const uint at = base + slice * 1024u + 32u * lane, k = at < columns ? at : 0u;
        // The first rows are under way while the table and the activations are made.
        experts_int8_pair now;
        uint quants = line * (columns / 4) + k / 4, scales = uint(p.plane) + line * (columns / 128) + k / 256 * 2;
        experts_int8_load(gate, up, quants, scales, columns, now);
        if (base > 0) { threadgroup_barrier(mem_flags::mem_threadgroup); }
        int8_quantize(token, columns, base, EXPERT_INT8_SLICES, memory, tid);
        if (base == 0) { int8_fill_table(table, tid, INT8_THREADS); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint high[8];
        uint low[8];
        const uint c = slice * 1024u + 32u * lane;
        int8_take16(memory, c, high, low);
        int8_take16(memory, c + 16u, high + 4, low + 4);
        const float scale = memory.scale[c / 32] * 0.125f;
        #pragma unroll(1)
        for (uint r0 = 0; r0 < rows; r0 += 8) {
            const uint r = r0 + 4 * team;
            float gs[4];
            float us[4];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                const int g = int8_iq2_group(now.g[i], (threadgroup const uchar *)table, copy, high, low);
                const int u = int8_iq2_group(now.u[i], (threadgroup const uchar *)table, copy, high, low);
                gs[i] = float(g) * (float(as_type<half>(now.dg[i])) * scale);
                us[i] = float(u) * (float(as_type<half>(now.du[i])) * scale);
            }
            if (r0 + 8 < rows) {
                quants += 2 * columns;
                scales += columns / 16;
                experts_int8_load(gate, up, quants, scales, columns, now);
            }
            const float sum = int8_reduce4(gs, lane), other = int8_reduce4(us, lane);
            if (lane < 8) {
                threadgroup float *part = &parts[slice][(lane < 4 ? 0 : EXPERT_INT8_MOST) + r + lane % 4];
                const float value = lane < 4 ? sum : other;
                *part = base == 0 ? value : *part + value;
            }
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid < rows) {
        float g = 0.0f;
        float u = 0.0f;
        for (ushort s = 0; s < 4; ++s) {
            g += parts[s][tid];
            u += parts[s][EXPERT_INT8_MOST + tid];
        }
        h[ulong(tg.y) * p.inner + tg.x * rows + tid] = experts_glu(g, u, p.clamp) * weights[tg.y];
    }
}

// ---------------------------------------------------------------- down

// Columns of a lane in a piece of 2,048: block lane / 4, sixteen for each of four shifts.
struct experts_int8_q2 {
    uint high[16];
    uint low[16];
    int sums[4];  // of the sixteen, as integers
    float scale;  // of the block of 256
};

// The activations of one simdgroup, on their way to the lanes that need them.
struct experts_int8_x {
    uint4 high[128];
    uint4 low[128];
    float scale[8];
};

inline void experts_int8_take(device const float *x, uint columns, uint k0, ushort lane, threadgroup experts_int8_x &memory,
                              thread experts_int8_q2 &out) {
    threadgroup uint *high = (threadgroup uint *)memory.high, *low = (threadgroup uint *)memory.low;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    #pragma unroll
    for (ushort b = 0; b < 8; ++b) {
        float4 a[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            const uint k = k0 + 256u * b + 128u * i + 4u * lane;
            a[i] = k < columns ? *(device const float4 *)(x + k) : float4(0.0f);
        }
        const float most = simd_max(int8_most(a[0], int8_most(a[1], 0.0f))), inverse = int8_inverse(most);
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            uint h;
            uint l;
            int8_split4(a[i], inverse, h, l);
            high[64 * b + 32 * i + lane] = h;
            low[64 * b + 32 * i + lane] = l;
        }
        if (lane == 0) { memory.scale[b] = int8_scale(most); }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    #pragma unroll
    for (ushort s = 0; s < 4; ++s) {
        // Columns 256·(lane / 4) + 128·(lane / 2 % 2) + 32·s + 16·(lane % 2).
        const uint at = 16u * (lane / 4) + 8u * (lane / 2 % 2) + 2u * s + lane % 2;
        const uint4 h = memory.high[at], l = memory.low[at];
        int hi = 0, lo = 0;
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            out.high[4 * s + i] = h[i];
            out.low[4 * s + i] = l[i];
            hi = int8_dot_high(0x01010101u, h[i], hi);
            lo = int8_dot_low(0x01010101u, l[i], lo);
        }
        out.sums[s] = hi * 256 + lo;
    }
    out.scale = memory.scale[lane / 4];
}

// Four rows of a piece.
struct experts_int8_rows {
    uint4 q[4];
    uint2 scales[4];
    uint both[4];
};

inline void experts_int8_load_q2(device const uchar *w, ulong plane, ulong line, uint columns, uint column, ushort lane,
                                 thread experts_int8_rows &out) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const ulong block = (line + i) * (columns / 256) + column;
        out.q[i] = *(device const uint4 *)(w + block * 64 + 16 * (lane % 4));
        out.scales[i] = *(device const uint2 *)(w + plane + block * 16 + 8 * (lane / 2 % 2));
        out.both[i] = *(device const uint *)(w + plane + plane / 4 + block * 4);
    }
}

// Adds `rows` rows from `first` on of one assignment to `out`.
inline void experts_int8_routed(device const uchar *w, ulong plane, ulong first, uint rows, uint columns,
                                device const float *x, ushort lane, threadgroup experts_int8_x &memory,
                                threadgroup float *out) {
    for (uint k0 = 0; k0 < columns; k0 += 2048u) {
        const uint at = k0 / 256u + lane / 4, column = at * 256u < columns ? at : 0u;
        experts_int8_rows now;
        experts_int8_load_q2(w, plane, first, columns, column, lane, now);
        experts_int8_q2 a;
        experts_int8_take(x, columns, k0, lane, memory, a);
        #pragma unroll(1)
        for (uint r = 0; r < rows; r += 4) {
            float sums[4];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                int sum = 0, least = 0;
                #pragma unroll
                for (ushort s = 0; s < 4; ++s) {
                    int hi = 0, lo = 0;
                    #pragma unroll
                    for (ushort c = 0; c < 4; ++c) {
                        const uint two = (now.q[i][c] >> (2 * s)) & 0x03030303u;
                        hi = int8_dot_high(two, a.high[4 * s + c], hi);
                        lo = int8_dot_low(two, a.low[4 * s + c], lo);
                    }
                    const uint four = s < 2 ? now.scales[i].x : now.scales[i].y;
                    const uint sub = (four >> (16u * (s & 1) + 8u * (lane & 1))) & 255u;
                    sum += int(sub & 15u) * (hi * 256 + lo);
                    least += int(sub >> 4) * a.sums[s];
                }
                const float d = float(as_type<half>(ushort(now.both[i] & 0xffffu)));
                const float m = float(as_type<half>(ushort(now.both[i] >> 16)));
                sums[i] = (d * float(sum) - m * float(least)) * a.scale;
            }
            if (r + 4 < rows) { experts_int8_load_q2(w, plane, first + r + 4, columns, column, lane, now); }
            const float sum = int8_reduce4(sums, lane);
            if (lane < 4) { out[r + lane] += sum; }
        }
    }
}

// The same for 1,024 columns of the shared expert from k0 on: 16 from 16·lane on and 16 from 512 + 16·lane on.
inline void experts_int8_shared(device const uchar *w, ulong plane, uint first, uint rows, uint columns, uint k0,
                                device const float *x, ushort lane, threadgroup experts_int8_x &memory,
                                threadgroup float *out) {
    threadgroup uint *high = (threadgroup uint *)memory.high, *low = (threadgroup uint *)memory.low;
    float most[8];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    #pragma unroll
    for (ushort i = 0; i < 8; ++i) {
        const uint k = k0 + 128u * i + 4u * lane;
        const float4 a = k < columns ? *(device const float4 *)(x + k) : float4(0.0f);
        // Of a block of 32 columns: eight lanes.
        most[i] = int8_most(a, 0.0f);
        most[i] = max(most[i], simd_shuffle_xor(most[i], 1));
        most[i] = max(most[i], simd_shuffle_xor(most[i], 2));
        most[i] = max(most[i], simd_shuffle_xor(most[i], 4));
        uint h;
        uint l;
        int8_split4(a, int8_inverse(most[i]), h, l);
        high[32 * i + lane] = h;
        low[32 * i + lane] = l;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    uint4 xh[2];
    uint4 xl[2];
    float scale[2];
    #pragma unroll
    for (ushort p = 0; p < 2; ++p) {
        xh[p] = memory.high[32 * p + lane];
        xl[p] = memory.low[32 * p + lane];
        // Block 16·p + lane / 2: of piece 4·p + lane / 8, its eight lanes from 8·(lane / 2 % 4) on.
        float found = 0.0f;
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const float other = simd_shuffle(most[4 * p + i], 8 * (lane / 2 % 4));
            if (lane / 8 == i) { found = other; }
        }
        scale[p] = int8_scale(found);
    }
    #pragma unroll(1)
    for (uint r = 0; r < rows; r += 4) {
        uint4 q[4][2];
        float d[4][2];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const ulong line = first + r + i;
            #pragma unroll
            for (ushort p = 0; p < 2; ++p) {
                const uint at = k0 + 512u * p + 16u * lane, k = at < columns ? at : 0u;
                q[i][p] = *(device const uint4 *)(w + line * columns + k);
                d[i][p] = quant_half(w + plane + (line * (columns / 32) + k / 32) * 2);
            }
        }
        float sums[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            sums[i] = 0.0f;
            #pragma unroll
            for (ushort p = 0; p < 2; ++p) {
                int hi = 0, lo = 0;
                #pragma unroll
                for (ushort c = 0; c < 4; ++c) {
                    hi = int8_dot_high(q[i][p][c], xh[p][c], hi);
                    lo = int8_dot_low(q[i][p][c], xl[p][c], lo);
                }
                sums[i] += float(hi * 256 + lo) * (d[i][p] * scale[p]);
            }
        }
        const float sum = int8_reduce4(sums, lane);
        if (lane < 4) { out[r + lane] += sum; }
    }
}

[[max_total_threads_per_threadgroup(INT8_THREADS)]]
kernel void experts_down_int8(device const uchar *down          [[buffer(0)]],
                              device const uchar *shared_down   [[buffer(1)]],
                              device const float *h             [[buffer(2)]],
                              device const int *ids             [[buffer(3)]],
                              device float *y                   [[buffer(4)]],
                              constant gpu_experts &p           [[buffer(5)]],
                              uint2 tg                          [[threadgroup_position_in_grid]],
                              ushort tid                        [[thread_index_in_threadgroup]],
                              ushort sg                         [[simdgroup_index_in_threadgroup]],
                              ushort lane                       [[thread_index_in_simdgroup]])
{
    threadgroup float parts[8][EXPERT_INT8_MOST];
    threadgroup experts_int8_x memory[8];
    for (ushort i = lane; i < EXPERT_INT8_MOST; i += 32) { parts[sg][i] = 0.0f; }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const uint rows = p.tile, row = tg.x * rows, pieces = (p.shared_inner + 1023u) / 1024u;
    device const float *shared = h + ulong(p.n) * p.used * p.inner + ulong(tg.y) * p.shared_inner;
    for (uint j = sg; j < p.used + pieces; j += 8) {
        if (j < p.used) {
            const ulong assignment = ulong(tg.y) * p.used + j;
            experts_int8_routed(down, p.down_plane, ulong(ids[assignment]) * p.hidden + row, rows, p.inner,
                                h + assignment * p.inner, lane, memory[sg], parts[sg]);
        } else {
            experts_int8_shared(shared_down, p.shared_plane, row, rows, p.shared_inner, (j - p.used) * 1024u, shared,
                                lane, memory[sg], parts[sg]);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid < rows) {
        float sum = 0.0f;
        for (ushort s = 0; s < 8; ++s) { sum += parts[s][tid]; }
        y[ulong(tg.y) * p.hidden + row + tid] = sum;
    }
}
