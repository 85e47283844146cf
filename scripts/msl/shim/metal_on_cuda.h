// MSL -> CUDA C++ (NVRTC with -default-device, or nvcc when every helper is `inline`). No CUDA headers are needed.
#pragma once
#define MSL_CUDA 1
#define MSL_TILE_MMA 1
#define __METAL_VERSION__ 310
typedef unsigned char uchar; typedef unsigned short ushort; typedef unsigned int uint; typedef unsigned long ulong;
#ifdef __CUDACC_RTC__
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t; typedef unsigned long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#define FLT_MAX 3.402823466e+38f
#else
#include <stdint.h>
#include <math.h>
#endif
#define MSL_D __device__ __forceinline__
#define METAL_FUNC MSL_D

// ---- half, bfloat: storage of 16 bits, one rounding per operation ----
struct half {
    ushort u;
    half() = default;
    MSL_D half(float f) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(u) : "f"(f)); }
    MSL_D half(int i) : half((float)i) { } MSL_D half(uint i) : half((float)i) { }
    MSL_D operator float() const { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(u)); return f; }
};
struct bfloat {
    ushort u;
    bfloat() = default;
    MSL_D bfloat(float f) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(u) : "f"(f)); }
    MSL_D operator float() const { return __uint_as_float((uint)u << 16); }
};
#define MSL_HOP(T, op) MSL_D T operator op(T a, T b) { return T((float)a op (float)b); } \
  MSL_D float operator op(T a, float b) { return (float)a op b; } MSL_D float operator op(float a, T b) { return a op (float)b; } \
  MSL_D T operator op(T a, int b) { return T((float)a op (float)b); } MSL_D T operator op(int a, T b) { return T((float)a op (float)b); }
#define MSL_HAS(T, op) MSL_D T &operator op##=(T &a, T b) { a = T((float)a op (float)b); return a; } MSL_D T &operator op##=(T &a, float b) { a = T((float)a op b); return a; }
#define MSL_HALL(T) MSL_HOP(T, +) MSL_HOP(T, -) MSL_HOP(T, *) MSL_HOP(T, /) MSL_HAS(T, +) MSL_HAS(T, -) MSL_HAS(T, *) MSL_HAS(T, /) MSL_D T operator-(T a) { T r; r.u = a.u ^ 0x8000; return r; }
MSL_HALL(half) MSL_HALL(bfloat)

// ---- vectors with swizzles ----
template <class T, int N> struct msl_vec;
template <class T, int N> struct msl_size { enum { n = sizeof(T) * (N == 3 ? 4 : N) }; };
template <class T, int M, int A, int B, int C = -1, int D = -1> struct msl_swz {        // lives in the vector's union
    enum { N = C < 0 ? 2 : D < 0 ? 3 : 4 };
    T e[M];
    MSL_D operator msl_vec<T, N>() const { msl_vec<T, N> r; r[0] = e[A]; r[1] = e[B]; if (C >= 0) r[N > 2 ? 2 : 0] = e[C < 0 ? 0 : C]; if (D >= 0) r[N > 3 ? 3 : 0] = e[D < 0 ? 0 : D]; return r; }
    MSL_D msl_swz &operator=(const msl_vec<T, N> &v) { e[A] = v[0]; e[B] = v[1]; if (C >= 0) e[C < 0 ? 0 : C] = v[N > 2 ? 2 : 0]; if (D >= 0) e[D < 0 ? 0 : D] = v[N > 3 ? 3 : 0]; return *this; }
};
template <class T, int M> struct msl_data;
template <class T> struct __align__(2 * sizeof(T)) msl_data<T, 2> { union { T e[2]; struct { T x, y; }; struct { T r, g; }; msl_swz<T, 2, 0, 1> xy; msl_swz<T, 2, 1, 0> yx; msl_swz<T, 2, 0, 0> xx; msl_swz<T, 2, 1, 1> yy; }; };
template <class T> struct __align__(4 * sizeof(T)) msl_data<T, 3> { union { T e[4]; struct { T x, y, z; }; struct { T r, g, b; }; msl_swz<T, 4, 0, 1> xy; msl_swz<T, 4, 1, 2> yz; msl_swz<T, 4, 0, 2> xz; msl_swz<T, 4, 0, 1, 2> xyz; }; };
template <class T> struct __align__(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) msl_data<T, 4> { union { T e[4]; struct { T x, y, z, w; }; struct { T r, g, b, a; };
    msl_swz<T, 4, 0, 1> xy; msl_swz<T, 4, 0, 2> xz; msl_swz<T, 4, 0, 3> xw; msl_swz<T, 4, 1, 0> yx; msl_swz<T, 4, 1, 2> yz; msl_swz<T, 4, 1, 3> yw; msl_swz<T, 4, 2, 3> zw; msl_swz<T, 4, 3, 2> wz; msl_swz<T, 4, 2, 0> zx;
    msl_swz<T, 4, 0, 1, 2> xyz; msl_swz<T, 4, 1, 2, 3> yzw; msl_swz<T, 4, 0, 1, 2, 3> xyzw; msl_swz<T, 4, 3, 2, 1, 0> wzyx; msl_swz<T, 4, 2, 3, 0, 1> zwxy; msl_swz<T, 4, 1, 0, 3, 2> yxwz; msl_swz<T, 4, 0, 0, 0, 0> xxxx; }; };
