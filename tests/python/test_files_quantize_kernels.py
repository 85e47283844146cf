"""Quantisers: what they write decodes as the format says, and no simple method does better."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from pyds4.errors import InvalidArgumentError
from pyds4.files._kernels import decode, quantize, quantize_error, writable_types

Q = GGMLQuantizationType
SEARCHED = [Q.Q4_0, Q.MXFP4, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ2_XXS]

# Relative errors of llama.cpp's quantisers on the same numbers (seed 0, 64 × 1024, standard normal
# × 0.02; importance as below), commit of llama-cpp-python 0.3.36: without and with importance.
PEER = {
    Q.Q2_K: (0.2970, 0.2290),
    Q.Q4_K: (0.0716, 0.0635),
    Q.IQ2_XXS: (0.3438, 0.2807),
}


def gaussian(rows: int = 64, columns: int = 1024) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32) * 0.02


def importance_of(columns: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal(columns) ** 2 + 0.05).astype(np.float32)


@pytest.mark.parametrize("type", writable_types(), ids=lambda type: type.name)
def test_blocks_decode_the_same_here_and_in_gguf(type: Q) -> None:
    blocks = quantize(type, gaussian(8))
    ours = decode(type, blocks.reshape(-1), 8 * 1024)
    np.testing.assert_array_equal(dequantize(blocks, type).reshape(-1), ours)


@pytest.mark.parametrize("type", [Q.Q8_0, Q.F16, Q.BF16, Q.F32], ids=lambda type: type.name)
def test_types_without_a_search_are_written_as_gguf_writes_them(type: Q) -> None:
    numbers = gaussian(16)
    expected = gguf_quantize(numbers, type)
    np.testing.assert_array_equal(quantize(type, numbers), expected.view(np.uint8))


@pytest.mark.parametrize("type", PEER, ids=lambda type: type.name)
def test_error_on_gaussian_numbers_is_below_the_peers(type: Q) -> None:
    numbers = gaussian()
    importance = importance_of(numbers.shape[1])
    for weights, limit in zip((None, importance), PEER[type], strict=True):
        error, norm = quantize_error(type, numbers, quantize(type, numbers, weights), weights)
        assert (error / norm) ** 0.5 < limit


@pytest.mark.parametrize("type", SEARCHED, ids=lambda type: type.name)
def test_importance_lowers_the_error_where_it_counts(type: Q) -> None:
    numbers = gaussian()
    importance = importance_of(numbers.shape[1])
    with_it, _ = quantize_error(type, numbers, quantize(type, numbers, importance), importance)
    without, _ = quantize_error(type, numbers, quantize(type, numbers), importance)
    assert with_it < without


def test_searched_types_beat_the_reference_quantisers_of_gguf() -> None:
    numbers = gaussian()
    for type in (Q.Q4_0, Q.MXFP4):
        ours, _ = quantize_error(type, numbers, quantize(type, numbers))
        theirs, _ = quantize_error(type, numbers, gguf_quantize(numbers, type))
        assert ours < theirs, type.name


@pytest.mark.parametrize("type", SEARCHED, ids=lambda type: type.name)
def test_quantising_decoded_blocks_again_changes_little(type: Q) -> None:
    numbers = decode(type, quantize(type, gaussian(8)).reshape(-1), 8 * 1024).reshape(8, 1024)
    error, norm = quantize_error(type, numbers, quantize(type, numbers))
    # Nothing is lost where the search finds the scales again, which it need not exactly.
    assert (error / norm) ** 0.5 < {Q.IQ2_XXS: 0.06, Q.Q2_K: 0.06, Q.Q3_K: 0.04}.get(type, 0.02)


@pytest.mark.parametrize("type", SEARCHED, ids=lambda type: type.name)
def test_extreme_rows_stay_finite_and_zero_stays_zero(type: Q) -> None:
    rows = np.zeros((6, 256), np.float32)
    rows[1] = 1e-30
    rows[2] = 60000
    rows[3, 7] = -3
    rows[4] = -0.5
    rows[5, ::2] = 1e4
    back = decode(type, quantize(type, rows).reshape(-1), rows.size).reshape(rows.shape)
    assert np.isfinite(back).all()
    assert not back[0].any()
    assert back[4].mean() == pytest.approx(-0.5, rel=0.4)


@settings(max_examples=60, deadline=None)
@given(
    type=st.sampled_from(SEARCHED),
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(1e-3, 1e3),
    shift=st.floats(-2, 2),
)
def test_error_never_exceeds_that_of_writing_zeros(
    type: Q, seed: int, spread: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    numbers = ((rng.standard_normal((2, 512)) + shift) * spread).astype(np.float32)
    importance = rng.exponential(size=512).astype(np.float32)
    importance[rng.random(512) < 0.3] = 0
    error, norm = quantize_error(type, numbers, quantize(type, numbers, importance), importance)
    assert error < 0.6 * norm


def test_importance_without_information_counts_every_weight_the_same() -> None:
    numbers = gaussian(4)
    for nothing in (np.zeros(1024, np.float32), np.full(1024, 7, np.float32)):
        np.testing.assert_array_equal(
            quantize(Q.Q4_K, numbers, nothing)[:, :], quantize(Q.Q4_K, numbers, nothing * 2)
        )
    np.testing.assert_array_equal(
        quantize(Q.Q4_K, numbers, np.zeros(1024, np.float32)), quantize(Q.Q4_K, numbers)
    )


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="rows of 128 numbers"):
        quantize(Q.Q2_K, gaussian(2, 128))
    with pytest.raises(InvalidArgumentError, match="expected 256 numbers"):
        quantize(Q.Q2_K, gaussian(2, 256), np.ones(255, np.float32))
    assert GGML_QUANT_SIZES[Q.Q2_K][0] == 256


EVERY_TYPE = """
import hashlib
import numpy as np
from pyds4.files._kernels import quantize, writable_types
rng = np.random.default_rng(5)
rows = rng.standard_normal((3, 512)).astype(np.float32) * np.float32(0.02)
rows[1] *= np.float32(1e-7)
rows[2, ::3] = 0
importance = rng.exponential(size=512).astype(np.float32)
for type in writable_types():
    for weights in (None, importance):
        digest = hashlib.sha256(quantize(type, rows, weights).tobytes()).hexdigest()
        print(type.name, weights is None, digest)
"""


def test_every_instruction_set_writes_the_same_bytes() -> None:
    said = set()
    for name in ("plain", "avx2", ""):
        environment = {**os.environ, "PYDS4_ISA": name}
        if not name:
            del environment["PYDS4_ISA"]
        done = subprocess.run(
            [sys.executable, "-c", EVERY_TYPE],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.add(done.stdout)
    assert len(said) == 1
