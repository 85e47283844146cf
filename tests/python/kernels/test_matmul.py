"""Matrix products against float64, and the same bits however they are computed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from .conftest import (
    FLOAT_TYPES,
    QUANTISED_TYPES,
    TYPES,
    FloatArray,
    Kernels,
    Weights,
    rounded,
)

ROWS = (1, 3, 15, 16, 17, 31, 32, 33, 65)
TOKENS = (1, 2, 3, 7, 8, 9, 64, 65, 129)


def smallest_cols(name: str) -> tuple[int, ...]:
    if name in FLOAT_TYPES:
        return (1, 15, 16, 17, 33, 512, 513, 1040)
    return (32, 64, 96, 256) if name in ("Q8_0", "Q4_0", "MXFP4") else (256, 512, 768)


def activations(n: int, cols: int, seed: int = 0) -> FloatArray:
    """Normal, with some large values as real activations have."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, cols)) * np.exp(rng.normal(0, 1, (1, cols)))
    return x.astype(np.float32)


def check(y: FloatArray, w: Weights, x: npt.NDArray[np.float64], tolerance: float) -> None:
    """Errors stay below `tolerance` times the sum of the terms' magnitudes."""
    error = np.abs(y - x @ w.values.T)
    assert (error <= tolerance * (np.abs(x) @ np.abs(w.values).T)).all()


@pytest.mark.parametrize("name", QUANTISED_TYPES)
def test_products_are_exact_up_to_f32_sums(kernels: Kernels, name: str) -> None:
    for cols in smallest_cols(name):
        for rows in ROWS:
            w = Weights(name, rows, cols, np.random.default_rng(rows))
            for n in TOKENS if rows in (1, 33) else (1, 3):
                x = activations(n, cols)
                check(kernels.matmul(w, x), w, rounded(x), 2e-6)


@pytest.mark.parametrize("name", FLOAT_TYPES)
def test_float_products_are_exact_up_to_f32_sums(kernels: Kernels, name: str) -> None:
    for cols in smallest_cols(name):
        for rows in ROWS:
            w = Weights(name, rows, cols, np.random.default_rng(rows))
            for n in TOKENS if rows in (1, 33) else (1, 3):
                x = activations(n, cols)
                check(kernels.matmul(w, x), w, x.astype(np.float64), 2e-6)


@pytest.mark.parametrize("name", QUANTISED_TYPES)
def test_rounding_activations_costs_less_than_one_percent(kernels: Kernels, name: str) -> None:
    w = Weights(name, 64, 4096, np.random.default_rng(1))
    x = np.random.default_rng(2).normal(0, 1, (8, 4096)).astype(np.float32)
    expected = x.astype(np.float64) @ w.values.T
    error = np.linalg.norm(kernels.matmul(w, x) - expected) / np.linalg.norm(expected)
    assert error < 0.01


@pytest.mark.parametrize("name", TYPES)
def test_every_instruction_set_gives_the_same_bits(
    kernels_of: dict[str, Kernels], name: str
) -> None:
    # a lone token of whole chunks of 512 has kernels of its own
    for rows, n, cols in (
        (33, 9, smallest_cols(name)[-2:]),
        (7, 1, (*smallest_cols(name)[-2:], 1536)),
        (100, 1, (512,)),
        (64, 130, smallest_cols(name)[-2:]),
    ):
        for count in cols:
            w = Weights(name, rows, count, np.random.default_rng(rows))
            x = activations(n, count)
            expected = kernels_of["plain"].matmul(w, x)
            for isa, kernels in kernels_of.items():
                np.testing.assert_array_equal(kernels.matmul(w, x), expected, err_msg=isa)


@pytest.mark.parametrize("name", TYPES)
def test_a_token_has_the_same_bits_alone_in_a_batch_and_on_any_thread(
    kernels_of: dict[str, Kernels], name: str
) -> None:
    w = Weights(name, 130, 1024, np.random.default_rng(3))
    x = activations(133, 1024)
    for isa, kernels in kernels_of.items():
        if isa == "plain":
            continue  # has no fast paths to differ; slow
        together = kernels.matmul(w, x)
        for threads in (1, 3):
            np.testing.assert_array_equal(kernels.matmul(w, x, threads), together)
        for begin, end in ((0, 1), (5, 7), (7, 15), (127, 133)):
            part = kernels.matmul(w, np.ascontiguousarray(x[begin:end]))
            np.testing.assert_array_equal(part, together[begin:end], err_msg=isa)


def test_jobs_of_one_call_do_not_disturb_each_other(kernels: Kernels) -> None:
    rng = np.random.default_rng(4)
    names = ("Q8_0", "F16", "Q2_K", "F32", "Q8_0", "IQ2_XXS")
    ws = [
        Weights(name, rows, 512, rng)
        for name, rows in zip(names, (40, 24, 32, 7, 1, 96), strict=True)
    ]
    for n in (1, 20):
        x = activations(n, 512)
        for w, y in zip(ws, kernels.matmuls(ws, x), strict=True):
            np.testing.assert_array_equal(y, kernels.matmul(w, x))


def test_row_distances_are_kept_and_nothing_beyond_is_written(kernels: Kernels) -> None:
    w = Weights("Q8_0", 35, 64, np.random.default_rng(5))
    x = activations(4, 100)
    y = np.full((4, 50), 7.0, np.float32)
    job = {"w": kernels.matrix(w), "x": kernels.pointer(x), "ldx": 100,
           "y": kernels.pointer(y), "ldy": 50}  # fmt: skip
    kernels.lib.matmul(kernels.pool(2), kernels.ffi.new("ck_matmul_job *", job), 1, 4)
    expected = kernels.matmul(w, np.ascontiguousarray(x[:, :64]))
    np.testing.assert_array_equal(y[:, :35], expected)
    assert (y[:, 35:] == 7.0).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q2_K", "IQ2_XXS", "Q4_K", "Q6_K", "F16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_own_token(
    kernels_of: dict[str, Kernels], name: str, bad: float
) -> None:
    w = Weights(name, 33, 512, np.random.default_rng(6))
    x = activations(5, 512)
    clean = kernels_of["plain"].matmul(w, x)
    x[2, 40] = bad
    for kernels in kernels_of.values():
        y = kernels.matmul(w, x)
        assert not np.isfinite(y[2]).any()
        np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


def test_tiny_and_huge_activations_do_not_overflow(kernels: Kernels) -> None:
    w = Weights("Q8_0", 16, 64, np.random.default_rng(7))
    for size in (0.0, 1e-44, 1e-30, 1e30):
        x = np.full((1, 64), size, np.float32)
        check(kernels.matmul(w, x), w, x.astype(np.float64) * (size > 1e-40), 0.01)


def test_no_jobs_and_no_tokens_are_fine(kernels: Kernels) -> None:
    w = Weights("Q8_0", 16, 64, np.random.default_rng(8))
    assert kernels.matmul(w, np.zeros((0, 64), np.float32)).shape == (0, 16)
    kernels.lib.matmul(kernels.pool(2), kernels.ffi.NULL, 0, 4)
