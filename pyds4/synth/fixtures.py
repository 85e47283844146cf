"""The small models behind the golden logits, bit for bit.

The golden logits were computed from these weights by another implementation, so they must come out
the same on every machine: integers from a counter-based generator, times a power-of-two scale with
a mantissa of four bits. Such weights are exact in F32, F16 and BF16 alike.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from .model import Dimensions, Fill, TensorPlan, metadata, plan
from .writer import Tensor, write_gguf

__all__ = ["FIXTURES", "fixture_weights", "write_fixture"]

_A = Dimensions(
    hidden=256,
    inter=256,
    heads=8,
    head_dim=128,
    q_lora=256,
    o_groups=2,
    o_lora=256,
    experts=16,
    experts_used=4,
    index_heads=16,
    index_dim=128,
    index_top_k=8,
    window=16,
    vocab=512,
    ratios=(0, 4, 128, 4, 128, 4),
    hash_layers=2,
    route_scale=1.5,
    swiglu_clamp=1.5,
    yarn_factor=4.0,
    yarn_context=1024,
)
_B = Dimensions(
    hidden=256,
    inter=256,
    heads=8,
    head_dim=512,
    q_lora=256,
    o_groups=4,
    o_lora=256,
    experts=16,
    experts_used=6,
    index_heads=16,
    index_dim=128,
    index_top_k=16,
    window=128,
    vocab=512,
    ratios=(128, 128, 4, 0, 4, 128),
    hash_layers=3,
    route_scale=2.5,
    swiglu_clamp=2.0,
    yarn_factor=16.0,
    yarn_context=65536,
)


def _smooth(dimensions: Dimensions) -> Dimensions:
    """The same model where no discrete choice depends on activations: every layer is hash-routed
    and the indexer keeps everything. Rounding errors then stay small and continuous."""
    return replace(dimensions, hash_layers=len(dimensions.ratios), index_top_k=1024)


FIXTURES: dict[str, tuple[Dimensions, int]] = {
    "a": (_A, 101),
    "b": (_B, 202),
    "as": (_smooth(_A), 101),
    "bs": (_smooth(_B), 202),
}
"""Dimensions and seed by name."""


def write_fixture(path: str | os.PathLike[str], name: str) -> int:
    """Write fixture ``name`` in F32 and return the size of the file in bytes."""
    dimensions, seed = FIXTURES[name]
    tensors = []
    for tensor in plan(dimensions):
        weights = _weights(tensor, dimensions, seed)
        is_table = tensor.fill is Fill.TABLE
        type = GGMLQuantizationType.I32 if is_table else GGMLQuantizationType.F32
        tensors.append(Tensor(tensor.name, tensor.shape, type, weights))
    return write_gguf(path, metadata(dimensions, f"tiny deepseek4 {name}", 0), tensors)


def fixture_weights(name: str) -> dict[str, NDArray[Any]]:
    """All weights by tensor name; numpy shapes, the reverse of ggml's."""
    dimensions, seed = FIXTURES[name]
    return {
        tensor.name: _weights(tensor, dimensions, seed).reshape(tensor.shape[::-1])
        for tensor in plan(dimensions)
    }


def _weights(tensor: TensorPlan, dimensions: Dimensions, seed: int) -> NDArray[Any]:
    make: dict[Fill, Callable[[], NDArray[Any]]] = {
        Fill.MATRIX: lambda: _matrix(tensor, seed),
        Fill.VECTOR: lambda: _vector(tensor, seed),
        Fill.SCALES: lambda: _scales(tensor, seed),
        Fill.CONSTANT: lambda: np.full(tensor.shape, tensor.mean, np.float32),
        Fill.TABLE: lambda: _table(tensor, dimensions, seed),
    }
    return make[tensor.fill]()


def _matrix(tensor: TensorPlan, seed: int) -> NDArray[np.float32]:
    """Integers of -4…4 (binomial, variance 2), one random byte each, times the scale."""
    count = math.prod(tensor.shape)
    random = _splitmix64(seed, tensor.name, -(-count // 8)).astype("<u8").view(np.uint8)[:count]
    scale = _four_bit_scale(tensor.std / math.sqrt(2.0))
    return (np.bitwise_count(random).astype(np.int8) - 4).astype(np.float32) * scale


def _vector(tensor: TensorPlan, seed: int) -> NDArray[np.float32]:
    """Integers of -16…16 (variance 8), scaled to a grid of 2^-8 around the mean."""
    step = np.float32(round(tensor.std / math.sqrt(8.0) * 256) / 256)
    weights = _fine(seed, tensor.name, math.prod(tensor.shape))
    weights *= step
    weights += np.float32(tensor.mean)
    return weights


def _scales(tensor: TensorPlan, seed: int) -> NDArray[np.float32]:
    # The generator is keyed by the tensor's name without hc_ and the underscore.
    key = tensor.name.removesuffix("_scale.weight").replace("hc_", "") + "scale"
    scales: NDArray[np.float32] = np.array([0.75, 1.0, 1.25], np.float32)
    scales += _fine(seed, key, 3) * np.float32(1 / 64)
    return scales


def _table(tensor: TensorPlan, dimensions: Dimensions, seed: int) -> NDArray[np.int32]:
    """Distinct experts for each token: the first of all experts in the order of a hash."""
    name = tensor.name.removesuffix("ffn_gate_tid2eid.weight") + "tid2eid"
    keys = _splitmix64(seed, name, dimensions.vocab * dimensions.experts)
    order = np.argsort(keys.reshape(dimensions.vocab, -1), axis=1, kind="stable")
    return order[:, : dimensions.experts_used].astype(np.int32)


def _fine(seed: int, name: str, count: int) -> NDArray[np.float32]:
    random = _splitmix64(seed, name, -(-count // 2)).astype("<u8").view("<u4")[:count]
    ones: NDArray[np.uint8] = np.bitwise_count(random)
    return (ones.astype(np.int32) - 16).astype(np.float32)


def _four_bit_scale(value: float) -> np.float32:
    exponent = math.floor(math.log2(value)) - 3
    return np.float32(round(value / 2.0**exponent) * 2.0**exponent)


def _splitmix64(seed: int, name: str, count: int) -> NDArray[np.uint64]:
    """Number i is mix(key + (i + 1) * golden ratio); key = mix(FNV-1a(name) + seed)."""
    mask = (1 << 64) - 1
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = ((hashed ^ byte) * 0x100000001B3) & mask
    key = _mix(np.array([(hashed + seed) & mask], np.uint64))
    index = np.arange(1, count + 1, dtype=np.uint64)
    return _mix(key + index * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