template <class A> struct msl_el { typedef A type; enum { n = 1 }; };
template <class T, int N> struct msl_el<msl_vec<T, N>> { typedef T type; enum { n = N }; };
template <class T, int M, int A, int B, int C, int D> struct msl_el<msl_swz<T, M, A, B, C, D>> { typedef T type; enum { n = msl_swz<T, M, A, B, C, D>::N }; };
template <bool B, class T = void> struct msl_if { }; template <class T> struct msl_if<true, T> { typedef T type; };
template <class T> struct msl_is_scalar { enum { v = 0 }; };
#define MSL_SC(T) template <> struct msl_is_scalar<T> { enum { v = 1 }; };
MSL_SC(bool) MSL_SC(char) MSL_SC(signed char) MSL_SC(uchar) MSL_SC(short) MSL_SC(ushort) MSL_SC(int) MSL_SC(uint) MSL_SC(long) MSL_SC(ulong) MSL_SC(half) MSL_SC(bfloat) MSL_SC(float)
template <class T, int N> struct msl_vec : msl_data<T, N> {
    using msl_data<T, N>::e;
    msl_vec() = default;
    template <class S, class = typename msl_if<msl_is_scalar<S>::v>::type> MSL_D msl_vec(S s) { for (int i = 0; i < N; ++i) e[i] = (T)s; }      // splat (implicit, as in MSL)
    template <class S, class = typename msl_if<!msl_is_scalar<S>::v>::type, int M = msl_el<S>::n> MSL_D explicit msl_vec(const S &o) { static_assert(M == N, "vector size"); msl_vec<typename msl_el<S>::type, N> v = o; for (int i = 0; i < N; ++i) e[i] = (T)v[i]; }
    template <class A, class B, class... R> MSL_D msl_vec(const A &a, const B &b, const R &...r) { int k = 0; put(k, a); put(k, b); int d[] = {0, (put(k, r), 0)...}; (void)d; static_assert(sum<A, B, R...>() == N, "vector constructor: wrong number of components"); }
    MSL_D T &operator[](int i) { return e[i]; }
    MSL_D const T &operator[](int i) const { return e[i]; }
private:
    template <class A> static MSL_D constexpr int sum() { return msl_el<A>::n; }
    template <class A, class B, class... R> static MSL_D constexpr int sum() { return msl_el<A>::n + sum<B, R...>(); }
    template <class A> MSL_D typename msl_if<msl_el<A>::n == 1>::type put(int &k, const A &a) { e[k++] = (T)a; }
    template <class A> MSL_D typename msl_if<(msl_el<A>::n > 1)>::type put(int &k, const A &a) { msl_vec<typename msl_el<A>::type, msl_el<A>::n> v = a; for (int i = 0; i < msl_el<A>::n; ++i) e[k++] = (T)v[i]; }
};
#define MSL_VOP(op) \
  template <class T, int N> MSL_D msl_vec<T, N> operator op(msl_vec<T, N> a, msl_vec<T, N> b) { msl_vec<T, N> r; _Pragma("unroll") for (int i = 0; i < N; ++i) r[i] = a[i] op b[i]; return r; } \
  template <class T, int N, class S, class = typename msl_if<msl_is_scalar<S>::v>::type> MSL_D msl_vec<T, N> operator op(msl_vec<T, N> a, S b) { return a op msl_vec<T, N>(b); } \
  template <class T, int N, class S, class = typename msl_if<msl_is_scalar<S>::v>::type> MSL_D msl_vec<T, N> operator op(S a, msl_vec<T, N> b) { return msl_vec<T, N>(a) op b; } \
  template <class T, int N, class B> MSL_D msl_vec<T, N> &operator op##=(msl_vec<T, N> &a, const B &b) { a = a op b; return a; }
