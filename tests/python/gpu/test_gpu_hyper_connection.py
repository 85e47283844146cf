"""The hyper-connection kernels against double precision."""

from __future__ import annotations

import struct
from typing import Any

import gpu_emulator
import numpy as np
import pytest
from gpu_emulator import MODES, check, floats, nan
from numpy.typing import NDArray

F32, F64 = np.float32, np.float64
GPU_F32, GPU_F16, GPU_Q8_0 = 0, 1, 8
ITERATIONS, NORM_EPSILON, EPSILON, INPUT_EPSILON = 20, 1e-6, 1e-5, 2e-6


def _call(n: int, dim: int, outputs: int, kind: int) -> bytes:
    numbers = (n, dim, outputs, ITERATIONS, NORM_EPSILON, EPSILON, INPUT_EPSILON, kind, 0)
    return struct.pack("<4I3fIQ", *numbers)


def _mixed(streams: NDArray[np.float32], fn: NDArray[np.floating]) -> NDArray[np.float64]:
    """All outputs and the sum of squares of each token."""
    x = streams.reshape(len(streams), -1).astype(F64)
    return np.concatenate([x @ fn.astype(F64).T, (x**2).sum(1, keepdims=True)], axis=1)


def _summed(mix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Outputs and squares of each token, from four parts; the three places behind are not used."""
    return np.asarray(mix.astype(F64).sum(1)[:, :-3])


def _quantised(fn: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Q8_0 blocks of a file, and what they mean."""
    quants = np.random.default_rng(7).integers(-128, 128, (fn.size // 32, 32), np.int8)
    scales = np.abs(fn.reshape(-1, 32)[:, :1]).astype(np.float16)
    blocks = np.concatenate([scales.view(np.uint8), quants.view(np.uint8)], axis=1)
    return blocks, (quants * scales.astype(F64)).reshape(fn.shape)


@MODES
@pytest.mark.parametrize(("dim", "outputs"), [(64, 24), (96, 4), (4128, 24)])
@pytest.mark.parametrize("kind", [GPU_F32, GPU_F16, GPU_Q8_0])
def test_each_output_is_a_product_with_all_four_streams(
    mode: str, dim: int, outputs: int, kind: int
) -> None:
    streams, fn = floats(2, 4, dim), floats(outputs, 4 * dim, seed=1)
    stored: NDArray[Any] = fn
    wide = fn.astype(F64)
    if kind == GPU_F16:
        stored = fn.astype(np.float16)
        wide = stored.astype(F64)
    if kind == GPU_Q8_0:
        stored, wide = _quantised(fn)
    mix = nan(2, 4, outputs + 4)
    call = _call(2, dim, outputs, kind)
    check(mode, "hc_mix", [streams, stored, mix, call], (outputs + 1, 2, 4), 256)
    wanted = _mixed(streams, wide)
    np.testing.assert_allclose(_summed(mix), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@MODES
@pytest.mark.parametrize("n", [1, 31, 33])
@pytest.mark.parametrize(("dim", "kind"), [(128, GPU_F16), (384, GPU_F32)])
def test_parts_of_many_tokens_add_up_to_each_output(mode: str, n: int, dim: int, kind: int) -> None:
    streams, fn = floats(n, 4, dim), floats(24, 4 * dim, seed=1)
    if kind == GPU_F16:
        fn = fn.astype(np.float16)
    mix = nan(n, 4, 28)
    call = _call(n, dim, 24, kind)
    check(mode, "hc_mix_many", [streams, fn, mix, call], (4, (n + 31) // 32), 256)
    np.testing.assert_allclose(_summed(mix), _mixed(streams, fn), rtol=1e-5, atol=1e-4)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def _sinkhorn(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """One matrix of a token: softmax of rows, then columns and rows in turn."""
    v = np.exp(v - v.max(-1, keepdims=True))
    v = v / v.sum(-1, keepdims=True) + EPSILON
    v = v / (v.sum(-2, keepdims=True) + EPSILON)
    for _ in range(ITERATIONS - 1):
        v = v / (v.sum(-1, keepdims=True) + EPSILON)
        v = v / (v.sum(-2, keepdims=True) + EPSILON)
    return v


def _collapsed(
    streams: NDArray[np.float32], pre: NDArray[np.float64], norm: NDArray[np.float32]
) -> NDArray[np.float64]:
    x = (streams.astype(F64) * pre[:, :, None]).sum(1)
    return np.asarray(x / np.sqrt((x**2).mean(1, keepdims=True) + INPUT_EPSILON) * norm)


# More than a thread of the way in keeps in registers is 4,096; a threadgroup makes 16 ways out.
@MODES
@pytest.mark.parametrize(("n", "dim"), [(1, 64), (3, 2080), (1, 4096), (2, 6208), (33, 32)])
def test_way_in_is_a_normed_sum_and_the_way_out_is_doubly_stochastic(
    mode: str, n: int, dim: int
) -> None:
    streams, norm = floats(n, 4, dim), floats(dim, seed=1)
    lines = floats(n, 4, 28, seed=2)
    lines[:, :, 24] = dim  # of unit variance
    scale, base = np.array([1.5, 0.75, 2.0], F32), floats(24, seed=3)
    post, comb, x = nan(n, 4), nan(n, 4, 4), nan(n, dim)
    call = _call(n, dim, 24, GPU_F16)
    buffers: list[gpu_emulator.Buffer] = [lines, scale, base, streams, norm, post, comb, x, call]
    check(mode, "hc_enter", buffers, ((n + 15) // 16 + n,), 512)
    mix = lines.astype(F64).sum(1)
    mix = mix[:, :24] / np.sqrt(mix[:, 24:25] / (4 * dim) + NORM_EPSILON)
    mix = mix * np.repeat(scale.astype(F64), [4, 4, 16]) + base
    np.testing.assert_allclose(post, 2 * _sigmoid(mix[:, 4:8]), rtol=2e-6)
    wanted = _sinkhorn(mix[:, 8:].reshape(n, 4, 4))
    np.testing.assert_allclose(comb, wanted, rtol=1e-5, atol=1e-7)
    wanted = _collapsed(streams, _sigmoid(mix[:, :4]) + EPSILON, norm)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=2e-6)


@MODES
def test_head_is_the_way_in_alone(mode: str) -> None:
    n, dim = 2, 160
    streams, norm, lines = floats(n, 4, dim), floats(dim, seed=1), floats(n, 4, 8, seed=2)
    lines[:, :, 4] = dim
    scale, base, x = np.array([1.5], F32), floats(4, seed=3), nan(n, dim)
    call = _call(n, dim, 4, GPU_F16)
    check(mode, "hc_head", [lines, scale, base, streams, norm, x, call], (n,), 512)
    mix = lines[:, :, :4].astype(F64).sum(1) / np.sqrt(1 + NORM_EPSILON) * 1.5 + base
    wanted = _collapsed(streams, _sigmoid(mix) + EPSILON, norm)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=2e-6)


def _left(
    streams: NDArray[np.float32],
    y: NDArray[np.float32],
    post: NDArray[np.float32],
    comb: NDArray[np.float32],
) -> NDArray[np.float64]:
    wanted = np.einsum("nij,nid->njd", comb.astype(F64), streams.astype(F64))
    return np.asarray(wanted + post[:, :, None].astype(F64) * y[:, None])


@MODES
def test_leaving_mixes_streams_and_adds_the_result_to_each(mode: str) -> None:
    n, dim = 3, 300
    streams, y = floats(n, 4, dim), floats(n, dim, seed=1)
    post, comb = floats(n, 4, seed=2), floats(n, 4, 4, seed=3)
    wanted = _left(streams, y, post, comb)
    call = _call(n, dim, 24, GPU_F16)
    before, out = streams.copy(), nan(n, 4, dim)
    check(mode, "hc_leave", [y, post, comb, streams, out, call], (2, n), 256)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(streams, before)


@MODES
@pytest.mark.parametrize(("dim", "outputs"), [(96, 4), (512, 24), (4128, 24)])
@pytest.mark.parametrize("kind", [GPU_F32, GPU_F16])
def test_leaving_and_mixing_in_one_launch_do_what_two_do(
    mode: str, dim: int, outputs: int, kind: int
) -> None:
    n = 2
    streams, y = floats(n, 4, dim), floats(n, dim, seed=1)
    post, comb = floats(n, 4, seed=2), floats(n, 4, 4, seed=3)
    fn: NDArray[np.floating] = floats(outputs, 4 * dim, seed=4)
    if kind == GPU_F16:
        fn = fn.astype(np.float16)
    before, out, mix = streams.copy(), nan(n, 4, dim), nan(n, 4, outputs + 4)
    call = _call(n, dim, outputs, kind)
    buffers: list[gpu_emulator.Buffer] = [y, post, comb, streams, fn, out, mix, call]
    check(mode, "hc_leave_mix", buffers, (outputs + 1, n, 4), 256)
    np.testing.assert_allclose(out, _left(streams, y, post, comb), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(streams, before)
    wanted = _mixed(out, fn)
    np.testing.assert_allclose(_summed(mix), wanted, rtol=1e-5, atol=2e-3)
