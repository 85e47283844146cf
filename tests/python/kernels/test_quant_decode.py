"""Weights decode as the ``gguf`` package decodes them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from .conftest import TYPES, Kernels, Weights


@pytest.mark.parametrize("name", TYPES)
def test_block_sizes_are_those_of_the_format(kernels: Kernels, name: str) -> None:
    size, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert kernels.lib.ck_type_supported(TYPES[name])
    assert kernels.lib.ck_type_block_size(TYPES[name]) == size
    assert kernels.lib.ck_type_block_bytes(TYPES[name]) == count


@pytest.mark.parametrize("number", [-1, 3, 15, 17, 26, 40, 1 << 30])
def test_other_types_are_not_supported(kernels: Kernels, number: int) -> None:
    assert not kernels.lib.ck_type_supported(number)


@pytest.mark.parametrize("name", TYPES)
def test_random_weights_decode_exactly(kernels_of: dict[str, Kernels], name: str) -> None:
    w = Weights(name, 5, 1024, np.random.default_rng(1))
    for kernels in kernels_of.values():
        decoded = kernels.decode(name, w.bytes, w.values.size)
        np.testing.assert_array_equal(decoded.astype(np.float64), w.values.ravel())


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_decode_exactly(kernels_of: dict[str, Kernels], name: str) -> None:
    """All bit patterns: subnormal, infinite and NaN scales too."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = max(1, 65536 // size)
    raw = np.random.default_rng(2).integers(0, 256, (count, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected: Any = quants.dequantize(raw, kind).ravel()
    for kernels in kernels_of.values():
        np.testing.assert_array_equal(kernels.decode(name, raw, count * block), expected)


def test_every_half_decodes_exactly(kernels_of: dict[str, Kernels]) -> None:
    every = np.arange(65536, dtype=np.uint16)
    expected = every.view(np.float16).astype(np.float32)
    for kernels in kernels_of.values():
        decoded = kernels.decode("F16", every.view(np.uint8), 65536)
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q2_K"])
def test_embedding_takes_the_rows_of_the_ids(kernels: Kernels, name: str) -> None:
    table = Weights(name, 37, 512, np.random.default_rng(3))
    ids = np.array([36, 0, 5, 5, 17], np.int32)
    out = np.full((5, 512), np.nan, np.float32)
    kernels.lib.matmul_embed(
        kernels.pool(2), kernels.ffi.new("ck_matrix *", kernels.matrix(table)),
        kernels.pointer(ids, "int32_t *"), 5, kernels.pointer(out),
    )  # fmt: skip
    np.testing.assert_array_equal(out.astype(np.float64), table.values[ids])
