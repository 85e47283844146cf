/* runs.c — how the tiles of a product are cut into tasks.
 *
 * With few tokens memory is the limit. It gives most when it is read in long straight lines, and every
 * thread loses what the last one still has to do when it is through. So a product begins with long runs
 * of neighbouring tiles, and the runs become shorter round by round: each round hands out half of what
 * is left. With many tokens a tile takes long enough to be a task.
 */
#include "runs.h"

enum { LONGEST = 16, FEW_TOKENS = 16 };

ck_runs ck_runs_make(int64_t tiles, int threads, int64_t n) {
    ck_runs runs = {.tiles = tiles, .threads = threads};
    int64_t longest = n > FEW_TOKENS || threads == 1 ? 1 : LONGEST;
    for (int64_t left = tiles; left > 0;) {
        int64_t size = left / (2 * threads), tasks = threads;
        if (size <= 1 || longest == 1)
            size = 1, tasks = left;
        else if (size >= longest)
            size = longest, tasks = (left / longest - threads) / threads * threads;
        int r = runs.rounds++;
        runs.round[r].task = runs.tasks;
        runs.round[r].tile = tiles - left;
        runs.round[r].size = size;
        runs.tasks += tasks;
        left -= tasks * size;
    }
    return runs;
}

int64_t ck_runs_start(const ck_runs *runs, int64_t task) {
    if (task >= runs->tasks)
        return runs->tiles;
    int r = runs->rounds - 1;
    while (runs->round[r].task > task)
        r--;
    return runs->round[r].tile + (task - runs->round[r].task) * runs->round[r].size;
}

int64_t ck_runs_next(const ck_runs *runs, int64_t task, int64_t tile) {
    int64_t next = tile + 1 < ck_runs_start(runs, task + 1) ? tile + 1 : ck_runs_start(runs, task + runs->threads);
    return next < runs->tiles ? next : runs->tiles - 1;
}
