/* machine_peaks.c — what this machine can do at most: "GB/s GMAC/s GMAC/s".
 *
 * Memory read by argv[1] threads together; multiply-adds of one thread by f32 FMA, and by VPDPBUSD (0
 * where the compiler's target has none).
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef int32_t lanes __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));

enum { RUNS = 5, CHAINS = 12, MOST_THREADS = 256 };

static const size_t share = (size_t)1 << 30;
static char *memory;
static volatile float sink;

/* CPU time where one thread works, so that other programs do not count. */
static double now(size_t threads) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double least(double a, double b) {
    return a < b ? a : b;
}

static void *read_share(void *which) {
    const lanes *p = (const lanes *)(memory + (size_t)which * share);
    lanes sums[4] = {{0}};
    for (size_t i = 0; i < share / sizeof *p; i += 4)
        for (size_t j = 0; j < 4; j++)
            sums[j] ^= p[i + j];
    sink = (float)(sums[0] ^ sums[1] ^ sums[2] ^ sums[3])[0];
    return NULL;
}

static double read_bandwidth(size_t threads) {
    memory = aligned_alloc(1 << 21, share * threads);
    if (!memory)
        return 0;
    for (size_t i = 0; i < share * threads; i += 8)
        *(uint64_t *)(memory + i) = i * 0x9E3779B97F4A7C15u;
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        pthread_t ids[MOST_THREADS];
        double began = now(threads);
        for (size_t i = 1; i < threads; i++)
            pthread_create(&ids[i], NULL, read_share, (void *)i);
        read_share(NULL);
        for (size_t i = 1; i < threads; i++)
            pthread_join(ids[i], NULL);
        best = least(best, now(threads) - began);
    }
    return (double)(share * threads) / best / 1e9;
}

static double fma_rate(long rounds) {
    double best = 1e9;
    floats sums[CHAINS], half = {0}, one = {0};
    half += 0.5f;
    one += 1.0f;
    for (int i = 0; i < CHAINS; i++)
        sums[i] = half * (float)i;
    for (int run = 0; run < RUNS; run++) {
        double began = now(1);
        for (long k = 0; k < rounds; k++)
            for (int i = 0; i < CHAINS; i++)
                sums[i] = __builtin_elementwise_fma(sums[i], half, one);
        best = least(best, now(1) - began);
        for (int i = 0; i < CHAINS; i++)
            sink = sums[i][0];
    }
    return (double)rounds * CHAINS * 16 / best / 1e9;
}

static double dot_rate(long rounds) {
#if defined(__AVX512VNNI__)
    double best = 1e9;
    lanes sums[CHAINS] = {{0}}, a = {0}, b = {0};
    a += 0x01010101;
    b += 0x02020202;
    for (int run = 0; run < RUNS; run++) {
        double began = now(1);
        for (long k = 0; k < rounds; k++)
            for (int i = 0; i < CHAINS; i++)
                __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[i]) : "v"(a), "v"(b));
        best = least(best, now(1) - began);
        for (int i = 0; i < CHAINS; i++)
            sink = (float)sums[i][0];
    }
    return (double)rounds * CHAINS * 64 / best / 1e9;
#else
    (void)rounds;
    return 0;
#endif
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "machine_peaks: threads must be 1 to %d\n", MOST_THREADS);
        return 2;
    }
    printf("%.1f %.1f %.1f\n", read_bandwidth((size_t)threads), fma_rate(20000000), dot_rate(20000000));
    return 0;
}
