// MSL -> CUDA C++ (NVRTC with -default-device, or nvcc when every helper is `inline`). No CUDA headers are needed.

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
// What `#include <metal_stdlib>` finds under CUDA. Everything is in the global namespace (CUDA's own math is there);
// `metal` and its precise/fast re-export it.
#ifndef MSL_CUDA_STDLIB
#define MSL_CUDA_STDLIB
template <class T, class F> MSL_D T as_type(F f) { static_assert(sizeof(T) == sizeof(F), "as_type: sizes differ"); union U { F f; T t; MSL_D U() { } } u; u.f = f; return u.t; }
#define MSL_F1(name) MSL_D half name(half x) { return half(name((float)x)); } template <int N> MSL_D msl_vec<float, N> name(msl_vec<float, N> x) { for (int i = 0; i < N; ++i) x[i] = name(x[i]); return x; } template <int N> MSL_D msl_vec<half, N> name(msl_vec<half, N> x) { for (int i = 0; i < N; ++i) x[i] = name(x[i]); return x; }
MSL_F1(exp) MSL_F1(exp2) MSL_F1(log) MSL_F1(log2) MSL_F1(sqrt) MSL_F1(rsqrt) MSL_F1(sin) MSL_F1(cos) MSL_F1(tanh) MSL_F1(fabs) MSL_F1(floor) MSL_F1(ceil) MSL_F1(round) MSL_F1(rint) MSL_F1(trunc) 
MSL_D half min(half a, half b) { return (float)b < (float)a ? b : a; } MSL_D half max(half a, half b) { return (float)a < (float)b ? b : a; }
MSL_D ushort min(ushort a, ushort b) { return b < a ? b : a; } MSL_D ushort max(ushort a, ushort b) { return a < b ? b : a; }
template <class T, int N> MSL_D msl_vec<T, N> min(msl_vec<T, N> a, msl_vec<T, N> b) { for (int i = 0; i < N; ++i) a[i] = min(a[i], b[i]); return a; }
template <class T, int N> MSL_D msl_vec<T, N> max(msl_vec<T, N> a, msl_vec<T, N> b) { for (int i = 0; i < N; ++i) a[i] = max(a[i], b[i]); return a; }
template <class T> MSL_D T clamp(T x, T a, T b) { return min(max(x, a), b); }
template <class T, int N> MSL_D T dot(msl_vec<T, N> a, msl_vec<T, N> b) { T s = a[0] * b[0]; _Pragma("unroll") for (int i = 1; i < N; ++i) s = s + a[i] * b[i]; return s; }
MSL_D float mix(float a, float b, float t) { return a + (b - a) * t; }
template <class T> MSL_D T select(T a, T b, bool c) { return c ? b : a; }
template <int N> MSL_D msl_vec<float, N> fma(msl_vec<float, N> a, msl_vec<float, N> b, msl_vec<float, N> c) { for (int i = 0; i < N; ++i) a[i] = fma(a[i], b[i], c[i]); return a; }
MSL_D uint popcount(uint x) { return __popc(x); } MSL_D uint clz(uint x) { return __clz(x); } MSL_D uint ctz(uint x) { return x ? __ffs(x) - 1 : 32; }

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_D constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }
MSL_D void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_D void simdgroup_barrier(mem_flags) { __syncwarp(); }

#define MSL_ALL 0xffffffffu
// 32-bit words at a time; half and small types widened
template <class T> struct msl_w { enum { n = (sizeof(T) + 3) / 4 }; union { T t; uint w[n]; }; MSL_D msl_w() { } };
#define MSL_SHFL(name, arg, call) template <class T> MSL_D T name(T v, ushort arg) { msl_w<T> u; u.w[0] = 0; u.t = v; _Pragma("unroll") for (int i = 0; i < msl_w<T>::n; ++i) u.w[i] = call; return u.t; }
MSL_SHFL(simd_shuffle, l, __shfl_sync(MSL_ALL, u.w[i], l)) MSL_SHFL(simd_broadcast, l, __shfl_sync(MSL_ALL, u.w[i], l)) MSL_SHFL(simd_shuffle_xor, m, __shfl_xor_sync(MSL_ALL, u.w[i], m))
MSL_SHFL(simd_shuffle_down, d, __shfl_down_sync(MSL_ALL, u.w[i], d)) MSL_SHFL(simd_shuffle_up, d, __shfl_up_sync(MSL_ALL, u.w[i], d))
template <class T> MSL_D T simd_broadcast_first(T v) { return simd_broadcast(v, 0); }
#define MSL_RED(name, expr) template <class T> MSL_D T name(T a) { _Pragma("unroll") for (int m = 16; m; m >>= 1) { T b = simd_shuffle_xor(a, m); a = expr; } return a; }
MSL_RED(simd_sum, a + b) MSL_RED(simd_max, max(a, b)) MSL_RED(simd_min, min(a, b)) MSL_RED(simd_and, a & b) MSL_RED(simd_or, a | b) MSL_RED(simd_xor, a ^ b) MSL_RED(simd_product, a * b)
template <class T> MSL_D T simd_prefix_inclusive_sum(T v) { uint l = msl_thread_index_in_simdgroup().x; for (int d = 1; d < 32; d <<= 1) { T o = simd_shuffle_up(v, d); if (l >= d) v = v + o; } return v; }
template <class T> MSL_D T simd_prefix_exclusive_sum(T v) { uint l = msl_thread_index_in_simdgroup().x; T i = simd_shuffle_up(simd_prefix_inclusive_sum(v), 1); return l ? i : T(0); }
struct simd_vote { ulong v; MSL_D bool all() const { return v == 0xffffffffull; } MSL_D bool any() const { return v != 0; } MSL_D explicit operator ulong() const { return v; } };
MSL_D simd_vote simd_ballot(bool p) { return {__ballot_sync(MSL_ALL, p)}; }
MSL_D bool simd_any(bool p) { return __any_sync(MSL_ALL, p); } MSL_D bool simd_all(bool p) { return __all_sync(MSL_ALL, p); }

enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T v; };
typedef atomic<uint> atomic_uint; typedef atomic<int> atomic_int; typedef atomic<float> atomic_float;
template <class T> MSL_D T atomic_load_explicit(const volatile atomic<T> *a, memory_order) { return a->v; }
template <class T> MSL_D void atomic_store_explicit(volatile atomic<T> *a, T x, memory_order) { a->v = x; }
#define MSL_RMW(name, fn) template <class T> MSL_D T name(volatile atomic<T> *a, T x, memory_order) { return fn((T *)&a->v, x); }
MSL_RMW(atomic_fetch_add_explicit, atomicAdd) MSL_RMW(atomic_fetch_sub_explicit, atomicSub) MSL_RMW(atomic_fetch_max_explicit, atomicMax) MSL_RMW(atomic_fetch_min_explicit, atomicMin)
MSL_RMW(atomic_fetch_or_explicit, atomicOr) MSL_RMW(atomic_fetch_and_explicit, atomicAnd) MSL_RMW(atomic_fetch_xor_explicit, atomicXor) MSL_RMW(atomic_exchange_explicit, atomicExch)
namespace metal {
#define MSL_U(x) using ::x;
#define MSL_UM MSL_U(exp) MSL_U(exp2) MSL_U(log) MSL_U(log2) MSL_U(sqrt) MSL_U(rsqrt) MSL_U(sin) MSL_U(cos) MSL_U(tanh) MSL_U(fabs) MSL_U(floor) MSL_U(ceil) MSL_U(round) MSL_U(rint) MSL_U(trunc) MSL_U(pow)
MSL_UM MSL_U(min) MSL_U(max) MSL_U(clamp) MSL_U(dot) MSL_U(mix) MSL_U(select) MSL_U(fma) MSL_U(abs) MSL_U(as_type) MSL_U(mem_flags) MSL_U(threadgroup_barrier) MSL_U(simdgroup_barrier)
MSL_U(simd_shuffle) MSL_U(simd_shuffle_xor) MSL_U(simd_shuffle_up) MSL_U(simd_shuffle_down) MSL_U(simd_broadcast) MSL_U(simd_sum) MSL_U(simd_max) MSL_U(simd_min) MSL_U(simd_prefix_inclusive_sum) MSL_U(simd_prefix_exclusive_sum) MSL_U(simd_any) MSL_U(simd_all) MSL_U(simd_ballot)
MSL_U(atomic) MSL_U(atomic_uint) MSL_U(atomic_int) MSL_U(atomic_float) MSL_U(memory_order) MSL_U(memory_order_relaxed) MSL_U(atomic_fetch_add_explicit) MSL_U(atomic_load_explicit) MSL_U(atomic_store_explicit) MSL_U(popcount)
namespace precise { MSL_UM } namespace fast { MSL_UM }
}
#endif

using namespace metal;
#line 1 "attention.metal"
// attention.metal — attention of a few tokens, with one shared key = value row a position, a sliding window,
// compressed rows and a sink (report §2.3).
//
//   attention_split   one share of a token's rows for ATT_HEADS heads  -> parts [splits, n, heads, dim], and
//                                                                          sums [splits, n, heads] of (log2 of what
//                                                                          the weights are relative to, sum)
//   attention_merge   the shares, the sink, the inverse rotation       -> out [n, heads, dim]; and the last rows
//                                                                          of the call into their slots of the ring
//
// A token at p sees window rows (p - window, p], those before the call from the ring, then compressed rows:
// the selected ones, or the first (p + 1) / ratio. Ring and pages are those of its line of `sessions`.
//
// FP8 rows of 512 values go through the matrix units. A row's 448 plain values are exact in half; queries, weights
// of rows and rotated values are two halfs each, so that 22 bits of them count. Rows of other formats are
// multiplied one by one, in f32.
//
// Grid       split: x shares, y groups of heads, z tokens (each at most 65535); merge: x heads, y tokens from
//            p.first, z pieces of MERGE_VALUES values
// Precision  f32
// CPU twin   CKernels/attention.c
// Origin     ours

#line 1 "attention.h"
// attention.h — the rows that a token attends to, and how they reach the matrix units: for attention.metal
// and attention_prompt.metal.
#ifndef PYDS4_ATTENTION_H
#define PYDS4_ATTENTION_H

#line 1 "kv_rows.h"
// kv_rows.h — rows of attention memory in the model's own formats (drawn in CKernels/include/ckernels.h).
#ifndef PYDS4_KV_ROWS_H
#define PYDS4_KV_ROWS_H

#line 1 "kernel_args.h"
/* kernel_args.h — the argument structs of the GPU kernels, shared by C, Swift and the .metal files.
 *
 * Members are 4 or 8 bytes wide and lie at multiples of their size, so that every compiler agrees.
 * Shapes as in ckernels.h. "ld" is the distance of two rows, in values.
 */
#ifndef PYDS4_KERNEL_ARGS_H
#define PYDS4_KERNEL_ARGS_H





/* How a GPU keeps weights: a ggml type id, or a rearrangement of one into aligned planes.
 *   Q8_0 planes     all quants (int8, row-major), then all scales (half)
 *   Q2_K planes     all quants (64 bytes a block), then all sub-block scales (16), then all d and dmin (2 halfs)
 *   IQ2_XXS planes  all groups of 32 (8 bytes), then all scales (half) */
enum { GPU_F32 = 0, GPU_F16 = 1, GPU_Q4_0 = 2, GPU_Q8_0 = 8, GPU_Q2_K = 10, GPU_Q3_K = 11, GPU_Q4_K = 12,
       GPU_Q5_K = 13, GPU_Q6_K = 14, GPU_IQ2_XXS = 16, GPU_BF16 = 30, GPU_MXFP4 = 39, GPU_Q8_0_PLANES = 108,
       GPU_Q2_K_PLANES = 110, GPU_IQ2_XXS_PLANES = 116 };





enum { GPU_ROW_F32 = 0, GPU_ROW_FP8 = 1, GPU_ROW_FP4 = 2 };
enum { GPU_MOST_JOBS = 8 };

/* One matrix of a launch that multiplies several. */
struct gpu_matrix_job {
    uint32_t type;
    uint32_t rows;
    uint32_t columns;
    uint32_t group_rows; /* rows that read the same slice of x; `rows` when all do */
    uint32_t first_tile; /* of its row tiles, counted through all jobs */
    uint32_t tile_rows;  /* of matvec_int8: a multiple of 32 / slices */
    uint32_t slices;     /* of a row, each a simdgroup's: 1, 2, 4 or 8 */
    uint32_t unused;
    uint64_t plane;      /* byte offset of the scales in planes */
    uint64_t out;        /* float offset of its y [n, rows] */
};

struct gpu_matvec {
    uint32_t n;
    uint32_t ldx;
    uint32_t jobs;
    uint32_t unused;
    struct gpu_matrix_job job[GPU_MOST_JOBS];
};

struct gpu_embed {
    uint32_t type;
    uint32_t columns;
    uint64_t plane;
};

struct gpu_repack {
    uint64_t blocks;
    uint64_t first_block; /* of this part of the matrix */
    uint64_t plane;
};

/* y[m, r] = Σ_k w[r, k] · x[m, k] on the matrix units. With tiles: m counts places of the sorted
 * assignments, x is row token[m] / divide. */
struct gpu_matmul {
    uint32_t type;
    uint32_t n;
    uint32_t rows;
    uint32_t columns;
    uint32_t ldx;
    uint32_t ldy;
    uint32_t group_rows;
    uint32_t gather; /* 0: row m of x itself; else row order[m] / gather */
    uint64_t plane;
};

/* x, rounded to half, in the order that wide products read it. */
struct gpu_pack {
    uint32_t n;      /* tokens, or places of sorted assignments */
    uint32_t ldx;
    uint32_t stride; /* tokens between units of eight columns */
    uint32_t gather; /* 0: token m is row m of x; else row order[m] / gather */
};

struct gpu_wide_experts {
    uint32_t rows;    /* of one expert */
    uint32_t columns;
    uint32_t stride;  /* of the packed input, and of gate_up's output */
    float clamp;
    uint64_t plane;
};

struct gpu_rms_norm {
    uint32_t width;
    float epsilon;
};

struct gpu_rope_table {
    uint32_t n;
    uint32_t pairs;
};

struct gpu_queries {
    uint32_t heads;
    uint32_t dim;
    uint32_t rope;
    float epsilon;
};

struct gpu_index_queries {
    uint32_t heads;
    uint32_t dim;
    uint32_t rope;
    uint32_t rounded;
};

struct gpu_hc {
    uint32_t n;
    uint32_t dim;
    uint32_t outputs; /* 24, the head's 4 */
    uint32_t iterations;
    float norm_epsilon;  /* of the flattened streams */
    float epsilon;
    float input_epsilon; /* of the sublayer's norm */
    uint32_t type;       /* of fn */
    uint64_t plane;
};

struct gpu_row_format {
    uint32_t kind;
    uint32_t dim;
    uint32_t rope;
    uint32_t bytes;
};

struct gpu_key_rows {
    struct gpu_row_format format;
    float epsilon;
    uint32_t unused;
};

/* What a kernel reads of sessions it finds by a table of addresses, one line a session: the ring or the
 * running sums, then the pages of compressed rows. `table_stride` is the length of a line where every
 * token is of a session of its own, and 0 where all are consecutive tokens of one. */

struct gpu_compressor {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t ratio;
    uint32_t overlaps;
    uint32_t rows_per_page;
    uint32_t rope; /* values that carry the position, at the row's end */
    float epsilon;
    uint32_t table_stride;
    uint32_t unused;
};

struct gpu_indexer {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t heads;
    uint32_t ratio;
    uint32_t rows_per_page;
    uint32_t stride; /* of scores */
    uint32_t top;
    float scale;
    uint32_t table_stride;
    uint32_t tokens; /* consecutive ones that a threadgroup of scores takes; 0: one */
    uint32_t unused;
};

struct gpu_attention {
    struct gpu_row_format format;
    uint32_t n;
    uint32_t heads;
    uint32_t window;
    uint32_t ratio; /* 0: no compressed rows */
    uint32_t rows_per_page;
    uint32_t top; /* 0: all visible rows */
    uint32_t splits; /* 0: there are none to merge */
    float scale;
    uint32_t table_stride;
    uint32_t first; /* token to merge */
};

struct gpu_router {
    uint32_t experts;
    uint32_t used;
    float scale;
    uint32_t unused;
};

struct gpu_experts {
    uint32_t type;      /* of gate and up */
    uint32_t down_type;
    uint32_t shared_type;
    uint32_t n;
    uint32_t used;
    uint32_t experts;
    uint32_t hidden;    /* columns of gate, rows of down */
    uint32_t inner;
    uint32_t shared_inner;
    float clamp;
    float shared_clamp;
    uint32_t tile;      /* assignments in a tile of the sorted lists; rows of one of the integer kernels */
    uint64_t plane;     /* of gate and up */
    uint64_t down_plane;
    uint64_t shared_plane;
};

struct gpu_sampling {
    uint32_t count;
    uint32_t listed;
};

enum { GPU_MOST_COPIES = 96 };

#endif

#line 6 "kv_rows.h"
#line 1 "reduce.h"
// reduce.h — sums over a threadgroup.
#ifndef PYDS4_REDUCE_H
#define PYDS4_REDUCE_H

using namespace metal;

// The sum of `value` over all `simdgroups`, the same in every thread. `partial` [32] may be used again
// behind the next barrier only.
msl_inline float reduce_sum(float value, msl_threadgroup float *partial, ushort simdgroups, ushort sg, ushort lane) {
    const float sum = simd_sum(value);
    if (lane == 0) { partial[sg] = sum; }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
}

msl_inline float reduce_rms(float squares, uint count, float epsilon) {
    return rsqrt(squares * (1.0f / float(count)) + epsilon);
}

#endif

#line 7 "kv_rows.h"
using namespace metal;

#define KV_MOST_DIM 512
#define KV_THREADS (KV_MOST_DIM / 2)

// A page of rows. Its address is the GPU's.
struct kv_page {
    msl_device uchar *rows;
};

// A session's line of a table of addresses: first its ring or running sums, then its pages.
msl_inline msl_device const kv_page *kv_line(msl_device const kv_page *table, uint table_stride, uint token) {
    return table + ulong(table_stride) * token;
}

msl_inline msl_device uchar *kv_row(msl_device const kv_page *pages, uint rows_per_page, uint row_bytes, uint row) {
    return pages[row / rows_per_page].rows + ulong(row % rows_per_page) * row_bytes;
}

// The biased exponent of the smallest power of two >= x, 2^119 at most so that the largest code stays finite;
// 0 stands for 2^-127.
msl_inline uint kv_exponent_above(float x) {
    const uint bits = as_type<uint>(x);
    const uint e = ((bits >> 23) & 0xffu) + ((bits & 0x7fffffu) != 0u ? 1u : 0u);
    return min(e, 246u);
}

// 2^(e - 127) and its inverse.
msl_inline float kv_power(uint e) { return as_type<float>(e != 0u ? e << 23 : 0x00400000u); }
msl_inline float kv_inverse_power(uint e) { return as_type<float>(e < 254u ? (254u - e) << 23 : 0x00400000u); }

// Saturates; a NaN becomes the largest number, since a row must never hold a NaN code.
msl_inline uint kv_e4m3_encode(float x) {
    const uint sign = (as_type<uint>(x) >> 24) & 0x80u;
    const float v = fabs(x);
    if (!(v < 448.0f)) { return sign | 0x7eu; }
    if (v < 0.015625f) { return sign | uint(rint(v * 512.0f)); }
    uint bits = as_type<uint>(v);
    bits += 0x7ffffu + ((bits >> 20) & 1u);
    return sign | min((bits >> 20) - 960u, 0x7eu);
}

// Moved to half's place the bits mean 2^-8 of the value, subnormals included.
msl_inline float kv_e4m3_decode(uint code) {
    return float(as_type<half>(ushort((code & 0x80u) << 8 | (code & 0x7fu) << 7))) * 256.0f;
}

// Codes 0 … 7 mean 0, ½, 1, 1½, 2, 3, 4, 6; ties go to the even code.
msl_inline uint kv_e2m1_encode(float x) {
    const uint sign = (as_type<uint>(x) >> 28) & 8u;
    const float v = fabs(x);
    const uint code = v <= 0.25f ? 0u : v < 0.75f ? 1u : v <= 1.25f ? 2u : v < 1.75f ? 3u
                    : v <= 2.5f ? 4u : v < 3.5f ? 5u : v <= 5.0f ? 6u : 7u;
    return sign | code;
}

msl_inline float kv_e2m1_decode(uint code) {
    const uint m = code & 7u;
    const float v = m < 2u ? 0.5f * float(m) : as_type<float>((126u + (m >> 1)) << 23 | (m & 1u) << 22);
    return (code & 8u) != 0u ? -v : v;
}

// Scale bytes of an FP8 row: one a block of 64, one for the rotated values, padded to 8.
msl_inline uint kv_fp8_scale_bytes(uint dim, uint rope) { return ((dim - rope) / 64 + 1 + 7) / 8 * 8; }

// Value `i` of the rotated ones: 21 bits, three to a 64-bit word.
msl_inline float kv_rope_decode(msl_device const uchar *words, uint i, float step) {
    msl_device const uint *word = (msl_device const uint *)(words + i / 3 * 8);
    const ulong bits = ulong(word[0]) | ulong(word[1]) << 32;
    const uint value = uint(bits >> (21u * (i % 3u))) & 0x1fffffu;
    return float(int(value << 11) >> 11) * step;
}

// Values 4·i … 4·i + 3 of a row.
msl_inline float4 kv_decode4(msl_constant gpu_row_format &f, msl_device const uchar *row, uint i) {
    if (f.kind == GPU_ROW_F32) { return ((msl_device const float4 *)row)[i]; }
    if (f.kind == GPU_ROW_FP4) {
        msl_device const uchar *scales = row + f.dim / 2;
        const float scale = kv_power(scales[i / 8]);
        const uint a = row[2 * i], b = row[2 * i + 1];
        return float4(kv_e2m1_decode(a & 15u), kv_e2m1_decode(a >> 4), kv_e2m1_decode(b & 15u), kv_e2m1_decode(b >> 4))
             * scale;
    }
    const uint plain = f.dim - f.rope;
    msl_device const uchar *scales = row + plain;
    if (4 * i < plain) {
        const uint word = *(msl_device const uint *)(row + 4 * i);
        return float4(kv_e4m3_decode(word & 255u), kv_e4m3_decode((word >> 8) & 255u),
                      kv_e4m3_decode((word >> 16) & 255u), kv_e4m3_decode(word >> 24))
             * kv_power(scales[i / 16]);
    }
    msl_device const uchar *words = scales + kv_fp8_scale_bytes(f.dim, f.rope);
    const float step = kv_power(scales[plain / 64]) * 9.5367431640625e-7f;
    const uint first = 4 * i - plain;
    return float4(kv_rope_decode(words, first, step), kv_rope_decode(words, first + 1, step),
                  kv_rope_decode(words, first + 2, step), kv_rope_decode(words, first + 3, step));
}

// A share of an FP8 row of 512 values, 64 of them rotated, as it lies in memory: loads first, numbers later,
// so that loads of the next row can be under way while this one is used. Of `threads` (16 or 32) that share
// a row, thread t has words t, t + threads, … of the plain values and 64 / threads of the rotated ones.
#define KV_FP8_PLAIN 448
#define KV_FP8_WORDS (KV_FP8_PLAIN / 4)

struct kv_share {
    uint q[7];
    uint2 scales;  // seven blocks', then the rotated values'
    uint2 low;     // two words of rotated values
    uint2 high;
};

msl_inline void kv_load_share(msl_thread kv_share &v, msl_device const uchar *row, uint t, uint threads) {
    #pragma unroll
    for (ushort j = 0; j < 7; ++j) {
        const uint i = t + threads * j;
        if (threads * j < KV_FP8_WORDS) { v.q[j] = *(msl_device const uint *)(row + 4 * min(i, KV_FP8_WORDS - 1u)); }
    }
    msl_device const uint2 *tail = (msl_device const uint2 *)(row + KV_FP8_PLAIN);
    v.scales = tail[0];
    const uint first = t * (64 / threads) / 3;
    v.low = tail[1 + first];
    v.high = tail[1 + min(first + 1, 21u)];
}

// Plain word j of the share: values 4·(t + threads·j) … of the row.
msl_inline float4 kv_share_plain(msl_thread kv_share &v, ushort j, uint t, uint threads) {
    const uint block = (t + threads * j) / 16, word = v.q[j];
    const uint scale = ((block < 4 ? v.scales.x : v.scales.y) >> (8 * (block & 3))) & 255u;
    return float4(kv_e4m3_decode(word & 255u), kv_e4m3_decode((word >> 8) & 255u), kv_e4m3_decode((word >> 16) & 255u),
                  kv_e4m3_decode(word >> 24)) * kv_power(scale);
}

// Rotated value `i` of the share, the first being t · 64 / threads.
msl_inline float kv_share_rope(msl_thread kv_share &v, uint i, uint t, uint threads) {
    const uint first = t * (64 / threads), word = (first + i) / 3 - first / 3, place = (first + i) % 3;
    const uint2 w = word == 0 ? v.low : v.high;
    // 21 bits from bit 21 · place of 64.
    const uint bits = place == 0 ? w.x : place == 1 ? (w.x >> 21 | w.y << 11) : w.y >> 10;
    return float(int(bits << 11) >> 11) * (kv_power(v.scales.y >> 24) * 9.5367431640625e-7f);
}

// While a row is made, thread t of a threadgroup holds its values 2·t and 2·t + 1, and 0 from dim on: a block of
// an FP8 row is a simdgroup, a pair that is rotated together a thread. Threads from KV_THREADS on hold nothing.

msl_inline float2 kv_norm(float2 v, float2 weight, uint dim, float epsilon, msl_threadgroup float *partial, ushort sg,
                      ushort lane) {
    return v * reduce_rms(reduce_sum(dot(v, v), partial, KV_THREADS / 32, sg, lane), dim, epsilon) * weight;
}

// `turn`: cos and sin.
msl_inline float2 kv_turn(float2 v, float2 turn) {
    return float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

// A sum, or for the upper one of two a difference.
msl_inline float kv_butterfly(float own, float other, bool isUpper) { return isUpper ? other - own : own + other; }

// Rotates by Sylvester's matrix / √dim.
msl_inline float2 kv_hadamard(float2 v, uint dim, msl_threadgroup float2 *shared, ushort tid) {
    v = float2(v.x + v.y, v.x - v.y);
    for (ushort bit = 1; bit < 32; bit *= 2) {
        const float2 other = float2(simd_shuffle_xor(v.x, bit), simd_shuffle_xor(v.y, bit));
        const bool isUpper = (tid & bit) != 0;
        if (2u * bit < dim) {
            v = float2(kv_butterfly(v.x, other.x, isUpper), kv_butterfly(v.y, other.y, isUpper));
        }
    }
    for (ushort bit = 32; 2u * bit < dim; bit *= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (tid < KV_THREADS) { shared[tid] = v; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const float2 other = shared[(tid ^ bit) & (KV_THREADS - 1)];
        const bool isUpper = (tid & bit) != 0;
        v = float2(kv_butterfly(v.x, other.x, isUpper), kv_butterfly(v.y, other.y, isUpper));
    }
    return v * (1.0f / sqrt(float(dim)));
}

// The scale of an FP4 block whose largest magnitude is `most`.
msl_inline uint kv_fp4_scale(float most) { return kv_exponent_above(max(most, 7.052966104933725e-38f) / 6.0f); }

// The rotated values of an FP8 row, from threadgroup memory, by one simdgroup; `scales`: theirs and what pads them.
msl_inline void kv_encode_rope(msl_threadgroup const float *v, uint rope, msl_device uchar *scales, uint scale_bytes, ushort lane) {
    float most = 0.0f;
    for (uint i = lane; i < rope; i += 32) { most = max(most, fabs(v[i])); }
    const uint scale = kv_exponent_above(max(simd_max(most), 8.271806125530277e-25f));
    const float inverse = kv_inverse_power(scale) * 1048576.0f;
    if (lane < scale_bytes) { scales[lane] = lane == 0 ? uchar(scale) : uchar(0); }
    for (uint w = lane; w < (rope + 2) / 3; w += 32) {
        uint q[3];
        #pragma unroll
        for (ushort i = 0; i < 3; ++i) {
            const float x = 3 * w + i < rope ? v[3 * w + i] * inverse : 0.0f;
            q[i] = uint(clamp(int(rint(x == x ? clamp(x, -2.0e6f, 2.0e6f) : 0.0f)), -0x100000, 0xfffff)) & 0x1fffffu;
        }
        *(msl_device uint2 *)(scales + scale_bytes + 8 * w) = uint2(q[0] | q[1] << 21, q[1] >> 11 | q[2] << 10);
    }
}

// Writes a row. `shared` [KV_THREADS] must be free since the last barrier.
msl_inline void kv_encode(msl_constant gpu_row_format &f, float2 v, msl_threadgroup float2 *shared, msl_device uchar *row, ushort tid,
                      ushort sg, ushort lane) {
    if (f.kind == GPU_ROW_F32) {
        if (2u * tid < f.dim) { ((msl_device float2 *)row)[tid] = v; }
        return;
    }
    if (f.kind == GPU_ROW_FP4) {
        v = kv_hadamard(v, f.dim, shared, tid);
        float most = max(fabs(v.x), fabs(v.y));
        for (ushort bit = 1; bit < 16; bit *= 2) { most = max(most, simd_shuffle_xor(most, bit)); }
        const uint scale = kv_fp4_scale(most);
        const float inverse = kv_inverse_power(scale);
        if (2u * tid >= f.dim) { return; }
        row[tid] = uchar(kv_e2m1_encode(v.x * inverse) | kv_e2m1_encode(v.y * inverse) << 4);
        if (lane % 16 == 0) { row[f.dim / 2 + tid / 16] = uchar(scale); }
        return;
    }
    const uint plain = f.dim - f.rope, blocks = plain / 64, scale_bytes = kv_fp8_scale_bytes(f.dim, f.rope);
    msl_device uchar *scales = row + plain;
    if (2u * tid >= plain && 2u * tid < f.dim) { shared[tid - plain / 2] = v; }
    if (sg < blocks) {
        const uint scale = kv_exponent_above(max(simd_max(max(fabs(v.x), fabs(v.y))), 1e-4f) / 448.0f);
        const float inverse = kv_inverse_power(scale);
        ((msl_device ushort *)row)[tid] = ushort(kv_e4m3_encode(v.x * inverse) | kv_e4m3_encode(v.y * inverse) << 8);
        if (lane == 0) { scales[sg] = uchar(scale); }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg == KV_THREADS / 32 - 1) {
        kv_encode_rope((msl_threadgroup const float *)shared, f.rope, scales + blocks, scale_bytes - blocks, lane);
    }
}

#endif

#line 7 "attention.h"
#line 1 "tile.h"
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

using namespace metal;
#define TILE 16

#ifdef MSL_TILE_MMA       // CUDA; on the host -DMSL_TILE_MMA runs this branch too, with ldmatrix and mma emulated
struct tile_a { uint r[4]; };
struct tile_b { uint r[4]; };
struct tile_c { float r[8]; };
msl_inline void tile_zero(msl_thread tile_c &c) { for (int i = 0; i < 8; ++i) c.r[i] = 0.0f; }
msl_inline void tile_load_a(msl_thread tile_a &t, msl_threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4(t.r, p + (lane & 15) * ld + (lane >> 4) * 8);
}
msl_inline void tile_load_bt(msl_thread tile_b &t, msl_threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4(t.r, p + ((lane & 7) + ((lane >> 4) << 3)) * ld + ((lane >> 3) & 1) * 8);
}
// B as it lies for values: [k, 16] row-major.
msl_inline void tile_load_b(msl_thread tile_b &t, msl_threadgroup const half *p, ushort ld, ushort lane) {
    msl_ldmatrix_x4_trans(t.r, p + ((lane & 7) + ((lane >> 3) & 1) * 8) * ld + (lane >> 4) * 8);
}
// Row r of c times factors[r].
msl_inline void tile_scale_rows(msl_thread tile_c &c, msl_threadgroup const float *factors, ushort lane) {
    const float low = factors[lane >> 2], high = factors[(lane >> 2) + 8];
    for (int h = 0; h < 2; ++h) {
        c.r[h * 4] *= low;
        c.r[h * 4 + 1] *= low;
        c.r[h * 4 + 2] *= high;
        c.r[h * 4 + 3] *= high;
    }
}
// Adds what tile_stage put there.
msl_inline void tile_add(msl_thread tile_c &c, msl_threadgroup const float *p, uint ld, ushort lane) {
    const uint r = lane >> 2, x = (lane & 3) * 2;
    for (int h = 0; h < 2; ++h) {
        const float2 low = *(msl_threadgroup const float2 *)(p + r * ld + h * 8 + x);
        const float2 high = *(msl_threadgroup const float2 *)(p + (r + 8) * ld + h * 8 + x);
        c.r[h * 4] += low.x;
        c.r[h * 4 + 1] += low.y;
        c.r[h * 4 + 2] += high.x;
        c.r[h * 4 + 3] += high.y;
    }
}
msl_inline void tile_mma(msl_thread tile_c &c, msl_thread tile_a &a, msl_thread tile_b &b) {
    msl_mma_m16n8k16(c.r, a.r, b.r);
    msl_mma_m16n8k16(c.r + 4, a.r, b.r + 2);
}
msl_inline void tile_stage(msl_thread tile_c &c, msl_threadgroup float *p, uint ld, ushort lane) {
    const uint r = lane >> 2, x = (lane & 3) * 2;
    for (int h = 0; h < 2; ++h) {
        *(msl_threadgroup float2 *)(p + r * ld + h * 8 + x)       = float2(c.r[h * 4 + 0], c.r[h * 4 + 1]);
        *(msl_threadgroup float2 *)(p + (r + 8) * ld + h * 8 + x) = float2(c.r[h * 4 + 2], c.r[h * 4 + 3]);
    }
}
msl_inline void tile_join(msl_thread tile_c &c, msl_thread tile_c &d) {
    #pragma unroll
    for (int i = 0; i < 8; ++i) { c.r[i] += d.r[i]; }
}
msl_inline void tile_add_positive(msl_thread tile_c &c, msl_threadgroup const float *w, msl_thread float *sum, ushort lane) {
    const ushort x = (lane & 3) * 2;
    const float2 a = *(msl_threadgroup const float2 *)(w + x), b = *(msl_threadgroup const float2 *)(w + x + 8);
    sum[0] += a.x * max(c.r[0], 0.0f) + a.y * max(c.r[1], 0.0f) + b.x * max(c.r[4], 0.0f) + b.y * max(c.r[5], 0.0f);
    sum[1] += a.x * max(c.r[2], 0.0f) + a.y * max(c.r[3], 0.0f) + b.x * max(c.r[6], 0.0f) + b.y * max(c.r[7], 0.0f);
}
msl_inline ushort tile_row(ushort lane) { return lane >> 2; }
msl_inline bool tile_is_first(ushort lane) { return (lane & 3) == 0; }
msl_inline float tile_across(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 2);
}
#else
struct tile_a { simdgroup_half8x8 m[2][2]; };
struct tile_b { simdgroup_half8x8 m[2][2]; };
struct tile_c { simdgroup_float8x8 m[2][2]; };
msl_inline void tile_zero(msl_thread tile_c &c) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) c.m[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}
msl_inline void tile_load_a(msl_thread tile_a &t, msl_threadgroup const half *p, ushort ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int k = 0; k < 2; ++k) simdgroup_load(t.m[i][k], p + i * 8 * ld + k * 8, ld);
}
msl_inline void tile_load_bt(msl_thread tile_b &t, msl_threadgroup const half *p, ushort ld, ushort lane) {
    for (int k = 0; k < 2; ++k) for (int j = 0; j < 2; ++j) simdgroup_load(t.m[k][j], p + j * 8 * ld + k * 8, ld, ulong2(0), true);
}
msl_inline void tile_load_b(msl_thread tile_b &t, msl_threadgroup const half *p, ushort ld, ushort lane) {
    for (int k = 0; k < 2; ++k) for (int j = 0; j < 2; ++j) simdgroup_load(t.m[k][j], p + k * 8 * ld + j * 8, ld);
}
msl_inline void tile_scale_rows(msl_thread tile_c &c, msl_threadgroup const float *factors, ushort lane) {
    // Which row of an 8 × 8 matrix a lane's two elements belong to.
    const ushort row = (lane / 4 & 4) + lane / 2 % 4;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        c.m[i][j].thread_elements()[0] *= factors[i * 8 + row];
        c.m[i][j].thread_elements()[1] *= factors[i * 8 + row];
    }
}
msl_inline void tile_add(msl_thread tile_c &c, msl_threadgroup const float *p, uint ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        simdgroup_float8x8 m;
        simdgroup_load(m, p + i * 8 * ld + j * 8, ld);
        c.m[i][j].thread_elements()[0] += m.thread_elements()[0];
        c.m[i][j].thread_elements()[1] += m.thread_elements()[1];
    }
}
msl_inline void tile_mma(msl_thread tile_c &c, msl_thread tile_a &a, msl_thread tile_b &b) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int k = 0; k < 2; ++k)
        simdgroup_multiply_accumulate(c.m[i][j], a.m[i][k], b.m[k][j], c.m[i][j]);
}
msl_inline void tile_stage(msl_thread tile_c &c, msl_threadgroup float *p, uint ld, ushort lane) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) simdgroup_store(c.m[i][j], p + i * 8 * ld + j * 8, ld);
}
msl_inline void tile_join(msl_thread tile_c &c, msl_thread tile_c &d) {
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) for (int e = 0; e < 2; ++e) {
        c.m[i][j].thread_elements()[e] += d.m[i][j].thread_elements()[e];
    }
}
msl_inline void tile_add_positive(msl_thread tile_c &c, msl_threadgroup const float *w, msl_thread float *sum, ushort lane) {
    const ushort x = (lane / 4 & 2) * 2 + lane % 2 * 2;
    for (int i = 0; i < 2; ++i) for (int j = 0; j < 2; ++j) {
        sum[i] += w[j * 8 + x] * max(c.m[i][j].thread_elements()[0], 0.0f)
                + w[j * 8 + x + 1] * max(c.m[i][j].thread_elements()[1], 0.0f);
    }
}
msl_inline ushort tile_row(ushort lane) { return (lane / 4 & 4) + lane / 2 % 4; }
msl_inline bool tile_is_first(ushort lane) { return (lane & 9) == 0; }
msl_inline float tile_across(float v) {
    v += simd_shuffle_xor(v, 1);
    return v + simd_shuffle_xor(v, 8);
}
#endif
#endif

