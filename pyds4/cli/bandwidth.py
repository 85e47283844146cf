"""How fast this machine reads memory: the limit of decoding."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

_MOST_BYTES = 1 << 30
_PASSES = 5


class MemoryReader:
    """Measures the rate at which ``threads`` threads read an array larger than any cache."""

    def __init__(self, threads: int) -> None:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        words = min(_MOST_BYTES, physical // 16) // 8
        # Written, because untouched pages all share one page of zeros.
        self._parts = np.array_split(np.full(words, 1, np.uint64), threads)
        self._threads = threads

    def bytes_per_s(self) -> float:
        """The middle of a few passes: decoding, compared with it, is no best case either."""
        byte_count = sum(part.nbytes for part in self._parts)
        rates = []
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in range(_PASSES):
                started = time.perf_counter()
                # numpy lets go of the GIL, and a bitwise or is faster than memory anywhere.
                for _ in pool.map(np.bitwise_or.reduce, self._parts):
                    pass
                rates.append(byte_count / (time.perf_counter() - started))
        return median(rates)
