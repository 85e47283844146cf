"""Kernels for devices with memory of their own: integer products and wide tiles, emulated."""

from __future__ import annotations

import struct

import gpu_emulator
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize
from gpu_emulator import MODES, check, floats, nan
from numpy.typing import NDArray

from pyds4.synth.blocks import random_blocks

F32 = np.float32
F16, Q8_0_PLANES, Q2_K_PLANES, IQ2_XXS_PLANES = 1, 108, 110, 116
REPACK = {
    Type.Q8_0: ("quant_repack_q8_0", 32),
    Type.Q2_K: ("quant_repack_q2_k", 64),
    Type.IQ2_XXS: ("quant_repack_iq2_xxs", 64),
}
Planes = tuple[NDArray[np.uint8], int, NDArray[np.float64]]
"""Weights as a device keeps them, the bytes before their scales, and as numbers."""
INTEGERS = 6e-5
"""Of products with activations of sixteen bits, relative to the largest."""
HALFS = 1e-3


def _planes(kind: Type, rows: int, columns: int, seed: int) -> Planes:
    """Random weights as a device keeps them, the bytes before their scales, and as numbers."""
    per_block, size = GGML_QUANT_SIZES[kind]
    count = rows * columns // per_block
    blocks = random_blocks(np.random.default_rng(seed), kind, count, 1.0).reshape(count, size)
    kernel, quants = REPACK[kind]
    out = np.full(blocks.size, 255, np.uint8)
    call = struct.pack("<3Q", count, 0, count * quants)
    check("fast", kernel, [blocks.copy(), out, call], ((count + 255) // 256,), 256)
    numbers = dequantize(blocks, kind).reshape(rows, columns).astype(np.float64)
    return out, count * quants, numbers


def _job(
    kind: int, rows: int, columns: int, first: int, tile: int, slices: int, plane: int, out: int,
    groups: int = 1,
) -> bytes:  # fmt: skip
    return struct.pack(
        "<8IQQ", kind, rows, columns, rows // groups, first, tile, slices, 0, plane, out
    )


def _close(found: NDArray[np.float32], wanted: NDArray[np.float64], bound: float) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound * np.abs(wanted).max())


@MODES
@pytest.mark.parametrize(("columns", "slices"), [(288, 1), (1024, 1), (3072, 4)])
def test_one_token_times_integers_and_halfs(mode: str, columns: int, slices: int) -> None:
    x, halfs = floats(1, columns), floats(12, columns, seed=1).astype(np.float16)
    planes, plane, numbers = _planes(Type.Q8_0, 20, columns, 2)
    tile = 32 // slices
    tiles = (12 + tile - 1) // tile, (20 + tile - 1) // tile
    call = struct.pack("<4I", 1, columns, 2, 0)
    call += _job(F16, 12, columns, 0, tile, slices, 0, 0)
    call += _job(Q8_0_PLANES, 20, columns, tiles[0], tile, slices, plane, 12)
    call += bytes(6 * 48)
    y = nan(32)
    w: list[gpu_emulator.Buffer] = [halfs, planes, *[halfs] * 6]
    check(mode, "matvec_int8", [*w, x, y, call], (sum(tiles),), 256)
    wide = x[0].astype(np.float64)
    _close(y, np.concatenate([halfs.astype(np.float64) @ wide, numbers @ wide]), INTEGERS)


@MODES
@pytest.mark.parametrize(
    ("n", "columns", "slices"), [(2, 128, 1), (5, 2048, 4), (8, 640, 2), (17, 256, 2)]
)
def test_several_tokens_times_integers_and_halfs(
    mode: str, n: int, columns: int, slices: int
) -> None:
    groups = 2
    x, halfs = floats(n, groups * columns), floats(20, columns, seed=1).astype(np.float16)
    tile = 128 // slices
    rows = groups * tile
    planes, plane, numbers = _planes(Type.Q8_0, rows, columns, 2)
    eights = (n + 7) // 8
    data = np.full(eights * 8 * x.shape[1] * 2, 255, np.uint8)
    scales = nan(eights * 8 * x.shape[1] // 32)
    pack = struct.pack("<4I", n, x.shape[1], 0, 0)
    check(mode, "int8_pack", [x, data, scales, pack], ((x.shape[1] + 127) // 128, eights), 256)
    first = (20 + tile - 1) // tile
    call = struct.pack("<4I", n, x.shape[1], 2, 0)
    call += _job(F16, 20, columns, 0, tile, slices, 0, 0)
    call += _job(Q8_0_PLANES, rows, columns, first, tile, slices, plane, n * 20, groups)
    call += bytes(6 * 48)
    y = nan(n * (20 + rows))
    w: list[gpu_emulator.Buffer] = [halfs, planes, *[halfs] * 6]
    grid = (eights, first + groups)
    check(mode, "matvec_int8_many", [*w, x, data, scales, y, call], grid, 256)
    wide = x.astype(np.float64)
    _close(y[: n * 20].reshape(n, 20), wide[:, :columns] @ halfs.T.astype(np.float64), INTEGERS)
    cut = wide.reshape(n, groups, columns)
    wanted = np.einsum("ngk,grk->ngr", cut, numbers.reshape(groups, tile, columns))
    _close(y[n * 20 :].reshape(n, rows), wanted.reshape(n, rows), INTEGERS)


def _glu(gate: NDArray[np.float64], up: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    result: NDArray[np.float64] = gate / (1 + np.exp(-gate)) * up
    return result


def _experts(hidden: int, inner: int, experts: int) -> list[Planes]:
    gate = _planes(Type.IQ2_XXS, experts * inner, hidden, 1)
    up = _planes(Type.IQ2_XXS, experts * inner, hidden, 2)
    down = _planes(Type.Q2_K, experts * hidden, inner, 3)
    return [
        (planes, plane, numbers.reshape(experts, -1, numbers.shape[1]))
        for planes, plane, numbers in (gate, up, down)
    ]


@MODES
@pytest.mark.parametrize("hidden", [256, 1280])
def test_experts_of_few_tokens_are_integer_products(mode: str, hidden: int) -> None:
    n, used, inner, experts, shared, clamp = 2, 3, 256, 4, 160, 9.0
    x, weights = floats(n, hidden) * F32(0.1), np.abs(floats(n, used, seed=4))
    ids = np.array([[2, 0, 3], [1, 3, 2]], np.int32)
    (gate, plane, g), (up, _, u), (down, down_plane, d) = _experts(hidden, inner, experts)
    shared_gate, shared_up = floats(n, shared, seed=5), floats(n, shared, seed=6)
    shared_down, shared_plane, s = _planes(Type.Q8_0, hidden, shared, 7)

    def call(tile: int) -> bytes:
        return struct.pack("<9I2fI3Q", IQ2_XXS_PLANES, Q2_K_PLANES, Q8_0_PLANES, n, used, experts,
                           hidden, inner, shared, clamp, clamp, tile, plane, down_plane,
                           shared_plane)  # fmt: skip

    h = nan(n * used * inner + n * shared)
    buffers: list[gpu_emulator.Buffer] = [
        gate, up, x, ids, weights, shared_gate, shared_up, h, call(32)]  # fmt: skip
    check(mode, "experts_gate_up_int8", buffers, (inner // 32, n * used + n), 256)
    y = nan(n, hidden)
    check(
        mode, "experts_down_int8", [down, shared_down, h, ids, y, call(16)], (hidden // 16, n), 256
    )
    wide = x.astype(np.float64)
    routed = np.stack([
        [_glu(g[e] @ wide[t], u[e] @ wide[t], clamp) * weights[t, j] for j, e in enumerate(ids[t])]
        for t in range(n)
    ])  # fmt: skip
    own = _glu(shared_gate.astype(np.float64), shared_up.astype(np.float64), clamp)
    _close(h[: routed.size].reshape(routed.shape), routed, 2e-4)
    _close(h[routed.size :].reshape(own.shape), own, 1e-6)
    wanted = np.einsum("tjk,tjrk->tr", routed, d[ids]) + own @ s.T
    _close(y, wanted, 2e-4)


@MODES
@pytest.mark.parametrize(("n", "rows"), [(9, 64), (130, 200)])
def test_wide_products_write_what_they_own_and_nothing_else(mode: str, n: int, rows: int) -> None:
    columns, stride = 192, (n + 7) // 8 * 8
    x, halfs = floats(n, columns), floats(rows, columns, seed=1).astype(np.float16)
    planes, plane, numbers = _planes(Type.Q8_0, rows, columns, 2)
    packed = np.zeros((columns // 8, stride, 8), np.float16)
    pack = struct.pack("<4I", n, columns, stride, 0)
    check(mode, "half_pack", [x, x, packed, pack], ((n + 255) // 256, columns // 64), 256)
    tiles = (rows + 127) // 128
    call = struct.pack("<4I", n, stride, 2, 0)
    call += _job(F16, rows, columns, 0, 128, 1, 0, 0)
    call += _job(Q8_0_PLANES, rows, columns, tiles, 128, 1, plane, n * rows)
    call += bytes(6 * 48)
    y = nan(2, n, rows)
    w: list[gpu_emulator.Buffer] = [halfs, planes, *[halfs] * 6]
    check(mode, "matmul_wide", [*w, packed, y, call], (2 * tiles, (n + 127) // 128), 256)
    rounded = x.astype(np.float16).astype(np.float64)
    _close(y[0], rounded @ halfs.T.astype(np.float64), 1e-5)
    _close(y[1], rounded @ numbers.T, HALFS)


@MODES
def test_wide_experts_take_sorted_assignments(mode: str) -> None:
    n, used, hidden, inner, experts, clamp = 20, 2, 256, 256, 3, 9.0
    x, weights = floats(n, hidden) * F32(0.1), np.abs(floats(n * used, seed=4))
    ids = np.random.default_rng(5).integers(0, experts, n * used)
    (gate, plane, g), (up, _, u), (down, down_plane, d) = _experts(hidden, inner, experts)
    order = np.argsort(ids, kind="stable").astype(np.uint32)
    counts = np.bincount(ids, minlength=experts)
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    tiles = np.array([[e, begins[e], counts[e], 0] for e in range(experts)] + [[0] * 4], np.uint32)
    stride = n * used
    packed = np.zeros((hidden // 8, stride, 8), np.float16)
    pack = struct.pack("<4I", stride, hidden, stride, used)
    check(mode, "half_pack", [x, order, packed, pack], (1, hidden // 64), 256)
    h, parts = np.zeros((inner // 8, stride, 8), np.float16), nan(n * used, hidden)
    call = struct.pack("<3IfQ", inner, hidden, stride, clamp, plane)
    grid = (inner // 128, len(tiles))
    buffers: list[gpu_emulator.Buffer] = [gate, up, packed, tiles, order, weights, h, call]
    check(mode, "experts_gate_up_wide", buffers, grid, 256)
    call = struct.pack("<3IfQ", hidden, inner, stride, clamp, down_plane)
    check(mode, "experts_down_wide", [down, h, parts, tiles, call], (1, len(tiles)), 256)
    wide = x.astype(np.float64)
    wanted = np.stack([
        d[ids[a]] @ (_glu(g[ids[a]] @ wide[a // used], u[ids[a]] @ wide[a // used], clamp)
                     * weights[a])
        for a in order
    ])  # fmt: skip
    _close(parts, wanted, 5 * HALFS)