#line 8 "attention.h"
using namespace metal;

#define ATT_LOG2E 1.44269504f
#define ATT_NONE (-1.0e30f)
#define ATT_CHUNK 0xffffffffu
#define ATT_RING 0xfffffffeu

// What one token attends to: `in_window` rows from position `start` on, then compressed ones.
struct att_list {
    msl_device const uchar *ring;
    msl_device const uchar *chunk;
    msl_device const kv_page *pages;
    msl_device const int *selected;
    uint first;
    uint start;
    uint in_window;
    uint all;
};

msl_inline att_list att_open(msl_constant gpu_attention &p, msl_device const uchar *rows_here, msl_device const kv_page *sessions,
                         msl_device const int *selected, msl_device const int *counts, msl_device const int *positions,
                         uint token) {
    att_list l;
    // Where its session begins in this call.
    const uint base = p.table_stride != 0u ? token : 0u;
    const uint position = uint(positions[token]);
    msl_device const kv_page *own = kv_line(sessions, p.table_stride, token);
    l.first = uint(positions[base]);
    l.ring = own[0].rows;
    l.chunk = rows_here + ulong(base) * p.format.bytes;
    l.pages = own + 1;
    l.selected = selected + ulong(token) * p.top;
    l.start = position + 1 > p.window ? position + 1 - p.window : 0;
    l.in_window = position + 1 - l.start;
    l.all = l.in_window + (p.ratio == 0u ? 0u : p.top != 0u ? uint(counts[token]) : (position + 1) / p.ratio);
    return l;
}

// Where row `place` of the list lies: a page (or ring, or chunk) and the row in it.
msl_inline uint2 att_place(msl_thread att_list &l, msl_constant gpu_attention &p, uint place) {
    if (place < l.in_window) {
        const uint seen = l.start + place;
        return seen < l.first ? uint2(ATT_RING, seen % p.window) : uint2(ATT_CHUNK, seen - l.first);
    }
    const uint row = p.top != 0u ? uint(l.selected[place - l.in_window]) : place - l.in_window;
    return uint2(row / p.rows_per_page, row % p.rows_per_page);
}

msl_inline msl_device const uchar *att_address(msl_thread att_list &l, msl_constant gpu_attention &p, uint2 place) {
    msl_device const uchar *base = l.chunk;
    if (place.x == ATT_RING) { base = l.ring; }
    if (place.x < ATT_RING) { base = l.pages[place.x].rows; }
    return base + ulong(place.y) * p.format.bytes;
}

msl_inline bool att_is_fp8_512(msl_constant gpu_attention &p) {
    return p.format.kind == GPU_ROW_FP8 && p.format.dim == 512u && p.format.rope == 64u;
}

// ---------------------------------------------------------------- rows on the matrix units

#define ATT_THREADS 256
#define ATT_DIM 512
#define ATT_TILE 16                 // rows at a time: sixteen threads bring one
#define ATT_LD (ATT_DIM + 8)        // of rows in threadgroup memory, in halfs
#define ATT_WEIGHT_LD (ATT_TILE + 8)

// The list's rows from `from` to `to`, ATT_TILE at a time. A simdgroup brings two rows of each tile: the places of
// its rows in sixteen tiles are looked up at once, a lane each.
struct att_rows {
    uint from;
    uint to;
    uint2 places;
};

msl_inline msl_device const uchar *att_next(msl_thread att_rows &r, msl_thread att_list &l, msl_constant gpu_attention &p, uint tile,
                                    ushort sg, ushort lane) {
    if (tile % 16 == 0) {
        // Rows past the end repeat the last one and weigh nothing.
        r.places = att_place(l, p, min(r.from + (tile + lane / 2) * ATT_TILE + sg * 2 + lane % 2, r.to - 1));
    }
    return att_address(l, p, simd_shuffle(r.places, ushort(tile % 16 * 2 + lane / 16)));
}

// In threadgroup memory, and so in queries and sums, the middle two of four neighbouring channels have changed
// places: a word of codes then becomes two pairs of halfs by masks.
msl_inline float4 att_swap(float4 v) { return float4(v.x, v.z, v.y, v.w); }

// Two codes of E4M3, whose bits were moved to half's place, there mean 2^-8 of their value. The power of a block
// is 2^-22 at least, and as large as is needed for numbers that half has.
msl_inline uint att_pair(uint signs, uint magnitudes, half2 factor) {
    return as_type<uint>(as_type<half2>((signs & 0x80008000u) | (magnitudes & 0x3f803f80u)) * factor);
}

// Values 4 · (t + 16 · j) … of a row as halfs, for j from 0 to 7; low: what the rotated ones, j = 7, lack.
msl_inline void att_halfs(msl_thread kv_share &share, msl_thread uint2 *v, msl_thread uint2 &low, uint t) {
    #pragma unroll
    for (ushort j = 0; j < 7; ++j) {
        const uint scale = ((j < 4 ? share.scales.x : share.scales.y) >> (8 * (j & 3))) & 255u, w = share.q[j];
        // 2^8 times the block's power, twice.
        const half2 factor = as_type<half2>(scale * 0x04000400u - 104u * 0x04000400u);
        v[j] = uint2(att_pair(w << 8, w << 7, factor), att_pair(w, w >> 1, factor));
    }
    // Three values of 21 bits to 64: this thread's begin at value 4·t % 3 of a word.
    const float step = kv_power(share.scales.y >> 24) * 9.5367431640625e-7f;
    const ulong words[2] = {ulong(share.low.x) | ulong(share.low.y) << 32, ulong(share.high.x) | ulong(share.high.y) << 32};
    float4 x;
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const uint at = t % 3 + i;
        const uint bits = uint((at < 3 ? words[0] : words[1]) >> (21u * (at < 3 ? at : at - 3)));
        x[i] = float(int(bits << 11) >> 11) * step;
    }
    x = att_swap(x);
    const half4 h = half4(x);
    v[7] = as_type<uint2>(h);
    low = as_type<uint2>(half4(x - float4(h)));
}

msl_inline void att_put(msl_threadgroup half *line, msl_thread const uint2 *v, uint t) {
    #pragma unroll
    for (ushort j = 0; j < 8; ++j) { *(msl_threadgroup uint2 *)(line + 4 * (t + 16 * j)) = v[j]; }
}

// Weights stay relative to a maximum until that is exceeded by so much: they are at most 2^8 then, and sums need
// scaling seldom.
#define ATT_SLACK 8.0f

// What sums so far are worth from now on; `top` moves up to `most` when that is much higher.
msl_inline float att_fade(msl_thread float &top, float most) {
    const float fade = most > top + ATT_SLACK ? exp2(top - most) : 1.0f;
    top = most > top + ATT_SLACK ? most : top;
    return fade;
}
#endif

#line 24 "attention.metal"
using namespace metal;

// ---------------------------------------------------------------- a share of the rows

#define ATT_SIMDGROUPS 8
#define ATT_SIMD_HEADS 2
#define ATT_HEADS (ATT_SIMDGROUPS * ATT_SIMD_HEADS)
#define ATT_ROWS 8
#define ATT_LANE (KV_MOST_DIM / 128)  // float4 a lane holds of a row: value (v · 32 + lane) · 4 …

#define SPLIT_LOW_LD (64 + 8)
#define SPLIT_LOW (ATT_TILE * ATT_LD)                     // low halfs of rotated values, behind the rows
#define SPLIT_MEMORY ((SPLIT_LOW + ATT_TILE * SPLIT_LOW_LD) / 8)  // uint4

// Simdgroup g owns channels 64·g … of queries, rows and output: a score is the sum of eight partial ones. The last
// one's channels are the rotated values.
msl_inline void split_tiles(msl_device const float *q, msl_thread att_list &l, msl_constant gpu_attention &p, uint from, uint to,
                        uint head, msl_device float *parts, msl_device float2 *sums, msl_threadgroup uint4 *memory,
                        msl_threadgroup float *partial, msl_threadgroup half *weights, msl_threadgroup float *fades, ushort tid,
                        ushort sg, ushort lane) {
    msl_threadgroup half *rows = (msl_threadgroup half *)memory, *rows_low = rows + SPLIT_LOW;
    const uint channel = sg * 64u, t = tid & 15;
    const bool is_rotated = sg == 7;
    kv_share share;
    att_rows r;
    r.from = from;
    r.to = to;
    msl_device const uchar *next = att_next(r, l, p, 0, sg, lane);
    kv_load_share(share, next, t, 16);
    next = att_next(r, l, p, 1, sg, lane);
    // Queries become matrices by way of the rows' memory, a simdgroup's in its own piece of it.
    tile_a query[4], query_low[4];
    {
        msl_threadgroup half *mine = rows + sg * (ATT_HEADS * SPLIT_LOW_LD);
        uint2 low[8];
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            const uint h = min(head + lane / 16 + 2 * i, p.heads - 1);
            const float4 v = att_swap(*(msl_device const float4 *)(q + ulong(h) * ATT_DIM + channel + lane % 16 * 4));
            const half4 high = half4(v);
            low[i] = as_type<uint2>(half4(v - float4(high)));
            *(msl_threadgroup half4 *)(mine + (lane / 16 + 2 * i) * SPLIT_LOW_LD + lane % 16 * 4) = high;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query[k], mine + 16 * k, SPLIT_LOW_LD, lane); }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            *(msl_threadgroup uint2 *)(mine + (lane / 16 + 2 * i) * SPLIT_LOW_LD + lane % 16 * 4) = low[i];
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) { tile_load_a(query_low[k], mine + 16 * k, SPLIT_LOW_LD, lane); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[4];
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) { tile_zero(sum[j]); }
    // Of head tid / 16: the same in sixteen lanes, and each lane's share of the weight.
    float top = ATT_NONE, weight = 0.0f;
    for (uint at = from, tile = 0; at < to; at += ATT_TILE, ++tile) {
        {
            uint2 v[8], low;
            att_halfs(share, v, low, t);
            att_put(rows + tid / 16 * ATT_LD, v, t);
            *(msl_threadgroup uint2 *)(rows_low + tid / 16 * SPLIT_LOW_LD + 4 * t) = low;
        }
        // The tile after this one begins to arrive; where the one after that lies is known by then.
        if (at + ATT_TILE < to) {
            kv_load_share(share, next, t, 16);
            next = att_next(r, l, p, tile + 2, sg, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_c score, score_low;
        tile_zero(score);
        tile_zero(score_low);
        #pragma unroll
        for (ushort k = 0; k < 4; ++k) {
            tile_b key;
            tile_load_bt(key, rows + channel + 16 * k, ATT_LD, lane);
            tile_mma(score, query[k], key);
            tile_mma(score_low, query_low[k], key);
        }
        if (is_rotated) {
            #pragma unroll
            for (ushort k = 0; k < 4; ++k) {
                tile_b key;
                tile_load_bt(key, rows_low + 16 * k, SPLIT_LOW_LD, lane);
                tile_mma(score_low, query[k], key);
            }
        }
        tile_join(score, score_low);
        tile_stage(score, partial + sg * 256, ATT_TILE, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Head tid / 16, row tid % 16.
        float s = 0.0f;
        #pragma unroll
        for (ushort g = 0; g < 8; ++g) { s += partial[g * 256 + tid]; }
        s = at + t < to ? s * (p.scale * ATT_LOG2E) : ATT_NONE;
        float most = max(s, simd_shuffle_xor(s, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        most = max(most, simd_shuffle_xor(most, 4));
        most = max(most, simd_shuffle_xor(most, 8));
        const float fade = att_fade(top, most);
        s = exp2(s - top);
        weight = weight * fade + s;
        const half high = half(s);
        weights[tid / 16 * ATT_WEIGHT_LD + t] = high;
        weights[(ATT_HEADS + tid / 16) * ATT_WEIGHT_LD + t] = half(s - float(high));
        if (t == 0) { fades[tid / 16] = fade; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd_any(fades[lane & 15] != 1.0f)) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { tile_scale_rows(sum[j], fades, lane); }
        }
        tile_a given, given_low;
        tile_load_a(given, weights, ATT_WEIGHT_LD, lane);
        tile_load_a(given_low, weights + ATT_HEADS * ATT_WEIGHT_LD, ATT_WEIGHT_LD, lane);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, ATT_LD, lane);
            tile_mma(sum[j], given, value);
            tile_mma(sum[j], given_low, value);
        }
        if (is_rotated) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                tile_b value;
                tile_load_b(value, rows_low + 16 * j, SPLIT_LOW_LD, lane);
                tile_mma(sum[j], given, value);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    msl_threadgroup float *mine = partial + sg * 256;
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) {
        tile_stage(sum[j], mine, ATT_TILE, lane);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint h = lane / 4 + 8 * e;
            if (head + h < p.heads) {
                *(msl_device float4 *)(parts + ulong(h) * ATT_DIM + channel + 16 * j + lane % 4 * 4)
                    = att_swap(*(msl_threadgroup const float4 *)(mine + h * ATT_TILE + lane % 4 * 4));
            }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    weight += simd_shuffle_xor(weight, 1);
    weight += simd_shuffle_xor(weight, 2);
    weight += simd_shuffle_xor(weight, 4);
    weight += simd_shuffle_xor(weight, 8);
    if (t == 0 && head + tid / 16 < p.heads) { sums[tid / 16] = float2(top, weight); }
}

// Rows of any format, ATT_ROWS at a time: simdgroup s decodes row s, then adds up two heads over all of them.
msl_inline void split_plain(msl_device const float *q, msl_thread att_list &l, msl_constant gpu_attention &p, uint from, uint to,
                        uint head, msl_device float *parts, msl_device float2 *sums, msl_threadgroup float4 *tile, ushort sg,
                        ushort lane) {
    const uint dim = p.format.dim, quads = dim / 4;
    float4 query[ATT_SIMD_HEADS][ATT_LANE];
    float4 sum[ATT_SIMD_HEADS][ATT_LANE];
    float top[ATT_SIMD_HEADS];
    float weight[ATT_SIMD_HEADS];
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        const uint of = min(head + sg * ATT_SIMD_HEADS + h, p.heads - 1);
        #pragma unroll
        for (ushort v = 0; v < ATT_LANE; ++v) {
            const uint i = v * 32u + lane;
            query[h][v] = float4(0.0f);
            if (i < quads) { query[h][v] = ((msl_device const float4 *)(q + ulong(of) * dim))[i] * (p.scale * ATT_LOG2E); }
            sum[h][v] = float4(0.0f);
        }
        top[h] = ATT_NONE;
        weight[h] = 0.0f;
    }
    for (uint at = from; at < to; at += ATT_ROWS) {
        const uint rows = min(to - at, uint(ATT_ROWS));
        // Rows past the end repeat the last one and weigh nothing.
        msl_device const uchar *line = att_address(l, p, att_place(l, p, at + min(uint(sg), rows - 1)));
        for (uint i = lane; i < quads; i += 32) { tile[sg * quads + i] = kv_decode4(p.format, line, i); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float score[ATT_SIMD_HEADS][ATT_ROWS];
        #pragma unroll
        for (ushort r = 0; r < ATT_ROWS; ++r) {
            #pragma unroll
            for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { score[h][r] = 0.0f; }
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) {
                    const float4 k = tile[r * quads + i];
                    #pragma unroll
                    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { score[h][r] += dot(query[h][v], k); }
                }
            }
        }
        #pragma unroll
        for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
            float most = top[h];
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                const float s = simd_sum(score[h][r]);
                score[h][r] = r < rows ? s : ATT_NONE;
                most = max(most, score[h][r]);
            }
            const float fade = exp2(top[h] - most);
            top[h] = most;
            weight[h] *= fade;
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) { sum[h][v] = sum[h][v] * fade; }
            #pragma unroll
            for (ushort r = 0; r < ATT_ROWS; ++r) {
                score[h][r] = exp2(score[h][r] - most);
                weight[h] += score[h][r];
            }
        }
        #pragma unroll
        for (ushort r = 0; r < ATT_ROWS; ++r) {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) {
                    const float4 k = tile[r * quads + i];
                    #pragma unroll
                    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) { sum[h][v] = sum[h][v] + k * score[h][r]; }
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    #pragma unroll
    for (ushort h = 0; h < ATT_SIMD_HEADS; ++h) {
        const uint of = sg * ATT_SIMD_HEADS + h;
        if (head + of < p.heads) {
            #pragma unroll
            for (ushort v = 0; v < ATT_LANE; ++v) {
                const uint i = v * 32u + lane;
                if (i < quads) { ((msl_device float4 *)(parts + ulong(of) * dim))[i] = sum[h][v]; }
            }
            if (lane == 0) { sums[of] = float2(top[h], weight[h]); }
        }
    }
}

// As many threads as half the registers of a multiprocessor serve: two threadgroups then fit one.
[[max_total_threads_per_threadgroup(2 * ATT_THREADS)]]
MSL_KERNEL void attention_split(msl_device const float * q, msl_device const uchar * rows_here, msl_device const kv_page * sessions, msl_device const int * selected, msl_device const int * counts, msl_device const int * positions, msl_device float * parts, msl_device float2 * sums, msl_constant gpu_attention & p, uint3 tg, ushort tid, ushort sg, ushort lane)












{
    threadgroup_decl uint4 memory[SPLIT_MEMORY];
    threadgroup_decl float4 partial[ATT_SIMDGROUPS * 64];
    threadgroup_decl uint4 weights[2 * ATT_HEADS * ATT_WEIGHT_LD / 8];
    threadgroup_decl float fades[ATT_HEADS];
    const uint token = tg.z, head = tg.y * ATT_HEADS;
    att_list l = att_open(p, rows_here, sessions, selected, counts, positions, token);
    // Whole tiles.
    const uint share = ((l.all + p.splits - 1) / p.splits + ATT_TILE - 1) / ATT_TILE * ATT_TILE;
    const uint from = min(tg.x * share, l.all), to = min(from + share, l.all);
    const ulong place = (ulong(tg.x) * p.n + token) * p.heads + head;
    if (from == to) {
        // Of no rows only that is known.
        if (tid < ATT_HEADS && head + tid < p.heads) { sums[place + tid] = float2(ATT_NONE, 0.0f); }
        return;
    }
    q += ulong(token) * p.heads * p.format.dim;
    if (att_is_fp8_512(p)) {
        split_tiles(q, l, p, from, to, head, parts + place * ATT_DIM, sums + place, memory,
                    (msl_threadgroup float *)partial, (msl_threadgroup half *)weights, fades, tid, sg, lane);
    } else {
        split_plain(q, l, p, from, to, head, parts + place * p.format.dim, sums + place, (msl_threadgroup float4 *)memory, sg,
                    lane);
    }
}

// ---------------------------------------------------------------- shares together

#define MERGE_THREADS 128
#define MERGE_SIMDGROUPS (MERGE_THREADS / 32)
#define MERGE_VALUES 128
#define ATT_MOST_SPLITS 32

// A lane has four values, a simdgroup every fourth share. p.splits = 0: only the ring is written.
[[max_total_threads_per_threadgroup(MERGE_THREADS)]]
MSL_KERNEL void attention_merge(msl_device const float * parts, msl_device const float2 * sums, msl_device const float * sinks, msl_device const float2 * table, msl_device const uchar * rows_here, msl_device const int * positions, msl_device float * out, msl_device const kv_page * sessions, msl_constant gpu_attention & p, uint3 tg, ushort tid, ushort sg, ushort lane)












{
    threadgroup_decl float4 shares[MERGE_SIMDGROUPS * 32];
    const uint head = tg.x, token = p.first + tg.y;
    if (p.splits != 0u) {
        const uint dim = p.format.dim, quad = tg.z * (MERGE_VALUES / 4) + lane;
        const ulong place = ulong(token) * p.heads + head, step = ulong(p.n) * p.heads;
        const bool is_there = quad < dim / 4;
        // Everything is on its way before anything is used.
        float4 v[ATT_MOST_SPLITS / MERGE_SIMDGROUPS];
        #pragma unroll
        for (ushort j = 0; j < ATT_MOST_SPLITS / MERGE_SIMDGROUPS; ++j) {
            const uint s = sg + MERGE_SIMDGROUPS * j;
            v[j] = float4(0.0f);
            if (s < p.splits && is_there) { v[j] = ((msl_device const float4 *)(parts + (place + s * step) * dim))[quad]; }
        }
        float2 part = float2(ATT_NONE, 0.0f);
        if (lane < p.splits) { part = sums[place + lane * step]; }
        const float sink = sinks[head] * ATT_LOG2E, most = max(sink, simd_max(part.x));
        // A share of no rows has no values either.
        const float fade = part.y > 0.0f ? exp2(part.x - most) : 0.0f;
        const float inverse = 1.0f / (exp2(sink - most) + simd_sum(part.y * fade));
        float4 sum = float4(0.0f);
        #pragma unroll
        for (ushort j = 0; j < ATT_MOST_SPLITS / MERGE_SIMDGROUPS; ++j) {
            const float f = simd_shuffle(fade, ushort(sg + MERGE_SIMDGROUPS * j));
            if (f > 0.0f) { sum = sum + v[j] * f; }
        }
        shares[tid] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0 && is_there) {
            sum = (shares[lane] + shares[32 + lane] + shares[64 + lane] + shares[96 + lane]) * inverse;
            const uint plain = (dim - p.format.rope) / 2, pair = 2 * quad;
            msl_device const float2 *turns = table + ulong(token) * (p.format.rope / 2);
            if (pair >= plain) {
                const float2 turn = turns[pair - plain];
                sum.xy = float2(sum.x * turn.x + sum.y * turn.y, sum.y * turn.x - sum.x * turn.y);
            }
            if (pair + 1 >= plain) {
                const float2 turn = turns[pair + 1 - plain];
                sum.zw = float2(sum.z * turn.x + sum.w * turn.y, sum.w * turn.x - sum.z * turn.y);
            }
            ((msl_device float4 *)(out + place * dim))[quad] = sum;
        }
    }
    if (head == 0 && tg.z == 0 && (p.table_stride != 0u || token + p.window >= p.n)) {
        const uint slot = uint(positions[token]) % p.window;
        msl_device const uint *from = (msl_device const uint *)(rows_here + ulong(token) * p.format.bytes);
        msl_device uint *to = (msl_device uint *)(kv_line(sessions, p.table_stride, token)[0].rows + ulong(slot) * p.format.bytes);
        for (uint i = tid; i < p.format.bytes / 4; i += MERGE_THREADS) { to[i] = from[i]; }
    }
}

#line 1 "attention_prompt.metal"
// attention_prompt.metal — attention over prompts, heads of 512 and FP8 or f32 rows (see attention.metal).
//
//   attention_tiles   q, rows, sink, the inverse rotation   -> out [n, heads, dim]; the ring is attention_merge's
//
// All heads of a token at once: rows are brought and decoded once for them.
//
// Grid       x groups of TILES_HEADS heads, y tokens
// Precision  queries, rows and weights of rows rounded to half, sums f32
// CPU twin   CKernels/attention.c
// Origin     ours

#line 13 "attention_prompt.metal"
using namespace metal;

#define TILES_HEADS 64

// A tile of rows on its way; IS_FP8: or else any other format.
template <bool IS_FP8>
msl_inline void tiles_load(msl_thread kv_share &share, msl_thread uint2 *v, msl_constant gpu_attention &p, msl_device const uchar *row,
                       uint t) {
    if (IS_FP8) {
        kv_load_share(share, row, t, 16);
    } else {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) { v[j] = as_type<uint2>(half4(att_swap(kv_decode4(p.format, row, t + 16 * j)))); }
    }
}

template <bool IS_FP8>
msl_inline void tiles_decode(msl_thread kv_share &share, msl_thread uint2 *v, uint t) {
    uint2 low;
    if (IS_FP8) { att_halfs(share, v, low, t); }
}

