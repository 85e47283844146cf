"""Rotary positions: interleaved pairs at the end of each row."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import FloatArray, Kernels

POSITIONS = np.array([0, 1, 2, 127, 128, 4095, 65536, 1_000_000, 2**24], np.int32)


def frequencies(rope: int) -> FloatArray:
    return (10000.0 ** (-np.arange(rope // 2) * 2 / rope)).astype(np.float32)


def table(k: Kernels, positions: NDArray[np.int32], rope: int) -> FloatArray:
    out = np.full((len(positions), rope // 2, 2), np.nan, np.float32)
    k.lib.rope_table_f32(
        k.pointer(positions, "int32_t *"), len(positions), k.pointer(frequencies(rope)), rope,
        k.pointer(out),
    )  # fmt: skip
    return out


def rotate(k: Kernels, x: FloatArray, angles: FloatArray, inverse: bool = False) -> FloatArray:
    y = x.copy()
    n, heads, dim = x.shape
    k.lib.rope_apply_f32(
        k.pool(2), k.pointer(y), n, heads, dim, angles.shape[1] * 2, k.pointer(angles), inverse
    )
    return y


@pytest.mark.parametrize("rope", [2, 64])
def test_the_table_is_exact_for_the_f32_angle(kernels: Kernels, rope: int) -> None:
    angle = POSITIONS.astype(np.float32)[:, None] * frequencies(rope)
    exact = np.stack([np.cos(angle.astype(np.float64)), np.sin(angle.astype(np.float64))], axis=-1)
    np.testing.assert_allclose(table(kernels, POSITIONS, rope), exact, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize(("dim", "rope"), [(64, 64), (128, 64), (512, 64), (10, 4)])
def test_the_last_pairs_turn_and_the_others_stay(
    kernels_of: dict[str, Kernels], heads: int, dim: int, rope: int
) -> None:
    x = np.random.default_rng(0).normal(0, 1, (len(POSITIONS), heads, dim)).astype(np.float32)
    for isa, k in kernels_of.items():
        angles = table(k, POSITIONS, rope)
        turn = (angles[..., 0] + 1j * angles[..., 1])[:, None, :].astype(np.complex128)
        tail = x[..., dim - rope :].astype(np.float64)
        pairs = (tail[..., ::2] + 1j * tail[..., 1::2]) * turn
        found = rotate(k, x, angles)
        np.testing.assert_array_equal(found[..., : dim - rope], x[..., : dim - rope], err_msg=isa)
        np.testing.assert_allclose(found[..., dim - rope :: 2], pairs.real, atol=1e-6, err_msg=isa)
        np.testing.assert_allclose(found[..., dim - rope + 1 :: 2], pairs.imag, atol=1e-6)
        back = rotate(k, found, angles, inverse=True)
        np.testing.assert_allclose(back, x, atol=1e-6, err_msg=isa)


def test_position_zero_changes_nothing(kernels: Kernels) -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, 2, 128)).astype(np.float32)
    angles = table(kernels, np.zeros(1, np.int32), 64)
    np.testing.assert_array_equal(rotate(kernels, x, angles), x)
