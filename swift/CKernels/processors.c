/* processors.c — how many threads make sense. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "ckernels.h"

#include <stdio.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

int ck_available_processors(void) {
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    if (count < 1) count = 1;
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) > 0 &&
        CPU_COUNT(&allowed) < count)
        count = CPU_COUNT(&allowed);
    /* A container's quota in cgroup v2: "max 100000" or "150000 100000", microseconds a period. */
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file) {
        double quota, period;
        if (fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0) {
            long whole = (long)(quota / period + 0.999);
            if (whole >= 1 && whole < count) count = whole;
        }
        fclose(file);
    }
#endif
    return (int)count;
}