// A simdgroup owns 32 heads and 128 channels of queries, rows and output: a score is the sum of four partial
// ones.
template <bool IS_FP8>
msl_inline void tiles_attend(msl_device const float *q, msl_thread att_list &l, msl_constant gpu_attention &p, uint head,
                         msl_device const float *sinks, msl_device const float *table, msl_device float *out, msl_threadgroup half *rows,
                         msl_threadgroup float *partial, msl_threadgroup half *weights, msl_threadgroup float *fades, ushort tid,
                         ushort sg, ushort lane) {
    const ushort half_of_heads = sg & 1, quarter = sg / 2;
    const uint channel = quarter * 128u, t = tid & 15;
    kv_share share;
    att_rows r;
    r.from = 0;
    r.to = l.all;
    msl_device const uchar *next = att_next(r, l, p, 0, sg, lane);
    uint2 v[8];
    tiles_load<IS_FP8>(share, v, p, next, t);
    // Queries become matrices by way of the rows' memory, sixteen heads at a time; all are on their way before.
    tile_a query[2][8];
    float4 x[4][8];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort e = 0; e < 8; ++e) {
            const uint h = min(head + i * 16u + tid / 128 + 2 * e, p.heads - 1);
            x[i][e] = *(msl_device const float4 *)(q + ulong(h) * ATT_DIM + tid % 128 * 4);
        }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort e = 0; e < 8; ++e) {
            *(msl_threadgroup half4 *)(rows + (tid / 128 + 2 * e) * ATT_LD + tid % 128 * 4) = half4(att_swap(x[i][e]));
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (half_of_heads == i / 2) {
            #pragma unroll
            for (ushort k = 0; k < 8; ++k) { tile_load_a(query[i & 1][k], rows + channel + 16 * k, ATT_LD, lane); }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    tile_c sum[2][8];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) { tile_zero(sum[i][j]); }
    }
    // Of head tid / 4: the same in four lanes, and each lane's share of the weight.
    float top = ATT_NONE, weight = 0.0f;
    const float scale = p.scale * ATT_LOG2E;
    tiles_decode<IS_FP8>(share, v, t);
    next = att_next(r, l, p, 1, sg, lane);
    for (uint at = 0, tile = 0; at < l.all; at += ATT_TILE, ++tile) {
        att_put(rows + tid / 16 * ATT_LD, v, t);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            tile_c score[2];
            tile_zero(score[0]);
            tile_zero(score[1]);
            #pragma unroll
            for (ushort k = 0; k < 8; ++k) {
                tile_b key;
                tile_load_bt(key, rows + channel + 16 * k, ATT_LD, lane);
                tile_mma(score[0], query[0][k], key);
                tile_mma(score[1], query[1][k], key);
            }
            msl_threadgroup float *slot = partial + ((quarter & 1) * TILES_HEADS + half_of_heads * 32) * ATT_TILE;
            if (quarter >= 2) {
                tile_stage(score[0], slot, ATT_TILE, lane);
                tile_stage(score[1], slot + 256, ATT_TILE, lane);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (quarter < 2) {
                tile_add(score[0], slot, ATT_TILE, lane);
                tile_add(score[1], slot + 256, ATT_TILE, lane);
                simdgroup_barrier(mem_flags::mem_threadgroup);
                tile_stage(score[0], slot, ATT_TILE, lane);
                tile_stage(score[1], slot + 256, ATT_TILE, lane);
            }
        }
        // The next tile begins to arrive; where the one after that lies is known by then. Behind the last tile
        // its last row comes again.
        tiles_load<IS_FP8>(share, v, p, next, t);
        next = att_next(r, l, p, tile + 2, sg, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            // Head tid / 4, rows 4·(tid % 4) … of the tile.
            float4 s = *(msl_threadgroup const float4 *)(partial + tid * 4)
                     + *(msl_threadgroup const float4 *)(partial + TILES_HEADS * ATT_TILE + tid * 4);
            const uint row = at + (tid & 3) * 4;
            s = s * scale;
            s.x = row < l.all ? s.x : ATT_NONE;
            s.y = row + 1 < l.all ? s.y : ATT_NONE;
            s.z = row + 2 < l.all ? s.z : ATT_NONE;
            s.w = row + 3 < l.all ? s.w : ATT_NONE;
            float most = max(max(s.x, s.y), max(s.z, s.w));
            most = max(most, simd_shuffle_xor(most, 1));
            most = max(most, simd_shuffle_xor(most, 2));
            const float fade = att_fade(top, most);
            s = float4(exp2(s.x - top), exp2(s.y - top), exp2(s.z - top), exp2(s.w - top));
            weight = weight * fade + ((s.x + s.y) + (s.z + s.w));
            *(msl_threadgroup half4 *)(weights + tid / 4 * ATT_WEIGHT_LD + (tid & 3) * 4) = half4(s);
            if ((tid & 3) == 0) { fades[tid / 4] = fade; }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd_any(fades[half_of_heads * 32 + lane] != 1.0f)) {
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) {
                #pragma unroll
                for (ushort j = 0; j < 8; ++j) { tile_scale_rows(sum[i][j], fades + half_of_heads * 32 + 16 * i, lane); }
            }
        }
        tile_a given[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            tile_load_a(given[i], weights + (half_of_heads * 32 + 16 * i) * ATT_WEIGHT_LD, ATT_WEIGHT_LD, lane);
        }
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) {
            tile_b value;
            tile_load_b(value, rows + channel + 16 * j, ATT_LD, lane);
            tile_mma(sum[0][j], given[0], value);
            tile_mma(sum[1][j], given[1], value);
        }
        // A branch, so that this is done here, where other simdgroups still multiply, and not behind the barrier.
        if (at + ATT_TILE < l.all) { tiles_decode<IS_FP8>(share, v, t); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    weight += simd_shuffle_xor(weight, 1);
    weight += simd_shuffle_xor(weight, 2);
    if ((tid & 3) == 0) {
        const float sink = sinks[min(head + tid / 4, p.heads - 1)] * ATT_LOG2E, most = max(top, sink);
        const float fade = exp2(top - most);
        fades[tid / 4] = fade / (weight * fade + exp2(sink - most));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    msl_threadgroup float *mine = partial + sg * 256;
    const uint plain = ATT_DIM - p.format.rope;
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 8; ++j) {
            tile_scale_rows(sum[i][j], fades + half_of_heads * 32 + 16 * i, lane);
            tile_stage(sum[i][j], mine, ATT_TILE, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            #pragma unroll
            for (ushort e = 0; e < 2; ++e) {
                const uint h = head + half_of_heads * 32u + i * 16u + lane / 4 + 8 * e, c = channel + 16 * j + lane % 4 * 4;
                float4 x = att_swap(*(msl_threadgroup const float4 *)(mine + (lane / 4 + 8 * e) * ATT_TILE + lane % 4 * 4));
                if (c >= plain) {
                    const float4 turn = *(msl_device const float4 *)(table + c - plain);
                    x = float4(x.x * turn.x + x.y * turn.y, x.y * turn.x - x.x * turn.y,
                               x.z * turn.z + x.w * turn.w, x.w * turn.z - x.z * turn.w);
                }
                if (h < p.heads) { *(msl_device float4 *)(out + ulong(h) * ATT_DIM + c) = x; }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

[[max_total_threads_per_threadgroup(ATT_THREADS)]]
MSL_KERNEL void attention_tiles(msl_device const float * q, msl_device const uchar * rows_here, msl_device const kv_page * sessions, msl_device const int * selected, msl_device const int * counts, msl_device const int * positions, msl_device const float * sinks, msl_device const float * table, msl_device float * out, msl_constant gpu_attention & p, uint2 tg, ushort tid, ushort sg, ushort lane)













{
    threadgroup_decl uint4 rows[ATT_TILE * ATT_LD / 8];
    threadgroup_decl float4 partial[2 * TILES_HEADS * ATT_TILE / 4];
    threadgroup_decl uint4 weights[TILES_HEADS * ATT_WEIGHT_LD / 8];
    threadgroup_decl float fades[TILES_HEADS];
    const uint token = tg.y;
    att_list l = att_open(p, rows_here, sessions, selected, counts, positions, token);
    q += ulong(token) * p.heads * ATT_DIM;
    out += ulong(token) * p.heads * ATT_DIM;
    table += ulong(token) * p.format.rope;
    if (att_is_fp8_512(p)) {
        tiles_attend<true>(q, l, p, tg.x * TILES_HEADS, sinks, table, out, (msl_threadgroup half *)rows,
                           (msl_threadgroup float *)partial, (msl_threadgroup half *)weights, fades, tid, sg, lane);
    } else {
        tiles_attend<false>(q, l, p, tg.x * TILES_HEADS, sinks, table, out, (msl_threadgroup half *)rows,
                            (msl_threadgroup float *)partial, (msl_threadgroup half *)weights, fades, tid, sg, lane);
    }
}

#line 1 "compressor.metal"
// compressor.metal — pooling windows of tokens into one row (report §2.3).
//
//   compressor_step    one token a session: updates the state; ends the window and appends its row when it is due
//   compressor_rows    many tokens: one threadgroup appends the row of one window they complete
//   compressor_state   many tokens: the state after them. After compressor_rows, which reads the state
//
// kv, gate [n, series · dim]; sessions: a line each, of state and pages. State [series, 3, dim] of maximum,
// sum of weights, weighted sum, as in compressor.c; a sum of zero means "nothing yet". With overlap: series 0
// is the first series of the window before, 1 and 2 those of this window.
//
// Grid       step: tokens; rows: windows; state: one thread two channels
// Precision  f32
// CPU twin   CKernels/compressor.c
// Origin     ours

#line 17 "compressor.metal"
using namespace metal;

#define POOL_SLICES 4  // that the tokens of a window are cut into
#define POOL_ROW_THREADS (POOL_SLICES * KV_THREADS)
#define POOL_NOTHING -1.0e38f

// Running sums of two channels, relative to their maximum: POOL_NOTHING, 0, 0 when there was no token yet.
struct pool_sums {
    float2 top;
    float2 sum;
    float2 weighted;
};

msl_inline pool_sums pool_none() {
    pool_sums v;
    v.top = float2(POOL_NOTHING);
    v.sum = float2(0.0f);
    v.weighted = float2(0.0f);
    return v;
}

msl_inline pool_sums pool_where(bool isKept, pool_sums v) {
    v.top = isKept ? v.top : float2(POOL_NOTHING);
    v.sum = isKept ? v.sum : float2(0.0f);
    v.weighted = isKept ? v.weighted : float2(0.0f);
    return v;
}

msl_inline pool_sums pool_merge(pool_sums a, pool_sums b) {
    pool_sums v;
    v.top = max(a.top, b.top);
    const float2 fade_a = exp(a.top - v.top), fade_b = exp(b.top - v.top);
    v.sum = a.sum * fade_a + b.sum * fade_b;
    v.weighted = a.weighted * fade_a + b.weighted * fade_b;
    return v;
}

// Of one token, but for what its place adds to `top`.
msl_inline pool_sums pool_one(msl_device const float *kv, msl_device const float *gate) {
    pool_sums v;
    v.top = *(msl_device const float2 *)gate;
    v.sum = float2(1.0f);
    v.weighted = *(msl_device const float2 *)kv;
    return v;
}

msl_inline pool_sums pool_load(msl_device const float *state, uint dim) {
    pool_sums v;
    v.top = *(msl_device const float2 *)state;
    v.sum = *(msl_device const float2 *)(state + dim);
    v.weighted = *(msl_device const float2 *)(state + 2 * dim);
    v.top = float2(v.sum.x == 0.0f ? POOL_NOTHING : v.top.x, v.sum.y == 0.0f ? POOL_NOTHING : v.top.y);
    return v;
}

msl_inline void pool_store(pool_sums v, msl_device float *state, uint dim) {
    *(msl_device float2 *)state = float2(v.sum.x == 0.0f ? 0.0f : v.top.x, v.sum.y == 0.0f ? 0.0f : v.top.y);
    *(msl_device float2 *)(state + dim) = v.sum;
    *(msl_device float2 *)(state + 2 * dim) = v.weighted;
}

// Adds tokens `from` … `to` - 1 of one window, N at a time: `place` is the place of `from` in the window.
template <ushort N>
msl_inline pool_sums pool_tokens(pool_sums v, msl_device const float *kv, msl_device const float *gate, msl_device const float *bias,
                             uint from, uint to, uint place, uint width) {
    for (uint t = from; t < to; t += N) {
        float2 g[N];
        float2 x[N];
        #pragma unroll
        for (ushort i = 0; i < N; ++i) {
            const uint at = min(t + i, to - 1);
            g[i] = *(msl_device const float2 *)(gate + ulong(at) * width)
                 + *(msl_device const float2 *)(bias + ulong(place + at - from) * width);
            x[i] = *(msl_device const float2 *)(kv + ulong(at) * width);
        }
        float2 top = v.top;
        #pragma unroll
        for (ushort i = 0; i < N; ++i) { top = max(top, g[i]); }
        const float2 fade = exp(v.top - top);
        v.top = top;
        v.sum = v.sum * fade;
        v.weighted = v.weighted * fade;
        #pragma unroll
        for (ushort i = 0; i < N; ++i) {
            const float2 w = t + i < to ? exp(g[i] - top) : float2(0.0f);
            v.sum += w;
            v.weighted += w * x[i];
        }
    }
    return v;
}

// A row sits at the first position of its window.
msl_inline float2 pool_turn(msl_constant gpu_compressor &p, float frequency, uint row) {
    const float angle = float(row * p.ratio) * frequency;
    return float2(precise::cos(angle), precise::sin(angle));
}

[[max_total_threads_per_threadgroup(KV_THREADS)]]
MSL_KERNEL void compressor_step(msl_device const float * kv, msl_device const float * gate, msl_device const float * bias, msl_device const float * norm, msl_device const float * frequencies, msl_device const int * positions, msl_device const kv_page * sessions, msl_constant gpu_compressor & p, uint token, ushort tid, ushort sg, ushort lane)











{
    threadgroup_decl float2 shared[KV_THREADS];
    threadgroup_decl float partial[32];
    // Everything is loaded as early as its address is known; threads beyond the row load what the last one does.
    const uint dim = p.format.dim, plain = dim - p.rope, series = p.overlaps != 0u ? dim : 0;
    const uint width = dim + series, c = min(2u * tid, dim - 2);
    const bool isOwn = 2u * tid < dim, turns = isOwn && c >= plain;
    msl_device const kv_page *own = kv_line(sessions, p.table_stride, token);
    const uint position = uint(positions[token]);
    msl_device float *state = (msl_device float *)own[0].rows + c;
    kv += ulong(token) * width + c;
    gate += ulong(token) * width + c;
    bias += c;
    pool_sums first = pool_one(kv, gate), second = pool_one(kv + series, gate + series);
    const float2 weight = *(msl_device const float2 *)(norm + c);
    const float frequency = turns ? frequencies[(c - plain) / 2] : 0.0f;
    pool_sums sums = pool_load(state, dim);
    const pool_sums kept_first = pool_load(state + 3 * series, dim), kept_second = pool_load(state + 6 * series, dim);
    const uint row = position / p.ratio, place = position - row * p.ratio;
    const bool ends = place == p.ratio - 1;
    first.top += *(msl_device const float2 *)(bias + ulong(place) * width);
    second.top += *(msl_device const float2 *)(bias + ulong(place) * width + series);
    msl_device uchar *to = ends ? kv_row(own + 1, p.rows_per_page, p.format.bytes, row) : (msl_device uchar *)state;
    second = pool_merge(kept_second, second);
    if (p.overlaps != 0u) {
        first = pool_merge(kept_first, first);
        sums = pool_merge(sums, second);
        if (ends && isOwn) { pool_store(first, state, dim); }
        if (isOwn) { pool_store(pool_where(!ends, first), state + 3 * dim, dim); }
        if (isOwn) { pool_store(pool_where(!ends, second), state + 6 * dim, dim); }
    } else {
        sums = second;
        if (isOwn) { pool_store(pool_where(!ends, second), state, dim); }
    }
    if (!ends) { return; }
    float2 turn = float2(1.0f, 0.0f);
    if (turns) { turn = pool_turn(p, frequency, row); }
    const float2 v = isOwn ? sums.weighted / sums.sum : float2(0.0f);
    kv_encode(p.format, kv_turn(kv_norm(v, weight, dim, p.epsilon, partial, sg, lane), turn), shared, to, tid, sg, lane);
}

// The tokens of a window are cut into slices of consecutive ones; KV_THREADS threads take each.
[[max_total_threads_per_threadgroup(POOL_ROW_THREADS)]]
MSL_KERNEL void compressor_rows(msl_device const float * kv, msl_device const float * gate, msl_device const float * bias, msl_device const float * norm, msl_device const float * frequencies, msl_device const int * positions, msl_device const kv_page * sessions, msl_constant gpu_compressor & p, uint window, ushort tid, ushort sg, ushort lane)











{
    threadgroup_decl float2 parts[POOL_SLICES - 1][3][KV_THREADS];
    threadgroup_decl float partial[32];
    const uint dim = p.format.dim, position = uint(positions[0]), row = position / p.ratio + window;
    const uint width = p.overlaps != 0u ? 2 * dim : dim, slice = tid / KV_THREADS, c = 2u * (tid % KV_THREADS);
    msl_device const float *state = (msl_device const float *)sessions[0].rows + c;
    // Tokens of this window and of the one before, of those in this call.
    const uint end = (row + 1) * p.ratio - position;
    const uint begin = window == 0 ? 0 : end - p.ratio;
    const uint before = begin < p.ratio ? 0 : begin - p.ratio;
    const uint length = (end - begin + POOL_SLICES - 1) / POOL_SLICES, from = min(begin + slice * length, end);
    float2 v = float2(0.0f), weight = float2(0.0f);
    pool_sums sums = pool_none();
    if (c < dim) {
        weight = *(msl_device const float2 *)(norm + c);
        // What the state has of both windows, then the tokens of this call.
        if (slice == 0 && window == 0) { sums = pool_load(p.overlaps != 0u ? state + 6 * dim : state, dim); }
        msl_device const float *x = kv + c, *g = gate + c, *b = bias + c;
        if (p.overlaps != 0u) {
            if (slice == 0 && window < 2) { sums = pool_merge(sums, pool_load(state + 3 * dim * window, dim)); }
            if (window > 0) {
                const uint earlier = (begin - before + POOL_SLICES - 1) / POOL_SLICES;
                const uint start = min(before + slice * earlier, begin);
                sums = pool_tokens<4>(sums, x, g, b, start, min(start + earlier, begin), (position + start) % p.ratio,
                                      width);
            }
            x += dim;
            g += dim;
            b += dim;
        }
        sums = pool_tokens<4>(sums, x, g, b, from, min(from + length, end), (position + from) % p.ratio, width);
        if (slice != 0) {
            parts[slice - 1][0][c / 2] = sums.top;
            parts[slice - 1][1][c / 2] = sums.sum;
            parts[slice - 1][2][c / 2] = sums.weighted;
        }
    }
    const uint plain = dim - p.rope;
    float2 turn = float2(1.0f, 0.0f);
    if (slice == 0 && c >= plain && c < dim) { turn = pool_turn(p, frequencies[(c - plain) / 2], row); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (slice == 0 && c < dim) {
        for (ushort other = 0; other < POOL_SLICES - 1; ++other) {
            pool_sums more;
            more.top = parts[other][0][tid];
            more.sum = parts[other][1][tid];
            more.weighted = parts[other][2][tid];
            sums = pool_merge(sums, more);
        }
        v = sums.weighted / sums.sum;
    }
    v = kv_turn(kv_norm(v, weight, dim, p.epsilon, partial, sg, lane), turn);
    kv_encode(p.format, v, parts[0][0], kv_row(sessions + 1, p.rows_per_page, p.format.bytes, row), tid, sg, lane);
}

[[max_total_threads_per_threadgroup(256)]]
MSL_KERNEL void compressor_state(msl_device const float * kv, msl_device const float * gate, msl_device const float * bias, msl_device const int * positions, msl_device const kv_page * sessions, msl_constant gpu_compressor & p, uint tid)






{
    const uint dim = p.format.dim, position = uint(positions[0]), n = p.n, c = 2 * tid;
    const uint width = p.overlaps != 0u ? 2 * dim : dim;
    if (c >= dim) { return; }
    msl_device float *state = (msl_device float *)sessions[0].rows + c;
    const uint windows = (position + n) / p.ratio - position / p.ratio;
    // Where the unfinished window begins among these tokens.
    const uint begin = windows == 0 ? 0 : (position + n) / p.ratio * p.ratio - position;
    const uint place = (position + begin) % p.ratio;
    kv += c;
    gate += c;
    bias += c;
    if (p.overlaps == 0u) {
        const pool_sums kept = pool_where(windows == 0, pool_load(state, dim));
        pool_store(pool_tokens<4>(kept, kv, gate, bias, begin, n, place, width), state, dim);
        return;
    }
    const pool_sums first = pool_load(state + 3 * dim, dim), second = pool_load(state + 6 * dim, dim);
    if (windows > 0) {
        // The first series of the last finished window.
        const uint from = windows == 1 ? 0 : begin - p.ratio;
        pool_store(pool_tokens<4>(pool_where(windows == 1, first), kv, gate, bias, from, begin,
                                  (position + from) % p.ratio, width), state, dim);
    }
    pool_store(pool_tokens<4>(pool_where(windows == 0, first), kv, gate, bias, begin, n, place, width),
               state + 3 * dim, dim);
    pool_store(pool_tokens<4>(pool_where(windows == 0, second), kv + dim, gate + dim, bias + dim, begin, n, place,
                              width), state + 6 * dim, dim);
}

#line 1 "copy.metal"
// copy.metal — many small copies at once.
//
//   copy_many   up to GPU_MOST_COPIES pieces of words from one place to another
//
// Grid       one threadgroup a piece
// Origin     ours

#line 9 "copy.metal"
using namespace metal;

struct copy_job {
    msl_device const uint *from;
    msl_device uint *to;
    ulong quads;  // of words, where both addresses allow it
    ulong words;
};

struct copy_jobs {
    copy_job job[GPU_MOST_COPIES];
};

[[max_total_threads_per_threadgroup(256)]]
MSL_KERNEL void copy_many(msl_constant copy_jobs & p, uint piece, ushort tid)


{
    msl_device const uint *from = p.job[piece].from;
    msl_device uint *to = p.job[piece].to;
    const ulong quads = p.job[piece].quads, words = p.job[piece].words;
    #pragma unroll(4)
    for (ulong i = tid; i < quads; i += 256) { ((msl_device uint4 *)to)[i] = ((msl_device const uint4 *)from)[i]; }
    for (ulong i = 4 * quads + tid; i < words; i += 256) { to[i] = from[i]; }
}

#line 1 "experts.metal"
// experts.metal — the routed feed-forward layer: gate and up, SwiGLU, down, sum.
//
// A few tokens:
//   experts_gate_up   x [n, D], ids, weights;     -> h [n · used, inner], SwiGLU · weight, and behind it
//                     shared gate, up [n, inner]     the shared expert's [n, inner]
//   experts_down      h                           -> y [n, D] = Σ_j down[id_j]·h_j + shared down·h
// Many tokens, with matmul_experts in between:
//   experts_sort      ids                         -> order [places] (token · used + slot), place [n · used],
//                                                    tiles of at most `tile` places of one expert
//   experts_swiglu    gate, up [places, inner]    -> gate, in place, · weight
//   shared_swiglu     gate, up [n, inner]         -> gate, in place
//   experts_sum       parts [places, D], y [n, D] -> y += Σ_j parts[place[t, j]], j ascending
//
// Grid       gate_up: x row tiles, y n · used + n; down: x row tiles, y tokens; sort: one threadgroup
// Precision  f32
// CPU twin   CKernels/experts.c
// Origin     ours

#line 1 "quant.h"
// quant.h — sixteen weights of any format, as floats.
//
// Every product reads weights through quant_load16<T>: T is known when the kernel is compiled, so that
// only one branch of each remains. Blocks as drawn in CKernels/quant_blocks.h; rows in a mapped file are
// aligned to 2 bytes, MXFP4's to 1.
#ifndef PYDS4_QUANT_H
#define PYDS4_QUANT_H

#line 10 "quant.h"
using namespace metal;

// Entry i of IQ2_XXS's grid: eight magnitudes of {8, 25, 43}, two bits each.
constant_decl ushort quant_iq2_grid[256] = {
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041,
    0x0044, 0x0050, 0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110,
    0x0115, 0x0140, 0x0184, 0x0198, 0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421,
    0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481, 0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508,
    0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640, 0x0684, 0x06a4, 0x0800, 0x0805,
    0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940, 0x0a02, 0x0a14,
    0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518,
    0x1562, 0x1600, 0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51,
    0x2000, 0x2002, 0x200a, 0x2044, 0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401,
    0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541, 0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44,
    0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048, 0x4056, 0x4060, 0x4081, 0x4084,
    0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256, 0x4268, 0x4400,
    0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080,
    0x5088, 0x5104, 0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811,
    0x5819, 0x5864, 0x5940, 0x5a08, 0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260,
    0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842, 0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104,
    0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440, 0x8460, 0x8500, 0x8546, 0x8594,
    0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040, 0x90a1, 0x9116,
    0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
};

// The same as eight bytes.
constant_decl uint quant_iq2_bytes[512] = {
    0x08080808u, 0x08080808u, 0x0808082bu, 0x08080808u, 0x08081919u, 0x08080808u, 0x08082b08u, 0x08080808u,
    0x08082b2bu, 0x08080808u, 0x08190819u, 0x08080808u, 0x08191908u, 0x08080808u, 0x082b0808u, 0x08080808u,
    0x082b082bu, 0x08080808u, 0x082b2b08u, 0x08080808u, 0x082b2b2bu, 0x08080808u, 0x19080819u, 0x08080808u,
    0x19081908u, 0x08080808u, 0x19190808u, 0x08080808u, 0x19192b08u, 0x08080808u, 0x192b0819u, 0x08080808u,
    0x192b1908u, 0x08080808u, 0x2b080808u, 0x08080808u, 0x2b08082bu, 0x08080808u, 0x2b082b2bu, 0x08080808u,
    0x2b2b082bu, 0x08080808u, 0x08080819u, 0x08080819u, 0x08081908u, 0x08080819u, 0x08190808u, 0x08080819u,
    0x08191919u, 0x08080819u, 0x19080808u, 0x08080819u, 0x2b081908u, 0x08080819u, 0x2b192b08u, 0x08080819u,
    0x08080808u, 0x0808082bu, 0x0808082bu, 0x0808082bu, 0x082b082bu, 0x0808082bu, 0x2b08082bu, 0x0808082bu,
    0x08080819u, 0x08081908u, 0x08081908u, 0x08081908u, 0x08190808u, 0x08081908u, 0x082b0819u, 0x08081908u,
    0x082b1908u, 0x08081908u, 0x19080808u, 0x08081908u, 0x1908082bu, 0x08081908u, 0x19082b08u, 0x08081908u,
    0x192b0808u, 0x08081908u, 0x2b080819u, 0x08081908u, 0x2b081908u, 0x08081908u, 0x2b190808u, 0x08081908u,
    0x2b2b1908u, 0x08081908u, 0x08080808u, 0x08081919u, 0x0808082bu, 0x08081919u, 0x08082b08u, 0x08081919u,
    0x082b0808u, 0x08081919u, 0x1908192bu, 0x08081919u, 0x192b2b19u, 0x08081919u, 0x2b080808u, 0x08081919u,
    0x2b190819u, 0x08081919u, 0x08082b19u, 0x0808192bu, 0x08190808u, 0x0808192bu, 0x19080808u, 0x0808192bu,
    0x2b081908u, 0x0808192bu, 0x2b2b1908u, 0x0808192bu, 0x08080808u, 0x08082b08u, 0x08081919u, 0x08082b08u,
    0x08082b08u, 0x08082b08u, 0x08191908u, 0x08082b08u, 0x082b2b08u, 0x08082b08u, 0x19080819u, 0x08082b08u,
    0x19081908u, 0x08082b08u, 0x19190808u, 0x08082b08u, 0x1919082bu, 0x08082b08u, 0x2b082b08u, 0x08082b08u,
    0x08081908u, 0x08082b19u, 0x19080808u, 0x08082b19u, 0x0808082bu, 0x08082b2bu, 0x08191908u, 0x08082b2bu,
    0x08080819u, 0x08190808u, 0x08081908u, 0x08190808u, 0x08190808u, 0x08190808u, 0x082b0819u, 0x08190808u,
    0x19080808u, 0x08190808u, 0x192b0808u, 0x08190808u, 0x2b081908u, 0x08190808u, 0x2b190808u, 0x08190808u,
    0x2b191919u, 0x08190808u, 0x08080808u, 0x08190819u, 0x08082b08u, 0x08190819u, 0x082b0808u, 0x08190819u,
    0x19190808u, 0x08190819u, 0x19192b2bu, 0x08190819u, 0x2b080808u, 0x08190819u, 0x082b1908u, 0x0819082bu,
    0x19081919u, 0x0819082bu, 0x08080808u, 0x08191908u, 0x08082b08u, 0x08191908u, 0x082b0808u, 0x08191908u,
    0x082b1919u, 0x08191908u, 0x19082b19u, 0x08191908u, 0x2b080808u, 0x08191908u, 0x08192b08u, 0x08191919u,
    0x192b082bu, 0x08191919u, 0x08080808u, 0x0819192bu, 0x0819192bu, 0x0819192bu, 0x08080819u, 0x08192b08u,
    0x08081908u, 0x08192b08u, 0x08190808u, 0x08192b08u, 0x19080808u, 0x08192b08u, 0x2b080819u, 0x08192b08u,
    0x08080808u, 0x08192b19u, 0x08081919u, 0x08192b19u, 0x2b2b0808u, 0x08192b19u, 0x19190819u, 0x08192b2bu,
    0x08080808u, 0x082b0808u, 0x0808082bu, 0x082b0808u, 0x08082b2bu, 0x082b0808u, 0x19081908u, 0x082b0808u,
    0x192b0819u, 0x082b0808u, 0x2b080808u, 0x082b0808u, 0x2b08082bu, 0x082b0808u, 0x082b2b19u, 0x082b0819u,
    0x19082b08u, 0x082b0819u, 0x08080808u, 0x082b082bu, 0x0808082bu, 0x082b082bu, 0x08080819u, 0x082b1908u,
    0x08081908u, 0x082b1908u, 0x08190808u, 0x082b1908u, 0x19080808u, 0x082b1908u, 0x1919192bu, 0x082b1908u,
    0x08080808u, 0x082b1919u, 0x19080819u, 0x082b1919u, 0x192b1908u, 0x082b1919u, 0x2b190808u, 0x082b192bu,
    0x08082b08u, 0x082b2b08u, 0x082b0808u, 0x082b2b08u, 0x2b191908u, 0x082b2b08u, 0x19081908u, 0x082b2b2bu,
    0x08080819u, 0x19080808u, 0x08081908u, 0x19080808u, 0x08190808u, 0x19080808u, 0x08192b08u, 0x19080808u,
    0x082b0819u, 0x19080808u, 0x082b1908u, 0x19080808u, 0x19080808u, 0x19080808u, 0x19082b08u, 0x19080808u,
    0x1919192bu, 0x19080808u, 0x192b0808u, 0x19080808u, 0x2b080819u, 0x19080808u, 0x2b081908u, 0x19080808u,
    0x2b190808u, 0x19080808u, 0x08080808u, 0x19080819u, 0x082b0808u, 0x19080819u, 0x192b0819u, 0x19080819u,
    0x2b080808u, 0x19080819u, 0x2b081919u, 0x19080819u, 0x08080819u, 0x1908082bu, 0x08190808u, 0x1908082bu,
    0x19082b08u, 0x1908082bu, 0x1919192bu, 0x1908082bu, 0x192b2b08u, 0x1908082bu, 0x08080808u, 0x19081908u,
    0x08082b08u, 0x19081908u, 0x082b0808u, 0x19081908u, 0x2b080808u, 0x19081908u, 0x2b192b19u, 0x19081908u,
    0x0819082bu, 0x19081919u, 0x082b1908u, 0x19081919u, 0x08080808u, 0x1908192bu, 0x08080819u, 0x19082b08u,
    0x08081908u, 0x19082b08u, 0x08190808u, 0x19082b08u, 0x19080808u, 0x19082b08u, 0x19081919u, 0x19082b08u,
    0x08080808u, 0x19082b19u, 0x19192b08u, 0x19082b19u, 0x192b0819u, 0x19082b19u, 0x2b08082bu, 0x19082b19u,
    0x19081919u, 0x19082b2bu, 0x2b190808u, 0x19082b2bu, 0x08080808u, 0x19190808u, 0x08082b08u, 0x19190808u,
    0x08190819u, 0x19190808u, 0x08192b19u, 0x19190808u, 0x082b0808u, 0x19190808u, 0x2b080808u, 0x19190808u,
    0x2b082b08u, 0x19190808u, 0x08081908u, 0x19190819u, 0x1908082bu, 0x19190819u, 0x2b2b1908u, 0x19190819u,
    0x2b190819u, 0x1919082bu, 0x2b190808u, 0x19191908u, 0x2b19082bu, 0x19191908u, 0x08082b2bu, 0x19191919u,
    0x08080819u, 0x1919192bu, 0x19191908u, 0x1919192bu, 0x08080808u, 0x19192b08u, 0x08190819u, 0x19192b08u,
    0x08192b19u, 0x19192b08u, 0x192b1908u, 0x19192b08u, 0x19080808u, 0x19192b19u, 0x08082b08u, 0x19192b2bu,
    0x08081908u, 0x192b0808u, 0x08190808u, 0x192b0808u, 0x19080808u, 0x192b0808u, 0x192b2b08u, 0x192b0808u,
    0x08080808u, 0x192b0819u, 0x19191919u, 0x192b0819u, 0x08192b08u, 0x192b082bu, 0x192b0808u, 0x192b082bu,
    0x08080808u, 0x192b1908u, 0x08081919u, 0x192b1908u, 0x08190808u, 0x192b1919u, 0x0819082bu, 0x192b1919u,
    0x2b081908u, 0x192b1919u, 0x1908082bu, 0x192b2b08u, 0x08080808u, 0x2b080808u, 0x0808082bu, 0x2b080808u,
    0x08082b2bu, 0x2b080808u, 0x19080819u, 0x2b080808u, 0x2b08082bu, 0x2b080808u, 0x08081908u, 0x2b080819u,
    0x08192b08u, 0x2b080819u, 0x19080808u, 0x2b080819u, 0x08190819u, 0x2b08082bu, 0x08080819u, 0x2b081908u,
    0x08081908u, 0x2b081908u, 0x08190808u, 0x2b081908u, 0x08191919u, 0x2b081908u, 0x19080808u, 0x2b081908u,
    0x192b0808u, 0x2b081908u, 0x08080808u, 0x2b081919u, 0x1908192bu, 0x2b081919u, 0x2b191908u, 0x2b081919u,
    0x08082b19u, 0x2b08192bu, 0x19080808u, 0x2b08192bu, 0x192b0808u, 0x2b08192bu, 0x0808082bu, 0x2b082b08u,
    0x08081908u, 0x2b082b19u, 0x08190819u, 0x2b082b2bu, 0x08081908u, 0x2b190808u, 0x08190808u, 0x2b190808u,
    0x082b1908u, 0x2b190808u, 0x19080808u, 0x2b190808u, 0x2b2b0819u, 0x2b190808u, 0x0819192bu, 0x2b190819u,
    0x2b080808u, 0x2b190819u, 0x19081919u, 0x2b19082bu, 0x08080808u, 0x2b191908u, 0x082b082bu, 0x2b191908u,
    0x19081908u, 0x2b191908u, 0x19190819u, 0x2b191919u, 0x2b080819u, 0x2b192b08u, 0x082b0808u, 0x2b192b19u,
    0x0808082bu, 0x2b2b0808u, 0x19190808u, 0x2b2b0808u, 0x2b081919u, 0x2b2b0808u, 0x08082b19u, 0x2b2b0819u,
    0x08080808u, 0x2b2b082bu, 0x08192b08u, 0x2b2b1908u, 0x19190808u, 0x2b2b2b08u, 0x08081908u, 0x2b2b2b19u,
};

// 2^23 + byte: the byte lands in the mantissa, which is much faster than converting integers.
msl_inline float quant_byte_float(uint word, ushort i) {
#ifdef MSL_CUDA
    return as_type<float>(__byte_perm(word, 0x4b000000u, 0x7540u | i));
#else
    return as_type<float>(((word >> (8 * i)) & 0xffu) | 0x4b000000u);
#endif
}

// Four signed bytes.
msl_inline float4 quant_signed4(uint word) {
    const uint biased = word ^ 0x80808080u;
    return float4(quant_byte_float(biased, 0), quant_byte_float(biased, 1), quant_byte_float(biased, 2),
                  quant_byte_float(biased, 3)) - 8388736.0f;
}

// Four unsigned bytes.
msl_inline float4 quant_unsigned4(uint word) {
    return float4(quant_byte_float(word, 0), quant_byte_float(word, 1), quant_byte_float(word, 2),
                  quant_byte_float(word, 3)) - 8388608.0f;
}

// Bytes below 128, negated where the four bits of `signs` say so.
msl_inline uint quant_negate4(uint bytes, uint signs) {
    const uint ones = (signs * 0x00204081u) & 0x01010101u;  // bit i to byte i
    return (bytes ^ ones * 255u) + ones;
}

msl_inline float quant_half(msl_device const uchar *p) { return float(as_type<half>(*(msl_device const ushort *)p)); }

// A word from memory that is aligned to two bytes.
msl_inline uint quant_word(msl_device const uchar *p) {
    msl_device const ushort *h = (msl_device const ushort *)p;
    return uint(h[0]) | uint(h[1]) << 16;
}

// Bytes in a row of `columns` weights, without the scales of planes.
template <uint T> msl_inline ulong quant_row_bytes(uint columns) {
    if (T == GPU_F32) { return ulong(columns) * 4; }
    if (T == GPU_F16 || T == GPU_BF16) { return ulong(columns) * 2; }
    if (T == GPU_Q8_0) { return ulong(columns / 32) * 34; }
    if (T == GPU_Q4_0) { return ulong(columns / 32) * 18; }
    if (T == GPU_MXFP4) { return ulong(columns / 32) * 17; }
    if (T == GPU_Q2_K) { return ulong(columns / 256) * 84; }
    if (T == GPU_Q3_K) { return ulong(columns / 256) * 110; }
    if (T == GPU_Q4_K) { return ulong(columns / 256) * 144; }
    if (T == GPU_Q5_K) { return ulong(columns / 256) * 176; }
    if (T == GPU_Q6_K) { return ulong(columns / 256) * 210; }
    if (T == GPU_IQ2_XXS) { return ulong(columns / 256) * 66; }
    if (T == GPU_Q8_0_PLANES) { return ulong(columns); }
    if (T == GPU_Q2_K_PLANES) { return ulong(columns / 256) * 64; }
    return ulong(columns / 32) * 8;  // IQ2_XXS planes
}

// IQ2_XXS's grid where lookups are fast: [256] in threadgroup memory, by all `threads`.
msl_inline void quant_fill_grid(msl_threadgroup uint2 *grid, uint tid, uint threads) {
    for (uint i = tid; i < 256; i += threads) { grid[i] = uint2(quant_iq2_bytes[2 * i], quant_iq2_bytes[2 * i + 1]); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Magnitude codes and sign bits of eight weights to floats.
msl_inline void quant_iq2_eight(uint codes, uint signs, float scale, msl_thread float *out) {
    for (ushort i = 0; i < 8; ++i) {
        const uint code = (codes >> (2 * i)) & 3u;
        const float magnitude = code == 0u ? 8.0f : code == 1u ? 25.0f : 43.0f;
        out[i] = (((signs >> i) & 1u) != 0u ? -magnitude : magnitude) * scale;
    }
}

// Half of a group of 32: grid indices and signs of entries 2·side and 2·side + 1.
msl_inline void quant_iq2_16(uint grid, uint packed, float d, uint side, msl_thread float *out) {
    const float scale = d * float(2u * (packed >> 28) + 1u) * 0.125f;
    for (ushort e = 0; e < 2; ++e) {
        const uint entry = side * 2u + e;
        const uint seven = (packed >> (7u * entry)) & 127u;
        quant_iq2_eight(quant_iq2_grid[(grid >> (8u * entry)) & 255u], seven | (popcount(seven) & 1u) << 7, scale,
                        out + 8 * e);
    }
}

// The six-bit scale and minimum of Q4_K and Q5_K.
msl_inline float2 quant_k4(msl_device const uchar *packed, uint sub) {
    const uint scale = sub < 4u ? packed[sub] & 63u : (packed[sub + 4u] & 15u) | (packed[sub - 4u] >> 6) << 4;
    const uint least = sub < 4u ? packed[sub + 4u] & 63u : packed[sub + 4u] >> 4 | (packed[sub] >> 6) << 4;
    return float2(float(scale), float(least));
}

// Sixteen quants of Q2_K planes from k on, a byte each, and their scale and minimum.
msl_inline void quant_q2_planes(msl_device const uchar *w, ulong plane, ulong row, uint columns, uint k, msl_thread uint4 &two,
                            msl_thread float &d, msl_thread float &least) {
    const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
    const ulong block = row * (columns / 256) + k / 256;
    const uint4 q = *(msl_device const uint4 *)(w + block * 64 + 32u * h + l);
    const uint sub = w[plane + block * 16 + j];
    msl_device const uchar *both = w + plane + plane / 4 + block * 4;
    d = quant_half(both) * float(sub & 15u);
    least = quant_half(both + 2) * float(sub >> 4);
    two = (q >> (2u * s)) & 0x03030303u;
}

// Weights k … k + 15 of row `row`; k is a multiple of 16. `plane`: where the scales of planes begin.
template <uint T>
msl_inline void quant_load16(msl_device const uchar *w, ulong plane, ulong row, uint columns, uint k, msl_thread float *out) {
    msl_device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F32) {
        msl_device const float4 *p = (msl_device const float4 *)(line + ulong(k) * 4);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = p[j];
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_F16) {
        msl_device const uint4 *p = (msl_device const uint4 *)(line + ulong(k) * 2);
        for (ushort j = 0; j < 2; ++j) {
            const uint4 v = p[j];
            for (ushort i = 0; i < 4; ++i) {
                out[8 * j + 2 * i] = float(as_type<half>(ushort(v[i] & 0xffffu)));
                out[8 * j + 2 * i + 1] = float(as_type<half>(ushort(v[i] >> 16)));
            }
        }
    } else if (T == GPU_BF16) {
        msl_device const ushort *p = (msl_device const ushort *)(line + ulong(k) * 2);
        for (ushort i = 0; i < 16; ++i) { out[i] = as_type<float>(uint(p[i]) << 16); }
    } else if (T == GPU_Q8_0) {
        msl_device const uchar *block = line + ulong(k / 32) * 34;
        const float d = quant_half(block);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = quant_signed4(quant_word(block + 2 + (k & 16u) + 4 * j)) * d;
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_Q8_0_PLANES) {
        const uint4 q = *(msl_device const uint4 *)(line + k);
        const float d = quant_half(w + plane + (row * (columns / 32) + k / 32) * 2);
        for (ushort j = 0; j < 4; ++j) {
            const float4 v = quant_signed4(q[j]) * d;
            for (ushort i = 0; i < 4; ++i) { out[4 * j + i] = v[i]; }
        }
    } else if (T == GPU_Q4_0) {
        msl_device const uchar *block = line + ulong(k / 32) * 18;
        const float d = quant_half(block);
        const ushort shift = (k & 16u) != 0u ? 4 : 0;
        for (ushort i = 0; i < 16; ++i) { out[i] = (float((block[2 + i] >> shift) & 15) - 8.0f) * d; }
    } else if (T == GPU_MXFP4) {
        msl_device const uchar *block = line + ulong(k / 32) * 17;
        const uint e = block[0];
        const float d = as_type<float>(e < 2u ? 0x00200000u << e : (e - 1u) << 23);
        const ushort shift = (k & 16u) != 0u ? 4 : 0;
        for (ushort i = 0; i < 16; ++i) {
            const uint code = (block[1 + i] >> shift) & 15;
            const uint m = code & 7u;
            // 0 1 2 3 4 6 8 12: twice the values of e2m1
            const float value = m < 4u ? float(m) : m == 4u ? 4.0f : m == 5u ? 6.0f : m == 6u ? 8.0f : 12.0f;
            out[i] = (code & 8u) != 0u ? -value * d : value * d;
        }
    } else if (T == GPU_IQ2_XXS) {
        msl_device const uchar *block = line + ulong(k / 256) * 66;
        msl_device const uchar *group = block + 2 + (k % 256u) / 32u * 8u;
        quant_iq2_16(quant_word(group), quant_word(group + 4), quant_half(block), (k / 16u) & 1u, out);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(msl_device const uint2 *)(line + ulong(k / 32) * 8);
        const float d = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2);
        quant_iq2_16(group.x, group.y, d, (k / 16u) & 1u, out);
    } else if (T == GPU_Q2_K_PLANES) {
        float d, least;
        uint4 two;
        quant_q2_planes(w, plane, row, columns, k, two, d, least);
        for (ushort i = 0; i < 4; ++i) {
            const float4 v = quant_unsigned4(two[i]) * d - least;
            for (ushort c = 0; c < 4; ++c) { out[4 * i + c] = v[c]; }
        }
    } else {
        // The K types: sixteen sub-blocks of 16 in 256; sub-block j is half `h`, shift `s`, offset `l`.
        const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
        if (T == GPU_Q2_K) {
            msl_device const uchar *block = line + ulong(k / 256) * 84;
            const uint sub = block[j];
            const float d = quant_half(block + 80) * float(sub & 15u);
            const float least = quant_half(block + 82) * float(sub >> 4);
            msl_device const uchar *q = block + 16 + 32u * h + l;
            for (ushort i = 0; i < 4; ++i) {
                const float4 v = quant_unsigned4((quant_word(q + 4 * i) >> (2u * s)) & 0x03030303u) * d - least;
                for (ushort c = 0; c < 4; ++c) { out[4 * i + c] = v[c]; }
            }
        } else if (T == GPU_Q3_K) {
            msl_device const uchar *block = line + ulong(k / 256) * 110;
            msl_device const uchar *scales = block + 96;
            const uint low = j < 8u ? scales[j] & 15u : scales[j - 8u] >> 4;
            const uint high = (scales[8u + j % 4u] >> (2u * (j / 4u))) & 3u;
            const float d = quant_half(block + 108) * (float(low | high << 4) - 32.0f);
            for (ushort i = 0; i < 16; ++i) {
                const uint two = (block[32u + 32u * h + l + i] >> (2u * s)) & 3u;
                const uint one = (block[l + i] >> (4u * h + s)) & 1u;
                out[i] = d * (float(two) - (one != 0u ? 0.0f : 4.0f));
            }
        } else if (T == GPU_Q4_K || T == GPU_Q5_K) {
            msl_device const uchar *block = line + ulong(k / 256) * (T == GPU_Q4_K ? 144u : 176u);
            const uint sub = j / 2u;
            const float2 six = quant_k4(block + 4, sub);
            const float d = quant_half(block) * six.x, least = quant_half(block + 2) * six.y;
            msl_device const uchar *q = block + (T == GPU_Q4_K ? 16u : 48u) + 32u * (sub / 2u) + l;
            for (ushort i = 0; i < 16; ++i) {
                uint value = (q[i] >> ((sub & 1u) * 4u)) & 15u;
                if (T == GPU_Q5_K) { value |= ((block[16u + l + i] >> sub) & 1u) << 4; }
                out[i] = d * float(value) - least;
            }
        } else {  // Q6_K
            msl_device const uchar *block = line + ulong(k / 256) * 210;
            const float d = quant_half(block + 208) * float(as_type<char>(block[192u + j]));
            msl_device const uchar *low = block + 64u * h + 32u * (s & 1u) + l;
            msl_device const uchar *high = block + 128u + 32u * h + l;
            for (ushort i = 0; i < 16; ++i) {
                const uint value = ((low[i] >> (s / 2u * 4u)) & 15u) | ((high[i] >> (2u * s)) & 3u) << 4;
                out[i] = d * (float(value) - 32.0f);
            }
        }
    }
}

// ---------------------------------------------------------------- halfs, for tiles
//
// A byte under 0x64 is the half 1024 + byte: two weights at a time, without a conversion.

msl_inline half2 quant_bytes_half2(uint word, ushort pair) {
#ifdef MSL_CUDA
    return as_type<half2>(__byte_perm(word, 0x64646464u, pair == 0 ? 0x4140u : 0x4342u));
#else
    const uint two = word >> (16 * pair);
    return as_type<half2>((two & 0xffu) | (two & 0xff00u) << 8 | 0x64006400u);
#endif
}

// Four signed bytes times d.
msl_inline uint2 quant_signed_half4(uint word, half2 d) {
    const uint biased = word ^ 0x80808080u;
    const half2 zero = half2(half(1152.0f));
    return uint2(as_type<uint>((quant_bytes_half2(biased, 0) - zero) * d),
                 as_type<uint>((quant_bytes_half2(biased, 1) - zero) * d));
}

// As quant_load16, as sixteen halfs.
template <uint T>
msl_inline void quant_half16(msl_device const uchar *w, ulong plane, ulong row, uint columns, uint k,
                         msl_threadgroup const uint2 *grid, msl_thread uint2 *out) {
    msl_device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F16) {
        msl_device const uint2 *p = (msl_device const uint2 *)(line + ulong(k) * 2);
        for (ushort j = 0; j < 4; ++j) { out[j] = p[j]; }
    } else if (T == GPU_Q8_0_PLANES) {
        const uint4 q = *(msl_device const uint4 *)(line + k);
        const half2 d = half2(as_type<half>(*(msl_device const ushort *)(w + plane + (row * (columns / 32) + k / 32) * 2)));
        out[0] = quant_signed_half4(q.x, d);
        out[1] = quant_signed_half4(q.y, d);
        out[2] = quant_signed_half4(q.z, d);
        out[3] = quant_signed_half4(q.w, d);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(msl_device const uint2 *)(line + ulong(k / 32) * 8);
        const float scale = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2)
                          * float(2u * (group.y >> 28) + 1u) * 0.125f;
        const half2 d = half2(half(scale));
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint entry = (k / 16u & 1u) * 2u + e;
            const uint seven = (group.y >> (7u * entry)) & 127u;
            const uint signs = seven | (popcount(seven) & 1u) << 7;
            const uint2 eight = grid[(group.x >> (8u * entry)) & 255u];
            out[2 * e] = quant_signed_half4(quant_negate4(eight.x, signs & 15u), d);
            out[2 * e + 1] = quant_signed_half4(quant_negate4(eight.y, signs >> 4), d);
        }
    } else if (T == GPU_Q2_K_PLANES) {
        float scale, minimum;
        uint4 two;
        quant_q2_planes(w, plane, row, columns, k, two, scale, minimum);
        const half2 d = half2(half(scale)), least = half2(half(minimum)), zero = half2(half(1024.0f));
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            out[i] = uint2(as_type<uint>((quant_bytes_half2(two[i], 0) - zero) * d - least),
                           as_type<uint>((quant_bytes_half2(two[i], 1) - zero) * d - least));
        }
    } else if (T == GPU_Q2_K) {
        const uint j = (k % 256u) / 16u, h = j / 8u, s = (j % 8u) / 2u, l = (j & 1u) * 16u;
        msl_device const uchar *block = line + ulong(k / 256) * 84;
        const uint sub = block[j];
        const half2 d = half2(half(quant_half(block + 80) * float(sub & 15u)));
        const half2 least = half2(half(quant_half(block + 82) * float(sub >> 4)));
        msl_device const uint *q = (msl_device const uint *)(block + 16 + 32u * h + l);
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint two = (q[i] >> (2u * s)) & 0x03030303u;
            const half2 zero = half2(half(1024.0f));
            out[i] = uint2(as_type<uint>((quant_bytes_half2(two, 0) - zero) * d - least),
                           as_type<uint>((quant_bytes_half2(two, 1) - zero) * d - least));
        }
    } else {
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
        quant_load16<T>(w, plane, row, columns, k, v);
        for (ushort j = 0; j < 4; ++j) {
            out[j] = as_type<uint2>(half4(float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3])));
        }
    }
}

