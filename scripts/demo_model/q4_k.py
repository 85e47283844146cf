"""Q4_K: super-blocks of 256 weights, 8 blocks of 32, each with a 6-bit scale and minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 144


def quantise_q4_k(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``weights`` [..., n] as bytes [..., n / 256 * 144]; n is a multiple of 256.

    Of a few clipping ranges each super-block keeps the one with the least squared error.
    """
    x = np.ascontiguousarray(weights, np.float32).reshape(-1, 8, 32)
    low = np.minimum(x.min(-1), 0)
    high = np.maximum(x.max(-1), low + 1e-8)
    error, *best = _attempt(x, low, high, 1.0)
    for clip in (0.95, 0.9, 0.85):
        other, *parts = _attempt(x, low, high, clip)
        better = other < error
        error = np.where(better, other, error)
        for index, (new, old) in enumerate(zip(parts, best, strict=True)):
            best[index] = np.where(better.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)
    return _pack(*best).reshape(*weights.shape[:-1], -1)


def _attempt(
    x: NDArray[Any], low: NDArray[Any], high: NDArray[Any], clip: float
) -> tuple[NDArray[Any], ...]:
    """Squared error [n], d [n], dmin [n], scales [n, 8], minima [n, 8], nibbles [n, 8, 32]."""
    scale, minimum = (high - low) * clip / 15, -low * clip
    d = (scale.max(-1) / 63).astype(np.float16)
    d_min = (minimum.max(-1) / 63).astype(np.float16)
    d32, d_min32 = d.astype(np.float32)[:, None], d_min.astype(np.float32)[:, None]
    scales = np.clip(np.rint(scale / np.maximum(d32, 1e-12)), 0, 63).astype(np.uint8)
    minima = np.clip(np.rint(minimum / np.maximum(d_min32, 1e-12)), 0, 63).astype(np.uint8)
    step, shift = scales * d32, minima * d_min32
    q = np.rint((x + shift[..., None]) / np.maximum(step, 1e-12)[..., None])
    q = np.clip(q, 0, 15).astype(np.uint8)
    error = ((q * step[..., None] - shift[..., None] - x) ** 2).sum((1, 2))
    return error, d, d_min, scales, minima, q


def _pack(
    d: NDArray[Any], d_min: NDArray[Any], s: NDArray[Any], m: NDArray[Any], q: NDArray[Any]
) -> NDArray[np.uint8]:
    """Bytes: d, dmin, twelve bytes of 6-bit scales and minima, then nibbles by pairs of blocks."""
    out = np.empty((len(d), BLOCK_BYTES), np.uint8)
    out[:, :2] = d.astype(np.float16)[:, None].view(np.uint8)
    out[:, 2:4] = d_min.astype(np.float16)[:, None].view(np.uint8)
    out[:, 4:8] = (s[:, :4] & 63) | ((s[:, 4:] >> 4) << 6)
    out[:, 8:12] = (m[:, :4] & 63) | ((m[:, 4:] >> 4) << 6)
    out[:, 12:16] = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    pairs = q.reshape(len(d), 4, 2, 32)
    out[:, 16:] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(d), 128)
    return out
