"""Kernels of the indexer and of attention in the checking emulator, against double precision."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, cast

import gpu_emulator
import numpy as np
import pytest
from golden import errors
from gpu_emulator import floats
from numpy.typing import NDArray

import pyds4
from models import F32 as F32_WEIGHTS
from models import random_tokens, synthetic_path
from pyds4.engine import StepItem
from pyds4.synth import dimensions

F32 = np.float32
GPU_ROW_F32, GPU_ROW_FP8, GPU_ROW_FP4 = 0, 1, 2
BRANCHES = pytest.mark.parametrize("branch", ["simdgroup_matrix", "mma"])


def _run(
    kernel: str,
    buffers: list[gpu_emulator.Buffer],
    grid: tuple[int, ...],
    threads: int,
    branch: str = "mma",
    mode: str = "race",
) -> None:
    defines = ["-DMSL_TILE_MMA"] if branch == "mma" else []
    library = gpu_emulator.library(mode, "all", *defines)
    complaint = gpu_emulator.run(library, kernel, buffers, grid=grid, threads=threads)
    assert not complaint


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
    values = floats(count, dim, seed=seed)
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
        q = floats(n, heads, rows.dim, seed=1).astype(np.float64)
    w = floats(n, heads, seed=2)
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


def _fp8_rows(count: int, *, seed: int = 0) -> Rows:
    """512 values: 448 codes of E4M3, eight powers of two, 64 values of 21 bits by threes."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 256, (count, 448))
    codes[codes & 0x7F == 0x7F] = 0x7E
    powers = draw.integers(116, 120, (count, 8))
    powers[:, 7] = 128
    exponents, mantissas = codes >> 3 & 15, codes & 7
    values = np.where(exponents > 0, 2.0 ** (exponents - 7) * (1 + mantissas / 8), mantissas / 512)
    values *= np.where(codes & 0x80, -1.0, 1.0) * np.repeat(
        2.0 ** (powers[:, :7] - 127), 64, axis=1
    )
    turned = draw.integers(-(1 << 20), 1 << 20, (count, 66))
    turned[:, 64:] = 0
    words = np.zeros((count, 22), np.uint64)
    for i in range(3):
        words |= (turned[:, i::3].astype(np.uint64) & np.uint64(0x1FFFFF)) << np.uint64(21 * i)
    stored = np.concatenate([codes, powers, words.view(np.uint8).reshape(count, 176)], axis=1)
    rotated = turned[:, :64] * 2.0 ** (powers[:, 7:] - 127 - 20)
    return Rows(
        GPU_ROW_FP8, 512, 64, stored.astype(np.uint8), np.concatenate([values, rotated], axis=1)
    )


WINDOW = 24