// ---------------------------------------------------------------- one simdgroup along a row
//
// 512 weights at a time, sixteen a lane, as four float4: which ones depends on the format, so that lanes
// next to each other read memory next to each other, of the weights and of x.

// Formats of published models, whose branch-free form is worth its code.
template <uint T> msl_inline bool quant_is_common() {
    return T == GPU_F32 || T == GPU_F16 || T == GPU_Q8_0_PLANES || T == GPU_Q2_K || T == GPU_IQ2_XXS_PLANES
        || T == GPU_Q4_K || T == GPU_MXFP4 || T == GPU_Q8_0;
}

// Where the j-th float4 of a lane lies among the 512.
template <uint T> msl_inline uint quant_lane_offset(ushort lane, ushort j) {
    if (T == GPU_F32 || T == GPU_F16 || T == GPU_BF16 || T == GPU_Q8_0_PLANES) { return 128u * j + 4u * lane; }
    if (T == GPU_Q2_K) { return 256u * (lane / 16) + 128u * (lane % 16 / 8) + 32u * j + 4u * (lane % 8); }
    if (T == GPU_IQ2_XXS_PLANES) { return 256u * (j / 2) + 8u * lane + 4u * (j % 2); }
    return 16u * lane + 4u * j;
}

// The lane's weights of [k0, k0 + 512) in row `row`; zeros past the end, unless all 512 are there (FULL):
// then there is no branch, and all loads of several rows can be under way together. `grid`: what
// quant_fill_grid put there, for IQ2_XXS planes.
template <uint T, bool FULL>
msl_inline void quant_lane16(msl_device const uchar *w, ulong plane, ulong row, uint columns, uint k0, ushort lane,
                         msl_threadgroup const uint2 *grid, msl_thread float4 *out) {
    msl_device const uchar *line = w + row * quant_row_bytes<T>(columns);
    if (T == GPU_F32 || T == GPU_F16 || T == GPU_BF16 || T == GPU_Q8_0_PLANES) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            const uint k = k0 + 128u * j + 4u * lane;
            float4 v = float4(0.0f);
            if (FULL || k < columns) {
                if (T == GPU_F32) {
                    v = *(msl_device const float4 *)(line + ulong(k) * 4);
                } else if (T == GPU_Q8_0_PLANES) {
                    const float d = quant_half(w + plane + (row * (columns / 32) + k / 32) * 2);
                    v = quant_signed4(*(msl_device const uint *)(line + k)) * d;
                } else {
                    const uint2 two = *(msl_device const uint2 *)(line + ulong(k) * 2);
                    if (T == GPU_F16) {
                        v = float4(float(as_type<half>(ushort(two.x & 0xffffu))), float(as_type<half>(ushort(two.x >> 16))),
                                   float(as_type<half>(ushort(two.y & 0xffffu))), float(as_type<half>(ushort(two.y >> 16))));
                    } else {
                        v = float4(as_type<float>(two.x << 16), as_type<float>(two.x & 0xffff0000u),
                                   as_type<float>(two.y << 16), as_type<float>(two.y & 0xffff0000u));
                    }
                }
            }
            out[j] = v;
        }
    } else if (T == GPU_Q2_K) {
        const uint k = k0 + 256u * (lane / 16);
        const ushort h = lane % 16 / 8, word = lane % 8;
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(0.0f); }
        if (FULL || k < columns) {
            msl_device const uchar *block = line + ulong(k / 256) * 84;
            const uint q = *(msl_device const uint *)(block + 16 + 32 * h + 4 * word);
            // Scales 8h + 2s + half of shifts s = 0 … 3.
            const uint2 scales = uint2(*(msl_device const uint *)(block + 8 * h), *(msl_device const uint *)(block + 8 * h + 4));
            const float d = quant_half(block + 80), least = quant_half(block + 82);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const uint both = j < 2 ? scales.x : scales.y;
                const uint sub = (both >> (16 * (j & 1) + 8 * (word / 4))) & 0xffu;
                out[j] = quant_unsigned4((q >> (2 * j)) & 0x03030303u) * (d * float(sub & 15u)) - least * float(sub >> 4);
            }
        }
    } else if (T == GPU_IQ2_XXS_PLANES) {
        #pragma unroll
        for (ushort e = 0; e < 2; ++e) {
            const uint k = k0 + 256u * e + 8u * lane;
            out[2 * e] = float4(0.0f);
            out[2 * e + 1] = float4(0.0f);
            if (FULL || k < columns) {
                const uint2 group = *(msl_device const uint2 *)(line + ulong(k / 32) * 8);
                const float d = quant_half(w + plane + (row * (columns / 256) + k / 256) * 2);
                const float scale = d * float(2u * (group.y >> 28) + 1u) * 0.125f;
                const uint entry = lane & 3;
                const uint seven = (group.y >> (7u * entry)) & 127u;
                const uint signs = seven | (popcount(seven) & 1u) << 7;
                const uint2 eight = grid[(group.x >> (8u * entry)) & 255u];
                out[2 * e] = quant_signed4(quant_negate4(eight.x, signs & 15u)) * scale;
                out[2 * e + 1] = quant_signed4(quant_negate4(eight.y, signs >> 4)) * scale;
            }
        }
    } else {
        const uint k = k0 + 16u * lane;
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
        if (FULL || k < columns) { quant_load16<T>(w, plane, row, columns, k, v); }
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]); }
    }
}

// The lane's values of x in the same order; past the end whatever row 0 of 512 has, times zero weights.
template <uint T, bool FULL>
msl_inline void quant_lane_x(msl_device const float *x, uint columns, uint k0, ushort lane, msl_thread float4 *out) {
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) {
        const uint k = k0 + quant_lane_offset<T>(lane, j);
        out[j] = FULL || k < columns ? *(msl_device const float4 *)(x + k) : float4(0.0f);
    }
}

// Calls BODY(T) for the format that `type` names.
// A device may know which types its model has, and leave out the code of the others: bits of QUANT_TYPES.
#ifndef QUANT_TYPES
#define QUANT_TYPES 0xffffffffu
#endif
#define QUANT_BIT(T) ((T) < 32 ? (T) : (T) == GPU_MXFP4 ? 9 : (T) == GPU_Q8_0_PLANES ? 3 : (T) == GPU_Q2_K_PLANES ? 5 : 4)
#define QUANT_CASE(T, BODY) case T: if ((QUANT_TYPES >> QUANT_BIT(T) & 1u) != 0u) { BODY(T); } break;

#define QUANT_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F32, BODY) \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_BF16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    QUANT_CASE(GPU_Q4_0, BODY) \
    QUANT_CASE(GPU_MXFP4, BODY) \
    QUANT_CASE(GPU_Q2_K, BODY) \
    QUANT_CASE(GPU_Q2_K_PLANES, BODY) \
    QUANT_CASE(GPU_Q3_K, BODY) \
    QUANT_CASE(GPU_Q4_K, BODY) \
    QUANT_CASE(GPU_Q5_K, BODY) \
    QUANT_CASE(GPU_Q6_K, BODY) \
    QUANT_CASE(GPU_IQ2_XXS, BODY) \
    QUANT_CASE(GPU_IQ2_XXS_PLANES, BODY) \
    default: break; \
    }

#endif

#line 20 "experts.metal"
#line 1 "experts.h"
// experts.h — what the kernels of routed experts share.
#ifndef PYDS4_EXPERTS_H
#define PYDS4_EXPERTS_H

using namespace metal;

// silu(min(g, clamp)) · clip(u, ±clamp)
msl_inline float experts_glu(float g, float u, float limit) {
    if (limit > 0.0f) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    return g / (1.0f + exp(-g)) * u;
}
#endif

#line 21 "experts.metal"
using namespace metal;

#define EXPERT_SIMDGROUPS 4
#define EXPERT_SIMD_ROWS 2
#define EXPERT_ROWS (EXPERT_SIMDGROUPS * EXPERT_SIMD_ROWS)

template <uint T, bool FULL>
msl_inline void experts_step(msl_device const uchar *w, ulong plane, ulong row, uint columns, msl_device const float *x, uint k0,
                         ushort lane, msl_threadgroup const uint2 *grid, msl_thread float *sums) {
    float4 v[EXPERT_SIMD_ROWS][4];
    float4 a[4];
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        quant_lane16<T, FULL>(w, plane, row + r, columns, k0, lane, grid, v[r]);
    }
    quant_lane_x<T, FULL>(x, columns, k0, lane, a);
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { sums[r] += dot(v[r][j], a[j]); }
    }
}

// This lane's part of row · x for EXPERT_SIMD_ROWS rows from `row` on.
template <uint T>
msl_inline void experts_dot(msl_device const uchar *w, ulong plane, ulong row, uint columns, msl_device const float *x, ushort lane,
                        msl_threadgroup const uint2 *grid, msl_thread float *sums) {
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        experts_step<T, true>(w, plane, row, columns, x, k0, lane, grid, sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        experts_step<T, false>(w, plane, row, columns, x, k0, lane, grid, sums);
    }
}

template <uint T, bool FULL>
msl_inline void experts_pair_step(msl_device const uchar *w, msl_device const uchar *v, ulong plane, ulong row, uint columns,
                              msl_device const float *x, uint k0, ushort lane, msl_threadgroup const uint2 *grid,
                              msl_thread float *w_sums, msl_thread float *v_sums) {
    float4 b[EXPERT_SIMD_ROWS][4];
    float4 c[EXPERT_SIMD_ROWS][4];
    float4 a[4];
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        quant_lane16<T, FULL>(w, plane, row + r, columns, k0, lane, grid, b[r]);
        quant_lane16<T, FULL>(v, plane, row + r, columns, k0, lane, grid, c[r]);
    }
    quant_lane_x<T, FULL>(x, columns, k0, lane, a);
    #pragma unroll
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            w_sums[r] += dot(b[r][j], a[j]);
            v_sums[r] += dot(c[r][j], a[j]);
        }
    }
}

// The same for two matrices at once.
template <uint T>
msl_inline void experts_dot_pair(msl_device const uchar *w, msl_device const uchar *v, ulong plane, ulong row, uint columns,
                             msl_device const float *x, ushort lane, msl_threadgroup const uint2 *grid, msl_thread float *w_sums,
                             msl_thread float *v_sums) {
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        experts_pair_step<T, true>(w, v, plane, row, columns, x, k0, lane, grid, w_sums, v_sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        experts_pair_step<T, false>(w, v, plane, row, columns, x, k0, lane, grid, w_sums, v_sums);
    }
}

[[max_total_threads_per_threadgroup(EXPERT_SIMDGROUPS * 32)]]
MSL_KERNEL void experts_gate_up(msl_device const uchar * gate, msl_device const uchar * up, msl_device const float * x, msl_device const int * ids, msl_device const float * weights, msl_device const float * shared_gate, msl_device const float * shared_up, msl_device float * h, msl_constant gpu_experts & p, uint2 tg, ushort tid, ushort sg, ushort lane)












{
    if (tg.y >= p.n * p.used) {
        // Behind the routed rows of h: those of the shared expert, whose products were made before.
        const uint token = tg.y - p.n * p.used;
        const ulong from = ulong(token) * p.shared_inner;
        msl_device float *out = h + ulong(p.n) * p.used * p.inner + from;
        for (uint i = tg.x * 128 + tid; i < p.shared_inner; i += p.inner / EXPERT_ROWS * 128) {
            out[i] = experts_glu(shared_gate[from + i], shared_up[from + i], p.shared_clamp);
        }
        return;
    }
    threadgroup_decl uint2 grid[256];
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, EXPERT_SIMDGROUPS * 32); }
    // inner is a multiple of 32: no tile is cut.
    const uint row = tg.x * EXPERT_ROWS + sg * EXPERT_SIMD_ROWS;
    const ulong line = ulong(ids[tg.y]) * p.inner + row;
    msl_device const float *token = x + ulong(tg.y / p.used) * p.hidden;
    float g[EXPERT_SIMD_ROWS];
    float u[EXPERT_SIMD_ROWS];
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        g[r] = 0.0f;
        u[r] = 0.0f;
    }
#define GATE_UP_BODY(T) experts_dot_pair<T>(gate, up, p.plane, line, p.hidden, token, lane, grid, g, u)
    QUANT_SWITCH(p.type, GATE_UP_BODY)
#undef GATE_UP_BODY
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        const float gs = simd_sum(g[r]), us = simd_sum(u[r]);
        if (lane == 0) { h[ulong(tg.y) * p.inner + row + r] = experts_glu(gs, us, p.clamp) * weights[tg.y]; }
    }
}

[[max_total_threads_per_threadgroup(EXPERT_SIMDGROUPS * 32)]]
MSL_KERNEL void experts_down(msl_device const uchar * down, msl_device const uchar * shared_down, msl_device const float * h, msl_device const int * ids, msl_device float * y, msl_constant gpu_experts & p, uint2 tg, ushort tid, ushort sg, ushort lane)









{
    threadgroup_decl uint2 grid[256];
    if (p.down_type == GPU_IQ2_XXS_PLANES || p.shared_type == GPU_IQ2_XXS_PLANES) {
        quant_fill_grid(grid, tid, EXPERT_SIMDGROUPS * 32);
    }
    const uint row = tg.x * EXPERT_ROWS + sg * EXPERT_SIMD_ROWS;
    float sums[EXPERT_SIMD_ROWS];
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) { sums[r] = 0.0f; }
    for (uint j = 0; j < p.used; ++j) {
        const ulong assignment = ulong(tg.y) * p.used + j;
        const ulong line = ulong(ids[assignment]) * p.hidden + row;
#define DOWN_BODY(T) experts_dot<T>(down, p.down_plane, line, p.inner, h + assignment * p.inner, lane, grid, sums)
        QUANT_SWITCH(p.down_type, DOWN_BODY)
#undef DOWN_BODY
    }
    msl_device const float *shared = h + ulong(p.n) * p.used * p.inner + ulong(tg.y) * p.shared_inner;
#define SHARED_BODY(T) experts_dot<T>(shared_down, p.shared_plane, row, p.shared_inner, shared, lane, grid, sums)
    QUANT_SWITCH(p.shared_type, SHARED_BODY)
#undef SHARED_BODY
    for (ushort r = 0; r < EXPERT_SIMD_ROWS; ++r) {
        const float sum = simd_sum(sums[r]);
        if (lane == 0) { y[ulong(tg.y) * p.hidden + row + r] = sum; }
    }
}

// ---------------------------------------------------------------- many tokens

#define SORT_THREADS 1024
#define SORT_MOST 1024  // experts

// A stable counting sort: thread e walks over all assignments of expert e.
[[max_total_threads_per_threadgroup(SORT_THREADS)]]
MSL_KERNEL void experts_sort(msl_device const int * ids, msl_device uint * order, msl_device uint * place, msl_device uint4 * tiles, msl_constant gpu_experts & p, ushort tid, ushort sg, ushort lane)







