// tile.h — a 16 × 16 × 16 matrix step of one simdgroup: half inputs, f32 sums. The only place that knows
// simdgroup_matrix (Metal: four 8 × 8) from mma.sync (CUDA: ldmatrix and two m16n8k16); the host runs
// either branch, emulated.
//
// A is [16, k] row-major, B is given transposed ([16, k] row-major, as weights lie), both in threadgroup
// memory. `ld` is a multiple of 8 halfs and tile corners are aligned to 16 bytes: ldmatrix asks for it.
//
// What a lane has of C: rows tile_row and that + 8, of each four columns. tile_add_positive weighs what is
// above zero of these, and tile_across sums what the lanes of a row have. tile_join: c = c + d.
#ifndef TILE_H
#define TILE_H
#include <metal_stdlib>
using namespace metal;
#define TILE 16

#ifdef MSL_TILE_MMA       // CUDA; on the host -DMSL_TILE_MMA runs this branch too, with ldmatrix and mma emulated
struct tile_a { uint r[4]; };
struct tile_b { uint r[4]; };
struct tile_c { float r[8]; };
inline void tile_zero(thread tile_c &c) { for (int i = 0; i < 8; ++i) c.r[i] = 0.0f; }
inline void tile_load_a(thread tile_a &t, threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4(t.r, p + (lane & 15) * ld + (lane >> 4) * 8);
}
inline void tile_load_bt(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4(t.r, p + ((lane & 7) + ((lane >> 4) << 3)) * ld + ((lane >> 3) & 1) * 8);
}
// B as it lies for values: [k, 16] row-major.
inline void tile_load_b(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4_trans(t.r, p + ((lane & 7) + ((lane >> 3) & 1) * 8) * ld + (lane >> 4) * 8);
}
// Row r of c times factors[r].
inline void tile_scale_rows(thread tile_c &c, threadgroup const float *factors, ushort lane) {
    const float low = factors[lane >> 2], high = factors[(lane >> 2) + 8];
    for (int h = 0; h < 2; ++h) {
        c.r[h * 4] *= low;
        c.r[h * 4 + 1] *= low;
        c.r[h * 4 + 2] *= high;
        c.r[h * 4 + 3] *= high;
    }
}
// Adds what tile_stage put there.
inline void tile_add(thread tile_c &c, threadgroup const float *p, uint ld, ushort lane) {
    const uint r = lane >> 2, x = (lane & 3) * 2;
    for (int h = 0; h < 2; ++h) {
        const float2 low = *(threadgroup const float2 *)(p + r * ld + h * 8 + x);
        const float2 high = *(threadgroup const float2 *)(p + (r + 8) * ld + h * 8 + x);
        c.r[h * 4] += low.x;
        c.r[h * 4 + 1] += low.y;
        c.r[h * 4 + 2] += high.x;
        c.r[h * 4 + 3] += high.y;
    }
}
inline void tile_mma(thread tile_c &c, thread tile_a &a, thread tile_b &b) {
    msl_mma_m16n8k16(c.r, a.r, b.r);
    msl_mma_m16n8k16(c.r + 4, a.r, b.r + 2);
}
inline void tile_stage(thread tile_c &c, threadgroup float *p, uint ld, ushort lane) {
    const uint r = lane >> 2, x = (lane & 3) * 2;
    for (int h = 0; h < 2; ++h) {
        *(threadgroup float2 *)(p + r * ld + h * 8 + x)       = float2(c.r[h * 4 + 0], c.r[h * 4 + 1]);
        *(threadgroup float2 *)(p + (r + 8) * ld + h * 8 + x) = float2(c.r[h * 4 + 2], c.r[h * 4 + 3]);
    }
}
inline void tile_join(thread tile_c &c, thread tile_c &d) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) { c.r[i] += d.r[i]; }
}
inline void tile_add_positive(thread tile_c &c, threadgroup const float *w, thread float *sum, ushort lane) {
    const ushort x = (lane & 3) * 2;
    const float2 a = *(threadgroup const float2 *)(w + x), b = *(threadgroup const float2 *)(w + x + 8);
    sum[0] += a.x * max(c.r[0], 0.0f) + a.y * max(c.r[1], 0.0f) + b.x * max(c.r[4], 0.0f) + b.y * max(c.r[5], 0.0f);
    sum[1] += a.x * max(c.r[2], 0.0f) + a.y * max(c.r[3], 0.0f) + b.x * max(c.r[6], 0.0f) + b.y * max(c.r[7], 0.0f);
}
inline ushort tile_row(ushort lane) { return lane >> 2; }
inline bool tile_is_first(ushort lane) { return (lane & 3) == 0; }
inline float tile_across(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 2);
}
#else
struct tile_a { simdgroup_half8x8 m[2][2]; };
struct tile_b { simdgroup_half8x8 m[2][2]; };
struct tile_c { simdgroup_float8x8 m[2][2]; };
inline void tile_zero(thread tile_c &c) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) c.m[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}
inline void tile_load_a(thread tile_a &t, threadgroup const half *p, ushort ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int k = 0; k < 2; ++k) simdgroup_load(t.m[i][k], p + i * 8 * ld + k * 8, ld);
}
inline void tile_load_bt(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    for (int k = 0; k < 2; ++k) for (int j = 0; j < 2; ++j) simdgroup_load(t.m[k][j], p + j * 8 * ld + k * 8, ld, ulong2(0), true);
}
inline void tile_load_b(thread tile_b &t, threadgroup const half *p, ushort ld, ushort lane) {
    for (int k = 0; k < 2; ++k) for (int j = 0; j < 2; ++j) simdgroup_load(t.m[k][j], p + k * 8 * ld + j * 8, ld);
}
inline void tile_scale_rows(thread tile_c &c, threadgroup const float *factors, ushort lane) {
    // Which row of an 8 × 8 matrix a lane's two elements belong to.
    const ushort row = (lane / 4 & 4) + lane / 2 % 4;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        c.m[i][j].thread_elements()[0] *= factors[i * 8 + row];
        c.m[i][j].thread_elements()[1] *= factors[i * 8 + row];
    }
}
inline void tile_add(thread tile_c &c, threadgroup const float *p, uint ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        simdgroup_float8x8 m;
        simdgroup_load(m, p + i * 8 * ld + j * 8, ld);
        c.m[i][j].thread_elements()[0] += m.thread_elements()[0];
        c.m[i][j].thread_elements()[1] += m.thread_elements()[1];
    }
}
inline void tile_mma(thread tile_c &c, thread tile_a &a, thread tile_b &b) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int k = 0; k < 2; ++k)
        simdgroup_multiply_accumulate(c.m[i][j], a.m[i][k], b.m[k][j], c.m[i][j]);
}
inline void tile_stage(thread tile_c &c, threadgroup float *p, uint ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) simdgroup_store(c.m[i][j], p + i * 8 * ld + j * 8, ld);
}
inline void tile_join(thread tile_c &c, thread tile_c &d) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int e = 0; e < 2; ++e) {
        c.m[i][j].thread_elements()[e] += d.m[i][j].thread_elements()[e];
    }
}
inline void tile_add_positive(thread tile_c &c, threadgroup const float *w, thread float *sum, ushort lane) {
    const ushort x = (lane / 4 & 2) * 2 + lane % 2 * 2;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        sum[i] += w[j * 8 + x] * max(c.m[i][j].thread_elements()[0], 0.0f)
                + w[j * 8 + x + 1] * max(c.m[i][j].thread_elements()[1], 0.0f);
    }
}
inline ushort tile_row(ushort lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline bool tile_is_first(ushort lane) { return (lane & 9) == 0; }
inline float tile_across(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 8);
}
#endif
#endif
