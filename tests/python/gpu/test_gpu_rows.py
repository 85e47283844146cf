"""Kernels that make rows of attention memory and norm queries, against double precision."""

from __future__ import annotations

import struct

import gpu_emulator
import numpy as np
import pytest
from gpu_emulator import MODES, check, floats
from numpy.typing import NDArray
from reference import E2M1, block_scale, e4m3_values, hadamard

F32, F64 = np.float32, np.float64
ROW_F32, ROW_FP8, ROW_FP4 = 0, 1, 2
EPSILON = 1e-6
Wide = NDArray[np.float64]


def _row_bytes(kind: int, dim: int, rope: int) -> int:
    fp8 = dim - rope + ((dim - rope) // 64 + 8) // 8 * 8 + (rope + 2) // 3 * 8
    return {ROW_F32: 4 * dim, ROW_FP8: fp8, ROW_FP4: dim // 2 + dim // 32}[kind]


def _format(kind: int, dim: int, rope: int) -> bytes:
    return struct.pack("<4I", kind, dim, rope, _row_bytes(kind, dim, rope))


def _powers(codes: NDArray[np.uint8], block: int) -> Wide:
    return np.repeat(np.ldexp(1.0, codes.astype(int) - 127), block, axis=1)


def _decoded(rows: NDArray[np.uint8], kind: int, dim: int, rope: int) -> Wide:
    """What rows mean."""
    if kind == ROW_F32:
        return rows.view(F32).astype(F64)
    if kind == ROW_FP4:
        codes = np.stack([rows[:, : dim // 2] & 15, rows[:, : dim // 2] >> 4], axis=-1)
        codes = codes.reshape(len(rows), dim)
        powers = _powers(rows[:, dim // 2 :], 32)
        return np.asarray(E2M1[codes & 7] * np.where(codes & 8, -1, 1) * powers)
    plain = dim - rope
    blocks, words = plain // 64, rows[:, plain + (plain // 64 + 8) // 8 * 8 :]
    signed = np.concatenate([e4m3_values(), [np.nan], -e4m3_values(), [np.nan]])
    values = signed[rows[:, :plain]] * _powers(rows[:, plain : plain + blocks], 64)
    words = words.copy().view(np.uint64)
    fields = words[:, :, None] >> np.array([0, 21, 42], np.uint64) & np.uint64(0x1FFFFF)
    integers = fields.reshape(len(rows), -1)[:, :rope].astype(np.int64)
    integers -= (integers >> 20) << 21
    step = np.ldexp(1.0, rows[:, plain + blocks].astype(int) - 147)
    return np.concatenate([values, integers * step[:, None]], axis=1)


def _fp4_steps(x: Wide) -> tuple[Wide, Wide]:
    """The scale of each value's block, and the distance of the codes around the value."""
    scale = np.repeat(block_scale(x, 32, 6.0, 2.0**-126 * 6)[..., 0], 32, axis=1)
    size = np.abs(x) / scale
    return scale, scale * np.where(size > 4, 2, np.where(size > 2, 1, 0.5))


def _check(rows: NDArray[np.uint8], wanted: Wide, kind: int, rope: int) -> None:
    """Each value is at most half a step of its block from what was to be kept."""
    n, dim = wanted.shape
    steps: Wide = np.zeros((n, dim))
    if kind == ROW_FP4:
        wanted = hadamard(wanted)
        steps = _fp4_steps(wanted)[1]
    if kind == ROW_FP8:
        plain = wanted[:, : dim - rope]
        scale = np.repeat(block_scale(plain, 64, 448.0, 1e-4)[..., 0], 64, axis=1)
        _, exponent = np.frexp(np.maximum(np.abs(plain) / scale, 2.0**-6))
        steps[:, : dim - rope] = np.ldexp(scale, exponent - 4)
        steps[:, dim - rope :] = np.abs(wanted[:, dim - rope :]).max() * 2.0**-19
    error = np.abs(_decoded(rows, kind, dim, rope) - wanted)
    assert (error <= 0.5001 * steps + 1e-5).all(), (error - 0.5001 * steps).max()


def _turned(x: Wide, angles: Wide) -> Wide:
    """The last 2 · angles values of each row as interleaved pairs."""
    start = x.shape[-1] - 2 * angles.shape[-1]
    even, odd = x[..., start::2], x[..., start + 1 :: 2]
    out = x.copy()
    out[..., start::2] = even * np.cos(angles) - odd * np.sin(angles)
    out[..., start + 1 :: 2] = even * np.sin(angles) + odd * np.cos(angles)
    return out


def _normed(x: Wide, weight: NDArray[np.floating] | float = 1.0) -> Wide:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight)


def _table(angles: Wide) -> NDArray[np.float32]:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(F32)


KINDS = pytest.mark.parametrize(
    ("kind", "dim", "rope"),
    [
        (ROW_F32, 96, 16),
        (ROW_F32, 512, 64),
        (ROW_FP8, 128, 64),
        (ROW_FP8, 512, 64),
        (ROW_FP8, 80, 16),
        (ROW_FP8, 512, 448),
        (ROW_FP4, 32, 0),
        (ROW_FP4, 128, 0),
        (ROW_FP4, 512, 0),
    ],
)


@MODES
@KINDS
def test_key_rows_are_normed_rotated_and_kept_to_half_a_step(
    mode: str, kind: int, dim: int, rope: int
) -> None:
    n = 3
    kv, norm = floats(n, dim), floats(dim, seed=1)
    kv[1] *= 1e-3
    angles = np.random.default_rng(2).uniform(-9, 9, (n, rope // 2))
    rows = np.full((n, _row_bytes(kind, dim, rope)), 0xAA, np.uint8)
    call = _format(kind, dim, rope) + struct.pack("<fI", EPSILON, 0)
    check(mode, "kv_key_rows", [kv, norm, _table(angles), rows, call], (n,), 256)
    wanted = _turned(_normed(kv.astype(F64), norm), angles)
    _check(rows, wanted, kind, rope)


@MODES
@pytest.mark.parametrize(
    ("dim", "rope", "rounded"),
    [(32, 4, 1), (64, 64, 1), (96, 30, 0), (128, 64, 0), (128, 64, 1), (256, 64, 1), (512, 64, 1)],
)
def test_index_queries_are_rotated_and_rounded_as_rows_are(
    mode: str, dim: int, rope: int, rounded: int
) -> None:
    n, heads = 2, 9
    q = floats(n, heads, dim)
    angles = np.random.default_rng(2).uniform(-9, 9, (n, 1, rope // 2))
    wanted = _turned(q.astype(F64), angles).reshape(n * heads, dim)
    call = struct.pack("<4I", heads, dim, rope, rounded)
    check(mode, "kv_index_queries", [q, _table(angles), call], (2, n), 256)
    found = q.reshape(n * heads, dim)
    if not rounded:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        return
    wanted = hadamard(wanted)
    scale, step = _fp4_steps(wanted)
    assert np.isin(np.abs(found) / scale, E2M1).all()
    assert (np.abs(found - wanted) <= 0.5001 * step + 3e-6).all()


@MODES
@pytest.mark.parametrize(("dim", "rope"), [(64, 64), (72, 30), (512, 64)])
def test_queries_are_normed_head_by_head_and_rotated(mode: str, dim: int, rope: int) -> None:
    n, heads = 2, 9
    q = floats(n, heads, dim)
    angles = np.random.default_rng(2).uniform(-9, 9, (n, 1, rope // 2))
    wanted = _turned(_normed(q.astype(F64)), angles)
    call = struct.pack("<3If", heads, dim, rope, EPSILON)
    check(mode, "rope_queries_f32", [q, _table(angles), call], (2, n), 256)
    np.testing.assert_allclose(q, wanted, rtol=1e-5, atol=2e-6)


class Session:
    """Running sums and one page of rows, found through a line of addresses.

    The emulator that looks for races knows bound buffers only, so these run in the other one.
    """

    def __init__(self, kind: int, dim: int, rope: int, series: int, room: int) -> None:
        self.state = np.zeros((series, 3, dim), F32)
        self.rows = np.zeros((room, _row_bytes(kind, dim, rope)), np.uint8)
        self.line = [self.state.ctypes.data, self.rows.ctypes.data]


def _pooled(x: Wide, gate: Wide, bias: Wide, ratio: int, overlaps: bool) -> Wide:
    """One row for each complete window."""
    dim = x.shape[1] // 2 if overlaps else x.shape[1]
    rows = []
    for window in range(len(x) // ratio):
        own = slice(window * ratio, (window + 1) * ratio)
        values, scores = x[own, -dim:], gate[own, -dim:] + bias[:, -dim:]
        if overlaps and window > 0:
            earlier = slice(own.start - ratio, own.start)
            values = np.concatenate([x[earlier, :dim], values])
            scores = np.concatenate([gate[earlier, :dim] + bias[:, :dim], scores])
        weights = np.exp(scores - scores.max(0))
        rows.append((weights * values).sum(0) / weights.sum(0))
    return np.array(rows)


POOLS = pytest.mark.parametrize(
    ("kind", "dim", "ratio", "overlaps"),
    [
        (ROW_F32, 64, 4, True),
        (ROW_FP8, 512, 4, True),
        (ROW_FP4, 128, 4, True),
        (ROW_FP8, 512, 10, False),
        (ROW_F32, 96, 5, False),
    ],
)


@POOLS
@pytest.mark.parametrize("calls", [(2, 1, 11, 9), (1,) * 12, (8, 1, 1, 1, 1, 3, 12)])
def test_windows_cut_into_any_calls_become_the_same_rows(
    kind: int, dim: int, ratio: int, overlaps: bool, calls: tuple[int, ...]
) -> None:
    n, width, format_rope = sum(calls), 2 * dim if overlaps else dim, 64 if kind == ROW_FP8 else 0
    rope = 32 if kind == ROW_FP4 else 64
    kv, gate, bias = floats(n, width), floats(n, width, seed=1) * 3, floats(ratio, width, seed=2)
    norm, frequencies = floats(dim, seed=3), floats(rope // 2, seed=4) ** 2
    session = Session(kind, dim, format_rope, 3 if overlaps else 1, n)
    table = np.array(session.line, np.uint64)
    position = 0
    for count in calls:
        part = slice(position, position + count)
        call = _format(kind, dim, format_rope)
        call += struct.pack("<5If2I", count, ratio, overlaps, n, rope, EPSILON, 0, 0)
        positions = np.arange(position, position + count, dtype=np.int32)
        inputs: list[gpu_emulator.Buffer] = [kv[part], gate[part], bias]
        finish: list[gpu_emulator.Buffer] = [norm, frequencies, positions, table, call]
        if count == 1:
            check("fast", "compressor_step", inputs + finish, (1,), 256)
        else:
            completed = (position + count) // ratio - position // ratio
            if completed:
                check("fast", "compressor_rows", inputs + finish, (completed,), 1024)
            check("fast", "compressor_state", [*inputs, positions, table, call], (1,), 256)
        position += count
    pooled = _pooled(kv.astype(F64), gate.astype(F64), bias.astype(F64), ratio, overlaps)
    angles = np.arange(len(pooled), dtype=F64)[:, None] * ratio * frequencies
    wanted = _turned(_normed(pooled, norm), angles)
    assert len(pooled) == n // ratio
    _check(session.rows[: len(pooled)], wanted, kind, format_rope)
    assert not session.rows[len(pooled) :].any()
