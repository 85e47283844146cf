"""How the next token is chosen."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyds4._native import check, ffi, lib
from pyds4.errors import InvalidArgumentError


@dataclass(frozen=True)
class Sampling:
    """What a request may say about choosing tokens; the defaults sample from the model as it is.

    Order of application: ``top_k``, then softmax at ``temperature``, ``top_p``, ``min_p``.

    Args:
        temperature: 0 takes the most likely token.
        top_p: Keep the likeliest tokens that together reach this probability. 1: all.
        top_k: Keep this many. 0: all.
        min_p: Drop tokens less likely than this times the likeliest. 0: none.
        seed: The same seed gives the same tokens. None: a fresh one.

    Raises:
        InvalidArgumentError: a value out of its range, named.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def require(ok: bool, what: str) -> None:
            if not ok:
                raise InvalidArgumentError(what)

        t, p, m = self.temperature, self.top_p, self.min_p
        require(math.isfinite(t) and t >= 0, f"temperature: expected 0 or more, found {t}")
        require(0 < p <= 1, f"top_p: expected more than 0, at most 1, found {p}")
        require(0 <= m <= 1, f"min_p: expected 0 to 1, found {m}")
        require(self.top_k >= 0, f"top_k: expected 0 or more, found {self.top_k}")

    def native(self) -> Any:
        """As the C ABI's ``pyds4_sampling``."""
        out = ffi.new("pyds4_sampling *")
        out.struct_size = ffi.sizeof("pyds4_sampling")
        out.temperature, out.top_p, out.min_p = self.temperature, self.top_p, self.min_p
        out.top_k = min(self.top_k, 2**31 - 1)
        return out


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """A `Sampling` with its stream of random numbers: one for each generation."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._native = sampling.native()
        self._random = random.Random(sampling.seed)

    def uniform(self) -> float:
        """The next random number, in [0, 1)."""
        return self._random.random()

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """A token id from scores of shape (vocabulary,), float32.

        Raises:
            InvalidArgumentError: no score is a number.
        """
        row = np.ascontiguousarray(logits, dtype=np.float32)
        token = ffi.new("int32_t *")
        pointer = ffi.cast("const float *", row.ctypes.data)
        check(lib.pyds4_sample(pointer, row.size, self._native, self.uniform(), token))
        return int(token[0])
