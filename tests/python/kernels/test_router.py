"""Which experts a token takes, and with what weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import FloatArray, Kernels

SCALE = 1.5


def scores(logits: FloatArray) -> NDArray[np.float64]:
    value: NDArray[np.float64] = np.sqrt(np.logaddexp(0, logits.astype(np.float64)))
    return value


def top_k(
    k: Kernels, logits: FloatArray, bias: FloatArray | None, used: int
) -> tuple[NDArray[np.int32], FloatArray]:
    n, experts = logits.shape
    ids, weights = np.full((n, used), -1, np.int32), np.full((n, used), np.nan, np.float32)
    k.lib.router_top_k(
        k.pool(2), k.pointer(logits), k.ffi.NULL if bias is None else k.pointer(bias), n, experts,
        used, SCALE, k.pointer(ids, "int32_t *"), k.pointer(weights),
    )  # fmt: skip
    return ids, weights


@pytest.mark.parametrize("n", [1, 3, 129])
@pytest.mark.parametrize(("experts", "used"), [(1, 1), (4, 4), (16, 6), (256, 6), (384, 6)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_best_scores_are_taken_and_normalised(
    kernels_of: dict[str, Kernels], n: int, experts: int, used: int, biased: bool
) -> None:
    rng = np.random.default_rng(experts)
    logits = rng.normal(0, 3, (n, experts)).astype(np.float32)
    bias = rng.normal(0, 0.5, experts).astype(np.float32) if biased else None
    key = scores(logits) + (0 if bias is None else bias)
    wanted = np.argsort(-key, axis=1, kind="stable")[:, :used]
    chosen = np.take_along_axis(scores(logits), wanted, axis=1)
    for isa, k in kernels_of.items():
        ids, weights = top_k(k, logits, bias, used)
        np.testing.assert_array_equal(ids, wanted, err_msg=isa)
        expected = chosen / chosen.sum(axis=1, keepdims=True) * SCALE
        np.testing.assert_allclose(weights, expected, rtol=2e-6, err_msg=isa)


def test_ties_go_to_the_lower_expert(kernels: Kernels) -> None:
    logits = np.array([[1, 2, 2, 1, 2, 0, 1, 2]], np.float32)
    ids, weights = top_k(kernels, logits, None, 6)
    assert ids.tolist() == [[1, 2, 4, 7, 0, 3]]
    assert weights[0, 0] == weights[0, 3]
    ids, _ = top_k(kernels, np.zeros((2, 40), np.float32), None, 5)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_bias_chooses_but_does_not_weigh(kernels: Kernels) -> None:
    logits = np.zeros((1, 8), np.float32)
    bias = np.arange(8, dtype=np.float32)
    ids, weights = top_k(kernels, logits, bias, 2)
    assert ids.tolist() == [[7, 6]]
    np.testing.assert_allclose(weights, SCALE / 2)


def test_large_logits_do_not_overflow(kernels: Kernels) -> None:
    logits = np.array([[1000, 90, 25, 0, -50, -1000]], np.float32)
    ids, weights = top_k(kernels, logits, None, 4)
    assert ids.tolist() == [[0, 1, 2, 3]]
    expected = np.sqrt([1000, 90, 25, np.log(2)])
    np.testing.assert_allclose(weights[0], expected / expected.sum() * SCALE, rtol=1e-5)


def test_what_is_no_number_is_taken_last_and_existing_experts_are_named(kernels: Kernels) -> None:
    logits = np.array([[np.nan, 1, np.nan, 3, 2], [np.nan] * 5], np.float32)
    ids, _ = top_k(kernels, logits, None, 4)
    assert ids[0, :3].tolist() == [3, 4, 1]
    assert sorted(set(ids[1].tolist())) == sorted(ids[1].tolist())
    assert ((ids >= 0) & (ids < 5)).all()


@pytest.mark.parametrize("n", [1, 3, 129])
def test_hashed_experts_come_from_the_table_and_are_weighed_by_their_scores(
    kernels: Kernels, n: int
) -> None:
    rng = np.random.default_rng(0)
    table = np.array([rng.permutation(16)[:6] for _ in range(100)], np.int32)
    tokens = rng.integers(0, 100, n).astype(np.int32)
    logits = rng.normal(0, 3, (n, 16)).astype(np.float32)
    ids, weights = np.full((n, 6), -1, np.int32), np.full((n, 6), np.nan, np.float32)
    kernels.lib.router_hash(
        kernels.pool(2), kernels.pointer(logits), kernels.pointer(table, "int32_t *"),
        kernels.pointer(tokens, "int32_t *"), n, 16, 6, SCALE,
        kernels.pointer(ids, "int32_t *"), kernels.pointer(weights),
    )  # fmt: skip
    np.testing.assert_array_equal(ids, table[tokens])
    chosen = np.take_along_axis(scores(logits), ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(
        weights, chosen / chosen.sum(axis=1, keepdims=True) * SCALE, rtol=2e-6
    )
