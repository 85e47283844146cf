"""x / rms(x) · weight."""

from __future__ import annotations

import numpy as np
import pytest

from .conftest import FloatArray, Kernels

DIMS = pytest.mark.parametrize("dim", [1, 3, 15, 16, 17, 127, 128, 129, 511, 512, 513, 4096])
EPSILON = 1e-6


def norm(k: Kernels, x: FloatArray, weight: FloatArray | None, threads: int = 2) -> FloatArray:
    y = np.full_like(x, np.nan)
    w = k.ffi.NULL if weight is None else k.pointer(weight)
    k.lib.rms_norm_f32(k.pool(threads), k.pointer(x), *x.shape, w, EPSILON, k.pointer(y))
    return y


@DIMS
@pytest.mark.parametrize("n", [1, 3, 130])
def test_rows_agree_with_double_precision(kernels_of: dict[str, Kernels], n: int, dim: int) -> None:
    rng = np.random.default_rng(dim)
    x = (rng.normal(0, 1, (n, dim)) * np.exp(rng.normal(0, 3, (n, 1)))).astype(np.float32)
    weight = rng.normal(1, 0.3, dim).astype(np.float32)
    exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + EPSILON)
    first = None
    for isa, k in kernels_of.items():
        plain, weighted = norm(k, x, None), norm(k, x, weight)
        np.testing.assert_allclose(plain, exact, rtol=1e-6, err_msg=isa)
        np.testing.assert_allclose(weighted, exact * weight, rtol=1e-6, err_msg=isa)
        first = weighted if first is None else first
        np.testing.assert_array_equal(weighted, first, err_msg=isa)
        np.testing.assert_array_equal(norm(k, x, weight, threads=1), first, err_msg=isa)


@DIMS
def test_the_scale_alone_is_that_of_the_norm(kernels: Kernels, dim: int) -> None:
    x = np.random.default_rng(0).normal(0, 2, (5, dim)).astype(np.float32)
    scale = np.full(5, np.nan, np.float32)
    kernels.lib.rms_norm_scale_f32(
        kernels.pool(2), kernels.pointer(x), 5, dim, EPSILON, kernels.pointer(scale)
    )
    np.testing.assert_array_equal(x * scale[:, None], norm(kernels, x, None))


def test_rows_may_be_normed_in_place(kernels: Kernels) -> None:
    x = np.random.default_rng(0).normal(0, 2, (7, 130)).astype(np.float32)
    wanted = norm(kernels, x, None)
    kernels.lib.rms_norm_f32(
        kernels.pool(2), kernels.pointer(x), 7, 130, kernels.ffi.NULL, EPSILON, kernels.pointer(x)
    )
    np.testing.assert_array_equal(x, wanted)


def test_a_row_of_zeros_stays_zero(kernels: Kernels) -> None:
    assert not norm(kernels, np.zeros((2, 33), np.float32), None).any()