MSL_VOP(+) MSL_VOP(-) MSL_VOP(*) MSL_VOP(/) MSL_VOP(&) MSL_VOP(|) MSL_VOP(^) MSL_VOP(<<) MSL_VOP(>>) MSL_VOP(%)
template <class T, int N> MSL_D msl_vec<T, N> operator-(msl_vec<T, N> a) { msl_vec<T, N> r; for (int i = 0; i < N; ++i) r[i] = -a[i]; return r; }
// Two halfs in one instruction, each operation rounded once.
#define MSL_H2(op, name) MSL_D msl_vec<half, 2> operator op(msl_vec<half, 2> a, msl_vec<half, 2> b) { union { msl_vec<half, 2> h; uint u; } x = {a}, y = {b}, z = {a}; asm(name " %0, %1, %2;" : "=r"(z.u) : "r"(x.u), "r"(y.u)); return z.h; }
MSL_H2(+, "add.rn.f16x2") MSL_H2(-, "sub.rn.f16x2") MSL_H2(*, "mul.rn.f16x2")
#define MSL_VC(op) template <class T, int N> MSL_D msl_vec<bool, N> operator op(msl_vec<T, N> a, msl_vec<T, N> b) { msl_vec<bool, N> r; for (int i = 0; i < N; ++i) r[i] = a[i] op b[i]; return r; }
MSL_VC(==) MSL_VC(!=) MSL_VC(<) MSL_VC(>) MSL_VC(<=) MSL_VC(>=)
#define MSL_VT(T) typedef msl_vec<T, 2> msl_##T##2; typedef msl_vec<T, 3> msl_##T##3; typedef msl_vec<T, 4> msl_##T##4;
MSL_VT(char) MSL_VT(uchar) MSL_VT(short) MSL_VT(ushort) MSL_VT(int) MSL_VT(uint) MSL_VT(long) MSL_VT(ulong) MSL_VT(half) MSL_VT(bfloat) MSL_VT(float) MSL_VT(bool)

