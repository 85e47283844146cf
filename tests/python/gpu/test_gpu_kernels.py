"""Single kernels in the checking emulator: numbers, bounds, races, unwritten memory."""

from __future__ import annotations

import struct

import gpu_emulator
import numpy as np
import pytest
from gpu_emulator import MODES, check, floats, nan

F32 = np.float32
GPU_F16, GPU_Q8_0_PLANES = 1, 108


@MODES
@pytest.mark.parametrize("width", [96, 512, 1000])
def test_rms_norm_scales_rows_by_their_root_mean_square(mode: str, width: int) -> None:
    x, weight, y = floats(3, width), floats(width, seed=1), nan(3, width)
    check(mode, "rms_norm_f32", [x, weight, y, struct.pack("<If", width, 1e-6)], (3,), 256)
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=1e-6)


def _job(
    kind: int, rows: int, columns: int, groups: int, first: int, plane: int, out: int
) -> bytes:
    return struct.pack("<8IQQ", kind, rows, columns, rows // groups, first, 0, 0, 0, plane, out)


@MODES
@pytest.mark.parametrize("columns", [480, 512, 1056])
def test_products_of_one_token_take_matrices_of_two_formats_at_once(
    mode: str, columns: int
) -> None:
    x, halfs = floats(1, columns), floats(11, columns, seed=1).astype(np.float16)
    quants = np.random.default_rng(2).integers(-128, 128, (6, columns), np.int8)
    scales = np.abs(floats(6, columns // 32, seed=3)).astype(np.float16)
    planes = np.frombuffer(quants.tobytes() + scales.tobytes(), np.uint8).copy()
    y = nan(17)
    call = struct.pack("<4I", 1, columns, 2, 0)
    call += _job(GPU_F16, 11, columns, 1, 0, 0, 0)
    call += _job(GPU_Q8_0_PLANES, 6, columns, 1, 2, quants.nbytes, 11)
    call += bytes(6 * 48)
    w: list[gpu_emulator.Buffer] = [halfs, planes, *[halfs] * 6]
    check(mode, "matvec_common", [*w, x, y, call], (3, 1), 128)
    decoded = quants * np.repeat(scales.astype(np.float64), 32, axis=1)
    wanted = np.concatenate([halfs.astype(np.float64) @ x[0], decoded @ x[0]])
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("branch", ["simdgroup_matrix", "mma"])
@pytest.mark.parametrize("n", [1, 64, 70])
def test_tiles_write_what_they_own_and_nothing_else(branch: str, n: int) -> None:
    rows, columns = 136, 96
    x, w = floats(n, columns), floats(rows, columns, seed=1).astype(np.float16)
    y = nan(n, rows)
    defines = ["-DMSL_TILE_MMA"] if branch == "mma" else []
    call = struct.pack("<8IQ", GPU_F16, n, rows, columns, columns, rows, rows, 0, 0)
    complaint = gpu_emulator.run(
        gpu_emulator.library("race", "all", *defines),
        "matmul_tile",
        [w, x, y, call],
        grid=(2, (n + 63) // 64),
        threads=128,
    )
    assert not complaint
    wanted = x.astype(np.float16).astype(np.float64) @ w.astype(np.float64).T
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@MODES
@pytest.mark.parametrize("visible", [7, 8, 9, 1500, 8192, 8193, 20001])
def test_top_rows_are_the_highest_and_ascend(mode: str, visible: int) -> None:
    top = 8
    scores = np.round(floats(1, visible), 1)  # many are equal: the lower row wins
    selected, counts = np.full((1, top), -1, np.int32), np.zeros(1, np.int32)
    call = bytes(16) + struct.pack("<6If3I", 1, 1, 1, 1, visible, top, 1.0, 0, 0, 0)
    positions = np.array([visible - 1], np.int32)
    check(mode, "indexer_top_k", [scores, positions, selected, counts, call], (1,), 1024)
    best = np.lexsort((np.arange(visible), -scores[0]))[:top]
    assert counts[0] == min(visible, top)
    np.testing.assert_array_equal(selected[0, : counts[0]], np.sort(best))


@MODES
@pytest.mark.parametrize("experts", [40, 256, 384, 1000])
def test_router_takes_the_best_experts_and_weighs_them(mode: str, experts: int) -> None:
    logits, bias = floats(5, experts) * 4, floats(experts, seed=1)
    logits[3] = -5
    bias[:9] = bias.max() + 1
    logits[3, 7:9] = 2  # the others are equal, and so are these: the lower id is first
    logits[4, 3] = np.nan
    ids, weights = np.full((5, 6), -1, np.int32), nan(5, 6)
    call = struct.pack("<IIfI", experts, 6, 2.5, 0)
    check(mode, "router_top_k", [logits, bias, ids, weights, call], (5,), 256)
    scores = np.sqrt(np.log1p(np.exp(logits.astype(np.float64))))
    wanted = np.argsort(-(scores + bias), axis=1, kind="stable")[:, :6]  # NaN comes last
    np.testing.assert_array_equal(ids, wanted)
    assert ids[3].tolist() == [7, 8, 0, 1, 2, 3]
    chosen = np.take_along_axis(scores, wanted, axis=1)
    np.testing.assert_allclose(weights, chosen / chosen.sum(1, keepdims=True) * 2.5, rtol=1e-5)


@MODES
def test_sorted_assignments_are_each_expert_s_in_one_piece(mode: str) -> None:
    n, used, experts, tile = 50, 4, 9, 16
    ids = np.random.default_rng(3).integers(0, experts, (n, used)).astype(np.int32)
    order, place = np.zeros(n * used, np.uint32), np.zeros(n * used, np.uint32)
    most = n * used // tile + experts
    tiles = np.full((most, 4), 99, np.uint32)
    call = struct.pack("<9I2fI3Q", 0, 0, 0, n, used, experts, 32, 32, 32, 0, 0, tile, 0, 0, 0)
    # Places inside an expert are handed out by an atomic counter.
    check(mode, "experts_sort", [ids, order, place, tiles, call], (1,), 1024)
    np.testing.assert_array_equal(order[place], np.arange(n * used))
    seen = 0
    for expert, begin, count, _ in tiles[tiles[:, 2] > 0]:
        assert (ids.ravel()[order[begin : begin + count]] == expert).all()
        seen += int(count)
    assert seen == n * used


@MODES
def test_scan_of_logits_finds_the_lowest_of_the_highest_and_all_weight(mode: str) -> None:
    logits = np.round(floats(4, 3000), 1) * F32(30)
    logits[1, :100] = np.nan
    logits[2] = np.nan
    logits[3] = -np.inf
    temperatures = np.array([1, 0.7, 1, 1], F32)
    selected = np.array([[5, 9, 2000]] * 4, np.int32)
    counts = np.array([3, 2, 0, 0], np.int32)
    out = np.full((4, 9), 77, np.int32)
    call = struct.pack("<2I", 3000, 3)
    check(mode, "sampling_scan", [logits, temperatures, selected, counts, out, call], (4,), 1024)
    best = [int(np.argmax(logits[0])), int(np.nanargmax(logits[1])), -1, -1]
    assert out[:, 0].tolist() == best
    for row in (0, 1):
        wide = logits[row].astype(np.float64)
        top = np.nanmax(wide)
        assert out[row, 1:2].view(F32)[0] == top
        wanted = np.nansum(np.exp((wide - top) / temperatures[row]))
        np.testing.assert_allclose(out[row, 2:3].view(F32)[0], wanted, rtol=2e-5)
    assert out[:, 3:6].tolist() == [[5, 9, 2000], [5, 9, -1], [-1] * 3, [-1] * 3]
    np.testing.assert_array_equal(out[0, 6:].view(F32), logits[0, [5, 9, 2000]])


MISBEHAVING = [
    ("no_barrier", "data race|never written", 1),
    ("read_past_end", "out of bounds", 1),
    ("write_before_start", "out of bounds", 1),
    ("divergent_barrier", "threadgroup_barrier", 1),
    ("lanes_left", "simdgroup operation", 1),
    ("uninitialised", "never written", 1),
    ("groups_collide", "data race", 3),
]


@pytest.mark.parametrize(("kernel", "message", "groups"), MISBEHAVING)
def test_emulator_catches(kernel: str, message: str, groups: int) -> None:
    source = gpu_emulator.ROOT / "tests" / "msl" / "misbehaving.metal"
    library = gpu_emulator.library("race", str(source))
    buffers: list[gpu_emulator.Buffer] = [np.zeros(64, F32)]
    if kernel == "read_past_end":
        buffers.append(np.zeros(64, F32))
    complaint = gpu_emulator.run(library, kernel, buffers, grid=(groups,), threads=64)
    assert any(part in complaint for part in message.split("|")), complaint
