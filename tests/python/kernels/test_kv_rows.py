"""Rows of attention memory: nearest codes, ties to even, and nothing that is not a number."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import E2M1, block_scale, e4m3_values, fp8_blocks, hadamard, nearest_code

from .conftest import FloatArray, Kernels

F32, FP8, FP4 = 0, 1, 2
ROPE = 64
FP8_DIMS = pytest.mark.parametrize("dim", [128, 192, 512])


def encode(k: Kernels, kind: int, x: FloatArray, rope: int = ROPE) -> NDArray[np.uint8]:
    n, dim = x.shape
    rows = np.full((n, k.lib.kv_row_bytes(kind, dim, rope)), 0xAA, np.uint8)
    k.lib.kv_row_encode(k.pool(2), kind, k.pointer(x), n, dim, rope, k.pointer(rows, "uint8_t *"))
    return rows


def decode(
    k: Kernels, kind: int, rows: NDArray[np.uint8], dim: int, rope: int = ROPE
) -> FloatArray:
    out = np.full((len(rows), dim), np.nan, np.float32)
    for row, values in zip(rows, out, strict=True):
        k.lib.kv_row_decode(kind, k.pointer(row, "uint8_t *"), dim, rope, k.pointer(values))
    return out


def round_trip(k: Kernels, kind: int, x: FloatArray, rope: int = ROPE) -> FloatArray:
    return decode(k, kind, encode(k, kind, x, rope), x.shape[1], rope)


def spread(n: int, dim: int, seed: int = 0) -> FloatArray:
    """Values over many magnitudes, some rows tiny or zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, dim)) * np.exp(rng.normal(0, 2, (n, dim)))
    x[n // 2] *= 1e-7
    x[n // 3] = 0
    return x.astype(np.float32)


def test_rows_have_the_sizes_that_the_header_draws(kernels: Kernels) -> None:
    sizes = [(F32, 512, 64, 2048), (FP8, 512, 64, 632), (FP4, 128, 0, 68)]
    for kind, dim, rope, size in sizes:
        assert kernels.lib.kv_row_bytes(kind, dim, rope) == size


def test_plain_rows_are_kept_as_they_are(kernels: Kernels) -> None:
    x = spread(9, 192)
    np.testing.assert_array_equal(round_trip(kernels, F32, x), x)


@FP8_DIMS
def test_fp8_values_become_the_nearest_ones_of_their_block(
    kernels_of: dict[str, Kernels], dim: int
) -> None:
    x = spread(60, dim)
    wanted = fp8_blocks(x[:, : dim - ROPE].astype(np.float64))
    for isa, k in kernels_of.items():
        np.testing.assert_array_equal(round_trip(k, FP8, x)[:, : dim - ROPE], wanted, err_msg=isa)


@pytest.mark.parametrize("power", [-20, 5, 6, 7, 8, 60, 110])
def test_fp8_values_of_every_magnitude_are_decoded_exactly(
    kernels_of: dict[str, Kernels], power: int
) -> None:
    x = spread(20, 192) * np.float32(2.0**power)
    wanted = fp8_blocks(x[:, : 192 - ROPE].astype(np.float64))
    for isa, k in kernels_of.items():
        np.testing.assert_array_equal(round_trip(k, FP8, x)[:, : 192 - ROPE], wanted, err_msg=isa)


@pytest.mark.parametrize("power", [-20, 0, 30])
def test_fp8_borders_go_to_the_even_code(kernels: Kernels, power: int) -> None:
    values = e4m3_values()
    middle = (values[1:] + values[:-1]) / 2
    border = middle.astype(np.float32)
    below = np.nextafter(border, np.float32(0))
    above = np.nextafter(border, np.float32(1e9))
    everything = np.concatenate([values, border, below, above])
    everything = np.concatenate([everything, -everything])
    count = -(-len(everything) // 63)
    x = np.zeros((count, 64 + ROPE), np.float32)
    x[:, 0] = 448  # the scale of every block is one
    x[:, 1:64] = np.resize(everything, (count, 63))
    x *= np.float32(2.0**power)
    found = round_trip(kernels, FP8, x)[:, :64].astype(np.float64) * 2.0**-power
    exact = x[:, :64].astype(np.float64) * 2.0**-power
    wanted = np.sign(exact) * values[nearest_code(exact, values)]
    np.testing.assert_array_equal(found, wanted)


def test_fp8_scales_are_the_smallest_that_hold_the_block(kernels: Kernels) -> None:
    for largest in (448, np.nextafter(np.float32(448), np.float32(449)), 447.9, 896, 1e-4, 1e-9, 0):
        x = np.zeros((1, 64 + ROPE), np.float32)
        x[0, 5] = largest
        found = round_trip(kernels, FP8, x)[:, :64]
        np.testing.assert_array_equal(found, fp8_blocks(x[:, :64].astype(np.float64)))


@FP8_DIMS
@pytest.mark.parametrize("rope", [2, 22, 24, 26, 48, 64, 66])
def test_rotated_values_keep_twenty_bits_below_the_largest(
    kernels_of: dict[str, Kernels], dim: int, rope: int
) -> None:
    plain = dim - ROPE
    x = spread(40, plain + rope)
    for isa, k in kernels_of.items():
        found = round_trip(k, FP8, x, rope)[:, plain:]
        largest = np.abs(x[:, plain:]).max(axis=1, keepdims=True)
        above = 2.0 ** np.ceil(np.log2(np.maximum(largest, 2.0**-80)))
        assert (np.abs(found - x[:, plain:]) <= above * 2.0**-20).all(), isa


def test_a_power_of_two_is_the_largest_rotated_value_of_both_signs(kernels: Kernels) -> None:
    x = np.zeros((2, 128), np.float32)
    x[0, 64:] = 4
    x[1, 64:] = -4
    found = round_trip(kernels, FP8, x)[:, 64:]
    assert np.abs(found - x[:, 64:]).max() <= 4 * 2.0**-20


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 100, 127])
def test_rows_never_hold_what_is_no_number(kernels: Kernels, bad: float, place: int) -> None:
    x = spread(3, 128)
    x[1, place] = bad
    found = round_trip(kernels, FP8, x)
    assert np.isfinite(found).all()
    assert np.isnan(bad) or found[1, place] * bad > 0
    np.testing.assert_array_equal(found[[0, 2]], round_trip(kernels, FP8, x[[0, 2]]))
    index = round_trip(kernels, FP4, x, 0)
    assert np.isfinite(index).all()
    np.testing.assert_array_equal(index[[0, 2]], round_trip(kernels, FP4, x[[0, 2]], 0))


@pytest.mark.parametrize("kind", [FP8, FP4])
def test_the_largest_numbers_stay_numbers(kernels: Kernels, kind: int) -> None:
    x = np.full((1, 128), np.finfo(np.float32).max, np.float32)
    assert np.isfinite(round_trip(kernels, kind, x)).all()


@pytest.mark.parametrize("dim", [64, 256])
def test_fp4_borders_go_to_the_even_code(kernels_of: dict[str, Kernels], dim: int) -> None:
    # √dim is a power of two here, so rotated multiples of a quarter come back exactly.
    rng = np.random.default_rng(1)
    rotated = rng.integers(-24, 25, (200, dim)) / 4.0
    rotated[:, ::32] = 6  # the scale of every block is one
    x = hadamard(rotated).astype(np.float32)
    np.testing.assert_array_equal(hadamard(x.astype(np.float64)), rotated)
    wanted = np.sign(rotated) * E2M1[nearest_code(rotated, E2M1)]
    for isa, k in kernels_of.items():
        np.testing.assert_array_equal(round_trip(k, FP4, x, 0), wanted, err_msg=isa)


@pytest.mark.parametrize("dim", [32, 128, 512])
def test_fp4_values_become_the_nearest_ones_of_their_block(
    kernels_of: dict[str, Kernels], dim: int
) -> None:
    x = spread(60, dim)
    exact = hadamard(x.astype(np.float64))
    scale = block_scale(exact, 32, 6.0, 6 * 2.0**-126)
    values = exact.reshape(60, -1, 32) / scale
    wanted = (np.sign(values) * E2M1[nearest_code(values, E2M1)] * scale).reshape(60, dim)
    middle = (E2M1[1:] + E2M1[:-1]) / 2
    doubtful = (np.abs(np.abs(values)[..., None] - middle).min(axis=-1) < 1e-5).reshape(60, dim)
    first = round_trip(next(iter(kernels_of.values())), FP4, x, 0)
    assert doubtful.mean() < 0.01
    np.testing.assert_array_equal(np.where(doubtful, 0, first), np.where(doubtful, 0, wanted))
    for isa, k in kernels_of.items():
        np.testing.assert_array_equal(round_trip(k, FP4, x, 0), first, err_msg=isa)


@pytest.mark.parametrize("n", [1, 3, 15, 16, 17, 129])
def test_queries_are_rounded_as_rows_are(kernels_of: dict[str, Kernels], n: int) -> None:
    x = spread(n, 128)
    wanted = round_trip(next(iter(kernels_of.values())), FP4, x, 0)
    for isa, k in kernels_of.items():
        y = x.copy()
        k.lib.kv_round_fp4(k.pool(2), k.pointer(y), n, 128)
        np.testing.assert_array_equal(y, wanted, err_msg=isa)


@pytest.mark.parametrize("kind", [FP8, FP4])
def test_rows_have_the_same_bytes_on_every_instruction_set(
    kernels_of: dict[str, Kernels], kind: int
) -> None:
    x = spread(100, 512)
    first, *others = (encode(k, kind, x) for k in kernels_of.values())
    for rows in others:
        np.testing.assert_array_equal(rows, first)
