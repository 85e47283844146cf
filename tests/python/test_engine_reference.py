"""Each kind of layer and each tensor type against double precision (tests/reference.py).

One layer at a time: a deep random model amplifies the noise of its roundings until two right
evaluations differ by percents, one layer does not, and then the agreement is that of f32.
"""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from golden import error, errors, prompts
from numpy.typing import NDArray
from reference import Reference, Rounding

from models import (
    F32,
    MIX,
    QUANTISED,
    cold,
    engine,
    random_tokens,
    synthetic_path,
    weights_of,
)
from pyds4.synth import Dimensions, TensorTypes, dimensions
from pyds4.synth.fixtures import FIXTURES, fixture_weights

F32_BOUND = 3e-6
RATIOS = pytest.mark.parametrize("ratio", [0, 4, 128])


def _tokens(count: int) -> NDArray[np.int32]:
    return np.array(random_tokens(count, seed=3), np.int32)


def _compare(
    dims: Dimensions, types: TensorTypes, count: int, *, memory: bool
) -> NDArray[np.float64]:
    """Each row's distance from double precision, which rounds what the engine rounds."""
    path = synthetic_path(dims, types)
    weights, quantised = weights_of(path)
    exact = Reference(dims, weights, Rounding(memory=memory, int8=quantised))
    tokens = _tokens(count)
    return errors(cold(engine(path, memory), tokens), exact.logits(tokens))


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("n", [17, 300])
def test_double_precision_agrees_with_the_oracle(name: str, n: int) -> None:
    wanted = prompts(name)[n]
    found = Reference(FIXTURES[name][0], fixture_weights(name)).logits(wanted.tokens)
    assert error(found[:, ::2], wanted.logits) <= 5e-6
    np.testing.assert_array_equal(found.argmax(axis=1), wanted.best)


@RATIOS
@pytest.mark.parametrize("hash_layers", [0, 1])
def test_a_layer_agrees_with_double_precision(ratio: int, hash_layers: int) -> None:
    dims = dimensions("tiny", ratios=(ratio,), hash_layers=hash_layers)
    assert _compare(dims, F32, 300, memory=False).max() <= F32_BOUND


@RATIOS
def test_a_layer_with_roundings_agrees_with_double_precision_in_every_row(ratio: int) -> None:
    dims = dimensions("tiny", ratios=(ratio,), hash_layers=1)
    assert _compare(dims, F32, 300, memory=True).max() <= 1e-5


@pytest.mark.parametrize("ratio", [4, 128])
def test_rows_as_wide_as_the_published_ones_are_rounded_as_double_precision_does(
    ratio: int,
) -> None:
    dims = dimensions("tiny", ratios=(ratio,), hash_layers=1, head_dim=512, window=128, heads=4)
    assert np.median(_compare(dims, F32, 300, memory=True)) <= 1e-5


def test_a_missing_rounding_would_be_seen() -> None:
    dims = dimensions("tiny", ratios=(4,), hash_layers=1)
    path = synthetic_path(dims, F32)
    exact = Reference(dims, weights_of(path)[0], Rounding(memory=True)).logits(_tokens(40))
    assert np.median(errors(cold(engine(path, False), _tokens(40)), exact)) > 1e-2


@pytest.mark.parametrize("type", sorted(QUANTISED), ids=lambda type: type.name)
def test_every_quantised_type_agrees_with_double_precision(type: Type) -> None:
    # Inputs become int8; one of thousands may lie on a border and go the other way in f32, which
    # moves its row by up to a percent. Most rows have none.
    dims = dimensions("tiny", ratios=(4,), hash_layers=1, index_top_k=1024, head_dim=256)
    distances = _compare(dims, TensorTypes.uniform(type), 140, memory=False)
    assert np.median(distances) <= 1e-6
    assert distances.max() <= 3e-2


@pytest.mark.parametrize("type", [Type.F16, Type.BF16], ids=lambda type: type.name)
def test_half_precision_weights_agree_with_double_precision(type: Type) -> None:
    dims = dimensions("tiny", ratios=(4,), hash_layers=1, index_top_k=1024)
    assert _compare(dims, TensorTypes.uniform(type), 140, memory=False).max() <= F32_BOUND


def test_the_published_mix_of_types_stays_within_3_5_percent_of_its_own_weights() -> None:
    # Against unrounded inputs, as other engines are compared; no choice depends on activations.
    dims = dimensions("tiny", ratios=(0, 4, 128, 4, 128, 4), hash_layers=6, index_top_k=1024)
    path = synthetic_path(dims, MIX)
    tokens = _tokens(300)
    exact = Reference(dims, weights_of(path)[0]).logits(tokens)
    found = cold(engine(path, False), tokens)
    assert error(found, exact) <= 0.035
    assert np.mean(found.argmax(axis=1) == exact.argmax(axis=1)) >= 0.93