{
    threadgroup_decl atomic_uint counts[SORT_MOST];
    threadgroup_decl uint partial[32];
    threadgroup_decl uint partial_tiles[32];
    const uint assignments = p.n * p.used;
    atomic_store_explicit(&counts[tid], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < assignments; i += SORT_THREADS) {
        atomic_fetch_add_explicit(&counts[ids[i]], 1u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Where each expert begins, in places and in tiles.
    const uint count = atomic_load_explicit(&counts[tid], memory_order_relaxed);
    const uint own_tiles = (count + p.tile - 1) / p.tile;
    const uint before = simd_prefix_exclusive_sum(count), tiles_before = simd_prefix_exclusive_sum(own_tiles);
    const uint group = simd_sum(count), group_tiles = simd_sum(own_tiles);
    if (lane == 0) {
        partial[sg] = group;
        partial_tiles[sg] = group_tiles;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint groups = partial[lane], groups_tiles = partial_tiles[lane];
    const uint begin = before + simd_sum(lane < sg ? groups : 0u);
    const uint first_tile = tiles_before + simd_sum(lane < sg ? groups_tiles : 0u);
    const uint all_tiles = simd_sum(groups_tiles);
    for (uint i = 0; i < own_tiles; ++i) {
        tiles[first_tile + i] = uint4(tid, begin + i * p.tile, min(count - i * p.tile, p.tile), 0);
    }
    const uint most_tiles = assignments / p.tile + min(p.experts, assignments);
    for (uint i = all_tiles + tid; i < most_tiles; i += SORT_THREADS) { tiles[i] = uint4(0, 0, 0, 0); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_store_explicit(&counts[tid], begin, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // The order inside an expert does not matter: every place is written and read by its own number.
    for (uint i = tid; i < assignments; i += SORT_THREADS) {
        const uint at = atomic_fetch_add_explicit(&counts[ids[i]], 1u, memory_order_relaxed);
        order[at] = i;
        place[i] = at;
    }
}

MSL_KERNEL void experts_swiglu(msl_device float * gate, msl_device const float * up, msl_device const uint * order, msl_device const float * weights, msl_constant gpu_experts & p, uint2 i)





{
    if (i.x >= p.inner) { return; }
    const ulong at = ulong(i.y) * p.inner + i.x;
    gate[at] = experts_glu(gate[at], up[at], p.clamp) * weights[order[i.y]];
}

MSL_KERNEL void shared_swiglu(msl_device float * gate, msl_device const float * up, msl_constant gpu_experts & p, uint2 i)



{
    if (i.x >= p.shared_inner) { return; }
    const ulong at = ulong(i.y) * p.shared_inner + i.x;
    gate[at] = experts_glu(gate[at], up[at], p.shared_clamp);
}

MSL_KERNEL void experts_sum(msl_device const float * parts, msl_device const uint * place, msl_device float * y, msl_constant gpu_experts & p, uint2 i)




{
    if (i.x >= p.hidden) { return; }
    float sum = 0.0f;
    for (uint j = 0; j < p.used; ++j) { sum += parts[ulong(place[i.y * p.used + j]) * p.hidden + i.x]; }
    y[ulong(i.y) * p.hidden + i.x] += sum;
}

#line 1 "experts_int8.metal"
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

#line 1 "int8.h"
// int8.h — products of quantized weights with activations of 16 bits, four at a time.
//
// A block of activations becomes integers in ±32767 with one scale, kept as two planes of bytes: the high
// one signed, the low one not, v = 256 · high + low. Weights of at most eight bits meet both planes in
// integer dot products of four; sums are exact until they are scaled. Against f32 activations an error of
// 2^-16 of the block's largest value remains.
#ifndef PYDS4_INT8_H
#define PYDS4_INT8_H

#line 11 "int8.h"
using namespace metal;

// sum + Σ of four signed bytes of w times four signed (low: unsigned) bytes of x.
msl_inline int int8_dot_high(uint w, uint x, int sum) {
#ifdef MSL_CUDA
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(w), "r"(x));
    return sum;
#else
    for (ushort i = 0; i < 4; ++i) {
        sum += int(as_type<char>(uchar(w >> (8 * i)))) * int(as_type<char>(uchar(x >> (8 * i))));
    }
    return sum;
#endif
}

msl_inline int int8_dot_low(uint w, uint x, int sum) {
#ifdef MSL_CUDA
    asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(w), "r"(x));
    return sum;
#else
    for (ushort i = 0; i < 4; ++i) { sum += int(as_type<char>(uchar(w >> (8 * i)))) * int((x >> (8 * i)) & 255u); }
    return sum;
#endif
}

// Bytes 0 and 1 of four words, as the words `low` and `high`.
msl_inline void int8_gather(uint4 v, msl_thread uint &high, msl_thread uint &low) {
#ifdef MSL_CUDA
    const uint a = __byte_perm(v.x, v.y, 0x5140u), b = __byte_perm(v.z, v.w, 0x5140u);
    low = __byte_perm(a, b, 0x5410u);
    high = __byte_perm(a, b, 0x7632u);
#else
    low = (v.x & 255u) | (v.y & 255u) << 8 | (v.z & 255u) << 16 | (v.w & 255u) << 24;
    high = (v.x >> 8 & 255u) | (v.y >> 8 & 255u) << 8 | (v.z >> 8 & 255u) << 16 | (v.w >> 8 & 255u) << 24;
#endif
}

msl_inline float int8_most(float4 a, float most) {
    return max(max(max(fabs(a.x), fabs(a.y)), max(fabs(a.z), fabs(a.w))), most);
}

// Four activations to bytes; `inverse`: 32767 / the block's largest value. Adding 1.5 · 2^23 leaves the
// integer in the low bits.
msl_inline void int8_split4(float4 a, float inverse, msl_thread uint &high, msl_thread uint &low) {
    const uint4 v = uint4(as_type<uint>(fma(a.x, inverse, 12582912.0f)), as_type<uint>(fma(a.y, inverse, 12582912.0f)),
                          as_type<uint>(fma(a.z, inverse, 12582912.0f)), as_type<uint>(fma(a.w, inverse, 12582912.0f)));
    int8_gather(v, high, low);
}

msl_inline float int8_inverse(float most) { return most > 0.0f ? 32767.0f / most : 0.0f; }
msl_inline float int8_scale(float most) { return most * (1.0f / 32767.0f); }

// ---------------------------------------------------------------- activations in threadgroup memory
//
// By all threads of a threadgroup of INT8_THREADS: coalesced, and once for all its rows.

#define INT8_THREADS 256
#define INT8_COLUMNS 8192u  // at a time

struct int8_x {
    uint4 high[INT8_COLUMNS / 16];
    uint4 low[INT8_COLUMNS / 16];
    float scale[INT8_COLUMNS / 32];  // a block of 32 columns
};

// Columns k0 … k0 + count of x, zeros past the end; `count` is rounded up to 1,024.
msl_inline void int8_quantize(msl_device const float *x, uint columns, uint k0, uint count, msl_threadgroup int8_x &out, ushort tid) {
    msl_threadgroup uint *high = (msl_threadgroup uint *)out.high, *low = (msl_threadgroup uint *)out.low;
    // No thread leaves the loop before the others.
    #pragma unroll(4)
    for (uint c0 = 0; c0 < count; c0 += 4u * INT8_THREADS) {
        const uint c = c0 + 4u * tid;
        const float4 a = k0 + c < columns ? *(msl_device const float4 *)(x + k0 + c) : float4(0.0f);
        float most = int8_most(a, 0.0f);
        most = max(most, simd_shuffle_xor(most, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        most = max(most, simd_shuffle_xor(most, 4));
        uint h;
        uint l;
        int8_split4(a, int8_inverse(most), h, l);
        high[c / 4] = h;
        low[c / 4] = l;
        if ((tid & 7) == 0) { out.scale[c / 32] = int8_scale(most); }
    }
}

// Sixteen columns from c on, a multiple of sixteen.
msl_inline void int8_take16(msl_threadgroup const int8_x &x, uint c, msl_thread uint *high, msl_thread uint *low) {
    const uint4 h = x.high[c / 16], l = x.low[c / 16];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        high[i] = h[i];
        low[i] = l[i];
    }
}

// Sums over the simdgroup of four values at once: lane l has that of v[l % 4].
msl_inline float int8_reduce4(msl_thread const float *v, ushort lane) {
    const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
    const float a = (odd ? v[1] : v[0]) + simd_shuffle_xor(odd ? v[0] : v[1], 1);
    const float b = (odd ? v[3] : v[2]) + simd_shuffle_xor(odd ? v[2] : v[3], 1);
    float sum = (upper ? b : a) + simd_shuffle_xor(upper ? a : b, 2);
    sum += simd_shuffle_xor(sum, 4);
    sum += simd_shuffle_xor(sum, 8);
    return sum + simd_shuffle_xor(sum, 16);
}

// ---------------------------------------------------------------- IQ2_XXS: entries by byte selection
//
// An entry of the grid is eight of {8, 25, 43}, with signs: a nibble each that selects a byte of
// {8, 25, 43, –, -8, -25, -43, –}. Tables of such nibbles, of magnitudes (256) and of signs (128, the
// eighth is the others' parity), lie in threadgroup memory eight times, so that lanes rarely meet.

#define INT8_COPIES 8u
#define INT8_TABLE (384u * INT8_COPIES)  // words

// Entry or signs `which` of four, as an offset in bytes: a shift and one operation on bits.
msl_inline uint int8_offset(uint word, ushort from, uint mask, uint copy) {
    return ((from < 5 ? word << (5 - from) : word >> (from - 5)) & (mask << 5)) | copy;
}

// The nibbles of entry e of four. `copy`: this lane's, in bytes.
msl_inline uint int8_nibbles(msl_threadgroup const uchar *table, uint entries, uint signs, ushort e, uint copy) {
    return *(msl_threadgroup const uint *)(table + int8_offset(entries, 8 * e, 255u, copy))
         | *(msl_threadgroup const uint *)(table + 1024u * INT8_COPIES + int8_offset(signs, 7 * e, 127u, copy));
}

// Four of the eight bytes of low and high, by the four lowest nibbles.
msl_inline uint int8_select4(uint nibbles, uint low, uint high) {
#ifdef MSL_CUDA
    // Not __byte_perm, which would clear the bits of the selector that are never set.
    uint out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(nibbles));
    return out;
#else
    uint out = 0;
    for (ushort i = 0; i < 4; ++i) {
        const uint n = nibbles >> (4 * i) & 7u;
        out |= ((n < 4u ? low : high) >> (8u * (n & 3u)) & 255u) << (8 * i);
    }
    return out;
#endif
}

// By all `threads` of the threadgroup.
msl_inline void int8_fill_table(msl_threadgroup uint4 *table, uint tid, uint threads) {
    for (uint i = tid; i < 384; i += threads) {
        uint v;
        if (i < 256) {
            v = quant_iq2_grid[i];
            v = (v | v << 8) & 0x00ff00ffu;
            v = (v | v << 4) & 0x0f0f0f0fu;
            v = (v | v << 2) & 0x33333333u;
        } else {
            const uint seven = i - 256;
            v = seven | (popcount(seven) & 1u) << 7;
            v = (v | v << 12) & 0x000f000fu;
            v = (v | v << 6) & 0x03030303u;
            v = (v | v << 3) & 0x11111111u;
            v <<= 2;
        }
        // Neighbours write neighbours' words: each begins at another copy.
        for (ushort c = 0; c < INT8_COPIES / 4; ++c) { table[i * (INT8_COPIES / 4) + (c + i) % (INT8_COPIES / 4)] = uint4(v); }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// A group of 32 weights times 32 activations, without the block's scale but times twice the group's: a whole
// number of 31 bits. `copy`: this lane's, in bytes.
msl_inline int int8_iq2_group(uint2 group, msl_threadgroup const uchar *table, uint copy, msl_thread const uint *high,
                          msl_thread const uint *low) {
    int hi = 0, lo = 0;
    #pragma unroll
    for (ushort e = 0; e < 4; ++e) {
        const uint nibbles = int8_nibbles(table, group.x, group.y, e, copy);
        const uint a = int8_select4(nibbles, 0x002b1908u, 0x00d5e7f8u);
        const uint b = int8_select4(nibbles >> 16, 0x002b1908u, 0x00d5e7f8u);
        hi = int8_dot_high(a, high[2 * e], hi);
        lo = int8_dot_low(a, low[2 * e], lo);
        hi = int8_dot_high(b, high[2 * e + 1], hi);
        lo = int8_dot_low(b, low[2 * e + 1], lo);
    }
    // Bit 27 belongs to a sign: twice the four bits above it plus one is what remains with bit 0 set.
    return (hi * 256 + lo) * int(group.y >> 27 | 1u);
}
#endif

#line 16 "experts_int8.metal"
#line 17 "experts_int8.metal"
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
msl_inline void experts_int8_load(msl_device const uchar *gate, msl_device const uchar *up, uint quants, uint scales, uint columns,
                              msl_thread experts_int8_pair &out) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const uint q = quants + i * (columns / 4), d = scales + i * (columns / 128);
        out.g[i] = *(msl_device const uint2 *)(gate + q);
        out.u[i] = *(msl_device const uint2 *)(up + q);
        out.dg[i] = *(msl_device const ushort *)(gate + d);
        out.du[i] = *(msl_device const ushort *)(up + d);
    }
}

[[max_total_threads_per_threadgroup(INT8_THREADS)]]
MSL_KERNEL void experts_gate_up_int8(msl_device const uchar * gate, msl_device const uchar * up, msl_device const float * x, msl_device const int * ids, msl_device const float * weights, msl_device const float * shared_gate, msl_device const float * shared_up, msl_device float * h, msl_constant gpu_experts & p, uint2 tg, ushort tid, ushort sg, ushort lane)












{
    threadgroup_decl uint4 table[INT8_TABLE / 4];
    threadgroup_decl float parts[4][2 * EXPERT_INT8_MOST];  // gate's rows, then up's
    threadgroup_decl int8_x memory;
    const uint rows = p.tile;
    if (tg.y >= p.n * p.used) {
        // Behind the routed rows of h: those of the shared expert, whose products were made before.
        const uint token = tg.y - p.n * p.used;
        const ulong from = ulong(token) * p.shared_inner;
        msl_device float *out = h + ulong(p.n) * p.used * p.inner + from;
        const uint step = p.inner / rows * INT8_THREADS;
        for (uint i = tg.x * INT8_THREADS + tid; i < p.shared_inner; i += step) {
            out[i] = experts_glu(shared_gate[from + i], shared_up[from + i], p.shared_clamp);
        }
        return;
    }
    const uint slice = sg & 3, team = sg / 4, columns = p.hidden;
    const uint line = uint(ids[tg.y]) * p.inner + tg.x * rows + 4 * team;
    msl_device const float *token = x + ulong(tg.y / p.used) * columns;
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
                const int g = int8_iq2_group(now.g[i], (msl_threadgroup const uchar *)table, copy, high, low);
                const int u = int8_iq2_group(now.u[i], (msl_threadgroup const uchar *)table, copy, high, low);
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
                msl_threadgroup float *part = &parts[slice][(lane < 4 ? 0 : EXPERT_INT8_MOST) + r + lane % 4];
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

msl_inline void experts_int8_take(msl_device const float *x, uint columns, uint k0, ushort lane, msl_threadgroup experts_int8_x &memory,
                              msl_thread experts_int8_q2 &out) {
    msl_threadgroup uint *high = (msl_threadgroup uint *)memory.high, *low = (msl_threadgroup uint *)memory.low;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    #pragma unroll
    for (ushort b = 0; b < 8; ++b) {
        float4 a[2];
        #pragma unroll
        for (ushort i = 0; i < 2; ++i) {
            const uint k = k0 + 256u * b + 128u * i + 4u * lane;
            a[i] = k < columns ? *(msl_device const float4 *)(x + k) : float4(0.0f);
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

msl_inline void experts_int8_load_q2(msl_device const uchar *w, ulong plane, ulong line, uint columns, uint column, ushort lane,
                                 msl_thread experts_int8_rows &out) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const ulong block = (line + i) * (columns / 256) + column;
        out.q[i] = *(msl_device const uint4 *)(w + block * 64 + 16 * (lane % 4));
        out.scales[i] = *(msl_device const uint2 *)(w + plane + block * 16 + 8 * (lane / 2 % 2));
        out.both[i] = *(msl_device const uint *)(w + plane + plane / 4 + block * 4);
    }
}

// Adds `rows` rows from `first` on of one assignment to `out`.
msl_inline void experts_int8_routed(msl_device const uchar *w, ulong plane, ulong first, uint rows, uint columns,
                                msl_device const float *x, ushort lane, msl_threadgroup experts_int8_x &memory,
                                msl_threadgroup float *out) {
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
msl_inline void experts_int8_shared(msl_device const uchar *w, ulong plane, uint first, uint rows, uint columns, uint k0,
                                msl_device const float *x, ushort lane, msl_threadgroup experts_int8_x &memory,
                                msl_threadgroup float *out) {
    msl_threadgroup uint *high = (msl_threadgroup uint *)memory.high, *low = (msl_threadgroup uint *)memory.low;
    float most[8];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    #pragma unroll
    for (ushort i = 0; i < 8; ++i) {
        const uint k = k0 + 128u * i + 4u * lane;
        const float4 a = k < columns ? *(msl_device const float4 *)(x + k) : float4(0.0f);
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
                q[i][p] = *(msl_device const uint4 *)(w + line * columns + k);
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
MSL_KERNEL void experts_down_int8(msl_device const uchar * down, msl_device const uchar * shared_down, msl_device const float * h, msl_device const int * ids, msl_device float * y, msl_constant gpu_experts & p, uint2 tg, ushort tid, ushort sg, ushort lane)









{
    threadgroup_decl float parts[8][EXPERT_INT8_MOST];
    threadgroup_decl experts_int8_x memory[8];
    for (ushort i = lane; i < EXPERT_INT8_MOST; i += 32) { parts[sg][i] = 0.0f; }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const uint rows = p.tile, row = tg.x * rows, pieces = (p.shared_inner + 1023u) / 1024u;
    msl_device const float *shared = h + ulong(p.n) * p.used * p.inner + ulong(tg.y) * p.shared_inner;
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

#line 1 "hyper_connection.metal"
// hyper_connection.metal — the four residual streams around a sublayer (report §2.2).
//
//   hc_spread   x [n, D]                              -> streams [n, 4, D]
//   hc_enter    mix, scale [3], base [24], streams    -> post [n, 4], comb [n, 4, 4], x [n, D] collapsed and normed
//   hc_head     mix, scale [1], base [4], streams     -> x [n, D] collapsed and normed
//   hc_leave    y [n, D], post, comb, streams         -> streams, in place or not
//
// A mix [n, 4, outputs + 4] is four parts to be added, made by hyper_connection_mix.metal; behind the outputs
// Σ streams². comb[i][j] carries stream i into stream j. Order: softmax over j, + eps; columns; then
// (iterations - 1) × (rows, columns), each division by (sum + eps).
//
// Grid       spread, leave: one thread a channel, y tokens; enter: ceil(n / 16) that make post and comb, a
//            simdgroup a token, then a threadgroup a token; head: tokens
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours

#line 1 "hyper_connection.h"
// hyper_connection.h — what both files of hyper-connection kernels know.
#ifndef PYDS4_HYPER_CONNECTION_H
#define PYDS4_HYPER_CONNECTION_H

#line 6 "hyper_connection.h"
using namespace metal;

#define HC_PARTS 4  // of an output, as many as streams
#define HC_OUTPUTS 24
#define HC_LINE(outputs) ((outputs) + 4)  // floats from one line of a mix to the next

// What leaves a token's channels: stream j takes post_j · y + Σ_i comb_ij · stream_i.
struct hc_way {
    float4 comb[4];
    float4 post;
};

msl_inline hc_way hc_load_way(msl_device const float *post, msl_device const float *comb, uint token) {
    hc_way way;
    for (ushort i = 0; i < 4; ++i) { way.comb[i] = ((msl_device const float4 *)(comb + ulong(token) * 16))[i]; }
    way.post = *(msl_device const float4 *)(post + ulong(token) * 4);
    return way;
}

#endif

#line 19 "hyper_connection.metal"
#line 20 "hyper_connection.metal"
using namespace metal;

#define HC_THREADS 512
#define HC_TOKENS (HC_THREADS / 32)

MSL_KERNEL void hc_spread(msl_device const float * x, msl_device float * streams, msl_constant gpu_hc & p, uint2 i)



{
    if (i.x >= p.dim) { return; }
    const float v = x[ulong(i.y) * p.dim + i.x];
    for (ushort s = 0; s < 4; ++s) { streams[(ulong(i.y) * 4 + s) * p.dim + i.x] = v; }
}

// Good to an ulp or two; x is far from 0 and from infinity.
msl_inline float hc_reciprocal(float x) {
#ifdef MSL_CUDA
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

msl_inline float hc_sigmoid(float x) { return hc_reciprocal(1.0f + exp(-x)); }

msl_inline float hc_sum(float4 v) { return (v.x + v.y) + (v.z + v.w); }

// Rows of the matrix, in one thread. All along it is k_ij / (rows_i · columns_j): a step makes four sums and
// four reciprocals, and only the next step waits for them.
msl_inline void hc_sinkhorn(msl_thread float4 *k, uint iterations, float epsilon) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        const float4 v = k[i];
        const float4 e = exp(v - max(max(v.x, v.y), max(v.z, v.w)));
        k[i] = e * hc_reciprocal(hc_sum(e)) + epsilon;
    }
    float4 rows = float4(1.0f), columns = (k[0] + k[1]) + (k[2] + k[3]) + epsilon;
    float4 by_rows = rows, by_columns;
    #pragma unroll
    for (ushort j = 0; j < 4; ++j) { by_columns[j] = hc_reciprocal(columns[j]); }
    for (uint n = 1; n < iterations; ++n) {
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            rows[i] = hc_sum(k[i] * by_columns) + epsilon * rows[i];
            by_rows[i] = hc_reciprocal(rows[i]);
        }
        columns = (k[0] * by_rows[0] + k[1] * by_rows[1]) + (k[2] * by_rows[2] + k[3] * by_rows[3]) + columns * epsilon;
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { by_columns[j] = hc_reciprocal(columns[j]); }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { k[i] = k[i] * by_columns * by_rows[i]; }
}

// What the way out of a token needs, by one simdgroup.
msl_inline void hc_way_out(msl_device const float *mix, msl_device const float *scale, msl_device const float *base,
                       msl_constant gpu_hc &p, msl_device float *post, msl_device float *comb, ushort lane) {
    // A lane has an output, the one behind the last the squares.
    const uint o = min(uint(lane), uint(HC_OUTPUTS));
    const float offset = base[min(o, HC_OUTPUTS - 1u)], factor = scale[o < 4 ? 0 : o < 8 ? 1 : 2];
    float m = mix[o];
    #pragma unroll
    for (ushort part = 1; part < HC_PARTS; ++part) { m += mix[part * HC_LINE(HC_OUTPUTS) + o]; }
    const float inverse = reduce_rms(simd_shuffle(m, HC_OUTPUTS), 4 * p.dim, p.norm_epsilon);
    const float v = m * inverse * factor + offset;
    if (lane >= 4 && lane < 8) { post[lane - 4] = 2.0f * hc_sigmoid(v); }
    float4 k[4];
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { k[i][j] = simd_shuffle(v, ushort(8 + 4 * i + j)); }
    }
    hc_sinkhorn(k, p.iterations, p.epsilon);
    if (lane == 0) {
        for (ushort i = 0; i < 4; ++i) { ((msl_device float4 *)comb)[i] = k[i]; }
    }
}

msl_inline float4 hc_weighted(msl_device const float *streams, uint dim, float4 pre) {
    return *(msl_device const float4 *)streams * pre.x + *(msl_device const float4 *)(streams + dim) * pre.y
         + *(msl_device const float4 *)(streams + 2 * dim) * pre.z + *(msl_device const float4 *)(streams + 3 * dim) * pre.w;
}

// Σ pre_i · stream_i of a token, normed, by all threads of the threadgroup. Everything is loaded before
// anything is used: the way from the mix to the last store is what a decoded token waits for.
msl_inline void hc_collapse(msl_device const float *mix, uint outputs, msl_device const float *scale, msl_device const float *base,
                        msl_device const float *streams, msl_device const float *norm, msl_device float *x, msl_constant gpu_hc &p,
                        msl_threadgroup float *partial, ushort tid, ushort sg, ushort lane) {
    const uint dim = p.dim, part = lane / 8;
    // Lanes 8 · part … 8 · part + 3 have pre, the next one the squares.
    float m = mix[part * HC_LINE(outputs) + ((lane & 4) != 0 ? outputs : lane & 3)];
    const float pre_scale = scale[0], offset = base[lane & 3];
    float4 s[2][4];
    float4 w[2];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        const uint d = min(4u * (i * HC_THREADS + tid), dim - 4);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { s[i][j] = *(msl_device const float4 *)(streams + j * dim + d); }
        w[i] = *(msl_device const float4 *)(norm + d);
    }
    m += simd_shuffle_xor(m, 8);
    m += simd_shuffle_xor(m, 16);
    const float inverse = reduce_rms(simd_shuffle(m, 4), 4 * dim, p.norm_epsilon);
    const float own = hc_sigmoid(m * inverse * pre_scale + offset) + p.epsilon;
    const float4 pre = float4(simd_shuffle(own, 0), simd_shuffle(own, 1), simd_shuffle(own, 2), simd_shuffle(own, 3));
    float4 v[2];
    float sum = 0.0f;
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        v[i] = s[i][0] * pre.x + s[i][1] * pre.y + s[i][2] * pre.z + s[i][3] * pre.w;
        sum += 4u * (i * HC_THREADS + tid) < dim ? dot(v[i], v[i]) : 0.0f;
    }
    // What is beyond the registers waits in x.
    for (uint d = 4u * (2 * HC_THREADS + tid); d < dim; d += 4 * HC_THREADS) {
        const float4 more = hc_weighted(streams + d, dim, pre);
        sum += dot(more, more);
        *(msl_device float4 *)(x + d) = more;
    }
    const float rms = reduce_rms(reduce_sum(sum, partial, HC_THREADS / 32, sg, lane), dim, p.input_epsilon);
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        const uint d = 4u * (i * HC_THREADS + tid);
        if (d < dim) { *(msl_device float4 *)(x + d) = v[i] * rms * w[i]; }
    }
    for (uint d = 4u * (2 * HC_THREADS + tid); d < dim; d += 4 * HC_THREADS) {
        *(msl_device float4 *)(x + d) = *(msl_device float4 *)(x + d) * rms * *(msl_device const float4 *)(norm + d);
    }
}

[[max_total_threads_per_threadgroup(HC_THREADS)]]
MSL_KERNEL void hc_enter(msl_device const float * mix, msl_device const float * scale, msl_device const float * base, msl_device const float * streams, msl_device const float * norm, msl_device float * post, msl_device float * comb, msl_device float * x, msl_constant gpu_hc & p, uint tg, ushort tid, ushort sg, ushort lane)












{
    threadgroup_decl float partial[32];
    const ulong line = HC_PARTS * HC_LINE(HC_OUTPUTS);
    const uint outs = (p.n + HC_TOKENS - 1) / HC_TOKENS;
    if (tg < outs) {
        const ulong token = tg * HC_TOKENS + sg;
        if (token >= p.n) { return; }
        hc_way_out(mix + token * line, scale, base, p, post + token * 4, comb + token * 16, lane);
        return;
    }
    const ulong token = tg - outs;
    hc_collapse(mix + token * line, HC_OUTPUTS, scale, base, streams + token * 4 * p.dim, norm, x + token * p.dim, p,
                partial, tid, sg, lane);
}

[[max_total_threads_per_threadgroup(HC_THREADS)]]
MSL_KERNEL void hc_head(msl_device const float * mix, msl_device const float * scale, msl_device const float * base, msl_device const float * streams, msl_device const float * norm, msl_device float * x, msl_constant gpu_hc & p, uint tg, ushort tid, ushort sg, ushort lane)










{
    threadgroup_decl float partial[32];
    const ulong token = tg;
    hc_collapse(mix + token * HC_PARTS * HC_LINE(4), 4, scale, base, streams + token * 4 * p.dim, norm,
                x + token * p.dim, p, partial, tid, sg, lane);
}

MSL_KERNEL void hc_leave(msl_device const float * y, msl_device const float * post, msl_device const float * comb, msl_device const float * streams, msl_device float * out, msl_constant gpu_hc & p, uint2 i)






{
    if (i.x >= p.dim) { return; }
    msl_device const float *s = streams + ulong(i.y) * 4 * p.dim + i.x;
    // All loads first: one behind a store would wait for the one before.
    const float s0 = s[0], s1 = s[p.dim], s2 = s[2 * p.dim], s3 = s[3 * p.dim], v = y[ulong(i.y) * p.dim + i.x];
    const hc_way way = hc_load_way(post, comb, i.y);
    const float4 left = way.post * v + (way.comb[0] * s0 + way.comb[1] * s1 + way.comb[2] * s2 + way.comb[3] * s3);
    for (ushort j = 0; j < 4; ++j) { out[(ulong(i.y) * 4 + j) * p.dim + i.x] = left[j]; }
}

#line 1 "hyper_connection_mix.metal"
// hyper_connection_mix.metal — the products of all four streams that say how they mix (report §2.2).
//
//   hc_mix        streams [n, 4, D], fn [outputs, 4D]   -> mix [n, 4, outputs + 4]: four parts to be added; behind
//                                                          the outputs Σ streams²
//   hc_mix_many   the same for many tokens              -> mix
//   hc_leave_mix  what hc_leave does, and hc_mix of it  -> streams elsewhere, mix
//
// Grid       mix, leave_mix: x outputs + 1, y tokens, z parts; mix_many: x parts, y 32 tokens each
// Precision  f32
// CPU twin   CKernels/hyper_connection.c
// Origin     ours

#line 14 "hyper_connection_mix.metal"
#line 15 "hyper_connection_mix.metal"
#line 16 "hyper_connection_mix.metal"
using namespace metal;

#define HC_MIX_THREADS 256
#define HC_MANY_THREADS 256
#define HC_MANY_TOKENS 32           // two simdgroups take eight each
#define HC_PIECE (HC_OUTPUTS * 32)  // float4s of 128 columns of fn

// Weights `at` … `at` + 3 of fn as they lie there, and as numbers: loads first, numbers later.
template <uint T> msl_inline uint4 hc_load4(msl_device const uchar *fn, ulong plane, ulong at) {
    if (T == GPU_F32) { return *(msl_device const uint4 *)(fn + 4 * at); }
    if (T == GPU_Q8_0_PLANES) {
        return uint4(*(msl_device const uint *)(fn + at), *(msl_device const ushort *)(fn + plane + at / 32 * 2), 0u, 0u);
    }
    if (T == GPU_Q8_0) {
        msl_device const uchar *block = fn + at / 32 * 34;
        return uint4(quant_word(block + 2 + at % 32), *(msl_device const ushort *)block, 0u, 0u);
    }
    const uint2 two = *(msl_device const uint2 *)(fn + 2 * at);
    return uint4(two.x, two.y, 0u, 0u);
}

template <uint T> msl_inline float4 hc_float4(uint4 v) {
    if (T == GPU_F32) {
        return float4(as_type<float>(v.x), as_type<float>(v.y), as_type<float>(v.z), as_type<float>(v.w));
    }
    if (T == GPU_Q8_0 || T == GPU_Q8_0_PLANES) { return quant_signed4(v.x) * float(as_type<half>(ushort(v.y))); }
    if (T == GPU_F16) {
        return float4(float(as_type<half>(ushort(v.x & 0xffffu))), float(as_type<half>(ushort(v.x >> 16))),
                      float(as_type<half>(ushort(v.y & 0xffffu))), float(as_type<half>(ushort(v.y >> 16))));
    }
    return float4(as_type<float>(v.x << 16), as_type<float>(v.x & 0xffff0000u), as_type<float>(v.y << 16),
                  as_type<float>(v.y & 0xffff0000u));
}

// Calls BODY(T) for the format of fn.
#define HC_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F32, BODY) \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_BF16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    }

// Loads before it are under way before anything behind it waits for one of them.
msl_inline void hc_all_loaded() { simdgroup_barrier(mem_flags::mem_none); }

// A thread's part of fn's row from `line` on · one stream x. Four pieces of the threadgroup are under way at once;
// what lies behind the end is loaded from its last place, and not used.
template <uint T>
msl_inline float hc_row(msl_device const uchar *fn, ulong plane, ulong line, uint dim, msl_device const float *x, ushort tid) {
    float sum = 0.0f;
    for (uint first = 0; first < dim; first += HC_MIX_THREADS * 16u) {
        float4 a[4];
        uint4 w[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint d = min(first + 4u * (HC_MIX_THREADS * i + tid), dim - 4);
            a[i] = *(msl_device const float4 *)(x + d);
            w[i] = hc_load4<T>(fn, plane, line + d);
        }
        hc_all_loaded();
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const float product = dot(a[i], hc_float4<T>(w[i]));
            sum += first + 4u * (HC_MIX_THREADS * i + tid) < dim ? product : 0.0f;
        }
    }
    return sum;
}

msl_inline float hc_squares(msl_device const float *x, uint dim, ushort tid) {
    float sum = 0.0f;
    for (uint first = 0; first < dim; first += HC_MIX_THREADS * 16u) {
        float4 a[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            a[i] = *(msl_device const float4 *)(x + min(first + 4u * (HC_MIX_THREADS * i + tid), dim - 4));
        }
        hc_all_loaded();
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            sum += first + 4u * (HC_MIX_THREADS * i + tid) < dim ? dot(a[i], a[i]) : 0.0f;
        }
    }
    return sum;
}

[[max_total_threads_per_threadgroup(HC_MIX_THREADS)]]
MSL_KERNEL void hc_mix(msl_device const float * streams, msl_device const uchar * fn, msl_device float * mix, msl_constant gpu_hc & p, uint3 tg, ushort tid, ushort sg, ushort lane)







{
    threadgroup_decl float partial[32];
    const ulong line = ulong(tg.y) * HC_PARTS + tg.z;
    msl_device const float *x = streams + line * p.dim;
    float sum = 0.0f;
    if (tg.x == p.outputs) {
        sum = hc_squares(x, p.dim, tid);
    } else {
        #define HC_ROW(T) sum = hc_row<T>(fn, p.plane, (ulong(tg.x) * 4 + tg.z) * p.dim, p.dim, x, tid)
        HC_SWITCH(p.type, HC_ROW)
    }
    sum = reduce_sum(sum, partial, HC_MIX_THREADS / 32, sg, lane);
    if (tid == 0) { mix[line * HC_LINE(p.outputs) + tg.x] = sum; }
}

msl_inline void hc_load_tokens(msl_device const float *streams, ulong row, uint first, uint last, uint k, msl_thread float4 *x) {
    #pragma unroll
    for (ushort t = 0; t < 8; ++t) { x[t] = *(msl_device const float4 *)(streams + row * min(first + t, last) + k); }
}

// A lane's part of eight tokens' products with half of fn's rows, sums[t · 12 + row], and of the squares of
// tokens 4 · side … of them. A piece is 128 columns: while one is worked on, the next one's values are under
// way to registers. `weights`: two pieces.
template <uint T>
msl_inline void hc_products(msl_device const uchar *fn, msl_constant gpu_hc &p, uint stream, msl_device const float *streams, uint first,
                        msl_threadgroup float4 *weights, uint side, ushort sg, ushort lane, msl_thread float *sums,
                        msl_thread float *squares) {
    const ulong row = 4ul * p.dim;
    const uint last = p.n - 1, pieces = p.dim / 128;
    streams += ulong(stream) * p.dim;
    float4 x[8];
    uint4 staged[3];
    hc_load_tokens(streams, row, first, last, 4u * lane, x);
    #pragma unroll
    for (ushort j = 0; j < 3; ++j) {
        staged[j] = hc_load4<T>(fn, p.plane, row * (sg + 8u * j) + ulong(stream) * p.dim + 4u * lane);
    }
    #pragma unroll
    for (ushort j = 0; j < 3; ++j) { weights[(sg + 8 * j) * 32 + lane] = hc_float4<T>(staged[j]); }
    for (uint piece = 0; piece < pieces; ++piece) {
        // Behind the end the last piece is read again.
        const uint k = 128 * min(piece + 1, pieces - 1) + 4u * lane;
        float4 next[8];
        hc_load_tokens(streams, row, first, last, k, next);
        #pragma unroll
        for (ushort j = 0; j < 3; ++j) {
            staged[j] = hc_load4<T>(fn, p.plane, row * (sg + 8u * j) + ulong(stream) * p.dim + k);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        msl_threadgroup const float4 *w = weights + (piece & 1) * HC_PIECE + side * (HC_PIECE / 2) + lane;
        #pragma unroll
        for (ushort o = 0; o < HC_OUTPUTS / 2; ++o) {
            const float4 v = w[32 * o];
            #pragma unroll
            for (ushort t = 0; t < 8; ++t) {
                float sum = sums[t * (HC_OUTPUTS / 2) + o];
                sum += v.x * x[t].x;
                sum += v.y * x[t].y;
                sum += v.z * x[t].z;
                sum += v.w * x[t].w;
                sums[t * (HC_OUTPUTS / 2) + o] = sum;
            }
        }
        if (side == 0) {
            #pragma unroll
            for (ushort t = 0; t < 4; ++t) { squares[t] += dot(x[t], x[t]); }
        } else {
            #pragma unroll
            for (ushort t = 0; t < 4; ++t) { squares[t] += dot(x[4 + t], x[4 + t]); }
        }
        msl_threadgroup float4 *to = weights + (~piece & 1) * HC_PIECE;
        #pragma unroll
        for (ushort j = 0; j < 3; ++j) { to[(sg + 8 * j) * 32 + lane] = hc_float4<T>(staged[j]); }
        #pragma unroll
        for (ushort t = 0; t < 8; ++t) { x[t] = next[t]; }
    }
}

// Halves `sums` [2H] between lanes that differ in `bit`: those that have it keep the upper half.
template <ushort H> msl_inline void hc_fold(msl_thread float *sums, ushort lane, ushort bit) {
    const bool upper = (lane & bit) != 0;
    #pragma unroll
    for (ushort i = 0; i < H; ++i) {
        const float low = sums[i], high = sums[i + H];
        sums[i] = (upper ? high : low) + simd_shuffle_xor(upper ? low : high, bit);
    }
}

// dim must be a multiple of 128, fn's rows 24.
[[max_total_threads_per_threadgroup(HC_MANY_THREADS)]]
MSL_KERNEL void hc_mix_many(msl_device const float * streams, msl_device const uchar * fn, msl_device float * mix, msl_constant gpu_hc & p, uint2 tg, ushort sg, ushort lane)






{
    threadgroup_decl float4 weights[2 * HC_PIECE];
    const uint side = sg & 1, first = tg.y * HC_MANY_TOKENS + sg / 2 * 8;
    float sums[8 * HC_OUTPUTS / 2];
    float squares[4];
    #pragma unroll
    for (ushort i = 0; i < 8 * HC_OUTPUTS / 2; ++i) { sums[i] = 0.0f; }
    #pragma unroll
    for (ushort t = 0; t < 4; ++t) { squares[t] = 0.0f; }
    #define HC_PRODUCTS(T) hc_products<T>(fn, p, tg.x, streams, first, weights, side, sg, lane, sums, squares)
    HC_SWITCH(p.type, HC_PRODUCTS)
    // Lane l ends with sums 3 · l … 3 · l + 2: of token l / 4.
    hc_fold<48>(sums, lane, 16);
    hc_fold<24>(sums, lane, 8);
    hc_fold<12>(sums, lane, 4);
    hc_fold<6>(sums, lane, 2);
    hc_fold<3>(sums, lane, 1);
    const uint token = first + lane / 4;
    msl_device float *line = mix + (ulong(token) * 4 + tg.x) * HC_LINE(HC_OUTPUTS);
    if (token < p.n) {
        for (ushort i = 0; i < 3; ++i) { line[side * (HC_OUTPUTS / 2) + lane % 4 * 3 + i] = sums[i]; }
    }
    for (ushort t = 0; t < 4; ++t) {
        const float sum = simd_sum(squares[t]);
        const uint other = first + 4 * side + t;
        if (lane == 0 && other < p.n) { mix[(ulong(other) * 4 + tg.x) * HC_LINE(HC_OUTPUTS) + HC_OUTPUTS] = sum; }
    }
}

// A thread's part of output `row`, or of the squares if there is no such row; those threads write the streams.
// A part has every fourth of the threadgroup's pieces of channels.
template <uint T>
msl_inline float hc_left(msl_device const float *y, const hc_way way, msl_device const float *streams, msl_device const uchar *fn,
                     msl_device float *out, msl_constant gpu_hc &p, uint row, uint part, ushort tid) {
    float sum = 0.0f;
    for (uint first = 4u * HC_MIX_THREADS * part; first < p.dim; first += HC_PARTS * HC_MIX_THREADS * 4u) {
        const bool isOwn = first + 4u * tid < p.dim;
        const uint d = isOwn ? first + 4u * tid : p.dim - 4;
        float4 s[4];
        uint4 w[4];
        // fn comes from farthest away: the barrier keeps the compiler from loading it last.
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            w[j] = hc_load4<T>(fn, p.plane, (ulong(min(row, p.outputs - 1)) * 4 + j) * p.dim + d);
        }
        threadgroup_barrier(mem_flags::mem_none);
        const float4 v = *(msl_device const float4 *)(y + d);
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { s[j] = *(msl_device const float4 *)(streams + j * p.dim + d); }
        float4 left[4];
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            left[j] = v * way.post[j] + (s[0] * way.comb[0][j] + s[1] * way.comb[1][j] + s[2] * way.comb[2][j]
                                         + s[3] * way.comb[3][j]);
        }
        if (!isOwn) { continue; }
        if (row < p.outputs) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { sum += dot(left[j], hc_float4<T>(w[j])); }
        } else {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                sum += dot(left[j], left[j]);
                *(msl_device float4 *)(out + j * p.dim + d) = left[j];
            }
        }
    }
    return sum;
}

// out is not streams: the other threadgroups still read these.
[[max_total_threads_per_threadgroup(HC_MIX_THREADS)]]
MSL_KERNEL void hc_leave_mix(msl_device const float * y, msl_device const float * post, msl_device const float * comb, msl_device const float * streams, msl_device const uchar * fn, msl_device float * out, msl_device float * mix, msl_constant gpu_hc & p, uint3 tg, ushort tid, ushort sg, ushort lane)











{
    threadgroup_decl float partial[32];
    const hc_way way = hc_load_way(post, comb, tg.y);
    float sum = 0.0f;
    y += ulong(tg.y) * p.dim;
    streams += ulong(tg.y) * 4 * p.dim;
    out += ulong(tg.y) * 4 * p.dim;
    #define HC_LEFT(T) sum = hc_left<T>(y, way, streams, fn, out, p, tg.x, tg.z, tid)
    HC_SWITCH(p.type, HC_LEFT)
    sum = reduce_sum(sum, partial, HC_MIX_THREADS / 32, sg, lane);
    if (tid == 0) { mix[(ulong(tg.y) * HC_PARTS + tg.z) * HC_LINE(p.outputs) + tg.x] = sum; }
}

#line 1 "indexer.metal"
// indexer.metal — how much a token wants of each compressed row (report §2.3.1).
//
//   indexer_score   q [n, heads, dim], w [n, heads], sessions  -> scores [n, stride]
//
// score[t, s] = scale · Σ_h w[t, h] · max(0, q[t, h]·k[s]) for the (position + 1) / ratio visible rows.
// A token that sees no more than `top` rows keeps them all: its scores are not written.
//
// Rows kept as FP4 go through the matrix units and lose nothing there: a code times a power of two is
// exact in half when a row's (and a query head's) powers are counted from the highest of them, which is
// put back in f32. Rows of other formats are multiplied one by one.
//
// Grid       score: x blocks of INDEX_ROWS rows (many tokens: INDEX_MANY_ROWS; not FP4: INDEX_PLAIN_ROWS),
//            y tokens (many: groups of p.tokens)
// Precision  f32; products of FP4 rows with queries that were rounded to FP4 are exact
// CPU twin   CKernels/indexer.c
// Origin     ours

#line 19 "indexer.metal"
#line 20 "indexer.metal"
using namespace metal;

#define INDEX_THREADS 256
#define INDEX_DIM 128
#define INDEX_WORDS (INDEX_DIM / 8)       // of codes in an FP4 row; one of scales follows
#define INDEX_LD (INDEX_DIM + 8)          // of queries and rows in threadgroup memory, in halfs
#define INDEX_ROWS 32
#define INDEX_HEADS 64
#define INDEX_MANY_ROWS 256
#define INDEX_MANY_HEADS 32
#define INDEX_STAGE_LD (INDEX_DIM / 4 + 8)
#define INDEX_PLAIN_ROWS 64
#define INDEX_PLAIN_HEADS 16
#define INDEX_MEMORY ((INDEX_HEADS + INDEX_ROWS) * INDEX_LD / 8)  // uint4: the largest need of the three

msl_inline uint index_most(uint scales) {
    return max(max(scales & 255u, scales >> 8 & 255u), max(scales >> 16 & 255u, scales >> 24));
}

// 2^14 times the power of a block's scale over the row's: codes moved to half's place mean 2^-14 of
// their value, subnormals included. What is 2^-28 of the row's highest power vanishes.
msl_inline half2 index_factor(uint scale, uint most) {
    const uint bits = scale + 29u > most ? (scale + 29u - most) << 10 : 0u;
    return as_type<half2>(bits | bits << 16);
}

// Two codes of a byte as two halfs.
msl_inline uint index_pair(uint byte, half2 factor) {
    const uint bits = (byte & 7u) << 9 | (byte & 8u) << 12 | (byte & 0x70u) << 21 | (byte & 0x80u) << 24;
    return as_type<uint>(as_type<half2>(bits) * factor);
}

msl_inline uint4 index_halfs(uint word, half2 factor) {
    return uint4(index_pair(word & 255u, factor), index_pair(word >> 8 & 255u, factor),
                 index_pair(word >> 16 & 255u, factor), index_pair(word >> 24, factor));
}

// A query head's highest power of two, such that neither it nor what is made of it leaves f32.
msl_inline uint index_exponent(float most) { return clamp(as_type<uint>(most) >> 23, 16u, 254u); }

// Values of the head between 256 and 512 at most; what that took is given to the head's weight.
msl_inline half4 index_query(float4 v, uint exponent) { return half4(v * as_type<float>((262u - exponent) << 23)); }
msl_inline float index_weight(float w, uint exponent) { return w * as_type<float>((exponent - 8u) << 23); }

msl_inline float index_highest(float4 v) { return max(max(fabs(v.x), fabs(v.y)), max(fabs(v.z), fabs(v.w))); }