template <class T> struct msl_b { static MSL_D T get(uint x, uint, uint) { return (T)x; } };
template <class T> struct msl_b<msl_vec<T, 2>> { static MSL_D msl_vec<T, 2> get(uint x, uint y, uint) { return msl_vec<T, 2>(x, y); } };
template <class T> struct msl_b<msl_vec<T, 3>> { static MSL_D msl_vec<T, 3> get(uint x, uint y, uint z) { return msl_vec<T, 3>(x, y, z); } };
struct msl_u3 { uint x, y, z; };
template <class T> MSL_D T msl_builtin(msl_u3 v) { return msl_b<T>::get(v.x, v.y, v.z); }
MSL_D msl_u3 msl_thread_position_in_threadgroup() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
MSL_D msl_u3 msl_threadgroup_position_in_grid() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
MSL_D msl_u3 msl_threads_per_threadgroup() { return {blockDim.x, blockDim.y, blockDim.z}; }
MSL_D msl_u3 msl_threadgroups_per_grid() { return {gridDim.x, gridDim.y, gridDim.z}; }
MSL_D msl_u3 msl_threads_per_grid() { return {gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z}; }
MSL_D msl_u3 msl_thread_position_in_grid() { return {blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z}; }
MSL_D msl_u3 msl_thread_index_in_threadgroup() { return {threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), 0, 0}; }
MSL_D msl_u3 msl_simdgroup_index_in_threadgroup() { return {msl_thread_index_in_threadgroup().x >> 5, 0, 0}; }
MSL_D msl_u3 msl_thread_index_in_simdgroup() { return {msl_thread_index_in_threadgroup().x & 31, 0, 0}; }
MSL_D msl_u3 msl_simdgroups_per_threadgroup() { return {(blockDim.x * blockDim.y * blockDim.z + 31) >> 5, 0, 0}; }
MSL_D msl_u3 msl_threads_per_simdgroup() { return {32, 0, 0}; }
extern __shared__ __align__(128) char msl_dyn_smem[];

// ---- tensor cores, for tile.h ----
MSL_D void msl_ldmatrix_x4(uint (&r)[4], const half *p) {
    uint a = (uint)__cvta_generic_to_shared(p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
MSL_D void msl_ldmatrix_x4_trans(uint (&r)[4], const half *p) {
    uint a = (uint)__cvta_generic_to_shared(p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
MSL_D void msl_mma_m16n8k16(float *c, const uint *a, const uint *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// ---- for matvec_int8: signed bytes times signed or unsigned ones, 16 × 32 × 8 ----
#define MSL_MMA8(name, kind) MSL_D void name(int *c, const uint *a, const uint *b) { \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8." kind ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }
MSL_MMA8(msl_mma_m16n8k32_s8, "s8") MSL_MMA8(msl_mma_m16n8k32_u8, "u8")
// ---- for wide.h: copies that go on by themselves, and matrices of four simdgroups (Hopper) ----
MSL_D void msl_copy16(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((uint)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
MSL_D void msl_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> MSL_D void msl_copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define MSL_WGMMA 1
// B in threadgroup memory as 8 × 16 bytes behind one another; `k`, `n`: bytes from such a piece to the next one in K and N.
MSL_D ulong msl_wgmma_b(const void *p, uint k, uint n) {
    return (ulong)(((uint)__cvta_generic_to_shared(p) & 0x3ffffu) >> 4) | (ulong)(k >> 4) << 16 | (ulong)(n >> 4) << 32;
}
MSL_D void msl_wgmma_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
MSL_D void msl_wgmma_end() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
MSL_D void msl_wgmma_see_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
MSL_D void msl_wgmma_n64(float *d, const uint *a, ulong b) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
MSL_D void msl_wgmma_n128(float *d, const uint *a, ulong b) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, p, 1, 1, 0; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif
// A kernel that was launched before the one it depends on had ended waits here; elsewhere both do nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MSL_ENTER asm volatile("griddepcontrol.wait;" ::: "memory"); asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#else
#define MSL_ENTER
#endif
#define MSL_KERNEL static MSL_D
#define msl_kernel
#define msl_inline MSL_D
#define msl_device
#define msl_thread
#define msl_constant const
#define msl_threadgroup
#define constant_decl static __device__ const
#define threadgroup_decl __shared__
#define char2 msl_char2
#define char4 msl_char4
#define uchar4 msl_uchar4
#define short2 msl_short2
#define short4 msl_short4
#define ushort2 msl_ushort2
#define ushort4 msl_ushort4
#define int2 msl_int2
#define int3 msl_int3
#define int4 msl_int4
#define uint2 msl_uint2
#define uint3 msl_uint3
#define uint4 msl_uint4
#define ulong2 msl_ulong2
#define half2 msl_half2
#define half3 msl_half3
#define half4 msl_half4
#define bfloat4 msl_bfloat4
#define float2 msl_float2
#define float3 msl_float3
#define float4 msl_float4
#define bool4 msl_bool4
