/* thread_pool.c — splits a kernel over threads without a wake-up per kernel.
 *
 * A job is published as one 64-bit word: its generation in the upper half, the tasks nobody has taken
 * yet in the lower. A thread takes a task by lowering that word with compare-and-swap, so a worker
 * that wakes late can never take a task of a job it has not seen, and the caller waits for tasks
 * taken, not for workers: when the system schedules only the caller, the caller does all the work.
 *
 * Between jobs a worker first spins for SPIN_NS (the next kernel of a forward pass usually comes
 * within a few microseconds), then sleeps. The caller does the same when it waits for the last tasks of
 * others: on a machine with more threads than cores, sleeping gives the core to the thread waited for.
 */
#include "ckernels.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Tasks a thread below which it gets them all at once; parts a thread of more. */
enum { FEW_TASKS = 64, PARTS_OF_MANY = 4 };

enum { CACHE_LINE = 128, SPIN_NS = 30000, PAUSES_PER_CLOCK_READ = 32 };

typedef struct {
    void *memory;
    size_t bytes;
} scratch_block;

typedef struct {
    ck_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct ck_pool {
    /* Written by every thread for every task: a cache line each. */
    _Alignas(CACHE_LINE) _Atomic uint64_t state;
    _Alignas(CACHE_LINE) _Atomic int64_t finished;

    /* The job; stable while any of its tasks is unfinished. */
    _Alignas(CACHE_LINE) ck_task run;
    void *context;
    int64_t tasks;

    _Atomic int sleepers;
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
    pthread_mutex_t lock;
    pthread_cond_t published, completed;

    int threads;
    worker *workers;
    scratch_block shared[CK_SCRATCH_COUNT];
    scratch_block *own; /* [threads] */
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` retires at once; this takes some 10 ns */
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint32_t generation_of(uint64_t state) {
    return (uint32_t)(state >> 32);
}

/* Takes and runs tasks until none is left. */
static void work(ck_pool *pool, int thread) {
    uint64_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
    while ((uint32_t)state != 0) {
        if (!atomic_compare_exchange_weak_explicit(&pool->state, &state, state - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        int64_t tasks = pool->tasks;
        pool->run(pool->context, tasks - (int64_t)(uint32_t)state, thread);
        if (atomic_fetch_add(&pool->finished, 1) + 1 == tasks && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->completed);
            pthread_mutex_unlock(&pool->lock);
        }
        state = atomic_load_explicit(&pool->state, memory_order_acquire);
    }
}

/* Returns when a job newer than `seen` was published or the pool stops. */
static void await_job(ck_pool *pool, uint32_t seen) {
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end;)
        for (int i = 0; i < PAUSES_PER_CLOCK_READ; i++) {
            if (generation_of(atomic_load_explicit(&pool->state, memory_order_relaxed)) != seen ||
                atomic_load_explicit(&pool->stop, memory_order_relaxed))
                return;
            pause_briefly();
        }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (generation_of(atomic_load(&pool->state)) == seen && !atomic_load(&pool->stop))
        pthread_cond_wait(&pool->published, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument) {
    worker *self = argument;
    ck_pool *pool = self->pool;
    uint32_t seen = 0;
    for (;;) {
        await_job(pool, seen);
        if (atomic_load(&pool->stop))
            return NULL;
        seen = generation_of(atomic_load(&pool->state));
        work(pool, self->index);
    }
}

static void await_completion(ck_pool *pool) {
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end;)
        for (int i = 0; i < PAUSES_PER_CLOCK_READ; i++) {
            if (atomic_load_explicit(&pool->finished, memory_order_acquire) == pool->tasks)
                return;
            pause_briefly();
        }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->caller_sleeps, true);
    while (atomic_load(&pool->finished) != pool->tasks)
        pthread_cond_wait(&pool->completed, &pool->lock);
    atomic_store(&pool->caller_sleeps, false);
    pthread_mutex_unlock(&pool->lock);
}

static void run_some(ck_pool *pool, uint32_t tasks, ck_task run, void *context) {
    pool->run = run;
    pool->context = context;
    pool->tasks = tasks;
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    uint64_t generation = generation_of(atomic_load(&pool->state)) + 1u;
    atomic_store(&pool->state, generation << 32 | tasks);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->published);
        pthread_mutex_unlock(&pool->lock);
    }
    work(pool, 0);
    await_completion(pool);
}

void ck_pool_run(ck_pool *pool, int64_t tasks, ck_task run, void *context) {
    if (pool->threads == 1 || tasks <= 1) {
        for (int64_t i = 0; i < tasks; i++)
            run(context, i, 0);
        return;
    }
    run_some(pool, (uint32_t)tasks, run, context);
}

/* ---- tasks of equal cost */

typedef struct {
    ck_task run;
    void *context;
    int64_t tasks, parts;
} even_tasks;

static void even_part(void *context, int64_t part, int thread) {
    const even_tasks *e = context;
    int64_t end = (part + 1) * e->tasks / e->parts;
    for (int64_t task = part * e->tasks / e->parts; task < end; task++)
        e->run(e->context, task, thread);
}

void ck_pool_run_even(ck_pool *pool, int64_t tasks, ck_task run, void *context) {
    int64_t threads = pool->threads, parts = tasks < FEW_TASKS * threads ? threads : PARTS_OF_MANY * threads;
    even_tasks e = {run, context, tasks, parts < tasks ? parts : tasks};
    ck_pool_run(pool, e.parts, even_part, &e);
}

ck_pool *ck_pool_create(int threads) {
    ck_pool *pool;
    if (threads < 1)
        threads = 1;
    if (posix_memalign((void **)&pool, CACHE_LINE, sizeof *pool) != 0)
        return NULL;
    *pool = (ck_pool){.threads = 1};
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    pool->own = calloc((size_t)threads, sizeof *pool->own);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->published, NULL);
    pthread_cond_init(&pool->completed, NULL);
    if (!pool->workers || !pool->own) {
        ck_pool_destroy(pool);
        return NULL;
    }
    for (; pool->threads < threads; pool->threads++) {
        worker *w = &pool->workers[pool->threads];
        *w = (worker){.pool = pool, .index = pool->threads};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            ck_pool_destroy(pool);
            return NULL;
        }
    }
    return pool;
}

void ck_pool_destroy(ck_pool *pool) {
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->published);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i < pool->threads; i++)
        pthread_join(pool->workers[i].thread, NULL);
    if (pool->own)
        ck_pool_trim(pool);
    pthread_cond_destroy(&pool->published);
    pthread_cond_destroy(&pool->completed);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool->own);
    free(pool);
}

int ck_pool_threads(const ck_pool *pool) {
    return pool->threads;
}

static void *scratch(scratch_block *block, size_t bytes) {
    if (bytes <= block->bytes)
        return block->memory;
    free(block->memory);
    bytes = (bytes + 4095) / 4096 * 4096;
    if (posix_memalign(&block->memory, 4096, bytes) != 0) {
        fprintf(stderr, "pyds4: out of memory for %zu bytes of kernel scratch\n", bytes);
        abort();
    }
    block->bytes = bytes;
    return block->memory;
}

void *ck_pool_scratch(ck_pool *pool, enum ck_scratch purpose, size_t bytes) {
    return scratch(&pool->shared[purpose], bytes);
}

void *ck_pool_thread_scratch(ck_pool *pool, int thread, size_t bytes) {
    return scratch(&pool->own[thread], bytes);
}

void ck_pool_trim(ck_pool *pool) {
    for (int i = 0; i < CK_SCRATCH_COUNT; i++) {
        free(pool->shared[i].memory);
        pool->shared[i] = (scratch_block){0};
    }
    for (int i = 0; i < pool->threads; i++) {
        free(pool->own[i].memory);
        pool->own[i] = (scratch_block){0};
    }
}
