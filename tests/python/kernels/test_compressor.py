"""Windows of tokens pooled into rows, whatever the split."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import FloatArray, Kernels

KINDS = pytest.mark.parametrize(
    ("ratio", "overlap"), [(4, True), (2, False), (16, False), (128, False)]
)
DIMS = pytest.mark.parametrize("dim", [16, 48, 64, 128, 512])


class Session:
    """The kernel's running sums, and what was pooled so far."""

    def __init__(self, k: Kernels, dim: int, ratio: int, overlap: bool, ape: FloatArray) -> None:
        self.k, self.dim, self.ratio, self.overlap, self.ape = k, dim, ratio, overlap, ape
        self.state = np.zeros((3 if overlap else 1, 3, dim), np.float32)
        self.position = 0

    def append(self, kv: FloatArray, gate: FloatArray, threads: int = 2) -> FloatArray:
        n, k = len(kv), self.k
        completed = (self.position + n) // self.ratio - self.position // self.ratio
        rows = np.full((completed + 1, self.dim), np.nan, np.float32)
        k.lib.compressor_pool_f32(
            k.pool(threads), k.pointer(kv), k.pointer(gate), k.pointer(self.ape), n, self.dim,
            self.ratio, self.overlap, self.position, k.pointer(self.state), k.pointer(rows),
        )  # fmt: skip
        assert np.isnan(rows[completed]).all(), "wrote past the completed rows"
        self.position += n
        return rows[:completed]


def inputs(n: int, width: int, ratio: int, size: float = 2.0) -> tuple[FloatArray, ...]:
    rng = np.random.default_rng(n)
    return tuple(
        (rng.normal(0, 1, shape) * scale).astype(np.float32)
        for shape, scale in [((n, width), 1.0), ((n, width), size), ((ratio, width), 0.75)]
    )


def exact(
    kv: FloatArray, gate: FloatArray, ape: FloatArray, ratio: int, overlap: bool, dim: int
) -> NDArray[np.float64]:
    rows = []
    for w in range(len(kv) // ratio):
        own = slice(w * ratio, (w + 1) * ratio)
        before = slice((w - 1) * ratio, w * ratio)
        if overlap:
            g, v = gate[own, dim:] + ape[:, dim:], kv[own, dim:]
            if w:
                g = np.concatenate([gate[before, :dim] + ape[:, :dim], g])
                v = np.concatenate([kv[before, :dim], v])
        else:
            g, v = gate[own] + ape, kv[own]
        weights = np.exp(g.astype(np.float64) - g.max(axis=0))
        rows.append((weights * v).sum(axis=0) / weights.sum(axis=0))
    return np.array(rows).reshape(-1, dim)


@KINDS
@DIMS
@pytest.mark.parametrize("n", [1, 3, 4, 5, 127, 128, 129, 300])
def test_rows_agree_with_a_softmax_in_double_precision(
    kernels_of: dict[str, Kernels], ratio: int, overlap: bool, dim: int, n: int
) -> None:
    kv, gate, ape = inputs(n, dim * (2 if overlap else 1), ratio)
    wanted = exact(kv, gate, ape, ratio, overlap, dim)
    first = None
    for isa, k in kernels_of.items():
        found = Session(k, dim, ratio, overlap, ape).append(kv, gate)
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=isa)
        first = found if first is None else first
        np.testing.assert_array_equal(found, first, err_msg=isa)


@KINDS
@pytest.mark.parametrize(
    "sizes", [[1], [3], [4], [5, 1, 7], [127, 1, 2], [128, 129], [1, 255, 4]], ids=str
)
def test_every_split_pools_the_same_bits(
    kernels: Kernels, ratio: int, overlap: bool, sizes: list[int]
) -> None:
    dim, n = 64, 400
    kv, gate, ape = inputs(n, dim * (2 if overlap else 1), ratio)
    whole = Session(kernels, dim, ratio, overlap, ape)
    wanted = whole.append(kv, gate)
    parts: list[FloatArray] = []
    session = Session(kernels, dim, ratio, overlap, ape)
    while session.position < n:
        at = slice(session.position, session.position + sizes[len(parts) % len(sizes)])
        parts.append(session.append(kv[at], gate[at], threads=1))
    np.testing.assert_array_equal(np.concatenate(parts), wanted)
    np.testing.assert_array_equal(session.state, whole.state)


@KINDS
@pytest.mark.parametrize("size", [0.0, 100.0, 1e6, 1e30])
def test_extreme_gates_choose_and_stay_finite(
    kernels: Kernels, ratio: int, overlap: bool, size: float
) -> None:
    dim, n = 16, 256
    kv, gate, ape = inputs(n, dim * (2 if overlap else 1), ratio, size)
    found = Session(kernels, dim, ratio, overlap, ape).append(kv, gate)
    np.testing.assert_allclose(found, exact(kv, gate, ape, ratio, overlap, dim), atol=1e-4)
