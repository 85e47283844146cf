"""Kernels of the indexer and of attention in the checking emulator, against double precision."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import gpu_emulator
import numpy as np
import pytest
from numpy.typing import NDArray

F32 = np.float32
GPU_ROW_F32, GPU_ROW_FP8, GPU_ROW_FP4 = 0, 1, 2
BRANCHES = pytest.mark.parametrize("branch", ["simdgroup_matrix", "mma"])


def _run(
    kernel: str,
    buffers: list[gpu_emulator.Buffer],
    grid: tuple[int, ...],
    threads: int,
    branch: str = "mma",
) -> None:
    defines = ["-DMSL_TILE_MMA"] if branch == "mma" else []
    library = gpu_emulator.library("race", "all", *defines)
    complaint = gpu_emulator.run(library, kernel, buffers, grid=grid, threads=threads)
    assert not complaint


def _random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


@dataclass
class Rows:
    """Rows of attention memory: their bytes, and what these mean."""

    kind: int
    dim: int
    rope: int
    stored: NDArray[np.uint8]
    values: NDArray[np.float64]

    @property
    def format(self) -> bytes:
        return struct.pack("<4I", self.kind, self.dim, self.rope, self.stored.shape[1])


def _plain_rows(count: int, dim: int, rope: int = 0, *, seed: int = 0) -> Rows:
    values = _random(count, dim, seed=seed)
    return Rows(GPU_ROW_F32, dim, rope, values.view(np.uint8), values.astype(np.float64))


HALVES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def _fp4_rows(count: int, *, seed: int = 0) -> Rows:
    """128 values: 64 bytes of codes, and the power of two of each block of 32."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 16, (count, 128))
    powers = draw.integers(118, 136, (count, 4))
    values = HALVES[codes & 7] * np.where(codes & 8, -1.0, 1.0)
    values *= np.repeat(2.0 ** (powers - 127), 32, axis=1)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    stored = np.concatenate([packed, powers], axis=1).astype(np.uint8)
    return Rows(GPU_ROW_FP4, 128, 0, stored, values)


@dataclass
class Pages:
    """A session's line of the table of addresses, and what keeps these alive."""

    words: list[int]
    kept: list[NDArray[np.uint8]] = field(default_factory=list)


def _pages(rows: Rows, rows_per_page: int, ring: NDArray[np.uint8] | None = None) -> Pages:
    line = Pages([0 if ring is None else ring.ctypes.data])
    for first in range(0, len(rows.stored), rows_per_page):
        # Apart from everything else, so that reads past its end are seen.
        page = np.zeros((rows_per_page, rows.stored.shape[1]), np.uint8)
        page[: len(rows.stored[first : first + rows_per_page])] = rows.stored[
            first : first + rows_per_page
        ]
        line.words.append(page.ctypes.data)
        line.kept.append(page)
    return line


RATIO = 4


def _scores(
    rows: Rows,
    positions: NDArray[np.int32],
    q: NDArray[np.float64],
    w: NDArray[np.float64],
    top: int,
    scale: float,
) -> NDArray[np.float64]:
    """NaN where nothing is to be written."""
    wanted = np.full((len(positions), len(rows.values)), np.nan)
    for token, position in enumerate(positions):
        seen = (position + 1) // RATIO
        if seen > top:
            dots = np.maximum(q[token] @ rows.values[:seen].T, 0)
            wanted[token, :seen] = scale * (w[token] @ dots)
    return wanted


def _check_scores(
    rows: Rows,
    heads: int,
    positions: list[int],
    *,
    tokens: int,
    block: int,
    branch: str,
    apart: bool = False,
) -> None:
    n, top, scale, count = len(positions), 8, 0.01, len(rows.values)
    if rows.kind == GPU_ROW_FP4:
        q = _fp4_rows(n * heads, seed=1).values.reshape(n, heads, 128)
    else:
        q = _random(n, heads, rows.dim, seed=1).astype(np.float64)
    w = _random(n, heads, seed=2)
    lines = [_pages(rows, 64) for _ in positions] if apart else [_pages(rows, 64)]
    stride = len(lines[0].words) if apart else 0
    scores = np.full((n, count), np.nan, F32)
    call = rows.format + struct.pack("<6IfI", n, heads, RATIO, 64, count, top, scale, stride)
    call += struct.pack("<2I", tokens, 0)
    groups = (n + tokens - 1) // tokens if tokens else n
    places = np.array(positions, np.int32)
    table = np.array([word for line in lines for word in line.words], np.uint64)
    _run(
        "indexer_score",
        [q.astype(F32), w, table, places, scores, call],
        ((count + block - 1) // block, groups),
        256,
        branch,
    )
    wanted = _scores(rows, places, q, w.astype(np.float64), top, scale)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(wanted))
    highest = np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=2e-6 * highest, equal_nan=True)


@BRANCHES
@pytest.mark.parametrize("heads", [16, 64, 80])
def test_index_scores_of_single_tokens_are_those_of_double_precision(
    branch: str, heads: int
) -> None:
    rows = _fp4_rows(128)
    positions = [4 * 70 + 1, 4 * 64 - 1, 4 * 8 + 3, 4 * 128]
    _check_scores(rows, heads, positions, tokens=0, block=32, branch=branch, apart=True)


@BRANCHES
@pytest.mark.parametrize(("heads", "first"), [(16, 4 * 255 - 3), (64, 22), (40, 4 * 300)])
def test_index_scores_of_prompts_are_those_of_double_precision(
    branch: str, heads: int, first: int
) -> None:
    positions = list(range(first, first + 19))
    _check_scores(_fp4_rows(320), heads, positions, tokens=8, block=256, branch=branch)


def test_index_scores_of_rows_that_are_not_fp4_are_those_of_double_precision() -> None:
    rows = _plain_rows(128, 128)
    positions = [4 * 70 + 1, 4 * 8 + 3, 511]
    _check_scores(rows, 16, positions, tokens=0, block=64, branch="mma", apart=True)


def test_index_rows_of_far_apart_powers_keep_what_counts() -> None:
    rows = _fp4_rows(64)
    # Blocks of one row whose powers differ by more than half's range.
    rows.stored[3, 64:] = [200, 127, 90, 0]
    codes = np.stack([rows.stored[3, :64] & 15, rows.stored[3, :64] >> 4], 1).reshape(128)
    powers = np.repeat(2.0 ** np.array([73, 0, -37, -127]), 32)
    rows.values[3] = HALVES[codes & 7] * np.where(codes & 8, -1.0, 1.0) * powers
    _check_scores(rows, 16, [255], tokens=0, block=32, branch="mma")
