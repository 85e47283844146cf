"""Four residual streams: split, collapse, expand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import sinkhorn

from .conftest import FloatArray, Kernels

EPSILON = 1e-6
COUNTS = pytest.mark.parametrize("n", [1, 3, 129])
DIMS = pytest.mark.parametrize("dim", [1, 3, 127, 128, 2047, 2048, 2049, 4096])


class Mix(NamedTuple):
    pre: FloatArray
    post: FloatArray
    comb: FloatArray


def numbers(*shape: int, seed: int = 0, size: float = 1.0) -> FloatArray:
    return (np.random.default_rng(seed).normal(0, 1, shape) * size).astype(np.float32)


def split(k: Kernels, mix: FloatArray, inverse: FloatArray, iterations: int = 20) -> Mix:
    n = len(mix)
    out = Mix(*(np.full(s, np.nan, np.float32) for s in [(n, 4), (n, 4), (n, 4, 4)]))
    k.lib.hc_split_f32(
        k.pool(2), k.pointer(mix), k.pointer(inverse), k.pointer(SCALE), k.pointer(BASE), n,
        iterations, EPSILON, *map(k.pointer, out),
    )  # fmt: skip
    return out


SCALE = np.array([0.75, 1.0, 1.25], np.float32)
BASE = numbers(24, seed=9, size=0.75)


def sigmoid(x: NDArray[np.floating]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = 1 / (1 + np.exp(-x.astype(np.float64)))
    return value


@COUNTS
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_the_split_agrees_with_double_precision(
    kernels_of: dict[str, Kernels], n: int, iterations: int
) -> None:
    mix, inverse = numbers(n, 24, size=3), np.exp(numbers(n, seed=1))
    scaled = mix.astype(np.float64) * inverse[:, None]
    pre = sigmoid(scaled[:, :4] * SCALE[0] + BASE[:4]) + EPSILON
    post = 2 * sigmoid(scaled[:, 4:8] * SCALE[1] + BASE[4:8])
    comb = sinkhorn((scaled[:, 8:] * SCALE[2] + BASE[8:]).reshape(n, 4, 4), iterations, EPSILON)
    for isa, k in kernels_of.items():
        found = split(k, mix, inverse, iterations)
        np.testing.assert_allclose(found.pre, pre, rtol=2e-6, err_msg=isa)
        np.testing.assert_allclose(found.post, post, rtol=2e-6, err_msg=isa)
        np.testing.assert_allclose(found.comb, comb, rtol=1e-5, atol=1e-9, err_msg=isa)


def test_columns_of_the_combination_sum_to_one(kernels: Kernels) -> None:
    found = split(kernels, numbers(50, 24, size=2), np.ones(50, np.float32))
    np.testing.assert_allclose(found.comb.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 100.0, 1e4, 1e20])
def test_extreme_mixes_stay_finite(kernels: Kernels, size: float) -> None:
    found = split(kernels, numbers(20, 24, size=size), np.ones(20, np.float32))
    for part in found:
        assert np.isfinite(part).all()
        assert (part >= 0).all()


@COUNTS
@DIMS
def test_collapse_is_the_weighted_sum_of_the_streams(
    kernels_of: dict[str, Kernels], n: int, dim: int
) -> None:
    streams, pre = numbers(n, 4, dim), numbers(n, 4, seed=1)
    exact = np.einsum("ti,tid->td", pre.astype(np.float64), streams)
    for isa, k in kernels_of.items():
        x = np.full((n, dim), np.nan, np.float32)
        k.lib.hc_collapse_f32(k.pool(2), k.pointer(streams), k.pointer(pre), n, dim, k.pointer(x))
        np.testing.assert_allclose(x, exact, atol=3e-6, err_msg=isa)


@COUNTS
@DIMS
def test_expand_carries_stream_i_into_stream_j(
    kernels_of: dict[str, Kernels], n: int, dim: int
) -> None:
    streams, y = numbers(n, 4, dim), numbers(n, dim, seed=1)
    post, comb = numbers(n, 4, seed=2), numbers(n, 4, 4, seed=3)
    exact = post[:, :, None].astype(np.float64) * y[:, None] + np.einsum(
        "tij,tid->tjd", comb.astype(np.float64), streams
    )
    for isa, k in kernels_of.items():
        found = streams.copy()
        k.lib.hc_expand_f32(
            k.pool(2), k.pointer(y), k.pointer(post), k.pointer(comb), n, dim, k.pointer(found)
        )
        np.testing.assert_allclose(found, exact, atol=5e-6, err_msg=isa)


@COUNTS
def test_the_head_weights_are_sigmoids(kernels: Kernels, n: int) -> None:
    mix, inverse = numbers(n, 4, size=3), np.exp(numbers(n, seed=1))
    pre = np.full((n, 4), np.nan, np.float32)
    kernels.lib.hc_head_f32(
        *map(kernels.pointer, (mix, inverse, SCALE, BASE)), n, EPSILON, kernels.pointer(pre)
    )
    exact = sigmoid(mix.astype(np.float64) * inverse[:, None] * SCALE[0] + BASE[:4]) + EPSILON
    np.testing.assert_allclose(pre, exact, rtol=2e-6)