// INDEX_ROWS rows of one token: simdgroup s multiplies sixteen of them, 16 · (s / 4) …, by heads 16 · (s % 4) ….
msl_inline void index_few(msl_device const float *q, msl_device const float *w, msl_device const kv_page *pages, uint position,
                      msl_device float *scores, msl_constant gpu_indexer &p, msl_threadgroup uint4 *memory,
                      msl_threadgroup float *weights, msl_threadgroup float *powers, msl_threadgroup float *parts, uint block,
                      ushort tid, ushort sg, ushort lane) {
    msl_threadgroup half *queries = (msl_threadgroup half *)memory, *rows = queries + INDEX_HEADS * INDEX_LD;
    const uint in_sight = (position + 1) / p.ratio, first = block * INDEX_ROWS;
    if (first >= in_sight || in_sight <= p.top) { return; }
    {
        // Eight threads bring a row, two words each.
        const uint row = first + tid / 8, piece = tid & 7;
        uint scales = 0;
        uint2 codes = uint2(0u);
        if (row < in_sight) {
            msl_device const uint *line = (msl_device const uint *)kv_row(pages, p.rows_per_page, p.format.bytes, row);
            codes = uint2(line[2 * piece], line[2 * piece + 1]);
            scales = line[INDEX_WORDS];
        }
        const uint most = index_most(scales);
        const half2 factor = index_factor(scales >> (piece / 2 * 8) & 255u, most);
        msl_threadgroup uint4 *to = (msl_threadgroup uint4 *)(rows + tid / 8 * INDEX_LD + piece * 16);
        to[0] = index_halfs(codes.x, factor);
        to[1] = index_halfs(codes.y, factor);
        if (piece == 0) { powers[tid / 8] = kv_power(most) * p.scale; }
    }
    float sum[2] = {0.0f, 0.0f};
    for (uint h0 = 0; h0 < p.heads; h0 += INDEX_HEADS) {
        // Four threads bring a head.
        const uint head = h0 + tid / 4, piece = tid & 3;
        msl_device const float4 *line = (msl_device const float4 *)(q + ulong(min(head, p.heads - 1)) * INDEX_DIM);
        float4 v[8];
        float most = 0.0f;
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) { v[i] = line[piece + 4 * i]; }
        const float weight = head < p.heads ? w[head] : 0.0f;
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) { most = max(most, index_highest(v[i])); }
        most = max(most, simd_shuffle_xor(most, 1));
        most = max(most, simd_shuffle_xor(most, 2));
        const uint exponent = index_exponent(most);
        #pragma unroll
        for (ushort i = 0; i < 8; ++i) {
            *(msl_threadgroup half4 *)(queries + tid / 4 * INDEX_LD + (piece + 4 * i) * 4) = index_query(v[i], exponent);
        }
        if (piece == 0) { weights[tid / 4] = index_weight(weight, exponent); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        msl_threadgroup const half *mine = rows + sg / 4 * 16 * INDEX_LD, *heads = queries + sg % 4 * 16 * INDEX_LD;
        tile_c c[2];
        tile_zero(c[0]);
        tile_zero(c[1]);
        #pragma unroll
        for (ushort k = 0; k < INDEX_DIM / 16; ++k) {
            tile_a key;
            tile_b query;
            tile_load_a(key, mine + 16 * k, INDEX_LD, lane);
            tile_load_bt(query, heads + 16 * k, INDEX_LD, lane);
            // Two sums, so that products need not wait for each other.
            tile_mma(c[k & 1], key, query);
        }
        tile_join(c[0], c[1]);
        tile_add_positive(c[0], weights + sg % 4 * 16, sum, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    sum[0] = tile_across(sum[0]);
    sum[1] = tile_across(sum[1]);
    if (tile_is_first(lane)) {
        msl_threadgroup float *to = parts + sg % 4 * INDEX_ROWS + sg / 4 * 16 + tile_row(lane);
        to[0] = sum[0];
        to[8] = sum[1];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid < INDEX_ROWS && first + tid < in_sight) {
        scores[first + tid] = (parts[tid] + parts[INDEX_ROWS + tid] + parts[2 * INDEX_ROWS + tid]
                               + parts[3 * INDEX_ROWS + tid]) * powers[tid];
    }
}

// One step's heads of a token on their way: eight threads bring one.
struct index_fetch {
    float4 v[4];
    float weight;
};

msl_inline void index_load(msl_thread index_fetch &f, msl_device const float *q, msl_device const float *w, uint heads, uint h0,
                       ushort tid) {
    const uint head = h0 + tid / 8;
    msl_device const float4 *line = (msl_device const float4 *)(q + ulong(min(head, heads - 1)) * INDEX_DIM) + (tid & 7);
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { f.v[i] = line[8 * i]; }
    f.weight = head < heads ? w[head] : 0.0f;
}

msl_inline void index_put(msl_thread index_fetch &f, msl_threadgroup half *queries, msl_threadgroup float *weights, ushort tid) {
    float most = max(max(index_highest(f.v[0]), index_highest(f.v[1])), max(index_highest(f.v[2]), index_highest(f.v[3])));
    most = max(most, simd_shuffle_xor(most, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    most = max(most, simd_shuffle_xor(most, 4));
    const uint exponent = index_exponent(most);
    msl_threadgroup half *to = queries + tid / 8 * INDEX_LD + (tid & 7) * 4;
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { *(msl_threadgroup half4 *)(to + 32 * i) = index_query(f.v[i], exponent); }
    if ((tid & 7) == 0) { weights[tid / 8] = index_weight(f.weight, exponent); }
}

// INDEX_MANY_ROWS rows of up to p.tokens consecutive tokens: a simdgroup keeps 32 rows in registers, and the
// tokens' heads come by, the next ones while these are multiplied.
msl_inline void index_many(msl_device const float *q, msl_device const float *w, msl_device const kv_page *pages, uint position,
                       uint tokens, msl_device float *scores, msl_constant gpu_indexer &p, msl_threadgroup uint4 *memory,
                       msl_threadgroup float *weights, msl_threadgroup float *powers, uint block, ushort tid, ushort sg,
                       ushort lane) {
    msl_threadgroup half *queries = (msl_threadgroup half *)memory;
    const uint first = block * INDEX_MANY_ROWS;
    // The first token that sees the first row, and more rows than it keeps.
    const uint enough = (max(first, p.top) + 1) * p.ratio;
    uint token = enough > position + 1 ? enough - position - 1 : 0;
    if (token >= tokens) { return; }
    tile_a keys[2][INDEX_DIM / 16];
    {
        // Every thread brings a row; a simdgroup brings its own.
        msl_threadgroup half *stage = (msl_threadgroup half *)memory + sg * 32 * INDEX_STAGE_LD;
        uint codes[INDEX_WORDS];
        uint scales = 0;
        if (first + tid < (position + tokens) / p.ratio) {
            msl_device const uint *line
                = (msl_device const uint *)kv_row(pages, p.rows_per_page, p.format.bytes, first + tid);
            #pragma unroll
            for (ushort i = 0; i < INDEX_WORDS; ++i) { codes[i] = line[i]; }
            scales = line[INDEX_WORDS];
        } else {
            #pragma unroll
            for (ushort i = 0; i < INDEX_WORDS; ++i) { codes[i] = 0; }
        }
        const uint most = index_most(scales);
        powers[tid] = kv_power(most) * p.scale;
        msl_threadgroup uint4 *to = (msl_threadgroup uint4 *)(stage + lane * INDEX_STAGE_LD);
        #pragma unroll
        for (ushort b = 0; b < 4; ++b) {
            const half2 factor = index_factor(scales >> (8 * b) & 255u, most);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { to[j] = index_halfs(codes[4 * b + j], factor); }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            #pragma unroll
            for (ushort i = 0; i < 2; ++i) {
                #pragma unroll
                for (ushort k = 0; k < 2; ++k) {
                    tile_load_a(keys[i][2 * b + k], stage + i * 16 * INDEX_STAGE_LD + 16 * k, INDEX_STAGE_LD, lane);
                }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    index_fetch fetch;
    uint h0 = 0, slot = 0;
    index_load(fetch, q + ulong(token) * p.heads * INDEX_DIM, w + ulong(token) * p.heads, p.heads, 0, tid);
    index_put(fetch, queries, weights, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
    while (token < tokens) {
        const bool is_last = h0 + INDEX_MANY_HEADS >= p.heads;
        const uint next_token = is_last ? token + 1 : token, next_h0 = is_last ? 0 : h0 + INDEX_MANY_HEADS;
        if (next_token < tokens) {
            index_load(fetch, q + ulong(next_token) * p.heads * INDEX_DIM, w + ulong(next_token) * p.heads, p.heads,
                       next_h0, tid);
        }
        const uint in_sight = (position + token + 1) / p.ratio, row = first + sg * 32u;
        if (row < in_sight) {
            msl_threadgroup const half *heads = queries + slot * (INDEX_MANY_HEADS * INDEX_LD);
            #pragma unroll
            for (ushort j = 0; j < INDEX_MANY_HEADS / 16; ++j) {
                tile_c c[2];
                tile_zero(c[0]);
                tile_zero(c[1]);
                #pragma unroll
                for (ushort k = 0; k < INDEX_DIM / 16; ++k) {
                    tile_b query;
                    tile_load_bt(query, heads + j * 16 * INDEX_LD + 16 * k, INDEX_LD, lane);
                    tile_mma(c[0], keys[0][k], query);
                    tile_mma(c[1], keys[1][k], query);
                }
                tile_add_positive(c[0], weights + slot * INDEX_MANY_HEADS + j * 16, sum[0], lane);
                tile_add_positive(c[1], weights + slot * INDEX_MANY_HEADS + j * 16, sum[1], lane);
            }
            if (is_last) {
                #pragma unroll
                for (ushort i = 0; i < 4; ++i) {
                    const float score = tile_across(sum[i / 2][i & 1]);
                    const uint at = 8 * i + tile_row(lane);
                    if (tile_is_first(lane) && row + at < in_sight) {
                        scores[ulong(token) * p.stride + row + at] = score * powers[sg * 32 + at];
                    }
                    sum[i / 2][i & 1] = 0.0f;
                }
            }
        }
        slot ^= 1u;
        if (next_token < tokens) {
            index_put(fetch, queries + slot * (INDEX_MANY_HEADS * INDEX_LD), weights + slot * INDEX_MANY_HEADS, tid);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        token = next_token;
        h0 = next_h0;
    }
}

// Rows of any format: a quad of lanes holds one, and heads stream through threadgroup memory.
msl_inline void index_plain(msl_device const float *q, msl_device const float *w, msl_device const kv_page *pages, uint position,
                        msl_device float *scores, msl_constant gpu_indexer &p, msl_threadgroup uint4 *memory, uint block,
                        ushort tid) {
    msl_threadgroup float4 *heads = (msl_threadgroup float4 *)memory;  // a piece of 128 values of each head
    const uint in_sight = (position + 1) / p.ratio, dim = p.format.dim;
    if (block * INDEX_PLAIN_ROWS >= in_sight || in_sight <= p.top) { return; }
    const uint row = min(block * INDEX_PLAIN_ROWS + tid / 4, in_sight - 1);
    const ushort quarter = tid & 3;
    msl_device const uchar *line = kv_row(pages, p.rows_per_page, p.format.bytes, row);
    float score = 0.0f;
    for (uint h0 = 0; h0 < p.heads; h0 += INDEX_PLAIN_HEADS) {
        float dots[INDEX_PLAIN_HEADS];
        #pragma unroll
        for (ushort h = 0; h < INDEX_PLAIN_HEADS; ++h) { dots[h] = 0.0f; }
        for (uint piece = 0; piece < dim; piece += 128) {
            const uint quads = min(dim - piece, 128u) / 4;
            for (uint i = tid; i < INDEX_PLAIN_HEADS * quads; i += INDEX_THREADS) {
                const uint h = min(h0 + i / quads, p.heads - 1);
                heads[i] = *(msl_device const float4 *)(q + ulong(h) * dim + piece + i % quads * 4);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint i = quarter; i < quads; i += 4) {
                const float4 k = kv_decode4(p.format, line, piece / 4 + i);
                #pragma unroll
                for (ushort h = 0; h < INDEX_PLAIN_HEADS; ++h) { dots[h] += dot(heads[h * quads + i], k); }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        #pragma unroll
        for (ushort h = 0; h < INDEX_PLAIN_HEADS; ++h) {
            float sum = dots[h] + simd_shuffle_xor(dots[h], 1);
            sum += simd_shuffle_xor(sum, 2);
            if (h0 + h < p.heads) { score += w[h0 + h] * max(sum, 0.0f); }
        }
    }
    if (quarter == 0 && block * INDEX_PLAIN_ROWS + tid / 4 < in_sight) { scores[row] = score * p.scale; }
}

// As many threads as half the registers of a multiprocessor serve: two threadgroups then fit one.
[[max_total_threads_per_threadgroup(2 * INDEX_THREADS)]]
MSL_KERNEL void indexer_score(msl_device const float * q, msl_device const float * w, msl_device const kv_page * sessions, msl_device const int * positions, msl_device float * scores, msl_constant gpu_indexer & p, uint2 tg, ushort tid, ushort sg, ushort lane)









{
    threadgroup_decl uint4 memory[INDEX_MEMORY];
    threadgroup_decl float weights[INDEX_HEADS];
    threadgroup_decl float powers[INDEX_MANY_ROWS];
    threadgroup_decl float parts[4 * INDEX_ROWS];
    const uint token = p.tokens == 0u ? tg.y : tg.y * p.tokens, position = uint(positions[token]);
    msl_device const kv_page *pages = kv_line(sessions, p.table_stride, token) + 1;
    q += ulong(token) * p.heads * p.format.dim;
    w += ulong(token) * p.heads;
    scores += ulong(token) * p.stride;
    if (p.tokens != 0u) {
        index_many(q, w, pages, position, min(p.tokens, p.n - token), scores, p, memory, weights, powers, tg.x, tid, sg,
                   lane);
    } else if (p.format.kind == GPU_ROW_FP4 && p.format.dim == INDEX_DIM) {
        index_few(q, w, pages, position, scores, p, memory, weights, powers, parts, tg.x, tid, sg, lane);
    } else {
        index_plain(q, w, pages, position, scores, p, memory, tg.x, tid);
    }
}

#line 1 "indexer_top.metal"
// indexer_top.metal — which compressed rows a token attends to (report §2.3.1).
//
//   indexer_top_k   scores [n, stride]   -> selected [n, top], ascending; counts [n]
//
// The `top` highest stay (ties: the lower row). A token that sees no more than `top` rows keeps them all.
//
// Grid       tokens
// CPU twin   CKernels/indexer_top.c
// Origin     ours

#line 12 "indexer_top.metal"
using namespace metal;

#define TOP_THREADS 1024
#define TOP_MINE 8  // consecutive scores of a thread
#define TOP_BLOCK (TOP_THREADS * TOP_MINE)
#define TOP_BINS (256 + 256 / 8)

// Floats as integers of the same order; NaN becomes the lowest.
msl_inline uint top_key(float x) {
    const uint bits = as_type<uint>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0u; }
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

// Keys of scores `first` … as a thread has them. Past the end they are the lowest, and last of those.
msl_inline void top_load(msl_thread uint *keys, msl_device const float *score, uint first, uint count, bool is_aligned) {
    if (is_aligned && first + TOP_MINE <= count) {
        const float4 a = *(msl_device const float4 *)(score + first), b = *(msl_device const float4 *)(score + first + 4);
        keys[0] = top_key(a.x);
        keys[1] = top_key(a.y);
        keys[2] = top_key(a.z);
        keys[3] = top_key(a.w);
        keys[4] = top_key(b.x);
        keys[5] = top_key(b.y);
        keys[6] = top_key(b.z);
        keys[7] = top_key(b.w);
        return;
    }
    #pragma unroll
    for (ushort j = 0; j < TOP_MINE; ++j) { keys[j] = first + j < count ? top_key(score[first + j]) : 0u; }
}

// Eight neighbours lie in different banks for the lanes that add them up.
msl_inline uint top_bin(uint digit) { return digit + digit / 8; }

// The lowest key that stays is found digit by digit, from counts of keys that begin as it does. Keys of up to
// TOP_BLOCK scores stay in registers all the while.
[[max_total_threads_per_threadgroup(TOP_THREADS)]]
MSL_KERNEL void indexer_top_k(msl_device const float * scores, msl_device const int * positions, msl_device int * selected, msl_device int * counts, msl_constant gpu_indexer & p, uint token, ushort tid, ushort sg, ushort lane)








{
    threadgroup_decl atomic_uint bins[2 * TOP_BINS];  // one half counts while the other is cleared
    threadgroup_decl uint found[2];                   // prefix so far, how many still wanted
    threadgroup_decl uint groups[2 * 32];
    const uint in_sight = uint(positions[token] + 1) / p.ratio;
    msl_device const float *score = scores + ulong(token) * p.stride;
    msl_device int *out = selected + ulong(token) * p.top;
    if (tid == 0) { counts[token] = int(min(in_sight, p.top)); }
    if (in_sight <= p.top) {
        for (uint i = tid; i < in_sight; i += TOP_THREADS) { out[i] = int(i); }
        return;
    }
    const bool is_aligned = p.stride % 4 == 0, is_short = in_sight <= TOP_BLOCK;
    uint keys[TOP_MINE];
    top_load(keys, score, tid * TOP_MINE, in_sight, is_aligned);
    if (tid < TOP_BINS) { atomic_store_explicit(&bins[tid], 0u, memory_order_relaxed); }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint prefix = 0, mask = 0, wanted = p.top;
    for (int shift = 24; shift >= 0; shift -= 8) {
        msl_threadgroup atomic_uint *here = shift % 16 == 8 ? bins : bins + TOP_BINS;
        msl_threadgroup atomic_uint *other = shift % 16 == 8 ? bins + TOP_BINS : bins;
        for (uint base = 0; base < in_sight; base += TOP_BLOCK) {
            if (!is_short) { top_load(keys, score, base + tid * TOP_MINE, in_sight, is_aligned); }
            #pragma unroll
            for (ushort j = 0; j < TOP_MINE; ++j) {
                if ((keys[j] & mask) == prefix) {
                    atomic_fetch_add_explicit(&here[top_bin((keys[j] >> shift) & 255u)], 1u, memory_order_relaxed);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sg == 0) {
            // Lane l looks at bins 255 - 8·l downwards.
            uint count[8], mine = 0;
            #pragma unroll
            for (ushort i = 0; i < 8; ++i) {
                count[i] = atomic_load_explicit(&here[top_bin(255u - 8u * lane - i)], memory_order_relaxed);
                mine += count[i];
            }
            uint higher = simd_prefix_exclusive_sum(mine);
            #pragma unroll
            for (ushort i = 0; i < 8; ++i) {
                if (higher < wanted && wanted <= higher + count[i]) {
                    found[0] = prefix | (255u - 8u * lane - i) << shift;
                    found[1] = wanted - higher;
                }
                higher += count[i];
            }
        } else if (tid - 32u < TOP_BINS) {
            atomic_store_explicit(&other[tid - 32], 0u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix = found[0];
        wanted = found[1];
        mask |= 255u << shift;
    }
    // Everything above the threshold, and the first `wanted` that equal it, in ascending order. Counts of
    // both are added up at once, those above in the upper half.
    uint above = 0, equal = 0, slot = 0;
    for (uint base = 0; base < in_sight; base += TOP_BLOCK) {
        const uint first = base + tid * TOP_MINE;
        if (!is_short) { top_load(keys, score, first, in_sight, is_aligned); }
        uint mine = 0;
        #pragma unroll
        for (ushort j = 0; j < TOP_MINE; ++j) { mine += keys[j] > prefix ? 0x10000u : keys[j] == prefix ? 1u : 0u; }
        const uint before = simd_prefix_exclusive_sum(mine);
        if (lane == 31) { groups[slot + sg] = before + mine; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint group = groups[slot + lane], all = simd_sum(group);
        const uint earlier = before + simd_sum(lane < sg ? group : 0u);
        uint above_mine = above + (earlier >> 16), equal_mine = equal + (earlier & 0xffffu);
        #pragma unroll
        for (ushort j = 0; j < TOP_MINE; ++j) {
            const bool is_above = keys[j] > prefix, is_equal = keys[j] == prefix;
            if (is_above || (is_equal && equal_mine < wanted)) { out[above_mine + min(equal_mine, wanted)] = int(first + j); }
            above_mine += is_above ? 1u : 0u;
            equal_mine += is_equal ? 1u : 0u;
        }
        above += all >> 16;
        equal += all & 0xffffu;
        slot ^= 32u;
    }
}

#line 1 "kv_rows.metal"
// kv_rows.metal — making rows of attention memory.
//
//   kv_key_rows        kv [n, dim], norm, table      -> rows, normed, rotated, encoded
//   kv_index_queries   q [n, heads, dim], table      -> rotated and, if asked, rounded as FP4 rows are
//
// Grid       key rows: one threadgroup a token; index queries: x eight heads, a simdgroup each, y tokens
// Precision  f32 up to the rounding; agrees with the CPU but where a value lies between two codes
// CPU twin   CKernels/kv_rows.c
// Origin     ours

#line 12 "kv_rows.metal"
using namespace metal;

#define INDEX_THREADS 256

[[max_total_threads_per_threadgroup(KV_THREADS)]]
MSL_KERNEL void kv_key_rows(msl_device const float * kv, msl_device const float * norm, msl_device const float2 * table, msl_device uchar * rows, msl_constant gpu_key_rows & p, uint token, ushort tid, ushort sg, ushort lane)








{
    threadgroup_decl float2 shared[KV_THREADS];
    threadgroup_decl float partial[32];
    const uint dim = p.format.dim, plain = dim - p.format.rope;
    const bool isOwn = 2u * tid < dim, turns = isOwn && 2u * tid >= plain;
    float2 v = float2(0.0f), weight = float2(0.0f), turn = float2(1.0f, 0.0f);
    if (isOwn) {
        v = ((msl_device const float2 *)(kv + ulong(token) * dim))[tid];
        weight = ((msl_device const float2 *)norm)[tid];
    }
    if (turns) { turn = table[ulong(token) * (p.format.rope / 2) + tid - plain / 2]; }
    v = kv_norm(v, weight, dim, p.epsilon, partial, sg, lane);
    if (turns) { v = kv_turn(v, turn); }
    kv_encode(p.format, v, shared, rows + ulong(token) * p.format.bytes, tid, sg, lane);
}

// A lane holds values 128 · e + 4 · lane … of the row, 4 · EACH in all.
template <ushort EACH>
msl_inline void index_query(msl_device float *row, msl_device const float2 *table, msl_constant gpu_index_queries &p, ushort lane) {
    const uint plain = p.dim - p.rope;
    float4 v[EACH];
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        v[e] = i < p.dim ? *(msl_device const float4 *)(row + i) : float4(0.0f);
    }
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        if (i >= plain && i < p.dim) { v[e].xy = kv_turn(v[e].xy, table[(i - plain) / 2]); }
        if (i + 2 >= plain && i < p.dim) { v[e].zw = kv_turn(v[e].zw, table[(i + 2 - plain) / 2]); }
    }
    if (p.rounded != 0u) {
        // Sylvester's matrix, as kv_hadamard.
        #pragma unroll
        for (ushort e = 0; e < EACH; ++e) {
            v[e] = float4(v[e].x + v[e].y, v[e].x - v[e].y, v[e].z + v[e].w, v[e].z - v[e].w);
            v[e] = float4(v[e].x + v[e].z, v[e].y + v[e].w, v[e].x - v[e].z, v[e].y - v[e].w);
            #pragma unroll
            for (ushort bit = 1; bit < 32; bit *= 2) {
                const bool isUpper = (lane & bit) != 0;
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) {
                    const float own = v[e][j], other = simd_shuffle_xor(own, bit);
                    v[e][j] = 4u * bit < p.dim ? kv_butterfly(own, other, isUpper) : own;
                }
            }
        }
        #pragma unroll
        for (ushort step = 1; step < EACH; step *= 2) {
            #pragma unroll
            for (ushort e = 0; e < EACH; ++e) {
                if ((e & step) == 0) {
                    const float4 low = v[e], high = v[e + step];
                    v[e] = low + high;
                    v[e + step] = low - high;
                }
            }
        }
        const float factor = 1.0f / sqrt(float(p.dim));
        #pragma unroll
        for (ushort e = 0; e < EACH; ++e) {
            const float4 x = v[e] * factor;
            float most = max(max(fabs(x.x), fabs(x.y)), max(fabs(x.z), fabs(x.w)));
            for (ushort bit = 1; bit < 8; bit *= 2) { most = max(most, simd_shuffle_xor(most, bit)); }
            const uint scale = kv_fp4_scale(most);
            const float inverse = kv_inverse_power(scale), power = kv_power(scale);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { v[e][j] = kv_e2m1_decode(kv_e2m1_encode(x[j] * inverse)) * power; }
        }
    }
    #pragma unroll
    for (ushort e = 0; e < EACH; ++e) {
        const uint i = 128u * e + 4u * lane;
        if (i < p.dim) { *(msl_device float4 *)(row + i) = v[e]; }
    }
}

[[max_total_threads_per_threadgroup(INDEX_THREADS)]]
MSL_KERNEL void kv_index_queries(msl_device float * q, msl_device const float2 * table, msl_constant gpu_index_queries & p, uint2 tg, ushort sg, ushort lane)





{
    const uint head = tg.x * (INDEX_THREADS / 32) + sg;
    if (head >= p.heads) { return; }
    msl_device float *row = q + (ulong(tg.y) * p.heads + head) * p.dim;
    table += ulong(tg.y) * (p.rope / 2);
    if (p.dim <= 128) {
        index_query<1>(row, table, p, lane);
    } else if (p.dim <= 256) {
        index_query<2>(row, table, p, lane);
    } else {
        index_query<4>(row, table, p, lane);
    }
}

#line 1 "matmul.metal"
// matmul.metal — matrix products.
//
//   matvec_1, matvec_4   up to 8 matrices × 1 (4) tokens at a time       -> y [n, rows] each
//   matvec_common        matvec_1 for F32, F16 and Q8_0 planes only: fewer registers, more loads in flight
//   matmul_tile          one matrix × many tokens on the matrix units    -> y [n, rows]
//   matmul_experts       the same for sorted assignments to experts      -> y [assignments, rows]
//   matmul_embed         rows of a table                                  -> x [n, columns]
//   quant_repack_*       GGUF blocks -> aligned planes, once at load
//
// Grid       matvec: x row tiles of MATVEC_ROWS over all jobs, y groups of tokens; tiles: x rows / 128,
//            y tokens / 64
// Precision  matvec: weights and activations f32. Tiles: both rounded to half, sums f32
// Arguments  gpu_matvec, gpu_matmul in kernel_args.h
// CPU twin   CKernels/matmul.c, which rounds activations to int8 instead
// Origin     ours

#line 18 "matmul.metal"
#line 19 "matmul.metal"
#line 1 "jobs.h"
// jobs.h — launches that multiply several matrices.
#ifndef PYDS4_JOBS_H
#define PYDS4_JOBS_H

#line 6 "jobs.h"
using namespace metal;

// Which job a row tile belongs to.
msl_inline uint matvec_find(msl_constant gpu_matvec &p, uint tile) {
    uint j = 0;
    while (j + 1u < p.jobs && tile >= p.job[j + 1u].first_tile) { j += 1u; }
    return j;
}

msl_inline msl_device const uchar *matvec_weights(uint j, msl_device const uchar *w0, msl_device const uchar *w1,
                                          msl_device const uchar *w2, msl_device const uchar *w3, msl_device const uchar *w4,
                                          msl_device const uchar *w5, msl_device const uchar *w6, msl_device const uchar *w7) {
    return j < 4u ? (j < 2u ? (j == 0u ? w0 : w1) : (j == 2u ? w2 : w3))
                  : (j < 6u ? (j == 4u ? w4 : w5) : (j == 6u ? w6 : w7));
}
#endif

#line 20 "matmul.metal"
using namespace metal;

#define MATVEC_SIMDGROUPS 4
#define MATVEC_SIMD_ROWS 2
#define MATVEC_ROWS (MATVEC_SIMDGROUPS * MATVEC_SIMD_ROWS)

// Adds 512 columns from k0 on: sums[r][t].
template <uint T, ushort R, ushort N, bool FULL>
msl_inline void matvec_step(msl_device const uchar *w, ulong plane, uint row, uint rows, uint columns, msl_device const float *x,
                        uint ldx, uint n, uint k0, ushort lane, msl_threadgroup const uint2 *grid,
                        msl_thread float (&sums)[R][N]) {
    float4 v[R][4];
    #pragma unroll
    for (ushort r = 0; r < R; ++r) {
        // A row past the end repeats the last one; its sum is not written.
        quant_lane16<T, FULL>(w, plane, min(row + r, rows - 1), columns, k0, lane, grid, v[r]);
    }
    #pragma unroll
    for (ushort t = 0; t < N; ++t) {
        float4 a[4];
        quant_lane_x<T, FULL>(x + ulong(min(uint(t), n - 1)) * ldx, columns, k0, lane, a);
        #pragma unroll
        for (ushort r = 0; r < R; ++r) {
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) { sums[r][t] += dot(v[r][j], a[j]); }
        }
    }
}

// Sum over lanes, rows and tokens of one simdgroup: sums[r][t].
template <uint T, ushort R, ushort N>
msl_inline void matvec_sums(msl_device const uchar *w, ulong plane, uint row, uint rows, uint columns, msl_device const float *x,
                        uint ldx, uint n, ushort lane, msl_threadgroup const uint2 *grid, msl_thread float (&sums)[R][N]) {
    for (ushort r = 0; r < R; ++r) {
        for (ushort t = 0; t < N; ++t) { sums[r][t] = 0.0f; }
    }
    const uint whole = quant_is_common<T>() ? columns / 512 * 512 : 0;
    #pragma unroll(2)
    for (uint k0 = 0; k0 < whole; k0 += 512u) {
        matvec_step<T, R, N, true>(w, plane, row, rows, columns, x, ldx, n, k0, lane, grid, sums);
    }
    #pragma unroll(1)
    for (uint k0 = whole; k0 < columns; k0 += 512u) {
        matvec_step<T, R, N, false>(w, plane, row, rows, columns, x, ldx, n, k0, lane, grid, sums);
    }
    #pragma unroll
    for (ushort r = 0; r < R; ++r) {
        #pragma unroll
        for (ushort t = 0; t < N; ++t) { sums[r][t] = simd_sum(sums[r][t]); }
    }
}

template <uint T, ushort N>
msl_inline void matvec_job(msl_device const uchar *w, msl_constant gpu_matrix_job &job, msl_device const float *x, msl_device float *y,
                       uint ldx, uint n, uint tile, ushort sg, ushort lane, msl_threadgroup const uint2 *grid) {
    const uint row = tile * MATVEC_ROWS + sg * MATVEC_SIMD_ROWS;
    if (row >= job.rows) { return; }
    float sums[MATVEC_SIMD_ROWS][N];
    matvec_sums<T, MATVEC_SIMD_ROWS, N>(w, job.plane, row, job.rows, job.columns,
                                        x + ulong(row / job.group_rows) * job.columns, ldx, n, lane, grid, sums);
    if (lane == 0) {
        for (ushort r = 0; r < MATVEC_SIMD_ROWS; ++r) {
            for (ushort t = 0; t < N; ++t) {
                if (row + r < job.rows && t < n) { y[job.out + ulong(t) * job.rows + row + r] = sums[r][t]; }
            }
        }
    }
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
MSL_KERNEL void matvec_common(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, msl_constant gpu_matvec & p, uint2 tg, ushort sg, ushort lane)













{
    threadgroup_decl uint2 grid[1];  // of no use to these formats
    const uint j = matvec_find(p, tg.x);
    msl_device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile;
    msl_device const float *from = x + ulong(tg.y) * p.ldx;
    msl_device float *to = y + ulong(tg.y) * p.job[j].rows;
    switch (p.job[j].type) {
    case GPU_F32: matvec_job<GPU_F32, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid); break;
    case GPU_F16: matvec_job<GPU_F16, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid); break;
    default: matvec_job<GPU_Q8_0_PLANES, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid);
    }
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
MSL_KERNEL void matvec_1(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, msl_constant gpu_matvec & p, uint2 tg, ushort tid, ushort sg, ushort lane)














{
    threadgroup_decl uint2 grid[256];
    const uint j = matvec_find(p, tg.x);
    msl_device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile;
    msl_device const float *from = x + ulong(tg.y) * p.ldx;
    msl_device float *to = y + ulong(tg.y) * p.job[j].rows;
    if (p.job[j].type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, MATVEC_SIMDGROUPS * 32); }
#define MATVEC_BODY(T) matvec_job<T, 1>(w, p.job[j], from, to, p.ldx, 1, tile, sg, lane, grid)
    QUANT_SWITCH(p.job[j].type, MATVEC_BODY)
#undef MATVEC_BODY
}

[[max_total_threads_per_threadgroup(MATVEC_SIMDGROUPS * 32)]]
MSL_KERNEL void matvec_4(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, msl_constant gpu_matvec & p, uint2 tg, ushort tid, ushort sg, ushort lane)














{
    threadgroup_decl uint2 grid[256];
    const uint j = matvec_find(p, tg.x);
    msl_device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint tile = tg.x - p.job[j].first_tile, first = tg.y * 4u;
    msl_device const float *from = x + ulong(first) * p.ldx;
    msl_device float *to = y + ulong(first) * p.job[j].rows;
    if (p.job[j].type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, MATVEC_SIMDGROUPS * 32); }
#define MATVEC_BODY(T) matvec_job<T, 4>(w, p.job[j], from, to, p.ldx, min(p.n - first, 4u), tile, sg, lane, \
                                     grid)
    QUANT_SWITCH(p.job[j].type, MATVEC_BODY)
#undef MATVEC_BODY
}

[[max_total_threads_per_threadgroup(256)]]
MSL_KERNEL void matmul_embed(msl_device const uchar * table, msl_device const int * tokens, msl_device float * x, msl_constant gpu_embed & p, uint token, ushort tid)





{
    for (uint k = tid * 16u; k < p.columns; k += 4096u) {
        float v[16];
        for (ushort i = 0; i < 16; ++i) { v[i] = 0.0f; }
#define EMBED_BODY(T) quant_load16<T>(table, p.plane, ulong(tokens[token]), p.columns, k, v)
        QUANT_SWITCH(p.type, EMBED_BODY)
#undef EMBED_BODY
        msl_device float4 *out = (msl_device float4 *)(x + ulong(token) * p.columns + k);
        for (ushort j = 0; j < 4; ++j) { out[j] = float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]); }
    }
}

// One thread a block: 34 bytes -> 32 quants and a scale.
MSL_KERNEL void quant_repack_q8_0(msl_device const ushort * blocks, msl_device uchar * planes, msl_constant gpu_repack & p, uint i)



{
    if (ulong(i) >= p.blocks) { return; }
    msl_device const ushort *block = blocks + ulong(i) * 17;
    const ulong place = p.first_block + i;
    msl_device ushort *quants = (msl_device ushort *)(planes + place * 32);
    *(msl_device ushort *)(planes + p.plane + place * 2) = block[0];
    for (ushort j = 0; j < 16; ++j) { quants[j] = block[1 + j]; }
}

// 84 bytes -> 64 of quants, 16 of sub-block scales, d and dmin.
MSL_KERNEL void quant_repack_q2_k(msl_device const uint * blocks, msl_device uchar * planes, msl_constant gpu_repack & p, uint i)



{
    if (ulong(i) >= p.blocks) { return; }
    msl_device const uint *block = blocks + ulong(i) * 21;
    const ulong place = p.first_block + i;
    msl_device uint *scales = (msl_device uint *)(planes + p.plane + place * 16);
    msl_device uint *quants = (msl_device uint *)(planes + place * 64);
    for (ushort j = 0; j < 4; ++j) { scales[j] = block[j]; }
    for (ushort j = 0; j < 16; ++j) { quants[j] = block[4 + j]; }
    *(msl_device uint *)(planes + p.plane + p.plane / 4 + place * 4) = block[20];
}

// 66 bytes -> eight groups and a scale.
MSL_KERNEL void quant_repack_iq2_xxs(msl_device const ushort * blocks, msl_device uchar * planes, msl_constant gpu_repack & p, uint i)



{
    if (ulong(i) >= p.blocks) { return; }
    msl_device const ushort *block = blocks + ulong(i) * 33;
    const ulong place = p.first_block + i;
    msl_device ushort *groups = (msl_device ushort *)(planes + place * 64);
    *(msl_device ushort *)(planes + p.plane + place * 2) = block[0];
    for (ushort j = 0; j < 32; ++j) { groups[j] = block[1 + j]; }
}

// ---------------------------------------------------------------- tiles

#define TILE_GRID 256
#define TILE_TOKENS 64
#define TILE_ROWS 128
#define TILE_K 32
#define TILE_LD (TILE_K + 8)  // in halfs: rows fall into different banks and stay aligned to 16 bytes
#define TILE_THREADS 128
#define TILE_SLAB (TILE_TOKENS * TILE_LD + TILE_ROWS * TILE_LD)

msl_inline void tile_put16(msl_threadgroup half *to, msl_thread const uint2 *v) {
    *(msl_threadgroup uint4 *)to = uint4(v[0], v[1]);
    *(msl_threadgroup uint4 *)(to + 8) = uint4(v[2], v[3]);
}

msl_inline void tile_put16(msl_threadgroup half *to, msl_thread const float *v) {
    for (ushort j = 0; j < 2; ++j) {
        half4 a = half4(float4(v[8 * j], v[8 * j + 1], v[8 * j + 2], v[8 * j + 3]));
        half4 b = half4(float4(v[8 * j + 4], v[8 * j + 5], v[8 * j + 6], v[8 * j + 7]));
        const uint2 low = as_type<uint2>(a), high = as_type<uint2>(b);
        *(msl_threadgroup uint4 *)(to + 8 * j) = uint4(low, high);
    }
}

// y[m, r] for 64 rows of x and 128 rows of w. `source`: the row of x for this thread, which fetches
// half of a 32-wide piece of one row of x and of two rows of w. `base`: rows of w before the first.
template <uint T>
msl_inline void tile_product(msl_device const uchar *w, ulong plane, ulong base, uint row, uint rows, uint columns,
                         msl_device const float *source, msl_threadgroup uint4 *memory, msl_threadgroup const uint2 *grid,
                         msl_device float *y, uint ldy, uint n, ushort tid, ushort sg, ushort lane) {
    msl_threadgroup half *slabs = (msl_threadgroup half *)memory;
    const ushort wm = (sg / 2) * 32, wn = (sg % 2) * 64;
    tile_c acc[2][4];
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) { tile_zero(acc[i][j]); }
    }
    const ushort piece = (tid & 1) * 16, line = tid / 2;
    const uint row0 = min(row + line, rows - 1), row1 = min(row + line + 64, rows - 1);
    float v[16];
    uint2 u[2][4];
    for (uint k0 = 0; k0 < columns + TILE_K; k0 += TILE_K) {
        msl_threadgroup half *next = slabs + ((k0 / TILE_K) & 1u) * TILE_SLAB;
        if (k0 < columns) {
            msl_device const float4 *x4 = (msl_device const float4 *)(source + k0 + piece);
            #pragma unroll
            for (ushort j = 0; j < 4; ++j) {
                const float4 a = x4[j];
                v[4 * j] = a.x;
                v[4 * j + 1] = a.y;
                v[4 * j + 2] = a.z;
                v[4 * j + 3] = a.w;
            }
            quant_half16<T>(w, plane, base + row0, columns, k0 + piece, grid, u[0]);
            quant_half16<T>(w, plane, base + row1, columns, k0 + piece, grid, u[1]);
        }
        if (k0 > 0) {
            // The slab before, while the loads above are under way.
            msl_threadgroup half *sa = slabs + (((k0 / TILE_K) & 1u) ^ 1u) * TILE_SLAB;
            msl_threadgroup half *sb = sa + TILE_TOKENS * TILE_LD;
            #pragma unroll
            for (ushort kk = 0; kk < TILE_K; kk += TILE) {
                tile_a a[2];
                tile_b b[4];
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) { tile_load_a(a[i], sa + (wm + i * TILE) * TILE_LD + kk, TILE_LD, lane); }
                #pragma unroll
                for (ushort j = 0; j < 4; ++j) { tile_load_bt(b[j], sb + (wn + j * TILE) * TILE_LD + kk, TILE_LD, lane); }
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) {
                    #pragma unroll
                    for (ushort j = 0; j < 4; ++j) { tile_mma(acc[i][j], a[i], b[j]); }
                }
            }
        }
        if (k0 < columns) {
            tile_put16(next + line * TILE_LD + piece, v);
            tile_put16(next + (TILE_TOKENS + line) * TILE_LD + piece, u[0]);
            tile_put16(next + (TILE_TOKENS + line + 64) * TILE_LD + piece, u[1]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Through threadgroup memory, 16 × 16 values a simdgroup: rows past the end are not written.
    msl_threadgroup float *mine = (msl_threadgroup float *)memory + sg * (TILE * TILE);
    #pragma unroll
    for (ushort i = 0; i < 2; ++i) {
        #pragma unroll
        for (ushort j = 0; j < 4; ++j) {
            tile_stage(acc[i][j], mine, TILE, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            const uint column = row + wn + j * TILE + (lane & 15);
            for (ushort e = lane / 16; e < TILE; e += 2) {
                const uint m = wm + i * TILE + e;
                if (m < n && column < rows) { y[ulong(m) * ldy + column] = mine[e * TILE + (lane & 15)]; }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
}

#define TILE_SWITCH(type, BODY) \
    switch (type) { \
    QUANT_CASE(GPU_F16, BODY) \
    QUANT_CASE(GPU_Q8_0, BODY) \
    QUANT_CASE(GPU_Q8_0_PLANES, BODY) \
    QUANT_CASE(GPU_MXFP4, BODY) \
    QUANT_CASE(GPU_Q2_K, BODY) \
    QUANT_CASE(GPU_Q2_K_PLANES, BODY) \
    QUANT_CASE(GPU_Q4_K, BODY) \
    QUANT_CASE(GPU_IQ2_XXS, BODY) \
    QUANT_CASE(GPU_IQ2_XXS_PLANES, BODY) \
    default: break; \
    }

[[max_total_threads_per_threadgroup(TILE_THREADS)]]
MSL_KERNEL void matmul_tile(msl_device const uchar * w, msl_device const float * x, msl_device float * y, msl_constant gpu_matmul & p, uint2 tg, ushort tid, ushort sg, ushort lane)







{
    threadgroup_decl uint4 slabs[2 * TILE_SLAB / 8];
    threadgroup_decl uint2 grid[TILE_GRID];
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, TILE_THREADS); }
    const uint row = tg.x * TILE_ROWS, first = tg.y * TILE_TOKENS;
    const uint n = min(p.n - first, uint(TILE_TOKENS));
    msl_device const float *source = x + ulong(first + min(uint(tid / 2), n - 1)) * p.ldx
                               + ulong(row / p.group_rows) * p.columns;
#define TILE_BODY(T) tile_product<T>(w, p.plane, 0, row, p.rows, p.columns, source, slabs, grid, \
                                     y + ulong(first) * p.ldy, p.ldy, n, tid, sg, lane)
    TILE_SWITCH(p.type, TILE_BODY)
#undef TILE_BODY
}

// tiles[i] = (expert, first place, places, 0); those past the last one have no places.
[[max_total_threads_per_threadgroup(TILE_THREADS)]]
MSL_KERNEL void matmul_experts(msl_device const uchar * w, msl_device const float * x, msl_device float * y, msl_device const uint4 * tiles, msl_device const uint * order, msl_constant gpu_matmul & p, uint2 tg, ushort tid, ushort sg, ushort lane)









{
    threadgroup_decl uint4 slabs[2 * TILE_SLAB / 8];
    threadgroup_decl uint2 grid[TILE_GRID];
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    if (p.type == GPU_IQ2_XXS_PLANES) { quant_fill_grid(grid, tid, TILE_THREADS); }
    const uint row = tg.x * TILE_ROWS, place = tile.y + min(uint(tid / 2), tile.z - 1);
    msl_device const float *source = x + ulong(p.gather == 0u ? place : order[place] / p.gather) * p.ldx;
#define TILE_BODY(T) tile_product<T>(w, p.plane, ulong(tile.x) * p.rows, row, p.rows, p.columns, source, \
                                     slabs, grid, y + ulong(tile.y) * p.ldy, p.ldy, tile.z, tid, sg, lane)
    TILE_SWITCH(p.type, TILE_BODY)
#undef TILE_BODY
}

#line 1 "matmul_wide.metal"
// matmul_wide.metal — matrices × many tokens where memory is the device's own.
//
//   half_pack             x [n, columns], order or nothing      -> packed halfs [columns / 8][stride][8]
//   matmul_wide           up to 8 matrices × packed x            -> y [n, rows] each
//   experts_gate_up_wide  sorted assignments                     -> packed SwiGLU(gate, up) · weight
//   experts_down_wide     those                                  -> parts [assignments, D]
//
// Grid       pack: x tokens / 256, y columns / 64; matmul: x row tiles of 128 over all jobs, y tokens / 128;
//            experts: x row tiles of 128 (gate_up; each of gate and up) or 256 (down), y tiles of 64 places
// Precision  weights and activations rounded to half, sums f32
// Arguments  gpu_pack, gpu_matvec, gpu_wide_experts in kernel_args.h
// CPU twin   CKernels/matmul.c, which rounds activations to int8 instead
// Origin     ours

#line 1 "wide.h"
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

#line 13 "wide.h"
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
msl_inline void wide_load(msl_device const uchar *w, ulong plane, ulong row, uint columns, uint k, msl_thread wide_raw &out) {
    if (T == GPU_F16) {
        msl_device const uint4 *p = (msl_device const uint4 *)(w + (row * columns + k) * 2);
        out.q = p[0];
        out.more = p[1];
    } else if (T == GPU_Q8_0_PLANES) {
        out.q = *(msl_device const uint4 *)(w + row * columns + k);
        out.more.x = *(msl_device const ushort *)(w + plane + (row * columns + k) / 32 * 2);
    } else if (T == GPU_IQ2_XXS_PLANES) {
        const uint2 group = *(msl_device const uint2 *)(w + (row * columns + k) / 32 * 8);
        out.q.x = group.x >> (k & 16u);
        out.q.y = group.y;
        out.more.x = *(msl_device const ushort *)(w + plane + (row * columns + k) / 256 * 2);
    } else {  // Q2_K planes
        const uint j = (k % 256u) / 16u, h = j / 8u, l = (j & 1u) * 16u;
        const ulong block = (row * columns + k) / 256;
        out.q = *(msl_device const uint4 *)(w + block * 64 + 32u * h + l);
        out.more.x = w[plane + block * 16 + j];
        out.more.y = *(msl_device const uint *)(w + plane + plane / 4 + block * 4);
    }
}

// The lane's halfs: out[2·s] columns 4·s and 4·s + 1, out[2·s + 1] the two after them.
template <uint T>
msl_inline void wide_decode(msl_thread const wide_raw &raw, uint k, msl_threadgroup const uchar *table, uint copy, msl_thread uint *out) {
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
        const half2 d = half2(half(scale)), zero = half2(half(1152.0f));
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
        const half2 d = half2(half(scale)), m = half2(half(least)), zero = half2(half(1024.0f));
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
msl_inline void wide_step(msl_thread float *acc, msl_thread const uint *a, msl_threadgroup const uint4 *b, ushort lane) {
#ifdef MSL_WGMMA
    const ulong description = msl_wgmma_b(b, N * 16, 128);
    if (N == 64) { msl_wgmma_n64(acc, a, description); } else { msl_wgmma_n128(acc, a, description); }
#else
    msl_threadgroup const uint *words = (msl_threadgroup const uint *)b;
    #pragma unroll
    for (ushort j = 0; j < N / 8; ++j) {
        const uint token = 8 * j + lane / 4;
        const uint pair[2] = {words[4 * token + lane % 4], words[4 * (N + token) + lane % 4]};
        msl_mma_m16n8k16(acc + 4 * j, a, pair);
    }
#endif
}

msl_inline void wide_begin() {
#ifdef MSL_WGMMA
    msl_wgmma_begin();
#endif
}
msl_inline void wide_end() {
#ifdef MSL_WGMMA
    msl_wgmma_end();
#endif
}
msl_inline void wide_see_copies() {
#ifdef MSL_WGMMA
    msl_wgmma_see_copies();
#endif
}

// What a team's lanes multiply: rows row[set] + 16·(simdgroup % 4) + lane / 4, and eight further.
template <ushort SETS>
struct wide_weights {
    msl_device const uchar *w[SETS];
    ulong row[SETS];
    uint last[SETS];  // rows that there are behind row[set]: further ones repeat the last
    ulong plane;
    uint columns;
};

// Fetches a stage: 64 columns of `tokens` tokens, the last of which stands in for those behind it.
template <ushort N>
msl_inline void wide_fetch(msl_device const uint4 *x, uint stride, uint first, uint tokens, uint k, msl_threadgroup uint4 *stage,
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
msl_inline void wide_product(msl_thread const wide_weights<SETS> &weights, msl_device const uint4 *x, uint stride, uint first,
                         uint tokens, msl_threadgroup uint4 *ring, msl_threadgroup const uchar *table, ushort tid, ushort sg, ushort lane,
                         msl_thread float (&acc)[SETS][N / 2]) {
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
        msl_threadgroup const uint4 *stage = ring + i % WIDE_STAGES * size;
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

#line 16 "matmul_wide.metal"
#line 17 "matmul_wide.metal"
#line 18 "matmul_wide.metal"
using namespace metal;

#define MSL_BLOCKS_matmul_wide 2
#define MSL_BLOCKS_experts_gate_up_wide 2
#define MSL_BLOCKS_experts_down_wide 2
#define WIDE_ROWS 128u
#define WIDE_TOKENS 128
#define WIDE_PLACES 64

// One thread: 64 columns of a token.
MSL_KERNEL void half_pack(msl_device const float * x, msl_device const uint * order, msl_device uint4 * out, msl_constant gpu_pack & p, uint2 i)




{
    if (i.x >= p.n) { return; }
    const uint token = p.gather == 0u ? i.x : order[i.x] / p.gather;
    msl_device const float *from = x + ulong(token) * p.ldx + i.y * WIDE_K;
    #pragma unroll
    for (ushort s = 0; s < 4; ++s) {
        uint2 four[4];
        #pragma unroll
        for (ushort q = 0; q < 4; ++q) {
            four[q] = as_type<uint2>(half4(*(msl_device const float4 *)(from + 16 * q + 4 * s)));
        }
        msl_device uint4 *unit = out + ulong(i.y * 8u + 2 * s) * p.stride + i.x;
        unit[0] = uint4(four[0].x, four[1].x, four[2].x, four[3].x);
        unit[p.stride] = uint4(four[0].y, four[1].y, four[2].y, four[3].y);
    }
}

template <uint T>
msl_inline void wide_job(msl_device const uchar *w, msl_constant gpu_matrix_job &job, uint row, msl_device const uint4 *x, uint stride,
                     uint first, uint n, msl_device float *y, msl_threadgroup uint4 *ring, ushort tid, ushort sg, ushort lane) {
    wide_weights<1> weights;
    weights.w[0] = w;
    // A team past the last row repeats it; nothing is written.
    weights.row[0] = min(row + 64u * (sg / 4), job.rows - 1);
    weights.last[0] = job.rows - 1 - uint(weights.row[0]);
    weights.plane = job.plane;
    weights.columns = job.columns;
    float acc[1][WIDE_TOKENS / 2];
    msl_device const uint4 *from = x + ulong(row / job.group_rows) * (job.columns / 8) * stride;
    wide_product<T, 1, WIDE_TOKENS>(weights, from, stride, first, n, ring, (msl_threadgroup const uchar *)0, tid, sg, lane, acc);
    const uint mine = row + 64u * (sg / 4) + 16u * (sg & 3) + lane / 4;
    #pragma unroll
    for (ushort j = 0; j < WIDE_TOKENS / 8; ++j) {
        #pragma unroll
        for (ushort c = 0; c < 4; ++c) {
            const uint token = 8u * j + 2u * (lane & 3) + c % 2, r = mine + 8u * (c / 2);
            if (token < n && r < job.rows) { y[job.out + ulong(first + token) * job.rows + r] = acc[0][4 * j + c]; }
        }
    }
}

[[max_total_threads_per_threadgroup(WIDE_THREADS)]]
MSL_KERNEL void matmul_wide(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const uint4 * x, msl_device float * y, msl_constant gpu_matvec & p, uint2 tg, ushort tid, ushort sg, ushort lane)














{
#ifdef MSL_CUDA
    msl_threadgroup uint4 *ring = (msl_threadgroup uint4 *)msl_dyn_smem;  // more than may be declared
#else
    threadgroup_decl uint4 ring[WIDE_STAGES * WIDE_TOKENS * 8];
#endif
    const uint j = matvec_find(p, tg.x);
    msl_device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint row = (tg.x - p.job[j].first_tile) * WIDE_ROWS, first = tg.y * WIDE_TOKENS;
    const uint n = min(p.n - first, uint(WIDE_TOKENS));
    if (p.job[j].type == GPU_F16) {
        wide_job<GPU_F16>(w, p.job[j], row, x, p.ldx, first, n, y, ring, tid, sg, lane);
    } else {
        wide_job<GPU_Q8_0_PLANES>(w, p.job[j], row, x, p.ldx, first, n, y, ring, tid, sg, lane);
    }
}

// ---------------------------------------------------------------- experts

// tiles[i] = (expert, first place, places, 0); those past the last one have no places.
[[max_total_threads_per_threadgroup(WIDE_THREADS)]]
MSL_KERNEL void experts_gate_up_wide(msl_device const uchar * gate, msl_device const uchar * up, msl_device const uint4 * x, msl_device const uint4 * tiles, msl_device const uint * order, msl_device const float * weights, msl_device uint4 * h, msl_constant gpu_wide_experts & p, uint2 tg, ushort tid, ushort sg, ushort lane)











{
#ifdef MSL_CUDA
    msl_threadgroup uint4 *ring = (msl_threadgroup uint4 *)msl_dyn_smem;  // more than may be declared
#else
    threadgroup_decl uint4 ring[WIDE_STAGES * WIDE_PLACES * 8];
#endif
    threadgroup_decl uint4 table[INT8_TABLE / 4];
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    int8_fill_table(table, tid, WIDE_THREADS);
    // A team's 64 rows of gate and the same ones of up: `rows` is a multiple of 64.
    const uint row = min(tg.x * WIDE_ROWS + 64u * (sg / 4), p.rows - 64u);
    wide_weights<2> both;
    both.w[0] = gate;
    both.w[1] = up;
    for (ushort s = 0; s < 2; ++s) {
        both.row[s] = ulong(tile.x) * p.rows + row;
        both.last[s] = 63;
    }
    both.plane = p.plane;
    both.columns = p.columns;
    float acc[2][WIDE_PLACES / 2];
    wide_product<GPU_IQ2_XXS_PLANES, 2, WIDE_PLACES>(both, x, p.stride, tile.y, tile.z, ring,
                                                     (msl_threadgroup const uchar *)table, tid, sg, lane, acc);
    // Packed as the next product wants it: these 64 rows are 64 of its columns.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    msl_threadgroup half *packed = (msl_threadgroup half *)(ring + (sg / 4) * (8 * WIDE_PLACES));
    #pragma unroll
    for (ushort j = 0; j < WIDE_PLACES / 8; ++j) {
        #pragma unroll
        for (ushort c = 0; c < 4; ++c) {
            const uint token = 8u * j + 2u * (lane & 3) + c % 2, e = lane / 4 + 8u * (c / 2);
            const float weight = weights[order[tile.y + min(token, tile.z - 1)]];
            const float value = experts_glu(acc[0][4 * j + c], acc[1][4 * j + c], p.clamp) * weight;
            packed[(e / 2 * WIDE_PLACES + token) * 8 + 2 * (sg & 3) + e % 2] = half(value);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid & 127; i < 8 * WIDE_PLACES; i += 128) {
        const uint unit = i / WIDE_PLACES, token = i % WIDE_PLACES;
        if (token < tile.z) {
            h[ulong(row / 8 + unit) * p.stride + tile.y + token] = ring[(sg / 4) * (8 * WIDE_PLACES) + i];
        }
    }
}

[[max_total_threads_per_threadgroup(WIDE_THREADS)]]
MSL_KERNEL void experts_down_wide(msl_device const uchar * down, msl_device const uint4 * h, msl_device float * parts, msl_device const uint4 * tiles, msl_constant gpu_wide_experts & p, uint2 tg, ushort tid, ushort sg, ushort lane)








{
#ifdef MSL_CUDA
    msl_threadgroup uint4 *ring = (msl_threadgroup uint4 *)msl_dyn_smem;  // more than may be declared
#else
    threadgroup_decl uint4 ring[WIDE_STAGES * WIDE_PLACES * 8];
#endif
    const uint4 tile = tiles[tg.y];
    if (tile.z == 0u) { return; }
    wide_weights<2> both;
    for (ushort s = 0; s < 2; ++s) {
        const uint row = min(tg.x * 2u * WIDE_ROWS + 128u * (sg / 4) + 64u * s, p.rows - 1);
        both.w[s] = down;
        both.row[s] = ulong(tile.x) * p.rows + row;
        both.last[s] = p.rows - 1 - row;
    }
    both.plane = p.plane;
    both.columns = p.columns;
    float acc[2][WIDE_PLACES / 2];
    wide_product<GPU_Q2_K_PLANES, 2, WIDE_PLACES>(both, h, p.stride, tile.y, tile.z, ring,
                                                  (msl_threadgroup const uchar *)0, tid, sg, lane, acc);
    #pragma unroll
    for (ushort s = 0; s < 2; ++s) {
        const uint mine = tg.x * 2u * WIDE_ROWS + 128u * (sg / 4) + 64u * s + 16u * (sg & 3) + lane / 4;
        #pragma unroll
        for (ushort j = 0; j < WIDE_PLACES / 8; ++j) {
            #pragma unroll
            for (ushort c = 0; c < 4; ++c) {
                const uint token = 8u * j + 2u * (lane & 3) + c % 2, r = mine + 8u * (c / 2);
                if (token < tile.z && r < p.rows) { parts[ulong(tile.y + token) * p.rows + r] = acc[s][4 * j + c]; }
            }
        }
    }
}

#line 1 "matvec_int8.metal"
// matvec_int8.metal — matrices × one token, its activations as 16-bit integers.
//
//   matvec_int8   up to 8 matrices of Q8_0 planes, F16 or F32 -> y [rows] each
//
// A threadgroup makes integers of x, then a simdgroup keeps a slice of 1,024 in registers, 32 a lane, and
// lets rows pass by, four at a time. The simdgroups of a threadgroup share the slices of one row, and what
// slices are left, rows. For F16 and F32 the slice stays f32.
//
// Grid       x row tiles over all jobs (first_tile, tile_rows)
// Arguments  gpu_matvec in kernel_args.h
// CPU twin   CKernels/matmul.c
// Origin     ours

#line 15 "matvec_int8.metal"
#line 16 "matvec_int8.metal"
using namespace metal;

#define MSL_BLOCKS_matvec_int8 3  // threadgroups on a multiprocessor at once (CUDA)
#define INT8_SIMDGROUPS (INT8_THREADS / 32)
#define INT8_SLICE 1024u
#define INT8_MOST_PARTS 256  // slices · rows of a tile

// Four rows of a slice, a lane's columns: 16 from 16·lane on and 16 from 512 + 16·lane on.
struct int8_rows_q8 {
    uint4 q[4][2];
    float d[4][2];
};

// Past the last column the slice's first one is read; its activations are zeros. Rows past the end, four at a
// time, are the last ones again.
msl_inline void int8_load_q8(msl_device const uchar *w, ulong plane, uint row, uint rows, uint columns, uint k0, ushort lane,
                         msl_thread int8_rows_q8 &out) {
    const ulong line = min(row, rows - 4);
    #pragma unroll
    for (ushort p = 0; p < 2; ++p) {
        const uint at = k0 + 512u * p + 16u * lane, k = at < columns ? at : 0u;
        msl_device const uchar *quants = w + line * columns + k, *scales = w + plane + (line * columns + k) / 32 * 2;
        #pragma unroll
        for (ushort r = 0; r < 4; ++r) {
            out.q[r][p] = *(msl_device const uint4 *)(quants + r * columns);
            out.d[r][p] = quant_half(scales + r * (columns / 16));
        }
    }
}

// The lane's parts of four rows of F16 or F32, of 1,024 columns from k0 on; x comes from the cache every time.
template <uint T>
msl_inline void int8_rows_float(msl_device const uchar *w, uint row, uint rows, uint columns, uint k0, ushort lane,
                            msl_device const float *x, msl_thread float *sums) {
    const ushort v = T == GPU_F16 ? 8 : 4;  // columns in 16 bytes
    const uint line = columns * (T == GPU_F16 ? 2 : 4);
    msl_device const uchar *from = w + ulong(min(row, rows - 4)) * line;
    #pragma unroll
    for (ushort r = 0; r < 4; ++r) { sums[r] = 0.0f; }
    #pragma unroll(2)
    for (ushort p = 0; p < 32 / v; ++p) {
        const uint at = k0 + 32u * v * p + uint(v) * lane, k = at < columns ? at : 0u;
        uint4 q[4];
        float4 a[2];
        #pragma unroll
        for (ushort r = 0; r < 4; ++r) {
            q[r] = *(msl_device const uint4 *)(from + r * line + k * (T == GPU_F16 ? 2 : 4));
        }
        #pragma unroll
        for (ushort i = 0; i < v / 4; ++i) {
            a[i] = at < columns ? *(msl_device const float4 *)(x + k + 4 * i) : float4(0.0f);
        }
        #pragma unroll
        for (ushort r = 0; r < 4; ++r) {
            if (T == GPU_F16) {
                #pragma unroll
                for (ushort i = 0; i < 2; ++i) {
                    const uint l = q[r][2 * i], h = q[r][2 * i + 1];
                    sums[r] += dot(float4(float(as_type<half>(ushort(l & 0xffffu))), float(as_type<half>(ushort(l >> 16))),
                                          float(as_type<half>(ushort(h & 0xffffu))), float(as_type<half>(ushort(h >> 16)))),
                                   a[i]);
                }
            } else {
                sums[r] += dot(as_type<float4>(q[r]), a[0]);
            }
        }
    }
}

// All rows of this simdgroup: first_row … first_row + count, counted in the matrix; parts in `out`.
msl_inline void int8_job_q8(msl_device const uchar *w, msl_constant gpu_matrix_job &job, msl_device const float *x, uint first_row,
                        uint count, uint slice, msl_threadgroup int8_x &memory, ushort tid, ushort lane,
                        msl_threadgroup float *out) {
    const uint columns = job.columns, least = job.slices * INT8_SLICE;
    for (uint base = 0; base < columns; base += INT8_COLUMNS) {
        const uint k0 = base + slice * INT8_SLICE;
        // The first rows are under way while activations are made.
        int8_rows_q8 now;
        int8_load_q8(w, job.plane, first_row, job.rows, columns, k0, lane, now);
        if (base > 0) { threadgroup_barrier(mem_flags::mem_threadgroup); }
        int8_quantize(x, columns, base, least, memory, tid);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint high[8];
        uint low[8];
        float scale[2];
        #pragma unroll
        for (ushort p = 0; p < 2; ++p) {
            const uint c = slice * INT8_SLICE + 512u * p + 16u * lane;
            int8_take16(memory, c, high + 4 * p, low + 4 * p);
            scale[p] = memory.scale[c / 32];
        }
        #pragma unroll(1)
        for (uint r = 0; r < count; r += 4) {
            float sums[4];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                sums[i] = 0.0f;
                #pragma unroll
                for (ushort p = 0; p < 2; ++p) {
                    int hi = 0, lo = 0;
                    #pragma unroll
                    for (ushort c = 0; c < 4; ++c) {
                        hi = int8_dot_high(now.q[i][p][c], high[4 * p + c], hi);
                        lo = int8_dot_low(now.q[i][p][c], low[4 * p + c], lo);
                    }
                    sums[i] += float(hi * 256 + lo) * (now.d[i][p] * scale[p]);
                }
            }
            if (r + 4 < count) { int8_load_q8(w, job.plane, first_row + r + 4, job.rows, columns, k0, lane, now); }
            const float sum = int8_reduce4(sums, lane);
            if (lane < 4) { out[r + lane] = base == 0 ? sum : out[r + lane] + sum; }
        }
    }
}

template <uint T>
msl_inline void int8_job_float(msl_device const uchar *w, msl_constant gpu_matrix_job &job, msl_device const float *x, uint first_row,
                           uint count, uint slice, ushort lane, msl_threadgroup float *out) {
    const uint columns = job.columns;
    for (uint base = 0; base < columns; base += job.slices * INT8_SLICE) {
        const uint k0 = base + slice * INT8_SLICE;
        #pragma unroll(1)
        for (uint r = 0; r < count; r += 4) {
            float sums[4];
            int8_rows_float<T>(w, first_row + r, job.rows, columns, k0, lane, x, sums);
            const float sum = int8_reduce4(sums, lane);
            if (lane < 4) { out[r + lane] = base == 0 ? sum : out[r + lane] + sum; }
        }
    }
}

[[max_total_threads_per_threadgroup(INT8_SIMDGROUPS * 32)]]
MSL_KERNEL void matvec_int8(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, msl_constant gpu_matvec & p, uint tg, ushort tid, ushort sg, ushort lane)














{
    threadgroup_decl float parts[INT8_MOST_PARTS];
    threadgroup_decl int8_x memory;
    const uint j = matvec_find(p, tg);
    msl_device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    const uint rows = p.job[j].tile_rows, slices = p.job[j].slices, row = (tg - p.job[j].first_tile) * rows;
    const uint slice = sg % slices, count = rows * slices / INT8_SIMDGROUPS, first = sg / slices * count;
    msl_threadgroup float *out = parts + slice * rows + first;
    // Tiles end where the rows of a slice of x do; rows past the last one are computed and not written.
    msl_device const float *from = x + ulong(row / p.job[j].group_rows) * p.job[j].columns;
    switch (p.job[j].type) {
    case GPU_F32: int8_job_float<GPU_F32>(w, p.job[j], from, row + first, count, slice, lane, out); break;
    case GPU_F16: int8_job_float<GPU_F16>(w, p.job[j], from, row + first, count, slice, lane, out); break;
    default: int8_job_q8(w, p.job[j], from, row + first, count, slice, memory, tid, lane, out);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (tid < rows && row + tid < p.job[j].rows) {
        float sum = parts[tid];
        for (uint s = 1; s < slices; ++s) { sum += parts[s * rows + tid]; }
        y[p.job[j].out + row + tid] = sum;
    }
}

#line 1 "matvec_many_int8.metal"
// matvec_many_int8.metal — matrices × 2 to 40 tokens, eight at a time, their activations as 16-bit integers.
//
//   int8_pack          x [n, columns]                                            -> bytes, scales
//   matvec_int8_many   up to 8 matrices of Q8_0 planes, F16 or F32 × those tokens   -> y [n, rows] each
//
// A simdgroup multiplies 16 rows by a slice of the columns of all tokens on the matrix units, 32 columns at a
// time: the bytes of the weights are the units' operand as they lie. Sums of 32 products are exact integers.
//
// Grid       pack: x columns / 128, y eights of tokens; matvec: x eights of tokens (neighbours, so that they
//            share the weights in the cache), y row tiles over all jobs (first_tile, tile_rows)
// Arguments  gpu_pack, gpu_matvec in kernel_args.h
// CPU twin   CKernels/matmul.c
// Origin     ours

#line 16 "matvec_many_int8.metal"
#line 17 "matvec_many_int8.metal"
using namespace metal;

#define MSL_BLOCKS_matvec_int8_many 2  // threadgroups on a multiprocessor at once (CUDA)
#define INT8_SIMDGROUPS (INT8_THREADS / 32)
#define INT8_TOKENS 8u
#define INT8_MATRIX_ROWS 16u

// x as bytes, in the order that the units want it: of each eight tokens [columns / 32][8 tokens][4 lanes] of
// eight columns' high bytes, then low ones; and their scales [columns / 32][8]. Tokens past n are zeros.
[[max_total_threads_per_threadgroup(INT8_THREADS)]]
MSL_KERNEL void int8_pack(msl_device const float * x, msl_device uint2 * bytes, msl_device float * scales, msl_constant gpu_pack & p, uint2 tg, ushort sg, ushort lane)






{
    // A simdgroup is a token, a quarter of it eight lanes of one block of 32 columns.
    const uint b = tg.x * 4u + lane / 8, k = b * 32u + 4u * (lane & 7), token = tg.y * INT8_TOKENS + sg;
    const bool there = token < p.n && k < p.ldx;
    const float4 a = there ? *(msl_device const float4 *)(x + ulong(token) * p.ldx + k) : float4(0.0f);
    float most = int8_most(a, 0.0f);
    most = max(most, simd_shuffle_xor(most, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    most = max(most, simd_shuffle_xor(most, 4));
    uint high;
    uint low;
    int8_split4(a, int8_inverse(most), high, low);
    const uint high2 = simd_shuffle_xor(high, 1), low2 = simd_shuffle_xor(low, 1);
    if (k >= p.ldx) { return; }
    const uint place = (tg.y * (p.ldx / 32u) + b) * INT8_TOKENS + sg;
    const ulong at = ulong(place) * 4u + (lane & 7) / 2;
    bytes[2 * at + (lane & 1)] = (lane & 1) == 0 ? uint2(high, high2) : uint2(low2, low);
    if ((lane & 7) == 0) { scales[place] = int8_scale(most); }
}

// c = a · b for 16 rows, 8 tokens and 32 columns; `b` of signed or of unsigned bytes.
msl_inline void int8_matrix_step(msl_thread const uint *a, uint4 b, msl_thread int *high, msl_thread int *low) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        high[i] = 0;
        low[i] = 0;
    }
    const uint first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
    msl_mma_m16n8k32_s8(high, a, first);
    msl_mma_m16n8k32_u8(low, a, second);
}

// 128 columns of two rows: 32·i + 8·lane … of each block of 32, and the four blocks' scales.
msl_inline void int8_matrix_load(msl_device const uchar *line0, msl_device const uchar *line1, msl_device const uchar *scales0,
                             msl_device const uchar *scales1, uint k, msl_thread uint2 *w0, msl_thread uint2 *w1, msl_thread uint2 &d0,
                             msl_thread uint2 &d1) {
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) {
        w0[i] = *(msl_device const uint2 *)(line0 + k + 32 * i);
        w1[i] = *(msl_device const uint2 *)(line1 + k + 32 * i);
    }
    d0 = *(msl_device const uint2 *)(scales0 + k / 16);
    d1 = *(msl_device const uint2 *)(scales1 + k / 16);
}

// Rows `first` … + 16 of Q8_0 planes, columns k0 … k1 (multiples of 128): out [16][INT8_TOKENS].
msl_inline void int8_matrix_q8(msl_device const uchar *w, ulong plane, uint first, uint rows, uint columns, uint k0, uint k1,
                           msl_device const uint4 *bytes, msl_device const float *scales, ushort lane, msl_threadgroup float *out) {
    const ushort g = lane / 4, q = lane & 3;
    const ulong row0 = min(first + g, rows - 1), row1 = min(first + g + 8u, rows - 1);
    float acc[4];
    for (ushort i = 0; i < 4; ++i) { acc[i] = 0.0f; }
    msl_device const uchar *line0 = w + row0 * columns + 8 * q, *line1 = w + row1 * columns + 8 * q;
    msl_device const uchar *scales0 = w + plane + row0 * columns / 16, *scales1 = w + plane + row1 * columns / 16;
    uint2 w0[4];
    uint2 w1[4];
    uint2 d0;
    uint2 d1;
    int8_matrix_load(line0, line1, scales0, scales1, k0 < k1 ? k0 : 0u, w0, w1, d0, d1);
    #pragma unroll(1)
    for (uint k = k0; k < k1; k += 128) {
        uint4 x[4];
        float2 s[4];
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint b = k / 32 + i;
            x[i] = bytes[(b * INT8_TOKENS + g) * 4u + q];
            s[i] = *(msl_device const float2 *)(scales + b * INT8_TOKENS + 2 * q);
        }
        uint2 v0[4];
        uint2 v1[4];
        const uint2 e0 = d0, e1 = d1;
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            v0[i] = w0[i];
            v1[i] = w1[i];
        }
        // The next columns are under way while these are multiplied.
        if (k + 128 < k1) { int8_matrix_load(line0, line1, scales0, scales1, k + 128, w0, w1, d0, d1); }
        #pragma unroll
        for (ushort i = 0; i < 4; ++i) {
            const uint a[4] = {v0[i].x, v1[i].x, v0[i].y, v1[i].y};
            int high[4];
            int low[4];
            int8_matrix_step(a, x[i], high, low);
            const uint two0 = i < 2 ? e0.x : e0.y, two1 = i < 2 ? e1.x : e1.y;
            const float f0 = float(as_type<half>(ushort(two0 >> (16 * (i & 1)))));
            const float f1 = float(as_type<half>(ushort(two1 >> (16 * (i & 1)))));
            acc[0] += float(high[0] * 256 + low[0]) * (f0 * s[i].x);
            acc[1] += float(high[1] * 256 + low[1]) * (f0 * s[i].y);
            acc[2] += float(high[2] * 256 + low[2]) * (f1 * s[i].x);
            acc[3] += float(high[3] * 256 + low[3]) * (f1 * s[i].y);
        }
    }
    #pragma unroll
    for (ushort i = 0; i < 4; ++i) { out[(g + 8 * (i / 2)) * INT8_TOKENS + 2 * q + i % 2] = acc[i]; }
}

// The same for F16 and F32 and x as it is.
template <uint T>
msl_inline void int8_matrix_float(msl_device const uchar *w, uint first, uint rows, uint columns, uint k0, uint k1,
                              msl_device const float *x, uint ldx, uint n, ushort lane, msl_threadgroup float *out) {
    const ushort v = T == GPU_F16 ? 8 : 4;  // columns in 16 bytes
    const uint line = columns * (T == GPU_F16 ? 2 : 4);
    #pragma unroll(1)
    for (uint r = 0; r < INT8_MATRIX_ROWS; r += 4) {
        msl_device const uchar *from = w + ulong(min(first + r, rows - 4)) * line;
        float sums[INT8_TOKENS][4];
        #pragma unroll
        for (ushort t = 0; t < INT8_TOKENS; ++t) {
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) { sums[t][i] = 0.0f; }
        }
        #pragma unroll(1)
        for (uint k = k0 + uint(v) * lane; k < k1; k += 32u * v) {
            float4 b[4][2];
            #pragma unroll
            for (ushort i = 0; i < 4; ++i) {
                const uint4 q = *(msl_device const uint4 *)(from + i * line + k * (T == GPU_F16 ? 2 : 4));
                if (T == GPU_F16) {
                    #pragma unroll
                    for (ushort e = 0; e < 2; ++e) {
                        const uint l = q[2 * e], h = q[2 * e + 1];
                        b[i][e] = float4(float(as_type<half>(ushort(l & 0xffffu))), float(as_type<half>(ushort(l >> 16))),
                                         float(as_type<half>(ushort(h & 0xffffu))), float(as_type<half>(ushort(h >> 16))));
                    }
                } else {
                    b[i][0] = as_type<float4>(q);
                }
            }
            #pragma unroll
            for (ushort t = 0; t < INT8_TOKENS; ++t) {
                if (t < n) {
                    #pragma unroll
                    for (ushort e = 0; e < v / 4; ++e) {
                        const float4 a = *(msl_device const float4 *)(x + ulong(t) * ldx + k + 4 * e);
                        #pragma unroll
                        for (ushort i = 0; i < 4; ++i) { sums[t][i] += dot(b[i][e], a); }
                    }
                }
            }
        }
        #pragma unroll
        for (ushort t = 0; t < INT8_TOKENS; ++t) {
            if (t < n) {
                const float sum = int8_reduce4(sums[t], lane);
                if (lane < 4) { out[(r + lane) * INT8_TOKENS + t] = sum; }
            }
        }
    }
}

[[max_total_threads_per_threadgroup(INT8_THREADS)]]
MSL_KERNEL void matvec_int8_many(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device const uint4 * bytes, msl_device const float * scales, msl_device float * y, msl_constant gpu_matvec & p, uint2 tg, ushort tid, ushort sg, ushort lane)
















{
    threadgroup_decl float parts[INT8_SIMDGROUPS * INT8_MATRIX_ROWS * INT8_TOKENS];
    const uint j = matvec_find(p, tg.y), from = tg.x * INT8_TOKENS, n = min(INT8_TOKENS, p.n - from);
    x += ulong(from) * p.ldx;
    bytes += ulong(from) * (p.ldx / 32u * 4u);
    scales += from * (p.ldx / 32u);
    msl_device const uchar *w = matvec_weights(j, w0, w1, w2, w3, w4, w5, w6, w7);
    // The slices of 16 rows are neighbours.
    const uint slices = p.job[j].slices, columns = p.job[j].columns, rows = p.job[j].rows;
    const uint span = (columns / 128u + slices - 1) / slices * 128u, k0 = sg % slices * span, k1 = min(k0 + span, columns);
    const uint tile = INT8_SIMDGROUPS / slices * INT8_MATRIX_ROWS, row = (tg.y - p.job[j].first_tile) * tile;
    const uint first = row + sg / slices * INT8_MATRIX_ROWS, offset = row / p.job[j].group_rows * columns;
    msl_threadgroup float *out = parts + sg * (INT8_MATRIX_ROWS * INT8_TOKENS);
    switch (p.job[j].type) {
    case GPU_F32: int8_matrix_float<GPU_F32>(w, first, rows, columns, k0, k1, x + offset, p.ldx, n, lane, out); break;
    case GPU_F16: int8_matrix_float<GPU_F16>(w, first, rows, columns, k0, k1, x + offset, p.ldx, n, lane, out); break;
    default: int8_matrix_q8(w, p.job[j].plane, first, rows, columns, k0, k1, bytes + offset / 32 * (INT8_TOKENS * 4),
                            scales + offset / 32 * INT8_TOKENS, lane, out);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < tile * INT8_TOKENS; i += INT8_THREADS) {
        const uint r = i / INT8_TOKENS, t = i % INT8_TOKENS;
        const uint at = r / INT8_MATRIX_ROWS * slices * INT8_MATRIX_ROWS + r % INT8_MATRIX_ROWS;
        if (t < n && row + r < rows) {
            float sum = parts[at * INT8_TOKENS + t];
            for (uint s = 1; s < slices; ++s) { sum += parts[(at + s * INT8_MATRIX_ROWS) * INT8_TOKENS + t]; }
            y[p.job[j].out + ulong(from + t) * rows + row + r] = sum;
        }
    }
}

#line 1 "rms_norm.metal"
// rms_norm.metal — y = x / sqrt(mean(x²) + eps) · weight
//
//   rms_norm_f32   x [n, width], weight [width]   -> y [n, width]; width a multiple of 4
//
// Grid       one threadgroup a row
// Precision  f32
// CPU twin   CKernels/rms_norm.c
// Origin     ours

#line 11 "rms_norm.metal"
#line 12 "rms_norm.metal"
using namespace metal;

#define NORM_THREADS 256
#define NORM_MOST 2  // quads a thread keeps from the sum to the product; what is beyond is read again

[[max_total_threads_per_threadgroup(NORM_THREADS)]]
MSL_KERNEL void rms_norm_f32(msl_device const float * x, msl_device const float * weight, msl_device float * y, msl_constant gpu_rms_norm & p, uint row, ushort tid, ushort sg, ushort lane)







{
    threadgroup_decl float partial[32];
    const uint quads = p.width / 4;
    msl_device const float4 *from = (msl_device const float4 *)(x + ulong(row) * p.width);
    msl_device const float4 *factor = (msl_device const float4 *)weight;
    msl_device float4 *to = (msl_device float4 *)(y + ulong(row) * p.width);
    float4 v[NORM_MOST];
    float4 w[NORM_MOST];
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) {
        const uint at = i * NORM_THREADS + tid;
        v[i] = float4(0.0f);
        w[i] = float4(0.0f);
        if (at < quads) {
            v[i] = from[at];
            w[i] = factor[at];
        }
    }
    float sum = 0.0f;
    for (uint i = NORM_MOST * NORM_THREADS + tid; i < quads; i += NORM_THREADS) { sum += dot(from[i], from[i]); }
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) { sum += dot(v[i], v[i]); }
    const float scale = reduce_rms(reduce_sum(sum, partial, NORM_THREADS / 32, sg, lane), p.width, p.epsilon);
    #pragma unroll
    for (ushort i = 0; i < NORM_MOST; ++i) {
        const uint at = i * NORM_THREADS + tid;
        if (at < quads) { to[at] = v[i] * scale * w[i]; }
    }
    for (uint i = NORM_MOST * NORM_THREADS + tid; i < quads; i += NORM_THREADS) { to[i] = from[i] * scale * factor[i]; }
}

#line 1 "rope.metal"
// rope.metal — rotary position embedding of the last `rope` values of a row, interleaved pairs.
//
//   rope_table_f32     positions [n], frequencies [pairs]   -> table [n, pairs, 2] of (cos, sin)
//   rope_queries_f32   q [n, heads, dim], table             -> each head normed, then rotated
//
// Grid       table: one thread a pair; queries: x eight heads, a simdgroup each, y tokens
// Precision  f32; the angle is rounded to f32 before the cosine, as the reference implementation does
// CPU twin   CKernels/rope.c, rms_norm.c
// Origin     ours

#line 12 "rope.metal"
#line 13 "rope.metal"
using namespace metal;

MSL_KERNEL void rope_table_f32(msl_device const int * positions, msl_device const float * frequencies, msl_device float2 * table, msl_constant gpu_rope_table & p, uint i)




{
    if (i >= p.n * p.pairs) { return; }
    const float angle = float(positions[i / p.pairs]) * frequencies[i % p.pairs];
    table[i] = float2(precise::cos(angle), precise::sin(angle));
}

// Four pieces of 128 values at most: a lane has 4 · lane … of each, read once.
#define ROPE_PIECES 4
#define ROPE_THREADS 256

msl_inline float2 rope_turn(float2 v, float2 turn) {
    return float2(v.x * turn.x - v.y * turn.y, v.x * turn.y + v.y * turn.x);
}

[[max_total_threads_per_threadgroup(ROPE_THREADS)]]
MSL_KERNEL void rope_queries_f32(msl_device float * q, msl_device const float2 * table, msl_constant gpu_queries & p, uint2 tg, ushort sg, ushort lane)





{
    const uint head = tg.x * (ROPE_THREADS / 32) + sg, plain = p.dim - p.rope;
    if (head >= p.heads) { return; }
    msl_device float *row = q + (ulong(tg.y) * p.heads + head) * p.dim;
    table += ulong(tg.y) * (p.rope / 2);
    float4 v[ROPE_PIECES];
    float4 turn[ROPE_PIECES];  // of the piece's two pairs
    float sum = 0.0f;
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) {
        const uint i = 128u * e + 4u * lane;
        v[e] = float4(0.0f);
        turn[e] = float4(1.0f, 0.0f, 1.0f, 0.0f);
        if (i < p.dim) { v[e] = *(msl_device const float4 *)(row + i); }
        if (i < p.dim && i >= plain) { turn[e].xy = table[(i - plain) / 2]; }
        if (i < p.dim && i + 2 >= plain) { turn[e].zw = table[(i + 2 - plain) / 2]; }
    }
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) { sum += dot(v[e], v[e]); }
    const float scale = reduce_rms(simd_sum(sum), p.dim, p.epsilon);
    #pragma unroll
    for (ushort e = 0; e < ROPE_PIECES; ++e) {
        const uint i = 128u * e + 4u * lane;
        const float4 x = v[e] * scale;
        if (i < p.dim) {
            *(msl_device float4 *)(row + i) = float4(rope_turn(x.xy, turn[e].xy), rope_turn(x.zw, turn[e].zw));
        }
    }
}

