"""Every task runs exactly once, whatever the number of threads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .conftest import Kernels


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 500])
def test_each_task_runs_once(kernels: Kernels, threads: int, tasks: int) -> None:
    seen: Counter[int] = Counter()
    owners: set[int] = set()

    @kernels.ffi.callback("ck_task")
    def run(_context: Any, task: int, thread: int) -> None:
        seen[task] += 1
        owners.add(thread)

    pool = kernels.lib.ck_pool_create(threads)
    try:
        assert kernels.lib.ck_pool_threads(pool) == threads
        for _ in range(3):
            kernels.lib.ck_pool_run(pool, tasks, run, kernels.ffi.NULL)
    finally:
        kernels.lib.ck_pool_destroy(pool)
    assert seen == dict.fromkeys(range(tasks), 3)
    assert owners <= set(range(threads))


def test_thread_counts_below_one_count_as_one(kernels: Kernels) -> None:
    pool = kernels.lib.ck_pool_create(0)
    assert kernels.lib.ck_pool_threads(pool) == 1
    kernels.lib.ck_pool_destroy(pool)


def test_scratch_memory_is_aligned_and_kept_until_trimmed(kernels: Kernels) -> None:
    lib, pool = kernels.lib, kernels.lib.ck_pool_create(2)

    def address(block: Any) -> int:
        return int(kernels.ffi.cast("uintptr_t", block))

    first = address(lib.ck_pool_scratch(pool, lib.CK_SCRATCH_MISC, 1000))
    other = address(lib.ck_pool_scratch(pool, lib.CK_SCRATCH_EXPERTS, 1000))
    own = [address(lib.ck_pool_thread_scratch(pool, thread, 1000)) for thread in range(2)]
    assert len({first, other, *own}) == 4
    assert all(a % 64 == 0 for a in (first, other, *own))
    assert address(lib.ck_pool_scratch(pool, lib.CK_SCRATCH_MISC, 500)) == first
    larger = lib.ck_pool_scratch(pool, lib.CK_SCRATCH_MISC, 1 << 20)
    kernels.ffi.memmove(larger, b"x" * (1 << 20), 1 << 20)
    lib.ck_pool_trim(pool)
    again = lib.ck_pool_scratch(pool, lib.CK_SCRATCH_MISC, 64)
    kernels.ffi.memmove(again, b"y" * 64, 64)
    lib.ck_pool_destroy(pool)
