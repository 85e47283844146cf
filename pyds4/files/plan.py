"""Memory of a model that is not here yet, from its dimensions: the engine's arithmetic in Python.

Tests hold it against the engine's own (``ModelFile.memory``) over synthetic models.
"""

from __future__ import annotations

from ..model_file import MemoryNeed
from ..synth.model import Dimensions

__all__ = ["memory_of"]

_CHUNK_TOKENS = 512


def memory_of(d: Dimensions, weights: int, context: int, *, roundings: bool = True) -> MemoryNeed:
    """What a model of dimensions ``d`` and ``weights`` bytes needs at ``context`` tokens."""
    row = _row_bytes(d.head_dim, d.rope_dims) if roundings else 4 * d.head_dim
    index_row = d.index_dim // 2 + d.index_dim // 32 if roundings else 4 * d.index_dim
    kv = 0
    for ratio in d.ratios:
        kv += d.window * row
        if ratio:
            page, series = (256, 3) if ratio == 4 else (32, 1)
            rows = -(-(context // ratio) // page) * page
            kv += rows * row + series * 3 * d.head_dim * 4
            if ratio == 4:
                kv += rows * index_row + series * 3 * d.index_dim * 4
    routed = d.experts_used * (d.hidden + d.inter)
    heads = d.heads * d.head_dim
    widest = 10 * d.hidden + max(4 * heads, 2 * routed) + d.o_groups * d.o_lora
    return MemoryNeed(weights=weights, kv=kv, buffers=min(context, _CHUNK_TOKENS) * widest * 4)


def _row_bytes(dim: int, rope: int) -> int:
    """e4m3 bytes, scale bytes padded to eight, 21 bits a rotated value (ckernels.h draws it)."""
    scales = -(-(-(-(dim - rope) // 64) + 1) // 8) * 8
    return dim - rope + scales + -(-rope // 3) * 8