@dataclass
class Attention:
    """A call of attention: tokens from `first` on, of one session or each the last of its own."""

    rows: Rows  # all of a session: its positions', then compressed ones
    heads: int
    first: int
    n: int
    top: int
    apart: bool = False
    ratio: int = RATIO

    def __post_init__(self) -> None:
        dim, draw = self.rows.dim, np.random.default_rng(7)
        self.total = self.first + self.n
        self.q = floats(self.n, self.heads, dim, seed=3)
        self.sinks = floats(self.heads, seed=4)
        self.scale = dim**-0.5
        angle = draw.uniform(0, 6, (self.n, self.rows.rope // 2))
        self.table = np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(F32)
        self.positions = np.arange(self.first, self.total, dtype=np.int32)
        compressed = Rows(
            self.rows.kind,
            dim,
            self.rows.rope,
            self.rows.stored[self.total :],
            self.rows.values[self.total :],
        )
        self.compressed = compressed
        seen = (self.positions + 1) // self.ratio if self.ratio else np.zeros(self.n, np.int32)
        assert len(compressed.stored) >= seen.max()
        self.counts = np.minimum(seen, self.top).astype(np.int32)
        self.selected = np.full((self.n, max(self.top, 1)), -1, np.int32)
        for token in range(self.n):
            chosen = np.sort(draw.permutation(int(seen[token]))[: self.counts[token]])
            self.selected[token, : len(chosen)] = chosen
        # Sessions apart: of each all positions but its own token lie in its ring.
        self.rings = []
        for token in range(self.n if self.apart else 1):
            ring = np.zeros((WINDOW, self.rows.stored.shape[1]), np.uint8)
            for position in range(self.positions[token]):
                ring[position % WINDOW] = self.rows.stored[position]
            self.rings.append(ring)
        lines = [_pages(compressed, 4, ring) for ring in self.rings]
        self.kept = lines
        self.chunk = self.rows.stored[self.positions].copy()
        self.stride = len(lines[0].words) if self.apart else 0
        self.addresses = np.array([word for line in lines for word in line.words], np.uint64)
        self.out = np.full((self.n, self.heads, dim), np.nan, F32)

    def arguments(self, splits: int, first: int = 0) -> bytes:
        shape = (self.n, self.heads, WINDOW, self.ratio, 4, self.top, splits, self.scale)
        return self.rows.format + struct.pack("<7If2I", *shape, self.stride, first)

    @property
    def lists(self) -> list[gpu_emulator.Buffer]:
        memory: list[gpu_emulator.Buffer] = [self.q, self.chunk, self.addresses]
        return [*memory, self.selected, self.counts, self.positions]

    def merge(
        self, parts: NDArray[np.float32] | None, sums: NDArray[np.float32] | None, splits: int
    ) -> None:
        nothing = np.zeros(4, F32)
        kept = self.n if splits else min(self.n, WINDOW)
        grid = (self.heads, kept, (self.rows.dim + 127) // 128) if splits else (1, kept, 1)
        buffers: list[gpu_emulator.Buffer] = [
            nothing if parts is None else parts,
            nothing if sums is None else sums,
            self.sinks,
            self.table,
            self.chunk,
            self.positions,
            self.out,
            self.addresses,
            self.arguments(splits, self.n - kept),
        ]
        # The checks allow no writes through a table of addresses.
        _run("attention_merge", buffers, grid, 128, mode="fast")

    def wanted(self) -> NDArray[np.float64]:
        """[n, heads, dim]."""
        out = np.zeros(self.out.shape)
        for token, position in enumerate(self.positions):
            window = self.rows.values[max(0, position + 1 - WINDOW) : position + 1]
            if self.top:
                compressed = self.compressed.values[self.selected[token, : self.counts[token]]]
            else:
                compressed = self.compressed.values[: (position + 1) // (self.ratio or 1 << 30)]
            keys = np.concatenate([window, compressed])
            scores = self.q[token].astype(np.float64) @ keys.T * self.scale
            most = np.maximum(scores.max(axis=1), self.sinks)[:, None]
            weights = np.exp(scores - most)
            total = weights.sum(axis=1, keepdims=True) + np.exp(self.sinks[:, None] - most)
            out[token] = weights @ keys / total
            pairs = out[token, :, self.rows.dim - self.rows.rope :].copy()
            cos, sin = self.table[token].astype(np.float64).T
            even, odd = pairs[:, ::2], pairs[:, 1::2]
            turned = np.stack([even * cos + odd * sin, odd * cos - even * sin], axis=-1)
            out[token, :, self.rows.dim - self.rows.rope :] = turned.reshape(pairs.shape)
        return out

    def check(self, bound: float) -> None:
        """The output, and that the rings hold the last rows."""
        wanted = self.wanted()
        distance = np.linalg.norm(self.out - wanted) / np.linalg.norm(wanted)
        assert distance <= bound
        for token, position in enumerate(self.positions):
            if self.apart or self.total - position <= WINDOW:
                ring = self.rings[token if self.apart else 0]
                np.testing.assert_array_equal(ring[position % WINDOW], self.rows.stored[position])


def _split(attention: Attention, splits: int, branch: str = "mma") -> None:
    n, heads, dim = attention.out.shape
    parts = np.full((splits, n, heads, dim), np.nan, F32)
    sums = np.full((splits, n, heads, 2), np.nan, F32)
    grid = (splits, (heads + 15) // 16, n)
    buffers = [*attention.lists, parts, sums, attention.arguments(splits)]
    _run("attention_split", buffers, grid, 256, branch)
    attention.merge(parts, sums, splits)


def _tiles(attention: Attention, branch: str = "mma") -> None:
    out: list[gpu_emulator.Buffer] = [attention.sinks, attention.table, attention.out]
    grid = ((attention.heads + 63) // 64, attention.n)
    buffers = [*attention.lists, *out, attention.arguments(0)]
    _run("attention_tiles", buffers, grid, 256, branch)
    attention.merge(None, None, 0)
    attention.check(1e-3)


@BRANCHES
@pytest.mark.parametrize("splits", [1, 2, 6])
def test_shares_of_fp8_rows_together_are_attention_in_f32(branch: str, splits: int) -> None:
    attention = Attention(_fp8_rows(120, seed=5), heads=20, first=77, n=2, top=30)
    _split(attention, splits, branch)
    attention.check(2e-6)


def test_sessions_that_share_a_launch_attend_to_their_own_rows() -> None:
    rows = _fp8_rows(80, seed=6)
    attention = Attention(rows, heads=8, first=40, n=4, top=0, apart=True, ratio=8)
    _split(attention, 4)
    attention.check(2e-6)


def test_rows_in_f32_are_attended_to_in_f32() -> None:
    attention = Attention(_plain_rows(70, 128, 64, seed=8), heads=10, first=50, n=3, top=12)
    _split(attention, 3)
    attention.check(2e-6)


@BRANCHES
@pytest.mark.parametrize(
    ("first", "n", "top", "ratio"), [(0, 3, 0, 0), (70, 5, 20, RATIO), (96, 30, 0, 8)]
)
def test_prompts_attend_within_half_precision(
    branch: str, first: int, n: int, top: int, ratio: int
) -> None:
    rows = _fp8_rows(first + n + 40, seed=9)
    attention = Attention(rows, heads=66 if n == 3 else 40, first=first, n=n, top=top, ratio=ratio)
    _tiles(attention, branch)


def test_prompts_attend_to_rows_in_f32_within_half_precision() -> None:
    rows = _plain_rows(100, 512, 64, seed=10)
    _tiles(Attention(rows, heads=16, first=40, n=2, top=9))


def _logits(backend: str, cuts: list[int]) -> NDArray[np.float32]:
    """Of a layer whose rows are of Flash's formats and of which few are kept, tokens by `cuts`."""
    dims = dimensions("tiny", ratios=(4,), hash_layers=1, head_dim=512)
    tokens = random_tokens(sum(cuts), seed=5)
    path = synthetic_path(dims, F32_WEIGHTS)
    with pyds4.Engine(path, backend=cast(Any, backend)) as model, model.session() as session:
        found = []
        for cut in cuts:
            taken, tokens = tokens[:cut], tokens[cut:]
            result = model.step([StepItem(session, list(taken), all_logits=True)])[0]
            assert result.error is None
            found.append(cast(NDArray[np.float32], result.logits))
        return np.concatenate(found)


@pytest.mark.parametrize(("exact", "bound"), [(True, 1e-5), (False, 5e-3)])
def test_rows_are_selected_and_attended_to_as_on_the_cpu(
    exact: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYDS4_EMULATOR", str(gpu_emulator.library()))
    if exact:
        monkeypatch.setenv("PYDS4_GPU_EXACT", "1")
    # A prompt, a few tokens at once, single ones; from the 36th on some rows are not kept.
    cuts = [48, 5, 1, 1, 1]
    distance = errors(_logits("emulated", cuts), _logits("cpu", cuts).astype(np.float64))
    # A value between two codes, or between being kept and not, may go either way; most do not.
    assert np.median(distance[36:]) <= bound
    assert np.median(distance) <= bound
