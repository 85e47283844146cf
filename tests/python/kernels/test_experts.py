"""The routed feed-forward layer against float64, and its bits in every batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from .conftest import FLOAT_TYPES, FloatArray, Kernels, Weights, rounded

Matrices = tuple[Weights, Weights, Weights]
DIM, EXPERTS, USED = 512, 8, 3
MIXES = [
    ("IQ2_XXS", "IQ2_XXS", "Q2_K"), ("Q4_K", "Q4_K", "Q4_K"), ("MXFP4", "MXFP4", "MXFP4"),
    ("Q8_0", "Q8_0", "Q8_0"), ("F32", "F32", "F32"), ("F16", "F16", "Q8_0"),
    ("Q8_0", "F16", "F32"), ("Q2_K", "IQ2_XXS", "Q6_K"),
]  # fmt: skip


def make(mix: tuple[str, str, str], inner: int = 256) -> Matrices:
    rng = np.random.default_rng(1)
    gate, up, down = mix
    return (
        Weights(gate, EXPERTS * inner, DIM, rng),
        Weights(up, EXPERTS * inner, DIM, rng),
        Weights(down, EXPERTS * DIM, inner, rng),
    )


def routing(n: int, seed: int = 0) -> tuple[FloatArray, npt.NDArray[np.int32], FloatArray]:
    """x, ids, weights. Expert 7 is never chosen."""
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(EXPERTS - 1)[:USED] for _ in range(n)], np.int32)
    x = rng.normal(0, 1, (n, DIM)).astype(np.float32)
    return x, ids.reshape(n, USED), rng.random((n, USED)).astype(np.float32)


def seen_by(w: Weights, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x if w.name in FLOAT_TYPES else rounded(x[None])[0]


def reference(
    matrices: Matrices, x: FloatArray, ids: npt.NDArray[np.int32], scales: FloatArray, clamp: float
) -> npt.NDArray[np.float64]:
    """In float64, but for the int8 rounding of what quantised weights multiply."""
    gate, up, down = (w.values.reshape(EXPERTS, -1, w.cols) for w in matrices)
    y = np.zeros(x.shape)
    for t, row in enumerate(x.astype(np.float64)):
        for expert, scale in zip(ids[t], scales[t], strict=True):
            g = gate[expert] @ seen_by(matrices[0], row)
            u = up[expert] @ seen_by(matrices[1], row)
            if clamp > 0:
                g, u = np.minimum(g, clamp), np.clip(u, -clamp, clamp)
            h = scale * g * np.exp(-np.logaddexp(0, -g)) * u
            y[t] += down[expert] @ seen_by(matrices[2], h)
    return y


def tolerance(mix: tuple[str, str, str]) -> float:
    """A last-bit difference in h can move it across a rounding boundary of int8."""
    return 3e-6 if mix[2] in FLOAT_TYPES else 1e-3


def relative_error(y: FloatArray, expected: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@pytest.mark.parametrize("clamp", [10.0, 0.0, 0.5])
def test_experts_agree_with_float64(
    kernels: Kernels, mix: tuple[str, str, str], clamp: float
) -> None:
    matrices = make(mix)
    for n in (1, 2, 40):
        x, ids, scales = routing(n)
        y = kernels.experts(matrices, x, ids, scales, clamp)
        assert relative_error(y, reference(matrices, x, ids, scales, clamp)) < tolerance(mix)


def test_one_expert_may_take_all_tokens(kernels: Kernels) -> None:
    mix = ("IQ2_XXS", "IQ2_XXS", "Q2_K")
    matrices = make(mix)
    x, _, scales = routing(150)
    ids = np.full((150, 1), 5, np.int32)
    scales = np.ascontiguousarray(scales[:, :1])
    y = kernels.experts(matrices, x, ids, scales)
    assert relative_error(y, reference(matrices, x, ids, scales, 10.0)) < tolerance(mix)


def test_inner_sizes_beside_the_tile_size_work(kernels: Kernels) -> None:
    for mix, inner in ((("F32", "F32", "F32"), 24), (("Q8_0", "Q8_0", "Q8_0"), 96)):
        matrices = make(mix, inner)
        x, ids, scales = routing(5)
        y = kernels.experts(matrices, x, ids, scales)
        assert relative_error(y, reference(matrices, x, ids, scales, 10.0)) < tolerance(mix)


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_experts_have_the_same_bits_in_any_batch_on_any_instruction_set(
    kernels_of: dict[str, Kernels], mix: tuple[str, str, str]
) -> None:
    matrices = make(mix)
    x, ids, scales = routing(140)
    few = slice(0, 6)
    expected = kernels_of["plain"].experts(matrices, x[few], ids[few], scales[few])
    for isa, kernels in kernels_of.items():
        if isa == "plain":
            continue
        together = kernels.experts(matrices, x, ids, scales)
        np.testing.assert_array_equal(together[few], expected, err_msg=isa)
        np.testing.assert_array_equal(
            kernels.experts(matrices, x, ids, scales, threads=1), together
        )
        for t in (0, 77, 139):
            alone = kernels.experts(matrices, x[t : t + 1], ids[t : t + 1], scales[t : t + 1])
            np.testing.assert_array_equal(alone[0], together[t])


def test_a_nan_stays_in_its_own_token(kernels_of: dict[str, Kernels]) -> None:
    matrices = make(("IQ2_XXS", "IQ2_XXS", "Q2_K"))
    x, ids, scales = routing(9)
    x[4, 100] = np.nan
    for kernels in kernels_of.values():
        y = kernels.experts(matrices, x, ids, scales)
        assert np.isnan(y[4]).all()
        assert np.isfinite(np.delete(y, 4, 0)).all()


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 100])
def test_swiglu_agrees_with_float64(kernels_of: dict[str, Kernels], dim: int) -> None:
    rng = np.random.default_rng(dim)
    gate = (rng.normal(0, 8, (3, dim))).astype(np.float32)
    up = (rng.normal(0, 8, (3, dim))).astype(np.float32)
    gate[0, 0], gate[1, 0], gate[2, 0] = -1000, 1000, -0.0
    g = np.minimum(gate.astype(np.float64), 10)
    expected = g * np.exp(-np.logaddexp(0, -g)) * np.clip(up.astype(np.float64), -10, 10)
    for kernels in kernels_of.values():
        out = gate.copy()  # in place, as the engine calls it
        kernels.lib.experts_swiglu(
            kernels.pool(2), kernels.pointer(out), kernels.pointer(up), 3, dim, 10.0,
            kernels.pointer(out),
        )  # fmt: skip
        np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-6)
