"""FP4 queries meet FP4 rows as integers, exactly; the highest scores are found without sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import FloatArray, Kernels
from .test_kv_rows import FP4, encode, round_trip

# What indexer_int8.h declares: private to the kernels, hence not in ckernels.h.
DECLARATIONS = """
typedef struct {
    int64_t heads, dim; int8_t *q; int32_t *offset; float *w; bool *exact;
} ck_index_queries;
size_t ck_index_queries_bytes(int64_t n, int64_t heads, int64_t dim);
ck_index_queries ck_index_queries_place(void *memory, int64_t n, int64_t heads, int64_t dim);
void ck_index_quantise(const ck_index_queries *x, int64_t t, const float *q, const float *w,
                       int64_t heads);
void ck_index_unpack(const uint8_t *const *rows, int64_t dim, uint8_t *panel, float *scales);
void ck_index_score(const ck_index_queries *x, int64_t t, const uint8_t *panels,
                    const float *scales, int64_t rows, float scale, float *out);
void ck_index_top(const float *scores, int32_t n, int32_t top, int32_t *keys, int32_t *out);
"""
SCALE = 0.125


@pytest.fixture(scope="module")
def indexers(kernels_of: dict[str, Kernels]) -> dict[str, Kernels]:
    for k in kernels_of.values():
        k.ffi.cdef(DECLARATIONS, override=True)
    return kernels_of


def aligned(byte_count: int) -> NDArray[np.uint8]:
    """Bytes from a multiple of 64 on, all 0xAA: what is read must have been written."""
    memory = np.full(byte_count + 64, 0xAA, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + byte_count]


def round_queries(k: Kernels, q: FloatArray) -> FloatArray:
    """q [n, heads, dim] as the model's indexer has it."""
    n, heads, dim = q.shape
    rounded = q.copy()
    k.lib.kv_round_fp4(k.pool(1), k.pointer(rounded), n * heads, dim)
    return rounded


def quantise(k: Kernels, q: FloatArray, w: FloatArray) -> tuple[Any, Any]:
    """A ck_index_queries of all tokens, and what must outlive it."""
    n, heads, dim = q.shape
    memory = aligned(k.lib.ck_index_queries_bytes(n, heads, dim))
    place = k.lib.ck_index_queries_place(k.pointer(memory, "void *"), n, heads, dim)
    x = k.ffi.new("ck_index_queries *", place)
    for t in range(n):
        k.lib.ck_index_quantise(x, t, k.pointer(q[t]), k.pointer(w[t]), heads)
    return x, memory


def fits(k: Kernels, q: FloatArray) -> list[bool]:
    x, keep = quantise(k, q, np.ones(q.shape[:2], np.float32))
    found = [bool(x.exact[t]) for t in range(len(q))]
    del keep
    return found