#line 1 "router.metal"
// router.metal — which experts a token takes, and with what weights.
//
//   router_top_k   logits [n, experts], bias [experts]        -> ids, weights [n, used]
//   router_hash    logits, table [vocabulary, used], tokens   -> ids, weights [n, used]
//
// scores = sqrt(softplus(logits)); the highest of score + bias (ties: the lower id); weights = their
// scores / sum · scale.
//
// Grid       one threadgroup a token; of router_hash one simdgroup
// Precision  f32
// CPU twin   CKernels/router.c
// Origin     ours

#line 15 "router.metal"
using namespace metal;

#define ROUTER_MOST 1024
#define ROUTER_THREADS 256

msl_inline float router_score(float logit) {
    // log(1 + e^x): for small e^x the series is closer than the sum's rounding.
    const float e = exp(min(logit, 20.0f));
    const float soft = e < 1.0e-3f ? e * (1.0f - e * (0.5f - e * 0.33333333f)) : log(1.0f + e);
    return sqrt(logit > 20.0f ? logit : soft);
}

// Lane j < used holds the score of place j.
msl_inline void router_weigh(float score, uint used, float scale, msl_device float *weights, ushort lane) {
    const float sum = simd_sum(lane < used ? score : 0.0f);
    if (lane < used) { weights[lane] = score / sum * scale; }
}

