"""Random tensor data in every storage type: valid blocks whose numbers have a wanted spread."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from ..errors import InvalidArgumentError

__all__ = ["RANDOM_TYPES", "BlockSource", "random_blocks"]

Bytes = NDArray[np.uint8]

# Where a block keeps its half-precision scales, and how large each is relative to the first. The
# second scale of the K types multiplies what is subtracted; its factor makes the mean zero
# (uniform random bits: Q2_K 11.25/7.5, Q4_K 7.5, Q5_K 15.5).
_SCALES: dict[GGMLQuantizationType, list[tuple[int, float]]] = {
    GGMLQuantizationType.Q4_0: [(0, 1.0)],
    GGMLQuantizationType.Q8_0: [(0, 1.0)],
    GGMLQuantizationType.Q2_K: [(80, 1.0), (82, 1.5)],
    GGMLQuantizationType.Q3_K: [(108, 1.0)],
    GGMLQuantizationType.Q4_K: [(0, 1.0), (2, 7.5)],
    GGMLQuantizationType.Q5_K: [(0, 1.0), (2, 15.5)],
    GGMLQuantizationType.Q6_K: [(208, 1.0)],
    GGMLQuantizationType.IQ2_XXS: [(0, 1.0)],
}

# Their codes are not symmetric about zero; a scale of either sign, as real files have it, makes
# up for that.
_SIGNED = {GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q3_K}

_FLOATS = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}

RANDOM_TYPES: frozenset[GGMLQuantizationType] = frozenset(
    {*_SCALES, *_FLOATS, GGMLQuantizationType.MXFP4}
)
"""Types that ``random_blocks`` can make: all that the engine computes with."""


def random_blocks(
    rng: np.random.Generator,
    type: GGMLQuantizationType,
    count: int,
    std: float,
    mean: float = 0.0,
) -> Bytes:
    """Make ``count`` blocks of random numbers; shape [count, bytes per block], uint8.

    Floating-point types hold normal numbers. Quantised types hold uniformly random codes and
    sub-scales, which a quantiser would seldom produce but every kernel must read, and a block
    scale that varies by a factor of three; ``std`` then holds over many blocks.

    Args:
        std: Wanted standard deviation, above 0 for the quantised types.
        mean: Only for floating-point types.

    Raises:
        InvalidArgumentError: ``type`` is not one of ``RANDOM_TYPES``.
    """
    if type in _FLOATS:
        return _floats(rng, type, count, std, mean)
    if type not in RANDOM_TYPES:
        raise InvalidArgumentError(f"no random blocks for {type.name}")
    if type is GGMLQuantizationType.MXFP4:
        return _mxfp4(rng, count, std)
    blocks = _codes(rng, type, count)
    scale = rng.uniform(0.5, 1.5, (count, 1)) * (std / _spread(type))
    if type in _SIGNED:
        scale *= rng.choice([-1.0, 1.0], (count, 1))
    _set_scales(blocks, type, scale)
    return blocks


def _floats(
    rng: np.random.Generator, type: GGMLQuantizationType, count: int, std: float, mean: float
) -> Bytes:
    numbers = rng.standard_normal(count, np.float32)
    numbers *= np.float32(std)
    numbers += np.float32(mean)
    if type is GGMLQuantizationType.F16:
        data = numbers.astype("<f2").view(np.uint8)
    elif type is GGMLQuantizationType.BF16:
        # The upper half of the float; truncation instead of rounding is as random.
        data = (numbers.view("<u4") >> np.uint32(16)).astype("<u2").view(np.uint8)
    else:
        data = numbers.astype("<f4").view(np.uint8)
    return data.reshape(count, -1)


def _codes(rng: np.random.Generator, type: GGMLQuantizationType, count: int) -> Bytes:
    """Blocks whose codes and sub-scales are random and whose scales are still to be set."""
    size = GGML_QUANT_SIZES[type][1]
    blocks = np.frombuffer(bytearray(rng.bytes(count * size)), np.uint8).reshape(count, size)
    if type is GGMLQuantizationType.Q8_0:
        # Quantisers use -127…127, and kernels may rely on it.
        np.copyto(blocks[:, 2:], 129, where=blocks[:, 2:] == 128)
    elif type is GGMLQuantizationType.Q6_K:
        # Signed 8-bit sub-scales, kept small so that the scale is not lost among the subnormals.
        blocks[:, 192:208] = (blocks[:, 192:208] & 63) - np.uint8(32)
    return blocks


def _set_scales(blocks: Bytes, type: GGMLQuantizationType, scale: NDArray[np.float64]) -> None:
    for offset, factor in _SCALES[type]:
        blocks[:, offset : offset + 2] = (scale * factor).astype("<f2").view(np.uint8)


@lru_cache
def _spread(type: GGMLQuantizationType) -> float:
    """Root mean square of the numbers when the scale is uniform in 0.5…1.5."""
    rng = np.random.Generator(np.random.SFC64(0))
    blocks = _codes(rng, type, 20_000)
    _set_scales(blocks, type, np.ones((len(blocks), 1)))
    numbers = dequantize(blocks, type)
    return math.sqrt(float(np.mean(np.square(numbers, dtype=np.float64))) * 13 / 12)


# Absolute values of the eight MXFP4 codes, at an exponent byte of 127.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def _mxfp4(rng: np.random.Generator, count: int, std: float) -> Bytes:
    """The scale is a power of two: two neighbouring ones are mixed to give the variance."""
    blocks = np.frombuffer(bytearray(rng.bytes(count * 17)), np.uint8).reshape(count, 17)
    ratio = std / math.sqrt(float(np.mean(_E2M1**2)))
    exponent = math.floor(math.log2(ratio))
    share = ((ratio / 2.0**exponent) ** 2 - 1) / 3
    blocks[:, 0] = 127 + exponent + (rng.random(count) < share)
    return blocks


class BlockSource:
    """Random data for the tensors of one file, the same for the same seed.

    A tensor of up to 4 MiB has numbers of its own. Larger ones are cut from a pool of 16 MiB per
    type and spread, each starting elsewhere, because 80 GiB of fresh random numbers would take far
    longer to make than to write. Pools hold a prime number of blocks, so repeats fall on other
    rows and experts.
    """

    _OWN_BYTES = 4 << 20
    _POOL_BYTES = 16 << 20

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[tuple[GGMLQuantizationType, float, float], Bytes] = {}
        self._lock = Lock()

    def rng(self, name: str) -> np.random.Generator:
        """A generator that depends on the seed and ``name`` alone."""
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        words = np.frombuffer(digest, "<u4")
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words.tolist())))

    def data(
        self, name: str, type: GGMLQuantizationType, blocks: int, std: float, mean: float = 0.0
    ) -> Callable[[int, int], Any]:
        """A function of (first block, blocks) for ``Tensor.data``."""
        if blocks * GGML_QUANT_SIZES[type][1] <= self._OWN_BYTES:
            return lambda start, count: random_blocks(self.rng(name), type, blocks, std, mean)[
                start : start + count
            ]
        first = int(self.rng(name).integers(1 << 40))

        def cut(start: int, count: int) -> Bytes:
            pool = self._pool(type, std, mean)
            pieces = []
            place = (first + start) % len(pool)
            while count:
                piece = pool[place : place + count]
                pieces.append(piece)
                count -= len(piece)
                place = 0
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        return cut

    def _pool(self, type: GGMLQuantizationType, std: float, mean: float) -> Bytes:
        with self._lock:
            key = (type, std, mean)
            if key not in self._pools:
                count = _prime_below(self._POOL_BYTES // GGML_QUANT_SIZES[type][1])
                name = f"pool {type.name} {std!r} {mean!r}"
                self._pools[key] = random_blocks(self.rng(name), type, count, std, mean)
            return self._pools[key]


def _prime_below(bound: int) -> int:
    while any(bound % divisor == 0 for divisor in range(2, math.isqrt(bound) + 1)):
        bound -= 1
    return bound