def scores(k: Kernels, q: FloatArray, w: FloatArray, rows: NDArray[np.uint8]) -> FloatArray:
    """[tokens, rows]; the number of rows is a multiple of 32."""
    n, _, dim = q.shape
    x, keep = quantise(k, q, w)
    assert all(x.exact[t] for t in range(n))
    panels = aligned(len(rows) * dim)
    scales = np.full((len(rows) // 16, dim // 32, 16), np.nan, np.float32)
    for place in range(len(rows) // 16):
        sixteen = [k.pointer(row, "uint8_t *") for row in rows[16 * place : 16 * place + 16]]
        panel = k.pointer(panels[16 * place * dim :], "uint8_t *")
        pointers = k.ffi.new("const uint8_t *[16]", sixteen)
        k.lib.ck_index_unpack(pointers, dim, panel, k.pointer(scales[place]))
    out = np.full((n, len(rows)), np.nan, np.float32)
    for t in range(n):
        k.lib.ck_index_score(
            x, t, k.pointer(panels, "uint8_t *"), k.pointer(scales), len(rows), SCALE,
            k.pointer(out[t]),
        )  # fmt: skip
    del keep
    return out


@pytest.mark.parametrize("dim", [32, 64, 128, 256, 512])
@pytest.mark.parametrize("heads", [1, 3, 4, 5, 32, 64])
def test_scores_are_those_of_double_precision_in_the_same_bits_everywhere(
    indexers: dict[str, Kernels], heads: int, dim: int
) -> None:
    rng = np.random.default_rng(dim + heads)
    keys = rng.normal(0, 1, (96, dim)).astype(np.float32)
    keys[:32] *= np.exp(rng.normal(0, 20, (32, 1))).astype(np.float32)
    keys[3] = 0
    w = rng.normal(0, 1, (3, heads)).astype(np.float32)
    raw = rng.normal(0, 1, (3, heads, dim)).astype(np.float32)
    raw[1] *= 1e-9
    raw[2, -1] = 0
    first = None
    for isa, k in indexers.items():
        q = round_queries(k, raw)
        found = scores(k, q, w, encode(k, FP4, keys, 0))
        first = found if first is None else first
        np.testing.assert_array_equal(found, first, err_msg=isa)
        held = round_trip(k, FP4, keys, 0).astype(np.float64)
        hits = np.maximum(np.einsum("thd,sd->ths", q.astype(np.float64), held), 0)
        wanted = SCALE * np.einsum("th,ths->ts", w.astype(np.float64), hits)
        scale = SCALE * np.einsum("th,ths->ts", np.abs(w).astype(np.float64), hits)
        assert np.all(np.abs(found - wanted) <= 1e-6 * scale + 1e-30), isa


def test_integers_at_their_limits_do_not_overflow(indexers: dict[str, Kernels]) -> None:
    # 512 products of the largest codes, of either sign: what 16 bits must hold on the way.
    dim = 512
    signs = np.where(np.arange(8)[:, None] >> (np.arange(dim) % 3) & 1, -1, 1)
    q = np.full((1, 8, dim), 127, np.float32) * signs.astype(np.float32)
    w = np.ones((1, 8), np.float32)
    codes = np.resize(np.array([0x77, 0xFF, 0xF7], np.uint8), (32, dim // 2))
    rows = np.hstack([codes, np.full((32, dim // 32), 127, np.uint8)])
    values = np.where(codes & 8, -6.0, 6.0), np.where(codes & 128, -6.0, 6.0)
    held = np.stack(values, axis=2).reshape(32, dim)
    wanted = SCALE * np.maximum(np.einsum("thd,sd->ths", q, held), 0).sum(axis=1)
    for isa, k in indexers.items():
        np.testing.assert_array_equal(scores(k, q, w, rows), wanted, err_msg=isa)


def test_only_queries_that_are_integers_and_a_power_of_two_fit(
    indexers: dict[str, Kernels],
) -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 1, (9, 4, 128)).astype(np.float32)
    for isa, k in indexers.items():
        q = round_queries(k, raw)
        q[1] = raw[1]
        q[2, 3, 32:64] *= np.float32(2**-7)
        q[3, 0, 5] = np.nan
        q[4, 1, 0] = np.inf
        q[5] *= np.float32(2.0**-120)
        q[6, 2] = 0
        q[7] *= np.float32(2.0**60)
        q[8, 0, 127] = 0.3
        assert fits(k, q) == [True, False, False, False, False, False, True, True, False], isa


# ---------------------------------------------------------------------- the highest


def top_places(k: Kernels, values: FloatArray, top: int) -> list[int]:
    keys, out = np.empty(len(values), np.int32), np.full(top, -7, np.int32)
    k.lib.ck_index_top(
        k.pointer(values), len(values), top, k.pointer(keys, "int32_t *"),
        k.pointer(out, "int32_t *"),
    )  # fmt: skip
    found: list[int] = out.tolist()
    return found


def score_kinds(n: int) -> dict[str, FloatArray]:
    rng = np.random.default_rng(n)
    kinds = {
        "normal": rng.normal(0, 1, n),
        "many magnitudes": rng.normal(0, 1, n) * np.exp(rng.normal(0, 20, n)),
        "few values": rng.integers(-2, 3, n).astype(np.float64),
        "one value": np.full(n, 0.5),
        "mostly nothing": np.where(rng.random(n) < 0.05, rng.random(n), 0.0),
        "ascending": np.arange(n) - n / 2,
        "close": 1 + rng.integers(0, 9, n) * 2.0**-23,
    }
    cut = {name: np.clip(values, -3e38, 3e38).astype(np.float32) for name, values in kinds.items()}
    cut["infinite"] = np.where(rng.random(n) < 0.2, np.inf, cut["normal"])
    cut["minus infinity"] = np.where(rng.random(n) < 0.8, -np.inf, cut["normal"])
    # A zero with a sign is no lower than one without in numpy, but its bits are.
    return {name: (values + np.float32(0)).astype(np.float32) for name, values in cut.items()}


@pytest.mark.parametrize("n", [2, 15, 16, 17, 511, 512, 513, 4096])
def test_the_highest_scores_are_found_and_equals_from_the_first_on(
    indexers: dict[str, Kernels], n: int
) -> None:
    for name, values in score_kinds(n).items():
        order = np.argsort(-values, kind="stable")
        for top in sorted({1, 2, n // 8, n // 2, n - 2, n - 1} & set(range(1, n))):
            wanted = sorted(order[:top].tolist())
            for isa, k in indexers.items():
                assert top_places(k, values, top) == wanted, (isa, name, top)


def test_what_is_no_number_comes_last(indexers: dict[str, Kernels]) -> None:
    values = np.array([np.nan, -np.inf, 1, -np.nan, 2, np.nan, -5], np.float32)
    for isa, k in indexers.items():
        assert top_places(k, values, 3) == [2, 4, 6], isa
        assert top_places(k, values, 4) == [1, 2, 4, 6], isa
        assert top_places(k, values, 6) == [0, 1, 2, 3, 4, 6], isa
        assert top_places(k, np.full(40, np.nan, np.float32), 3) == [0, 1, 2], isa
