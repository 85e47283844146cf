// Runs one threadgroup's threads as fibers on one OS thread. Barriers and simdgroup operations are the only
// switch points. Builds: plain; -fsanitize=address (out of bounds); MSL_RACE (own __tsan_* hooks: data races
// between barriers, out of bounds against the bound buffers, reads of unwritten threadgroup memory).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <sys/mman.h>
#include <vector>
#include <map>
#include <string>
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#include <sanitizer/common_interface_defs.h>
#endif
#endif
typedef unsigned int uint;
struct msl_ctx { uint tpt[3], tgp[3], tpg[3], tpt_n[3], tgn[3], tgrid[3], tit[3], sgi[3], lane[3], nsg[3], tps[3]; void *const *buf; void *const *tg; };
struct msl_buf_info { int index; int writable; size_t bytes; };
struct kern { void (*fn)(const msl_ctx &); int max_threads; const msl_buf_info *bufs; int nbufs; };
static std::map<std::string, kern> &kernels() { static std::map<std::string, kern> k; return k; }
extern "C" char __start_msl_tg[] __attribute__((weak)), __stop_msl_tg[] __attribute__((weak));
enum { STACK = 256 << 10, MAXT = 1024 };
enum state { READY, IN_SIMD, IN_TG, DONE };
struct fiber { void *sp; state st; char *stack; msl_ctx c; const char *file; int line; uint op; void *fake; uint simd_epoch; };
struct simd { int live, arrived; int parity; char slot[2][32 * 64]; const char *file; int line; uint op; };
static fiber F[MAXT]; static simd S[MAXT / 32]; static int N, NS, cur; static void *main_sp; static void *main_fake;
static int tg_arrived, tg_flags, live; static const kern *K; static uint tg_epoch, dev_epoch; static uint group_id;
static std::string err; static bool failed; static unsigned long nswitch;
extern "C" const msl_ctx *msl_cur; const msl_ctx *msl_cur;
#if defined(__x86_64__)
extern "C" void msl_switch(void **save, void *to);
asm(".text\n.globl msl_switch\n.type msl_switch,@function\nmsl_switch:\n push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp,(%rdi)\n mov %rsi,%rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
static void *fresh(char *top, void (*f)()) { void **s = (void **)top; *--s = 0; *--s = (void *)f; for (int i = 0; i < 6; ++i) *--s = 0; return s; }
#elif defined(__aarch64__)
extern "C" void msl_switch(void **save, void *to);
asm(".text\n.globl msl_switch\nmsl_switch:\n sub sp,sp,#160\n stp x19,x20,[sp]\n stp x21,x22,[sp,#16]\n stp x23,x24,[sp,#32]\n stp x25,x26,[sp,#48]\n stp x27,x28,[sp,#64]\n stp x29,x30,[sp,#80]\n stp d8,d9,[sp,#96]\n stp d10,d11,[sp,#112]\n stp d12,d13,[sp,#128]\n stp d14,d15,[sp,#144]\n mov x9,sp\n str x9,[x0]\n mov sp,x1\n ldp x19,x20,[sp]\n ldp x21,x22,[sp,#16]\n ldp x23,x24,[sp,#32]\n ldp x25,x26,[sp,#48]\n ldp x27,x28,[sp,#64]\n ldp x29,x30,[sp,#80]\n ldp d8,d9,[sp,#96]\n ldp d10,d11,[sp,#112]\n ldp d12,d13,[sp,#128]\n ldp d14,d15,[sp,#144]\n add sp,sp,#160\n ret\n");
static void *fresh(char *top, void (*f)()) { void **s = (void **)(top - 160); memset(s, 0, 160); s[11] = (void *)f; return s; }
#endif
static void go(int to) {                 // to = -1: the scheduler
    void **save = cur < 0 ? &main_sp : &F[cur].sp; ++nswitch;
#ifdef ASAN
    void **fs = cur < 0 ? &main_fake : &F[cur].fake; extern char *main_lo; extern size_t main_sz;
    if (to < 0) __sanitizer_start_switch_fiber(cur >= 0 && F[cur].st == DONE ? 0 : fs, main_lo, main_sz);
    else __sanitizer_start_switch_fiber(fs, F[to].stack, STACK);
    int me = cur;
#endif
    cur = to; if (to >= 0) msl_cur = &F[to].c;
    msl_switch(save, to < 0 ? main_sp : F[to].sp);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(me < 0 ? main_fake : F[me].fake, 0, 0);
#endif
}
#ifdef ASAN
char *main_lo; size_t main_sz;
#endif
static int next_ready() {                // same simdgroup first, then the others in turn
    int base = cur & ~31, n = base + 32 < N ? base + 32 : N;
    for (int i = cur + 1; i < n; ++i) if (F[i].st == READY) return i;
    for (int i = base; i < cur; ++i) if (F[i].st == READY) return i;
    for (int k = 1; k < N; ++k) { int i = (base + k) % N; if (F[i].st == READY) return i; }
    return -1;
}
static void die_here(const char *what, const char *f, int l) {
    if (!failed) { char b[512]; snprintf(b, sizeof b, "%s:%d: %s (threadgroup %u,%u,%u thread %d simdgroup %d lane %d)", f, l, what, msl_cur->tgp[0], msl_cur->tgp[1], msl_cur->tgp[2], cur, cur / 32, cur % 32); err = b; }
    failed = true; go(-1); abort();
}
static void entry() {
#ifdef ASAN
    const void *b; size_t s; __sanitizer_finish_switch_fiber(0, &b, &s); if (!main_sz) { main_lo = (char *)b; main_sz = s; }
#endif
    K->fn(F[cur].c);
    F[cur].st = DONE; S[cur / 32].live--; live--;
    for (;;) go(next_ready() >= 0 ? next_ready() : -1);
}
static void block() { go(next_ready()); }
extern "C" {
void msl_register(const char *name, void (*fn)(const msl_ctx &), int m, const msl_buf_info *b, int nb) { kernels()[name] = {fn, m, b, nb}; }
static void simd_sync(uint op, const char *file, int line) {
    simd &s = S[cur / 32]; fiber &f = F[cur];
    if (!s.arrived) { s.op = op; s.file = file; s.line = line; }
    else if (s.op != op || s.line != line) { f.file = file; f.line = line; die_here("divergent simdgroup operation: another lane waits at a different one", file, line); }
    f.file = file; f.line = line; f.op = op;
    if (++s.arrived == 32 || s.arrived == (N - (cur & ~31) < 32 ? N - (cur & ~31) : 32)) {
        s.arrived = 0; int b = cur & ~31; for (int i = b; i < b + 32 && i < N; ++i) if (F[i].st == IN_SIMD) F[i].st = READY; 
    } else { f.st = IN_SIMD; block(); }
}
char *msl_exchange(const void *v, size_t n, uint op, const char *file, int line) {
    simd &s = S[cur / 32]; fiber &f = F[cur]; int par = s.parity; (void)f;
    if (n > 64) die_here("simdgroup value larger than 64 bytes", file, line);
    memcpy(s.slot[par] + (cur & 31) * 64, v, n);
    bool last = s.arrived + 1 >= (N - (cur & ~31) < 32 ? N - (cur & ~31) : 32);
    if (last) s.parity ^= 1;
    simd_sync(op, file, line);
    return s.slot[par];
}
void msl_simdgroup_barrier(uint flags, const char *file, int line) { simd_sync(100 + flags, file, line); F[cur].simd_epoch++; }
void msl_threadgroup_barrier(uint flags, const char *file, int line) {
    fiber &f = F[cur];
    if (!tg_arrived) tg_flags = flags;
    else for (int i = 0; i < N; ++i) if (F[i].st == IN_TG) { if (F[i].line != line || F[i].file != file) die_here("divergent threadgroup_barrier: another thread waits at a different one", file, line); break; }
    f.file = file; f.line = line;
    if (++tg_arrived == N) { tg_arrived = 0; if (flags & 2) tg_epoch++; if (flags & 1) dev_epoch++; for (int i = 0; i < N; ++i) if (F[i].st == IN_TG) F[i].st = READY; }
    else { f.st = IN_TG; block(); }
}
}
// ---------------------------------------------------------------- checked memory
struct range { char *lo; size_t n; int index, writable; void *shadow; };
static std::vector<range> R;             // bound buffers, guarded copies
#ifdef MSL_RACE
struct cell { uint group, epoch; uint16_t wtid, rtid; uint16_t wsim, rsim; uint wgroup_epoch; uint8_t flags; };   // flags: 1 written in epoch, 2 read, 4 read by many, 8 ever written, 16 atomic
struct cell2 { uint wg, we, wse, rg, re, rse; short wt, rt; uint8_t ever, atom, many; };
static std::vector<cell2> tgshadow[32]; static char *tg_lo[32]; static size_t tg_n[32]; static int ntgr;
static const char *where; 
static void race(const char *what, const void *p, int idx, long off, int other) {
    if (failed) return;
    char b[512]; void *ra = __builtin_return_address(0); (void)ra;
    if (idx >= 0) snprintf(b, sizeof b, "%s: buffer(%d) byte %ld", what, idx, off); else snprintf(b, sizeof b, "%s: threadgroup memory byte %ld of block %d", what, off, -1 - idx);
    char c[700]; snprintf(c, sizeof c, "%s, thread %d (and %d), threadgroup %u,%u,%u", b, cur, other, msl_cur->tgp[0], msl_cur->tgp[1], msl_cur->tgp[2]);
    err = c; failed = true; go(-1); abort();
}
static inline bool ordered(uint g, uint e, uint se, int t, uint ep, bool dev) {       // is the earlier access ordered before mine?
    if (t == cur && g == group_id) return true;
    if (g != group_id) return !dev;      // threadgroup memory of an earlier group is dead; device memory is shared
    if (e != ep) return true;
    return t / 32 == cur / 32 && se != F[cur].simd_epoch;
}
static void touch(cell2 *c, size_t n, bool wr, bool at, bool dev, int idx, long off, const void *p) {
    uint ep = dev ? dev_epoch : tg_epoch;
    for (size_t i = 0; i < n; ++i, ++c) {
        if (c->ever & 1) if (!(at && c->atom) && !ordered(c->wg, c->we, c->wse, c->wt, ep, dev)) race(wr ? "data race: write after write" : "data race: read of what another thread wrote", p, idx, off + i, c->wt);
        if (wr && !(at && c->atom) && (c->ever & 2)) {
            if (!ordered(c->rg, c->re, c->rse, c->rt, ep, dev) || (c->many && c->rg == group_id && c->re == ep)) race("data race: write of what another thread read", p, idx, off + i, c->rt);
        }
        if (!wr && !dev && !((c->ever & 1) && c->wg == group_id)) race("read of threadgroup memory never written in this threadgroup", p, idx, off + i, -1);
        if (wr) { c->wg = group_id; c->we = ep; c->wse = F[cur].simd_epoch; c->wt = cur; c->ever = (c->ever & 2) | 1; c->atom = at; }
        else { c->many = (c->ever & 2) && c->rg == group_id && c->re == ep && (c->rt != cur || c->many); c->rg = group_id; c->re = ep; c->rse = F[cur].simd_epoch; c->rt = cur; c->ever |= 2; if (!(c->ever & 1)) c->atom = at; }
    }
}
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], _end[];      // this library: its constants may be read
static range *last;
static void access(const void *pp, size_t n, bool wr, bool at = false) {
    char *p = (char *)pp;
    if (cur < 0 || failed) return;
    if (p >= F[cur].stack && p < F[cur].stack + STACK) return;
    if (last && p >= last->lo && p + n <= last->lo + last->n) { } else { last = 0; for (auto &r : R) if (p >= r.lo && p + n <= r.lo + r.n) { last = &r; break; } }
    if (last) { if (wr && !last->writable) race("write to a const/constant buffer", p, last->index, p - last->lo, -1); touch((cell2 *)last->shadow + (p - last->lo), n, wr, at, true, last->index, p - last->lo, p); return; }
    for (int i = 0; i < ntgr; ++i) if (p >= tg_lo[i] && p + n <= tg_lo[i] + tg_n[i]) { touch(&tgshadow[i][p - tg_lo[i]], n, wr, at, false, -1 - i, p - tg_lo[i], p); return; }
    if (!wr && p >= __ehdr_start && p < _end) return;
    for (auto &r : R) if (p + n > r.lo - 65536 && p < r.lo + r.n + 65536) race(wr ? "write out of bounds" : "read out of bounds", p, r.index, p - r.lo, -1);
    for (int i = 0; i < ntgr; ++i) if (tg_lo[i] != __start_msl_tg && p + n > tg_lo[i] - 4096 && p < tg_lo[i] + tg_n[i] + 4096) race(wr ? "write out of bounds" : "read out of bounds", p, -1 - i, p - tg_lo[i], -1);
    if (wr) race("write to memory that no argument binds", p, 99, (long)p, -1);       // reads elsewhere: program constants
}
extern "C" {
void __tsan_init() {} void __tsan_func_entry(void *) {} void __tsan_func_exit() {}
#define RW(n) void __tsan_read##n(void *p) { access(p, n, false); } void __tsan_write##n(void *p) { access(p, n, true); } \
  void __tsan_unaligned_read##n(void *p) { access(p, n, false); } void __tsan_unaligned_write##n(void *p) { access(p, n, true); }
RW(1) RW(2) RW(4) RW(8) RW(16)
void *__tsan_memcpy(void *d, const void *s, size_t n) { access(s, n, false); access(d, n, true); return memcpy(d, s, n); }
void *__tsan_memmove(void *d, const void *s, size_t n) { access(s, n, false); access(d, n, true); return memmove(d, s, n); }
void *__tsan_memset(void *d, int c, size_t n) { access(d, n, true); return memset(d, c, n); }
void msl_atomic_access(const volatile void *p, size_t n) { access((const void *)p, n, true, true); }
}
#else
extern "C" void msl_atomic_access(const volatile void *, size_t) {}
#endif
static char *guarded(size_t n, const void *src) {       // data ends (16-byte aligned) right before an unmapped page
    size_t pg = 4096, body = (n + 15) / 16 * 16, tot = (body + pg - 1) / pg * pg;
#ifdef ASAN
    (void)tot; (void)pg; char *p = (char *)aligned_alloc(16, body); memset(p, 0xff, body);
#else
    char *m = (char *)mmap(0, tot + 2 * pg, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(m, pg, PROT_NONE); mprotect(m + pg + tot, pg, PROT_NONE); char *p = m + pg + tot - body;
#endif
    if (src) memcpy(p, src, n); return p;
}
static void unguard(char *p, size_t n) {
#ifdef ASAN
    (void)n; free(p);
#else
    size_t pg = 4096, body = (n + 15) / 16 * 16, tot = (body + pg - 1) / pg * pg; munmap(p + body - tot - pg, tot + 2 * pg);
#endif
}
extern "C" const char *msl_error() { return err.c_str(); }
extern "C" unsigned long msl_switches() { return nswitch; }
// Runs all threadgroups of K over `buf`; returns whether one failed.
static int run_grid(const uint *grid, const uint *tg, void **buf, void **tgm, int ntg, const size_t *tgsize) {
    size_t tgbytes = __start_msl_tg ? __stop_msl_tg - __start_msl_tg : 0; (void)tgbytes;
    for (int i = 0; i < N; ++i) if (!F[i].stack) { char *m = (char *)mmap(0, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); mprotect(m, 4096, PROT_NONE); F[i].stack = m + 4096; }
    for (uint gz = 0; gz < grid[2] && !failed; ++gz) for (uint gy = 0; gy < grid[1] && !failed; ++gy) for (uint gx = 0; gx < grid[0] && !failed; ++gx) {
        ++group_id; tg_arrived = 0; live = N; tg_epoch = dev_epoch = 0;
#ifndef ASAN
        if (tgbytes) memset(__start_msl_tg, 0xff, tgbytes);
#endif
        for (int i = 0; i < ntg; ++i) if (tgm[i]) memset(tgm[i], 0xff, tgsize[i]);     // NaN: nobody may rely on zeros
        for (int s = 0; s < NS; ++s) { S[s].live = 32; S[s].arrived = 0; S[s].parity = 0; }
        for (int i = 0; i < N; ++i) {
            fiber &f = F[i]; f.st = READY; f.simd_epoch = 0; f.sp = fresh(f.stack + STACK, entry); msl_ctx &c = f.c; uint g[3] = {gx, gy, gz}, t[3] = {i % tg[0], i / tg[0] % tg[1], i / tg[0] / tg[1]};
            for (int d = 0; d < 3; ++d) { c.tpt[d] = t[d]; c.tgp[d] = g[d]; c.tpg[d] = g[d] * tg[d] + t[d]; c.tpt_n[d] = tg[d]; c.tgn[d] = grid[d]; c.tgrid[d] = grid[d] * tg[d]; }
            c.tit[0] = i; c.sgi[0] = i / 32; c.lane[0] = i % 32; c.nsg[0] = NS; c.tps[0] = 32; c.buf = buf; c.tg = tgm;
        }
        cur = -1; go(0); cur = -1;
        if (!failed && live) {
            failed = true; for (int i = 0; i < N; ++i) if (F[i].st == IN_SIMD || F[i].st == IN_TG) { char b[400]; snprintf(b, sizeof b, "%s:%d: deadlock: thread %d waits in a %s that %d other threads never reach (they returned or wait elsewhere)", F[i].file, F[i].line, i, F[i].st == IN_TG ? "threadgroup_barrier" : "simdgroup operation", N - live); err = b; break; }
        }
    }
    return failed ? 1 : 0;
}
// The kernel over the caller's own memory, unchecked: for whole models.
// Bytes of each argument of a kernel, by its place: 8 for an address; how many, or -1 when there is no such kernel.
extern "C" int msl_arguments(const char *name, size_t *sizes) {
    auto it = kernels().find(name);
    if (it == kernels().end()) return -1;
    int count = 0;
    for (int i = 0; i < it->second.nbufs; ++i) {
        const msl_buf_info &b = it->second.bufs[i];
        sizes[b.index] = b.bytes ? b.bytes : 8;
        if (b.index >= count) count = b.index + 1;
    }
    return count;
}
extern "C" int msl_dispatch_direct(const char *name, const uint *grid, const uint *tg, void **ptr) {
    err.clear(); failed = false;
    auto it = kernels().find(name);
    if (it == kernels().end()) { err = std::string("no kernel ") + name; return 1; }
    K = &it->second; N = tg[0] * tg[1] * tg[2]; NS = (N + 31) / 32; R.clear();
    if (N > MAXT || N > K->max_threads) { err = "threadgroup larger than the kernel's maximum"; return 1; }
    if (grid[1] > 65535 || grid[2] > 65535) { err = "grid y/z over 65535 (CUDA's limit)"; return 1; }
    return run_grid(grid, tg, ptr, 0, 0, 0);
}
extern "C" int msl_dispatch(const char *name, const uint *grid, const uint *tg, int nbuf, void **ptr, const size_t *size, int ntg, const size_t *tgsize) {
    err.clear(); failed = false;
    auto it = kernels().find(name);
    if (it == kernels().end()) { err = std::string("no kernel ") + name; return 1; }
    K = &it->second; N = tg[0] * tg[1] * tg[2]; NS = (N + 31) / 32;
    if (N > MAXT || N > K->max_threads) { err = "threadgroup larger than the kernel's maximum"; return 1; }
    if (grid[1] > 65535 || grid[2] > 65535) { err = "grid y/z over 65535 (CUDA's limit)"; return 1; }
    void *buf[31] = {0}, *tgm[31] = {0}; R.clear();
    size_t tgbytes = __start_msl_tg ? __stop_msl_tg - __start_msl_tg : 0; (void)tgbytes;
    for (int i = 0; i < nbuf; ++i) if (ptr[i]) {
        const msl_buf_info *bi = 0; for (int j = 0; j < K->nbufs; ++j) if (K->bufs[j].index == i) bi = &K->bufs[j];
        if (!bi) { err = "buffer bound that the kernel does not name"; return 1; }
        if (bi->bytes && bi->bytes != size[i]) { char b[99]; snprintf(b, 99, "buffer(%d): %zu bytes set, the kernel's struct has %zu", i, size[i], bi->bytes); err = b; return 1; }
        char *p = guarded(size[i], ptr[i]); buf[i] = p; void *sh = 0;
#ifdef MSL_RACE
        sh = calloc(size[i], sizeof(cell2));
#endif
        R.push_back({p, size[i], i, bi->writable, sh});
    }
    for (int j = 0; j < K->nbufs; ++j) if (K->bufs[j].index >= 0 && !buf[K->bufs[j].index]) { char b[64]; snprintf(b, 64, "buffer(%d) not bound", K->bufs[j].index); err = b; return 1; }
    size_t dyn = 0; for (int i = 0; i < ntg; ++i) if (tgsize[i]) { if (tgsize[i] % 16) { err = "threadgroup memory length must be a multiple of 16"; return 1; } tgm[i] = guarded(tgsize[i], 0); dyn += tgsize[i]; }
    if (dyn > 32768) { err = "more than 32 KB of threadgroup memory"; return 1; }
#ifdef MSL_RACE
    ntgr = 0; last = 0; if (tgbytes) { tg_lo[ntgr] = __start_msl_tg; tg_n[ntgr] = tgbytes; tgshadow[ntgr++].assign(tgbytes, cell2()); }
    for (int i = 0; i < ntg; ++i) if (tgm[i]) { tg_lo[ntgr] = (char *)tgm[i]; tg_n[ntgr] = tgsize[i]; tgshadow[ntgr++].assign(tgsize[i], cell2()); }
#endif
    run_grid(grid, tg, buf, tgm, ntg, tgsize);
    for (auto &r : R) { if (r.writable) memcpy(ptr[r.index], r.lo, r.n); unguard(r.lo, r.n); free(r.shadow); }
    for (int i = 0; i < ntg; ++i) if (tgm[i]) unguard((char *)tgm[i], tgsize[i]);
    return failed ? 1 : 0;
}
