"""Random blocks, judged by PyPI gguf's dequantisers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pyds4.errors import InvalidArgumentError
from pyds4.synth import RANDOM_TYPES, random_blocks
from pyds4.synth.blocks import BlockSource

TYPES = sorted(RANDOM_TYPES)


def numbers(type: GGMLQuantizationType, blocks: np.ndarray) -> np.ndarray:
    if type is GGMLQuantizationType.F32:
        return blocks.view("<f4")
    if type is GGMLQuantizationType.F16:
        return blocks.view("<f2").astype(np.float32)
    return dequantize(blocks, type)


def test_every_type_of_the_engine_can_be_made() -> None:
    names = "BF16 F16 F32 IQ2_XXS MXFP4 Q2_K Q3_K Q4_0 Q4_K Q5_K Q6_K Q8_0"
    assert " ".join(sorted(type.name for type in TYPES)) == names


@pytest.mark.parametrize("std", [1.0, 2.0, 0.0442, 0.0078])
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_blocks_are_finite_with_the_asked_spread(type: GGMLQuantizationType, std: float) -> None:
    rng = np.random.default_rng(5)
    per_block = GGML_QUANT_SIZES[type][0]
    made = numbers(type, random_blocks(rng, type, 400_000 // per_block, std))
    assert np.isfinite(made).all()
    assert made.std(dtype=np.float64) == pytest.approx(std, rel=0.03)
    # Within four standard errors, were the numbers of a block independent; they share a scale.
    assert abs(made.mean(dtype=np.float64)) < 0.03 * std


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_scales_differ_from_block_to_block(type: GGMLQuantizationType) -> None:
    rng = np.random.default_rng(5)
    per_block = max(32, GGML_QUANT_SIZES[type][0])
    count = 64 * per_block // GGML_QUANT_SIZES[type][0]
    made = numbers(type, random_blocks(rng, type, count, 1.0)).reshape(64, per_block)
    assert len(np.unique(np.abs(made).max(axis=1))) > 1


def test_mean_shifts_floating_point_numbers() -> None:
    rng = np.random.default_rng(5)
    for type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        made = numbers(type, random_blocks(rng, type, 100_000, 0.25, 1.25))
        assert made.mean(dtype=np.float64) == pytest.approx(1.25, abs=0.01)


def test_q8_0_codes_stay_within_127() -> None:
    blocks = random_blocks(np.random.default_rng(5), GGMLQuantizationType.Q8_0, 10_000, 1.0)
    assert blocks[:, 2:].view(np.int8).min() == -127


def test_type_without_random_blocks_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="IQ1_S"):
        random_blocks(np.random.default_rng(5), GGMLQuantizationType.IQ1_S, 1, 1.0)


@pytest.mark.parametrize("blocks", [1000, 700_001])
def test_parts_of_a_tensor_join_to_the_whole(blocks: int) -> None:
    # Below and above the size from which tensors are cut from a shared pool (and wrap around it).
    part = BlockSource(3).data("t", GGMLQuantizationType.Q8_0, blocks, 0.1)
    whole = part(0, blocks)
    assert whole.shape == (blocks, 34)
    cuts = [0, 1, blocks // 3, blocks // 3 + 1, blocks]
    pieces = [part(a, b - a) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("blocks", [1000, 200_000])
def test_tensors_of_one_kind_differ(blocks: int) -> None:
    source = BlockSource(3)
    first, second = (
        source.data(name, GGMLQuantizationType.Q8_0, blocks, 0.1)(0, 1000) for name in "ab"
    )
    other_seed = BlockSource(4).data("a", GGMLQuantizationType.Q8_0, blocks, 0.1)(0, 1000)
    assert (first[:, 2:] == second[:, 2:]).mean() < 0.05
    assert (first[:, 2:] == other_seed[:, 2:]).mean() < 0.05
