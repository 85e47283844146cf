"""Attention over a window, compressed rows and a sink, against double precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import FloatArray, Kernels
from .test_indexer import paged
from .test_kv_rows import F32, FP8, decode, encode

ROPE = 64


@dataclass
class Case:
    """Rows of all positions up to the last, compressed rows, and which of these are seen."""

    window: int
    position: int
    n: int
    heads: int
    dim: int
    kind: int
    size: float = 1.0
    compressed: int = 0
    selected: NDArray[np.int32] | None = None
    counts: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.position + self.n)
        total = self.position + self.n
        self.q = (rng.normal(0, 1, (self.n, self.heads, self.dim)) * self.size).astype(np.float32)
        self.rows = rng.normal(0, 1, (total, self.dim)).astype(np.float32)
        self.pooled = rng.normal(0, 1, (max(self.compressed, 1), self.dim)).astype(np.float32)
        self.sinks = rng.normal(0, 1, self.heads).astype(np.float32)

    def run(self, k: Kernels, threads: int = 2, steps: list[int] | None = None) -> FloatArray:
        """In one call, or in several of ``steps`` tokens with the ring kept between them."""
        encoded, ring = self._encoded(k)
        out, at = [], self.position
        for n in steps or [self.n]:
            call, found, keep = self._call(k, ring, encoded, at, n)
            k.lib.attention_f32(k.pool(threads), call)
            del keep
            out.append(found)
            for p in range(at, at + n):
                ring[p % self.window] = encoded[p]
            at += n
        return np.concatenate(out)

    def _encoded(self, k: Kernels) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """All rows, and the ring before ``position``."""
        encoded = encode(k, self.kind, self.rows, ROPE)
        ring = np.zeros((self.window, encoded.shape[1]), np.uint8)
        for p in range(max(0, self.position - self.window), self.position):
            ring[p % self.window] = encoded[p]
        return encoded, ring

    def _call(
        self, k: Kernels, ring: NDArray[np.uint8], encoded: NDArray[np.uint8], position: int, n: int
    ) -> tuple[Any, FloatArray, Any]:
        """The call, where its output will be, and what must live as long."""
        at = position - self.position
        q = np.ascontiguousarray(self.q[at : at + n])
        chunk = np.ascontiguousarray(encoded[position : position + n])
        out = np.full((n, self.heads, self.dim), np.nan, np.float32)
        call: Any = k.ffi.new("ck_attention *")
        call.q, call.n, call.heads = k.pointer(q), n, self.heads
        call.dim, call.rope, call.position, call.window = self.dim, ROPE, position, self.window
        call.window_format, call.window_row_bytes = self.kind, encoded.shape[1]
        call.ring, call.chunk = k.pointer(ring, "uint8_t *"), k.pointer(chunk, "uint8_t *")
        call.sinks, call.scale, call.out = k.pointer(self.sinks), self.scale, k.pointer(out)
        view, pages = paged(k, encode(k, self.kind, self.pooled, ROPE), self.kind, 32)
        call.rows = view[0]
        keep = [q, chunk, ring, view, pages]
        if self.counts is not None:
            counts = np.ascontiguousarray(self.counts[at : at + n])
            call.counts = k.pointer(counts, "int32_t *")
            keep.append(counts)
        if self.selected is not None:
            selected = np.ascontiguousarray(self.selected[at : at + n])
            call.selected, call.top = k.pointer(selected, "int32_t *"), selected.shape[1]
            keep.append(selected)
        return call, out, keep

    @staticmethod
    def run_together(k: Kernels, threads: int, cases: list[Case]) -> list[FloatArray]:
        """The one token of each case, as those of several sessions."""
        prepared = []
        for case in cases:
            encoded, ring = case._encoded(k)
            prepared.append(case._call(k, ring, encoded, case.position, 1))
        calls = k.ffi.new("ck_attention[]", [call[0] for call, _, _ in prepared])
        k.lib.attention_sessions_f32(k.pool(threads), calls, len(cases))
        return [out for _, out, _ in prepared]

    @property
    def scale(self) -> float:
        return float(np.float32(1 / np.sqrt(self.dim)))

    def exact(self, k: Kernels) -> NDArray[np.float64]:
        rows = decode(k, self.kind, encode(k, self.kind, self.rows, ROPE), self.dim, ROPE)
        pooled = decode(k, self.kind, encode(k, self.kind, self.pooled, ROPE), self.dim, ROPE)
        out = []
        for i in range(self.n):
            p = self.position + i
            seen = [rows[max(0, p + 1 - self.window) : p + 1]]
            if self.counts is not None:
                count = self.counts[i]
                order = np.arange(count) if self.selected is None else self.selected[i, :count]
                seen.append(pooled[order])
            values = np.concatenate(seen).astype(np.float64)
            scores = self.q[i].astype(np.float64) @ values.T * self.scale
            top = np.maximum(scores.max(axis=1), self.sinks)[:, None]
            weights = np.exp(scores - top)
            total = weights.sum(axis=1, keepdims=True) + np.exp(self.sinks[:, None] - top)
            out.append(weights / total @ values)
        return np.array(out)

    def check(self, kernels_of: dict[str, Kernels]) -> None:
        first = None
        for isa, k in kernels_of.items():
            found = self.run(k)
            np.testing.assert_allclose(found, self.exact(k), atol=1e-5, err_msg=isa)
            first = found if first is None else first
            np.testing.assert_array_equal(found, first, err_msg=isa)


@pytest.mark.parametrize("window", [1, 4, 16, 128])
@pytest.mark.parametrize(
    ("position", "n"),
    [(0, 1), (0, 5), (0, 130), (3, 1), (15, 3), (16, 17), (127, 1), (128, 1), (129, 3), (300, 129)],
)
def test_the_window_is_seen_whether_in_the_ring_or_in_the_chunk(
    kernels_of: dict[str, Kernels], window: int, position: int, n: int
) -> None:
    Case(window, position, n, heads=4, dim=128, kind=F32).check(kernels_of)


@pytest.mark.parametrize("kind", [F32, FP8])
@pytest.mark.parametrize("heads", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("dim", [64, 128, 512])
def test_every_number_of_heads_and_width_agrees_with_double_precision(
    kernels_of: dict[str, Kernels], kind: int, heads: int, dim: int
) -> None:
    counts = np.array([17, 0, 1, 33], np.int32)
    Case(16, 50, 4, heads, dim, kind, compressed=40, counts=counts).check(kernels_of)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 15, 16, 17, 127, 128, 129, 511, 512, 513])
def test_selected_rows_are_seen_in_any_number(kernels_of: dict[str, Kernels], count: int) -> None:
    rng = np.random.default_rng(count)
    rows = [np.sort(rng.permutation(600)[: max(count, 1)]) for _ in range(3)]
    selected = np.array(rows, np.int32)
    counts = np.array([count, count // 2, count], np.int32)
    Case(
        16, 30, 3, heads=4, dim=128, kind=FP8, compressed=600, selected=selected, counts=counts
    ).check(kernels_of)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 513, 2048, 2049])
@pytest.mark.parametrize("is_selected", [True, False])
def test_a_token_alone_gets_the_bits_that_it_gets_in_company(
    kernels_of: dict[str, Kernels], count: int, is_selected: bool
) -> None:
    # Alone, its rows are decoded once for all heads, unless they are too many.
    rng = np.random.default_rng(count)
    rows = np.sort(rng.permutation(2100)[: max(count, 1)]).astype(np.int32)
    selected = np.stack([rows, rows]) if is_selected else None
    counts = np.full(2, count, np.int32)
    case = Case(16, 30, 2, 5, 128, FP8, compressed=2100, selected=selected, counts=counts)
    for isa, k in kernels_of.items():
        alone = case.run(k, steps=[1, 1])
        np.testing.assert_array_equal(alone, case.run(k), err_msg=isa)
        np.testing.assert_allclose(alone, case.exact(k), atol=1e-5, err_msg=isa)


@pytest.mark.parametrize("kind", [F32, FP8])
@pytest.mark.parametrize("steps", [[1] * 40, [7, 33], [39, 1], [16, 16, 8]])
def test_every_split_of_the_tokens_gives_the_same_bits(
    kernels: Kernels, kind: int, steps: list[int]
) -> None:
    counts = np.arange(40, dtype=np.int32) // 4
    case = Case(16, 21, 40, heads=8, dim=128, kind=kind, compressed=10, counts=counts)
    whole = case.run(kernels)
    np.testing.assert_array_equal(case.run(kernels, steps=steps), whole)
    np.testing.assert_array_equal(case.run(kernels, threads=1, steps=steps), whole)
    np.testing.assert_array_equal(case.run(kernels, threads=3), whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sessions_together_get_the_bits_that_each_gets_alone(
    kernels_of: dict[str, Kernels], threads: int
) -> None:
    rng = np.random.default_rng(threads)
    cases = []
    for window, position, heads, count in (
        (16, 30, 5, 0),
        (16, 3, 64, 17),
        (128, 200, 9, 512),
        (4, 900, 8, 2048),
        (16, 31, 5, 2049),
    ):
        case = Case(window, position, 1, heads, 128, FP8, compressed=2100)
        case.counts = np.array([count], np.int32)
        if count % 2 == 0:
            case.selected = rng.permutation(2100)[None, : max(count, 1)].astype(np.int32)
        cases.append(case)
    cases.append(Case(16, 0, 1, heads=7, dim=64, kind=F32))
    for isa, k in kernels_of.items():
        for case, found in zip(cases, Case.run_together(k, threads, cases), strict=True):
            np.testing.assert_array_equal(found, case.run(k), err_msg=isa)
            np.testing.assert_allclose(found, case.exact(k), atol=1e-5, err_msg=isa)


@pytest.mark.parametrize("size", [0.0, 30.0, 1e3])
def test_sharp_scores_choose_a_row_and_stay_finite(
    kernels_of: dict[str, Kernels], size: float
) -> None:
    case = Case(16, 40, 5, heads=4, dim=128, kind=F32, size=size)
    for isa, k in kernels_of.items():
        np.testing.assert_allclose(case.run(k), case.exact(k), atol=3e-4, err_msg=isa)


@pytest.mark.parametrize(("sink", "share"), [(-1e30, 1.0), (60.0, 0.0)])
def test_the_sink_takes_its_share_of_the_weights(
    kernels: Kernels, sink: float, share: float
) -> None:
    case = Case(1, 10, 1, heads=4, dim=64, kind=F32)
    case.sinks[:] = sink
    np.testing.assert_allclose(case.run(kernels)[0], np.tile(case.rows[10] * share, (4, 1)),
                               atol=1e-6)  # fmt: skip
