"""Which compressed rows a token attends to: the best, and of equals the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import FloatArray, Kernels
from .test_kv_rows import F32, FP4, encode, round_trip

COUNTS = [0, 1, 3, 4, 5, 31, 32, 33, 127, 128, 129, 511, 512, 513]


def paged(k: Kernels, rows: NDArray[np.uint8], kind: int, per_page: int) -> tuple[Any, Any]:
    """A ck_paged_rows over ``rows``, whose pages lie apart, and what must outlive it."""
    pages = [np.ascontiguousarray(rows[at : at + per_page]) for at in range(0, len(rows), per_page)]
    addresses = k.ffi.new("uint8_t *[]", [k.pointer(page, "uint8_t *") for page in pages])
    keep = (pages, addresses)
    view = k.ffi.new(
        "ck_paged_rows *",
        {
            "pages": k.ffi.cast("const uint8_t *const *", addresses),
            "rows_per_page": per_page,
            "format": kind,
            "row_bytes": rows.shape[1],
        },
    )
    return view, keep


def select(
    k: Kernels,
    q: FloatArray,
    w: FloatArray,
    keys: FloatArray,
    visible: list[int],
    top: int,
    kind: int = F32,
    threads: int = 2,
    per_page: int = 32,
) -> list[list[int]]:
    n, heads, dim = q.shape
    view, keep = paged(k, encode(k, kind, keys, 0), kind, per_page)
    selected, counts = np.full((n, top), -7, np.int32), np.full(n, -7, np.int32)
    seen = np.array(visible, np.int32)
    k.lib.indexer_select(
        k.pool(threads), k.pointer(q), k.pointer(w), n, heads, dim, view,
        k.pointer(seen, "int32_t *"), top, 0.125, k.pointer(selected, "int32_t *"),
        k.pointer(counts, "int32_t *"),
    )  # fmt: skip
    del keep
    assert counts.tolist() == [min(top, v) for v in visible]
    return [row[:count].tolist() for row, count in zip(selected, counts, strict=True)]


def wanted(
    q: FloatArray, w: FloatArray, keys: NDArray[np.floating], visible: list[int], top: int
) -> list[list[int]]:
    hits = np.maximum(np.einsum("thd,sd->ths", q.astype(np.float64), keys), 0)
    scores = np.einsum("th,ths->ts", w.astype(np.float64), hits)
    return [
        sorted(np.argsort(-row[:v], kind="stable")[:top].tolist())
        for row, v in zip(scores, visible, strict=True)
    ]


def whole(shape: tuple[int, ...], seed: int, most: int = 3) -> FloatArray:
    """Small integers: scores are exact, and many are equal."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32)


@pytest.mark.parametrize("heads", [1, 3, 4, 16])
@pytest.mark.parametrize("top", [1, 8, 128, 512])
def test_the_best_rows_are_kept_and_equals_from_the_first_on(
    kernels_of: dict[str, Kernels], heads: int, top: int
) -> None:
    n, dim = len(COUNTS), 32
    q, w, keys = whole((n, heads, dim), 1), whole((n, heads), 2), whole((600, dim), 3, 1)
    expected = wanted(q, w, keys, COUNTS, top)
    for isa, k in kernels_of.items():
        assert select(k, q, w, keys, COUNTS, top) == expected, isa


@pytest.mark.parametrize("dim", [64, 128])
def test_rows_in_fp4_are_scored_by_what_they_hold(kernels_of: dict[str, Kernels], dim: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(0, 1, (9, 16, dim)).astype(np.float32)
    w = rng.normal(0, 1, (9, 16)).astype(np.float32)
    keys = rng.normal(0, 1, (300, dim)).astype(np.float32)
    visible = [300, 299, 129, 128, 33, 9, 8, 1, 0]
    first = None
    for isa, k in kernels_of.items():
        found = select(k, q, w, keys, visible, 8, FP4)
        first = found if first is None else first
        assert found == first, isa
        held = round_trip(k, FP4, keys, 0).astype(np.float64)
        assert found == wanted(q, w, held, visible, 8), isa


@pytest.mark.parametrize(("heads", "dim"), [(1, 32), (3, 64), (32, 128), (64, 128), (5, 512)])
@pytest.mark.parametrize("per_page", [1, 7, 32, 600])
def test_rounded_queries_find_the_same_rows_as_double_precision(
    kernels_of: dict[str, Kernels], heads: int, dim: int, per_page: int
) -> None:
    rng = np.random.default_rng(heads)
    n = len(COUNTS)
    raw = rng.normal(0, 1, (n, heads, dim)).astype(np.float32)
    w = rng.normal(0, 1, (n, heads)).astype(np.float32)
    keys = rng.normal(0, 1, (513, dim)).astype(np.float32)
    for isa, k in kernels_of.items():
        q = raw.copy()
        k.lib.kv_round_fp4(k.pool(1), k.pointer(q), n * heads, dim)
        q[5] = raw[5]  # one that is no FP4 among those that are
        held = round_trip(k, FP4, keys, 0).astype(np.float64)
        found = select(k, q, w, keys, COUNTS, 31, FP4, per_page=per_page)
        assert found == wanted(q, w, held, COUNTS, 31), isa


def test_all_equal_rows_leave_the_first(kernels: Kernels) -> None:
    q, w = np.ones((2, 4, 64), np.float32), np.ones((2, 4), np.float32)
    keys = np.ones((100, 64), np.float32)
    for sign in (1, -1):
        assert select(kernels, q * sign, w, keys, [100, 50], 10) == [list(range(10))] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["q", "w", "keys"])
def test_what_is_no_number_still_selects_that_many_rows(
    kernels: Kernels, bad: float, place: str
) -> None:
    arrays = {"q": whole((3, 4, 32), 1), "w": whole((3, 4), 2), "keys": whole((90, 32), 3)}
    arrays[place].flat[5] = bad
    for rows in select(kernels, arrays["q"], arrays["w"], arrays["keys"], [90, 20, 7], 8):
        assert rows == sorted(set(rows))
        assert all(0 <= row < 90 for row in rows)


@pytest.mark.parametrize("kind", [F32, FP4])
def test_selection_does_not_depend_on_company_or_threads(kernels: Kernels, kind: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(0, 1, (40, 8, 64)).astype(np.float32)
    w = rng.normal(0, 1, (40, 8)).astype(np.float32)
    keys = rng.normal(0, 1, (200, 64)).astype(np.float32)
    kernels.lib.kv_round_fp4(kernels.pool(1), kernels.pointer(q), 39 * 8, 64)
    visible = [160 + i for i in range(40)]
    together = select(kernels, q, w, keys, visible, 16, kind)
    for i in (0, 1, 15, 16, 39):
        alone = select(kernels, q[i : i + 1], w[i : i + 1], keys, visible[i : i + 1], 16, kind, 1)
        assert alone == together[i : i + 1]


def test_long_contexts_are_scored_in_groups_with_the_same_outcome(kernels: Kernels) -> None:
    # 8 MB of scores hold 41 tokens of 50,000 rows each: this takes two groups.
    n, rows, dim = 45, 50_000, 32
    q, w, keys = whole((n, 1, dim), 1), np.ones((n, 1), np.float32), whole((rows, dim), 3, 1)
    visible = [rows - i for i in range(n)]
    assert select(kernels, q, w, keys, visible, 64) == wanted(q, w, keys, visible, 64)