// Larger for larger keys; a NaN comes behind all numbers, and 0 behind that. A key is never -0.
msl_inline uint router_order(float key) {
    const uint bits = as_type<uint>(key);
    return key != key ? 1u : (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

msl_inline uint router_most(uint v) {
#ifdef MSL_CUDA
    return __reduce_max_sync(0xffffffffu, v);
#else
    return simd_max(v);
#endif
}

msl_inline uint router_least(uint v) {
#ifdef MSL_CUDA
    return __reduce_min_sync(0xffffffffu, v);
#else
    return simd_min(v);
#endif
}

// One simdgroup takes the `used` highest of up to 32 · EACH keys, one after the other. Lane j gets place j.
template <ushort EACH>
msl_inline uint router_choose(msl_threadgroup const uint *keys, uint experts, uint used, ushort lane) {
    uint own[EACH];
    #pragma unroll
    for (ushort i = 0; i < EACH; ++i) { own[i] = 32u * i + lane < experts ? keys[32 * i + lane] : 0u; }
    uint mine = 0;
    for (uint j = 0; j < used; ++j) {
        uint best = own[0], at = 0;
        #pragma unroll
        for (ushort i = 1; i < EACH; ++i) {
            at = own[i] > best ? i : at;
            best = max(best, own[i]);
        }
        const uint most = router_most(best), id = 32 * at + lane;
        const uint chosen = router_least(best == most ? id : 0xffffu);
        #pragma unroll
        for (ushort i = 0; i < EACH; ++i) { own[i] = 32u * i + lane == chosen ? 0u : own[i]; }
        mine = lane == j ? chosen : mine;
    }
    return mine;
}

[[max_total_threads_per_threadgroup(ROUTER_THREADS)]]
MSL_KERNEL void router_top_k(msl_device const float * logits, msl_device const float * bias, msl_device int * ids, msl_device float * weights, msl_constant gpu_router & p, uint token, ushort tid, ushort sg, ushort lane)








{
    threadgroup_decl uint keys[ROUTER_MOST];
    threadgroup_decl float scores[ROUTER_MOST];
    msl_device const float *line = logits + ulong(token) * p.experts;
    for (uint e = tid; e < p.experts; e += ROUTER_THREADS) {
        const float offset = bias[e], logit = line[e], score = router_score(logit);
        keys[e] = router_order(logit == logit ? score + offset : logit);
        scores[e] = score;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sg != 0) { return; }
    const uint mine = p.experts <= 256 ? router_choose<8>(keys, p.experts, p.used, lane)
                    : p.experts <= 512 ? router_choose<16>(keys, p.experts, p.used, lane)
                    : router_choose<32>(keys, p.experts, p.used, lane);
    if (lane < p.used) { ids[ulong(token) * p.used + lane] = int(mine); }
    router_weigh(scores[mine], p.used, p.scale, weights + ulong(token) * p.used, lane);
}

[[max_total_threads_per_threadgroup(32)]]
MSL_KERNEL void router_hash(msl_device const float * logits, msl_device const int * table, msl_device const int * tokens, msl_device int * ids, msl_device float * weights, msl_constant gpu_router & p, uint token, ushort lane)







{
    const uint id = lane < p.used ? uint(table[ulong(tokens[token]) * p.used + lane]) : 0u;
    if (lane < p.used) { ids[ulong(token) * p.used + lane] = int(id); }
    const float score = router_score(logits[ulong(token) * p.experts + id]);
    router_weigh(score, p.used, p.scale, weights + ulong(token) * p.used, lane);
}

#line 1 "sampling.metal"
// sampling.metal — what is needed of a row of logits to choose a token, without taking the row along.
//
//   sampling_scan   logits [n, count], temperatures [n], selected [n, listed], counts [n]
//                     -> out [n, 3 + 2 · listed]: the id of the highest logit (ties: the lower id; -1 when all
//                        are NaN or -inf), that logit, Σ exp((logit - highest) / temperature) over those
//                        that a random number can hit, then ids and logits of the selected ones
//
// `selected` are the highest ones, ascending, by indexer_top_k; none where listed is 0.
//
// Grid       one threadgroup a row
// Precision  f32; the sum has one order
// CPU twin   CKernels/sampling.c; the walk over the list is in GPUSampling.swift
// Origin     ours

#line 16 "sampling.metal"
#line 17 "sampling.metal"
using namespace metal;

#define SAMPLING_THREADS 1024

[[max_total_threads_per_threadgroup(SAMPLING_THREADS)]]
MSL_KERNEL void sampling_scan(msl_device const float * logits, msl_device const float * temperatures, msl_device const int * selected, msl_device const int * counts, msl_device int * out, msl_constant gpu_sampling & p, uint row, ushort tid, ushort sg, ushort lane)









{
    threadgroup_decl float tops[32];
    threadgroup_decl uint ids[32];
    threadgroup_decl float partial[32];
    const uint none = 0x7fffffffu;
    msl_device const float *line = logits + ulong(row) * p.count;
    msl_device int *result = out + ulong(row) * (3 + 2 * p.listed);
    float best = as_type<float>(0xff800000u);  // -inf
    uint id = none;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v > best) {
            best = v;
            id = i;
        }
    }
    float most = simd_max(best);
    uint lowest = simd_min(best == most ? id : none);
    if (lane == 0) {
        tops[sg] = most;
        ids[sg] = lowest;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    best = tops[lane];
    id = ids[lane];
    most = simd_max(best);
    lowest = simd_min(best == most ? id : none);

    const float temperature = temperatures[row], least = most - 40.0f * temperature;
    float sum = 0.0f;
    for (uint i = tid; i < p.count; i += SAMPLING_THREADS) {
        const float v = line[i];
        if (v >= least) { sum += exp((v - most) / temperature); }
    }
    const float total = reduce_sum(sum, partial, SAMPLING_THREADS / 32, sg, lane);
    if (tid == 0) {
        result[0] = lowest == none ? -1 : int(lowest);
        result[1] = as_type<int>(most);
        result[2] = as_type<int>(total);
    }
    if (p.listed == 0u) { return; }
    for (uint i = tid; i < p.listed; i += SAMPLING_THREADS) {
        const int chosen = int(i) < counts[row] ? selected[ulong(row) * p.listed + i] : -1;
        result[3 + i] = chosen;
        result[3 + p.listed + i] = chosen < 0 ? 0 : as_type<int>(line[chosen]);
    }
}

#if !defined(MSL_SOME) || defined(MSL_WITH_attention_split)
#ifndef MSL_BLOCKS_attention_split
#define MSL_BLOCKS_attention_split 1
#endif
extern "C" __global__ void __launch_bounds__(2 * ATT_THREADS, MSL_BLOCKS_attention_split) msl_attention_split(msl_device const float * q, msl_device const uchar * rows_here, msl_device const kv_page * sessions, msl_device const int * selected, msl_device const int * counts, msl_device const int * positions, msl_device float * parts, msl_device float2 * sums, const __grid_constant__ gpu_attention p) { MSL_ENTER attention_split(q, rows_here, sessions, selected, counts, positions, parts, sums, p, msl_builtin<uint3>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_attention_merge)
#ifndef MSL_BLOCKS_attention_merge
#define MSL_BLOCKS_attention_merge 1
#endif
extern "C" __global__ void __launch_bounds__(MERGE_THREADS, MSL_BLOCKS_attention_merge) msl_attention_merge(msl_device const float * parts, msl_device const float2 * sums, msl_device const float * sinks, msl_device const float2 * table, msl_device const uchar * rows_here, msl_device const int * positions, msl_device float * out, msl_device const kv_page * sessions, const __grid_constant__ gpu_attention p) { MSL_ENTER attention_merge(parts, sums, sinks, table, rows_here, positions, out, sessions, p, msl_builtin<uint3>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_attention_tiles)
#ifndef MSL_BLOCKS_attention_tiles
#define MSL_BLOCKS_attention_tiles 1
#endif
extern "C" __global__ void __launch_bounds__(ATT_THREADS, MSL_BLOCKS_attention_tiles) msl_attention_tiles(msl_device const float * q, msl_device const uchar * rows_here, msl_device const kv_page * sessions, msl_device const int * selected, msl_device const int * counts, msl_device const int * positions, msl_device const float * sinks, msl_device const float * table, msl_device float * out, const __grid_constant__ gpu_attention p) { MSL_ENTER attention_tiles(q, rows_here, sessions, selected, counts, positions, sinks, table, out, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_compressor_step)
#ifndef MSL_BLOCKS_compressor_step
#define MSL_BLOCKS_compressor_step 1
#endif
extern "C" __global__ void __launch_bounds__(KV_THREADS, MSL_BLOCKS_compressor_step) msl_compressor_step(msl_device const float * kv, msl_device const float * gate, msl_device const float * bias, msl_device const float * norm, msl_device const float * frequencies, msl_device const int * positions, msl_device const kv_page * sessions, const __grid_constant__ gpu_compressor p) { MSL_ENTER compressor_step(kv, gate, bias, norm, frequencies, positions, sessions, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_compressor_rows)
#ifndef MSL_BLOCKS_compressor_rows
#define MSL_BLOCKS_compressor_rows 1
#endif
extern "C" __global__ void __launch_bounds__(POOL_ROW_THREADS, MSL_BLOCKS_compressor_rows) msl_compressor_rows(msl_device const float * kv, msl_device const float * gate, msl_device const float * bias, msl_device const float * norm, msl_device const float * frequencies, msl_device const int * positions, msl_device const kv_page * sessions, const __grid_constant__ gpu_compressor p) { MSL_ENTER compressor_rows(kv, gate, bias, norm, frequencies, positions, sessions, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_compressor_state)
#ifndef MSL_BLOCKS_compressor_state
#define MSL_BLOCKS_compressor_state 1
#endif
extern "C" __global__ void __launch_bounds__(256, MSL_BLOCKS_compressor_state) msl_compressor_state(msl_device const float * kv, msl_device const float * gate, msl_device const float * bias, msl_device const int * positions, msl_device const kv_page * sessions, const __grid_constant__ gpu_compressor p) { MSL_ENTER compressor_state(kv, gate, bias, positions, sessions, p, msl_builtin<uint>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_copy_many)
#ifndef MSL_BLOCKS_copy_many
#define MSL_BLOCKS_copy_many 1
#endif
extern "C" __global__ void __launch_bounds__(256, MSL_BLOCKS_copy_many) msl_copy_many(const __grid_constant__ copy_jobs p) { MSL_ENTER copy_many(p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_gate_up)
#ifndef MSL_BLOCKS_experts_gate_up
#define MSL_BLOCKS_experts_gate_up 1
#endif
extern "C" __global__ void __launch_bounds__(EXPERT_SIMDGROUPS * 32, MSL_BLOCKS_experts_gate_up) msl_experts_gate_up(msl_device const uchar * gate, msl_device const uchar * up, msl_device const float * x, msl_device const int * ids, msl_device const float * weights, msl_device const float * shared_gate, msl_device const float * shared_up, msl_device float * h, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_gate_up(gate, up, x, ids, weights, shared_gate, shared_up, h, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_down)
#ifndef MSL_BLOCKS_experts_down
#define MSL_BLOCKS_experts_down 1
#endif
extern "C" __global__ void __launch_bounds__(EXPERT_SIMDGROUPS * 32, MSL_BLOCKS_experts_down) msl_experts_down(msl_device const uchar * down, msl_device const uchar * shared_down, msl_device const float * h, msl_device const int * ids, msl_device float * y, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_down(down, shared_down, h, ids, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_sort)
#ifndef MSL_BLOCKS_experts_sort
#define MSL_BLOCKS_experts_sort 1
#endif
extern "C" __global__ void __launch_bounds__(SORT_THREADS, MSL_BLOCKS_experts_sort) msl_experts_sort(msl_device const int * ids, msl_device uint * order, msl_device uint * place, msl_device uint4 * tiles, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_sort(ids, order, place, tiles, p, msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_swiglu)
#ifndef MSL_BLOCKS_experts_swiglu
#define MSL_BLOCKS_experts_swiglu 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_experts_swiglu) msl_experts_swiglu(msl_device float * gate, msl_device const float * up, msl_device const uint * order, msl_device const float * weights, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_swiglu(gate, up, order, weights, p, msl_builtin<uint2>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_shared_swiglu)
#ifndef MSL_BLOCKS_shared_swiglu
#define MSL_BLOCKS_shared_swiglu 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_shared_swiglu) msl_shared_swiglu(msl_device float * gate, msl_device const float * up, const __grid_constant__ gpu_experts p) { MSL_ENTER shared_swiglu(gate, up, p, msl_builtin<uint2>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_sum)
#ifndef MSL_BLOCKS_experts_sum
#define MSL_BLOCKS_experts_sum 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_experts_sum) msl_experts_sum(msl_device const float * parts, msl_device const uint * place, msl_device float * y, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_sum(parts, place, y, p, msl_builtin<uint2>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_gate_up_int8)
#ifndef MSL_BLOCKS_experts_gate_up_int8
#define MSL_BLOCKS_experts_gate_up_int8 1
#endif
extern "C" __global__ void __launch_bounds__(INT8_THREADS, MSL_BLOCKS_experts_gate_up_int8) msl_experts_gate_up_int8(msl_device const uchar * gate, msl_device const uchar * up, msl_device const float * x, msl_device const int * ids, msl_device const float * weights, msl_device const float * shared_gate, msl_device const float * shared_up, msl_device float * h, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_gate_up_int8(gate, up, x, ids, weights, shared_gate, shared_up, h, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_down_int8)
#ifndef MSL_BLOCKS_experts_down_int8
#define MSL_BLOCKS_experts_down_int8 1
#endif
extern "C" __global__ void __launch_bounds__(INT8_THREADS, MSL_BLOCKS_experts_down_int8) msl_experts_down_int8(msl_device const uchar * down, msl_device const uchar * shared_down, msl_device const float * h, msl_device const int * ids, msl_device float * y, const __grid_constant__ gpu_experts p) { MSL_ENTER experts_down_int8(down, shared_down, h, ids, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_spread)
#ifndef MSL_BLOCKS_hc_spread
#define MSL_BLOCKS_hc_spread 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_hc_spread) msl_hc_spread(msl_device const float * x, msl_device float * streams, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_spread(x, streams, p, msl_builtin<uint2>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_enter)
#ifndef MSL_BLOCKS_hc_enter
#define MSL_BLOCKS_hc_enter 1
#endif
extern "C" __global__ void __launch_bounds__(HC_THREADS, MSL_BLOCKS_hc_enter) msl_hc_enter(msl_device const float * mix, msl_device const float * scale, msl_device const float * base, msl_device const float * streams, msl_device const float * norm, msl_device float * post, msl_device float * comb, msl_device float * x, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_enter(mix, scale, base, streams, norm, post, comb, x, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_head)
#ifndef MSL_BLOCKS_hc_head
#define MSL_BLOCKS_hc_head 1
#endif
extern "C" __global__ void __launch_bounds__(HC_THREADS, MSL_BLOCKS_hc_head) msl_hc_head(msl_device const float * mix, msl_device const float * scale, msl_device const float * base, msl_device const float * streams, msl_device const float * norm, msl_device float * x, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_head(mix, scale, base, streams, norm, x, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_leave)
#ifndef MSL_BLOCKS_hc_leave
#define MSL_BLOCKS_hc_leave 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_hc_leave) msl_hc_leave(msl_device const float * y, msl_device const float * post, msl_device const float * comb, msl_device const float * streams, msl_device float * out, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_leave(y, post, comb, streams, out, p, msl_builtin<uint2>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_mix)
#ifndef MSL_BLOCKS_hc_mix
#define MSL_BLOCKS_hc_mix 1
#endif
extern "C" __global__ void __launch_bounds__(HC_MIX_THREADS, MSL_BLOCKS_hc_mix) msl_hc_mix(msl_device const float * streams, msl_device const uchar * fn, msl_device float * mix, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_mix(streams, fn, mix, p, msl_builtin<uint3>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_mix_many)
#ifndef MSL_BLOCKS_hc_mix_many
#define MSL_BLOCKS_hc_mix_many 1
#endif
extern "C" __global__ void __launch_bounds__(HC_MANY_THREADS, MSL_BLOCKS_hc_mix_many) msl_hc_mix_many(msl_device const float * streams, msl_device const uchar * fn, msl_device float * mix, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_mix_many(streams, fn, mix, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_hc_leave_mix)
#ifndef MSL_BLOCKS_hc_leave_mix
#define MSL_BLOCKS_hc_leave_mix 1
#endif
extern "C" __global__ void __launch_bounds__(HC_MIX_THREADS, MSL_BLOCKS_hc_leave_mix) msl_hc_leave_mix(msl_device const float * y, msl_device const float * post, msl_device const float * comb, msl_device const float * streams, msl_device const uchar * fn, msl_device float * out, msl_device float * mix, const __grid_constant__ gpu_hc p) { MSL_ENTER hc_leave_mix(y, post, comb, streams, fn, out, mix, p, msl_builtin<uint3>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_indexer_score)
#ifndef MSL_BLOCKS_indexer_score
#define MSL_BLOCKS_indexer_score 1
#endif
extern "C" __global__ void __launch_bounds__(2 * INDEX_THREADS, MSL_BLOCKS_indexer_score) msl_indexer_score(msl_device const float * q, msl_device const float * w, msl_device const kv_page * sessions, msl_device const int * positions, msl_device float * scores, const __grid_constant__ gpu_indexer p) { MSL_ENTER indexer_score(q, w, sessions, positions, scores, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_indexer_top_k)
#ifndef MSL_BLOCKS_indexer_top_k
#define MSL_BLOCKS_indexer_top_k 1
#endif
extern "C" __global__ void __launch_bounds__(TOP_THREADS, MSL_BLOCKS_indexer_top_k) msl_indexer_top_k(msl_device const float * scores, msl_device const int * positions, msl_device int * selected, msl_device int * counts, const __grid_constant__ gpu_indexer p) { MSL_ENTER indexer_top_k(scores, positions, selected, counts, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_kv_key_rows)
#ifndef MSL_BLOCKS_kv_key_rows
#define MSL_BLOCKS_kv_key_rows 1
#endif
extern "C" __global__ void __launch_bounds__(KV_THREADS, MSL_BLOCKS_kv_key_rows) msl_kv_key_rows(msl_device const float * kv, msl_device const float * norm, msl_device const float2 * table, msl_device uchar * rows, const __grid_constant__ gpu_key_rows p) { MSL_ENTER kv_key_rows(kv, norm, table, rows, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_kv_index_queries)
#ifndef MSL_BLOCKS_kv_index_queries
#define MSL_BLOCKS_kv_index_queries 1
#endif
extern "C" __global__ void __launch_bounds__(INDEX_THREADS, MSL_BLOCKS_kv_index_queries) msl_kv_index_queries(msl_device float * q, msl_device const float2 * table, const __grid_constant__ gpu_index_queries p) { MSL_ENTER kv_index_queries(q, table, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matvec_common)
#ifndef MSL_BLOCKS_matvec_common
#define MSL_BLOCKS_matvec_common 1
#endif
extern "C" __global__ void __launch_bounds__(MATVEC_SIMDGROUPS * 32, MSL_BLOCKS_matvec_common) msl_matvec_common(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, const __grid_constant__ gpu_matvec p) { MSL_ENTER matvec_common(w0, w1, w2, w3, w4, w5, w6, w7, x, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matvec_1)
#ifndef MSL_BLOCKS_matvec_1
#define MSL_BLOCKS_matvec_1 1
#endif
extern "C" __global__ void __launch_bounds__(MATVEC_SIMDGROUPS * 32, MSL_BLOCKS_matvec_1) msl_matvec_1(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, const __grid_constant__ gpu_matvec p) { MSL_ENTER matvec_1(w0, w1, w2, w3, w4, w5, w6, w7, x, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matvec_4)
#ifndef MSL_BLOCKS_matvec_4
#define MSL_BLOCKS_matvec_4 1
#endif
extern "C" __global__ void __launch_bounds__(MATVEC_SIMDGROUPS * 32, MSL_BLOCKS_matvec_4) msl_matvec_4(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, const __grid_constant__ gpu_matvec p) { MSL_ENTER matvec_4(w0, w1, w2, w3, w4, w5, w6, w7, x, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matmul_embed)
#ifndef MSL_BLOCKS_matmul_embed
#define MSL_BLOCKS_matmul_embed 1
#endif
extern "C" __global__ void __launch_bounds__(256, MSL_BLOCKS_matmul_embed) msl_matmul_embed(msl_device const uchar * table, msl_device const int * tokens, msl_device float * x, const __grid_constant__ gpu_embed p) { MSL_ENTER matmul_embed(table, tokens, x, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_quant_repack_q8_0)
#ifndef MSL_BLOCKS_quant_repack_q8_0
#define MSL_BLOCKS_quant_repack_q8_0 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_quant_repack_q8_0) msl_quant_repack_q8_0(msl_device const ushort * blocks, msl_device uchar * planes, const __grid_constant__ gpu_repack p) { MSL_ENTER quant_repack_q8_0(blocks, planes, p, msl_builtin<uint>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_quant_repack_q2_k)
#ifndef MSL_BLOCKS_quant_repack_q2_k
#define MSL_BLOCKS_quant_repack_q2_k 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_quant_repack_q2_k) msl_quant_repack_q2_k(msl_device const uint * blocks, msl_device uchar * planes, const __grid_constant__ gpu_repack p) { MSL_ENTER quant_repack_q2_k(blocks, planes, p, msl_builtin<uint>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_quant_repack_iq2_xxs)
#ifndef MSL_BLOCKS_quant_repack_iq2_xxs
#define MSL_BLOCKS_quant_repack_iq2_xxs 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_quant_repack_iq2_xxs) msl_quant_repack_iq2_xxs(msl_device const ushort * blocks, msl_device uchar * planes, const __grid_constant__ gpu_repack p) { MSL_ENTER quant_repack_iq2_xxs(blocks, planes, p, msl_builtin<uint>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matmul_tile)
#ifndef MSL_BLOCKS_matmul_tile
#define MSL_BLOCKS_matmul_tile 1
#endif
extern "C" __global__ void __launch_bounds__(TILE_THREADS, MSL_BLOCKS_matmul_tile) msl_matmul_tile(msl_device const uchar * w, msl_device const float * x, msl_device float * y, const __grid_constant__ gpu_matmul p) { MSL_ENTER matmul_tile(w, x, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matmul_experts)
#ifndef MSL_BLOCKS_matmul_experts
#define MSL_BLOCKS_matmul_experts 1
#endif
extern "C" __global__ void __launch_bounds__(TILE_THREADS, MSL_BLOCKS_matmul_experts) msl_matmul_experts(msl_device const uchar * w, msl_device const float * x, msl_device float * y, msl_device const uint4 * tiles, msl_device const uint * order, const __grid_constant__ gpu_matmul p) { MSL_ENTER matmul_experts(w, x, y, tiles, order, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_half_pack)
#ifndef MSL_BLOCKS_half_pack
#define MSL_BLOCKS_half_pack 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_half_pack) msl_half_pack(msl_device const float * x, msl_device const uint * order, msl_device uint4 * out, const __grid_constant__ gpu_pack p) { MSL_ENTER half_pack(x, order, out, p, msl_builtin<uint2>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matmul_wide)
#ifndef MSL_BLOCKS_matmul_wide
#define MSL_BLOCKS_matmul_wide 1
#endif
extern "C" __global__ void __launch_bounds__(WIDE_THREADS, MSL_BLOCKS_matmul_wide) msl_matmul_wide(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const uint4 * x, msl_device float * y, const __grid_constant__ gpu_matvec p) { MSL_ENTER matmul_wide(w0, w1, w2, w3, w4, w5, w6, w7, x, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_gate_up_wide)
#ifndef MSL_BLOCKS_experts_gate_up_wide
#define MSL_BLOCKS_experts_gate_up_wide 1
#endif
extern "C" __global__ void __launch_bounds__(WIDE_THREADS, MSL_BLOCKS_experts_gate_up_wide) msl_experts_gate_up_wide(msl_device const uchar * gate, msl_device const uchar * up, msl_device const uint4 * x, msl_device const uint4 * tiles, msl_device const uint * order, msl_device const float * weights, msl_device uint4 * h, const __grid_constant__ gpu_wide_experts p) { MSL_ENTER experts_gate_up_wide(gate, up, x, tiles, order, weights, h, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_experts_down_wide)
#ifndef MSL_BLOCKS_experts_down_wide
#define MSL_BLOCKS_experts_down_wide 1
#endif
extern "C" __global__ void __launch_bounds__(WIDE_THREADS, MSL_BLOCKS_experts_down_wide) msl_experts_down_wide(msl_device const uchar * down, msl_device const uint4 * h, msl_device float * parts, msl_device const uint4 * tiles, const __grid_constant__ gpu_wide_experts p) { MSL_ENTER experts_down_wide(down, h, parts, tiles, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matvec_int8)
#ifndef MSL_BLOCKS_matvec_int8
#define MSL_BLOCKS_matvec_int8 1
#endif
extern "C" __global__ void __launch_bounds__(INT8_SIMDGROUPS * 32, MSL_BLOCKS_matvec_int8) msl_matvec_int8(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device float * y, const __grid_constant__ gpu_matvec p) { MSL_ENTER matvec_int8(w0, w1, w2, w3, w4, w5, w6, w7, x, y, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_int8_pack)
#ifndef MSL_BLOCKS_int8_pack
#define MSL_BLOCKS_int8_pack 1
#endif
extern "C" __global__ void __launch_bounds__(INT8_THREADS, MSL_BLOCKS_int8_pack) msl_int8_pack(msl_device const float * x, msl_device uint2 * bytes, msl_device float * scales, const __grid_constant__ gpu_pack p) { MSL_ENTER int8_pack(x, bytes, scales, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_matvec_int8_many)
#ifndef MSL_BLOCKS_matvec_int8_many
#define MSL_BLOCKS_matvec_int8_many 1
#endif
extern "C" __global__ void __launch_bounds__(INT8_THREADS, MSL_BLOCKS_matvec_int8_many) msl_matvec_int8_many(msl_device const uchar * w0, msl_device const uchar * w1, msl_device const uchar * w2, msl_device const uchar * w3, msl_device const uchar * w4, msl_device const uchar * w5, msl_device const uchar * w6, msl_device const uchar * w7, msl_device const float * x, msl_device const uint4 * bytes, msl_device const float * scales, msl_device float * y, const __grid_constant__ gpu_matvec p) { MSL_ENTER matvec_int8_many(w0, w1, w2, w3, w4, w5, w6, w7, x, bytes, scales, y, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_rms_norm_f32)
#ifndef MSL_BLOCKS_rms_norm_f32
#define MSL_BLOCKS_rms_norm_f32 1
#endif
extern "C" __global__ void __launch_bounds__(NORM_THREADS, MSL_BLOCKS_rms_norm_f32) msl_rms_norm_f32(msl_device const float * x, msl_device const float * weight, msl_device float * y, const __grid_constant__ gpu_rms_norm p) { MSL_ENTER rms_norm_f32(x, weight, y, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_rope_table_f32)
#ifndef MSL_BLOCKS_rope_table_f32
#define MSL_BLOCKS_rope_table_f32 1
#endif
extern "C" __global__ void __launch_bounds__(1024, MSL_BLOCKS_rope_table_f32) msl_rope_table_f32(msl_device const int * positions, msl_device const float * frequencies, msl_device float2 * table, const __grid_constant__ gpu_rope_table p) { MSL_ENTER rope_table_f32(positions, frequencies, table, p, msl_builtin<uint>(msl_thread_position_in_grid())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_rope_queries_f32)
#ifndef MSL_BLOCKS_rope_queries_f32
#define MSL_BLOCKS_rope_queries_f32 1
#endif
extern "C" __global__ void __launch_bounds__(ROPE_THREADS, MSL_BLOCKS_rope_queries_f32) msl_rope_queries_f32(msl_device float * q, msl_device const float2 * table, const __grid_constant__ gpu_queries p) { MSL_ENTER rope_queries_f32(q, table, p, msl_builtin<uint2>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_router_top_k)
#ifndef MSL_BLOCKS_router_top_k
#define MSL_BLOCKS_router_top_k 1
#endif
extern "C" __global__ void __launch_bounds__(ROUTER_THREADS, MSL_BLOCKS_router_top_k) msl_router_top_k(msl_device const float * logits, msl_device const float * bias, msl_device int * ids, msl_device float * weights, const __grid_constant__ gpu_router p) { MSL_ENTER router_top_k(logits, bias, ids, weights, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_router_hash)
#ifndef MSL_BLOCKS_router_hash
#define MSL_BLOCKS_router_hash 1
#endif
extern "C" __global__ void __launch_bounds__(32, MSL_BLOCKS_router_hash) msl_router_hash(msl_device const float * logits, msl_device const int * table, msl_device const int * tokens, msl_device int * ids, msl_device float * weights, const __grid_constant__ gpu_router p) { MSL_ENTER router_hash(logits, table, tokens, ids, weights, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
#if !defined(MSL_SOME) || defined(MSL_WITH_sampling_scan)
#ifndef MSL_BLOCKS_sampling_scan
#define MSL_BLOCKS_sampling_scan 1
#endif
extern "C" __global__ void __launch_bounds__(SAMPLING_THREADS, MSL_BLOCKS_sampling_scan) msl_sampling_scan(msl_device const float * logits, msl_device const float * temperatures, msl_device const int * selected, msl_device const int * counts, msl_device int * out, const __grid_constant__ gpu_sampling p) { MSL_ENTER sampling_scan(logits, temperatures, selected, counts, out, p, msl_builtin<uint>(msl_threadgroup_position_in_grid()), msl_builtin<ushort>(msl_thread_index_in_threadgroup()), msl_builtin<ushort>(msl_simdgroup_index_in_threadgroup()), msl_builtin<ushort>(msl_thread_index_in_simdgroup())); }
#endif
