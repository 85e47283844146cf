// wide.h — products of 64 rows × N tokens by a team of four simdgroups: weights become halfs in the
// registers that multiply, activations lie packed in threadgroup memory. For devices with memory of their
// own: wgmma on Hopper, mma.sync on other NVIDIA GPUs, both from the same registers; the host emulates the
// latter.
//
// Packed activations (half_pack): units of eight columns, [columns / 8][tokens][8] halfs. Among each 64
// columns they are permuted so that a lane's fragments are 16 weights that lie together: of unit 2·s + h,
// pair q, value j is column 16·q + 4·s + 2·h + j.
#ifndef PYDS4_WIDE_H
#define PYDS4_WIDE_H
#include <metal_stdlib>
#include "int8.h"
using namespace metal;

#define WIDE_K 64u
#define WIDE_STAGES 4u
#define WIDE_THREADS 256u

// ---------------------------------------------------------------- weights

// Sixteen weights of a lane as they lie in memory.
struct wide_raw {
    uint4 q;
    uint4 more;  // F16: the other eight; else scales
};

template <uint T>
inline void wide_load(device const uchar *w, ulong plane, ulong row, uint columns, uint k, thread wide_raw &out) {
    if (T == GPU_F16) {
        device const uint4 *p = (device const uint4 *)(w + (row * columns + k) * 2);
        out.q = p[0];
        out.more = p[1];
    } else if (T == GPU_Q8_0_PLANES) {
        out.q = *(device const uint4 *)(w + row * columns + k);
        out.more.x = *(device const ushort *)(w + plane + (row * columns + k) / 32 * 2);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(device const uint2 *)(w + (row * columns + k) / 32 * 8);
        out.q.x = group.x >> (k & 16u);
        out.q.y = group.y;
        out.more.x = *(device const ushort *)(w + plane + (row * columns + k) / 256 * 2);
    } else {  // Q2_K planes
        const uint j = (k % 256u) / 16u, h = j / 8u, l = (j & 1u) * 16u;
        const ulong block = (row * columns + k) / 256;
        out.q = *(device const uint4 *)(w + block * 64 + 32u * h + l);
        out.more.x = w[plane + block * 16 + j];
        out.more.y = *(device const uint *)(w + plane + plane / 4 + block * 4);
    }
}

// The lane's halfs: out[2·s] columns 4·s and 4·s + 1, out[2·s + 1] the two after them.
template <uint T>
inline void wide_decode(thread const wide_raw &raw, uint k, threadgroup const uchar *table, uint copy, thread uint *out) {
    if (T == GPU_F16) {
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            out[i] = raw.q[i];
            out[4 + i] = raw.more[i];
        }
    } else if (T == GPU_Q8_0_PLANES) {
        const half2 d = half2(as_type<half>(ushort(raw.more.x)));
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint2 four = quant_signed_half4(raw.q[i], d);
            out[2 * i] = four.x;
            out[2 * i + 1] = four.y;
        }
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const float scale = float(as_type<half>(ushort(raw.more.x))) * float(2u * (raw.q.y >> 28) + 1u) * 0.125f;
        const half2 d = half2(half(scale)), zero = half2(1152.0h);
        const uint signs = (k & 16u) != 0u ? raw.q.y >> 14 : raw.q.y;
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint nibbles = int8_nibbles(table, raw.q.x, signs, e, copy);
            // Signed magnitudes plus 128.
            const uint a = int8_select4(nibbles, 0x00ab9988u, 0x00556778u);
            const uint b = int8_select4(nibbles >> 16, 0x00ab9988u, 0x00556778u);
            out[4 * e] = as_type<uint>((quant_bytes_half2(a, 0) - zero) * d);
            out[4 * e + 1] = as_type<uint>((quant_bytes_half2(a, 1) - zero) * d);
            out[4 * e + 2] = as_type<uint>((quant_bytes_half2(b, 0) - zero) * d);
            out[4 * e + 3] = as_type<uint>((quant_bytes_half2(b, 1) - zero) * d);
        }
    } else {  // Q2_K planes
        const uint shift = (k % 128u) / 32u * 2u;
        const float scale = float(as_type<half>(ushort(raw.more.y & 0xffffu))) * float(raw.more.x & 15u);
        const float least = float(as_type<half>(ushort(raw.more.y >> 16))) * float(raw.more.x >> 4);
        const half2 d = half2(half(scale)), m = half2(half(least)), zero = half2(1024.0h);
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint two = (raw.q[i] >> shift) & 0x03030303u;
            out[2 * i] = as_type<uint>((quant_bytes_half2(two, 0) - zero) * d - m);
            out[2 * i + 1] = as_type<uint>((quant_bytes_half2(two, 1) - zero) * d - m);
        }
    }
}

// ---------------------------------------------------------------- the product

