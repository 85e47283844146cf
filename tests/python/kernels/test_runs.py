"""How a product's tiles are cut into tasks: each tile once, long runs first."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from .conftest import Kernels

HEADER = Path(__file__).parents[3] / "swift" / "CKernels" / "runs.h"
TILES = st.integers(1, 300) | st.integers(1, 200_000)


def declare(kernels: Kernels) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    kernels.ffi.cdef(
        "\n".join(line for line in text.splitlines() if not line.startswith("#")), override=True
    )


def starts(kernels: Kernels, runs: Any) -> list[int]:
    return [
        kernels.lib.ck_runs_start(kernels.ffi.addressof(runs), t) for t in range(runs.tasks + 1)
    ]


def test_each_tile_belongs_to_one_task_and_runs_become_shorter(kernels: Kernels) -> None:
    declare(kernels)

    @given(TILES, st.integers(1, 128), st.integers(1, 40))
    def check(tiles: int, threads: int, tokens: int) -> None:
        runs = kernels.lib.ck_runs_make(tiles, threads, tokens)
        assert runs.rounds <= kernels.lib.CK_MOST_ROUNDS
        found = starts(kernels, runs)
        sizes = [end - start for start, end in itertools.pairwise(found)]
        assert found[0] == 0
        assert found[-1] == tiles
        assert min(sizes) == 1
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) <= 16
        # Nobody waits for more than a share of the work.
        assert max(sizes) <= max(1, tiles / (2 * threads))

    check()


def test_the_next_tile_is_the_neighbour_or_begins_a_run_a_round_later(kernels: Kernels) -> None:
    declare(kernels)

    @given(TILES, st.integers(1, 16), st.data())
    def check(tiles: int, threads: int, data: st.DataObject) -> None:
        runs = kernels.lib.ck_runs_make(tiles, threads, 1)
        found = starts(kernels, runs)
        task = data.draw(st.integers(0, runs.tasks - 1))
        tile = data.draw(st.integers(found[task], found[task + 1] - 1))
        following = kernels.lib.ck_runs_next(kernels.ffi.addressof(runs), task, tile)
        if tile + 1 < found[task + 1]:
            assert following == tile + 1
        else:
            assert (
                following == (found + [tiles] * threads)[task + threads] or following == tiles - 1
            )

    check()
