/* runs.h — how the tiles of a product are cut into tasks. See runs.c. */
#ifndef PYDS4_RUNS_H
#define PYDS4_RUNS_H

#include <stdint.h>

enum { CK_MOST_ROUNDS = 8 };

typedef struct {
    int64_t tiles, tasks;
    int threads, rounds;
    /* Tasks from `task` on take `size` tiles each, from `tile` on. */
    struct {
        int64_t task, tile, size;
    } round[CK_MOST_ROUNDS];
} ck_runs;

/* Cuts `tiles` tiles of `n` tokens for `threads` threads. */
ck_runs ck_runs_make(int64_t tiles, int threads, int64_t n);
/* The first tile of a task; `tiles` of one beyond the last. */
int64_t ck_runs_start(const ck_runs *runs, int64_t task);
/* The tile that a thread computes after `tile` of `task`, if all threads are equally fast. */
int64_t ck_runs_next(const ck_runs *runs, int64_t task, int64_t tile);

#endif