// acc += a · b for one step of 16 columns: `b` is its first unit of N tokens.
template <ushort N>
inline void wide_step(thread float *acc, thread const uint *a, threadgroup const uint4 *b, ushort lane) {
#ifdef MSL_WGMMA
    const ulong description = msl_wgmma_b(b, N * 16, 128);
    if (N == 64) { msl_wgmma_n64(acc, a, description); } else { msl_wgmma_n128(acc, a, description); }
#else
    threadgroup const uint *words = (threadgroup const uint *)b;
    #pragma unroll
    for (ushort j = 0; j < N / 8; ++j) {
        const uint token = 8 * j + lane / 4;
        const uint pair[2] = {words[4 * token + lane % 4], words[4 * (N + token) + lane % 4]};
        msl_mma_m16n8k16(acc + 4 * j, a, pair);
    }
#endif
}

inline void wide_begin() {
#ifdef MSL_WGMMA
    msl_wgmma_begin();
#endif
}
inline void wide_end() {
#ifdef MSL_WGMMA
    msl_wgmma_end();
#endif
}
inline void wide_see_copies() {
#ifdef MSL_WGMMA
    msl_wgmma_see_copies();
#endif
}

// What a team's lanes multiply: rows row[set] + 16·(simdgroup % 4) + lane / 4, and eight further.
template <ushort SETS>
struct wide_weights {
    device const uchar *w[SETS];
    ulong row[SETS];
    uint last[SETS];  // rows that there are behind row[set]: further ones repeat the last
    ulong plane;
    uint columns;
};

// Fetches a stage: 64 columns of `tokens` tokens, the last of which stands in for those behind it.
template <ushort N>
inline void wide_fetch(device const uint4 *x, uint stride, uint first, uint tokens, uint k, threadgroup uint4 *stage,
                       ushort tid) {
    #pragma unroll
    for (uint i = 0; i < N * 8u / WIDE_THREADS; ++i) {
        const uint at = i * WIDE_THREADS + tid, unit = at / N, token = at % N;
        msl_copy16(stage + at, x + ulong(k / 8 + unit) * stride + first + min(token, tokens - 1));
    }
}

// acc[set][N / 2] of one team, as mma leaves them: acc[4·j + c] is row lane / 4 + 8·(c / 2), token
// 8·j + 2·(lane % 4) + c % 2. `x`: the first column's units. All threads of the threadgroup must call.
template <uint T, ushort SETS, ushort N>
inline void wide_product(thread const wide_weights<SETS> &weights, device const uint4 *x, uint stride, uint first,
                         uint tokens, threadgroup uint4 *ring, threadgroup const uchar *table, ushort tid, ushort sg, ushort lane,
                         thread float (&acc)[SETS][N / 2]) {
    const uint steps = weights.columns / WIDE_K, size = N * 8u;
    #pragma unroll
    for (ushort s = 0; s < SETS; ++s) {
        #pragma unroll
        for (ushort i = 0; i < N / 2; ++i) { acc[s][i] = 0.0f; }
    }
    #pragma unroll
    for (uint i = 0; i < WIDE_STAGES - 1; ++i) {
        if (i < steps) { wide_fetch<N>(x, stride, first, tokens, i * WIDE_K, ring + i * size, tid); }
        msl_copy_commit();
    }
    const uint copy = lane % 8 * 4u, own = 16u * (sg & 3) + lane / 4, shift = 16u * (lane & 3);
    wide_raw raw[SETS][2];
    #pragma unroll
    for (ushort s = 0; s < SETS; ++s) {
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            wide_load<T>(weights.w[s], weights.plane, weights.row[s] + min(own + 8u * i, weights.last[s]), weights.columns,
                         shift, raw[s][i]);
        }
    }
    #pragma unroll(1)
    for (uint i = 0; i < steps; ++i) {
        msl_copy_wait<WIDE_STAGES - 2>();
        wide_see_copies();
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Everyone is past the step that read the stage this overwrites.
        const uint ahead = i + WIDE_STAGES - 1;
        if (ahead < steps) {
            wide_fetch<N>(x, stride, first, tokens, ahead * WIDE_K, ring + ahead % WIDE_STAGES * size, tid);
        }
        msl_copy_commit();
        uint a[SETS][4][4];
        const uint k = i * WIDE_K + shift;
        #pragma unroll
        for (ushort s = 0; s < SETS; ++s) {
            #pragma unroll
            for (ushort r = 0; r < 2; ++r) {
                uint halfs[8];
                wide_decode<T>(raw[s][r], k, table, copy, halfs);
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) {
                    a[s][j][r] = halfs[2 * j];
                    a[s][j][2 + r] = halfs[2 * j + 1];
                }
                if (i + 1 < steps) {
                    wide_load<T>(weights.w[s], weights.plane, weights.row[s] + min(own + 8u * r, weights.last[s]),
                                 weights.columns, k + WIDE_K, raw[s][r]);
                }
            }
        }
        threadgroup const uint4 *stage = ring + i % WIDE_STAGES * size;
        wide_begin();
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            #pragma unroll
            for (ushort s = 0; s < SETS; ++s) { wide_step<N>(acc[s], a[s][j], stage + 2 * j * N, lane); }
        }
        wide_end();
    }
}
#endif
