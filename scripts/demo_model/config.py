"""The shape of the demo model. The defaults are the model that is shipped."""

from __future__ import annotations

from dataclasses import dataclass

ROPE_DIMENSIONS = 64
"""The last dimensions of every head, which carry the position."""
WINDOW = 128
"""Raw keys that a query sees. Rows of the batch are cut into blocks of this length."""
STREAMS = 4
"""Residual streams of the hyper-connections."""


@dataclass(frozen=True)
class Config:
    """Sizes and constants; ``ratios`` gives each layer's compression, 0 for none."""

    vocabulary: int = 4096
    hidden: int = 256
    heads: int = 4
    head_dim: int = 512
    query_rank: int = 256
    output_groups: int = 2
    output_rank: int = 128
    ratios: tuple[int, ...] = (0, 0, 4, 128, 4, 128, 4)
    experts: int = 8
    experts_used: int = 2
    expert_width: int = 256
    hash_layers: int = 1
    route_scale: float = 1.5
    swiglu_limit: float = 10.0
    index_heads: int = 8
    index_dim: int = 128
    index_top: int = 512
    yarn_factor: float = 16.0
    yarn_context: int = 65536
    rope_base: float = 10000.0
    compressed_rope_base: float = 160000.0
    epsilon: float = 1e-6
    sinkhorn_iterations: int = 20
    context: int = 16384
    seed: int = 1
