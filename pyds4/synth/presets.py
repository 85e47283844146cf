"""Named dimensions, from a model that loads in a blink to the real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InvalidArgumentError
from .model import Dimensions

__all__ = ["PRESETS", "dimensions"]

_FLASH = Dimensions(
    hidden=4096,
    inter=2048,
    heads=64,
    head_dim=512,
    q_lora=1024,
    o_groups=8,
    o_lora=1024,
    experts=256,
    experts_used=6,
    index_heads=64,
    index_dim=128,
    index_top_k=512,
    window=128,
    vocab=129280,
    ratios=(0, 0, *(4, 128) * 20, 4),
    hash_layers=3,
    route_scale=1.5,
    swiglu_clamp=10.0,
    yarn_factor=16.0,
    yarn_context=65536,
)

PRESETS: dict[str, Dimensions] = {
    # One layer of each kind: window only, both ratios, hash and learned routing.
    "tiny": replace(
        _FLASH,
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
        index_top_k=8,
        window=16,
        vocab=512,
        ratios=(0, 4, 128, 4),
        hash_layers=2,
        swiglu_clamp=1.5,
        yarn_factor=4.0,
        yarn_context=1024,
    ),
    # Large enough for kernels to show their speed, small enough for a laptop: 1.3 GiB.
    "mid": replace(
        _FLASH,
        hidden=2048,
        inter=1024,
        heads=32,
        o_groups=4,
        o_lora=512,
        experts=64,
        index_heads=32,
        vocab=8192,
        ratios=(0, 0, 4, 128, 4, 128, 4, 128),
        hash_layers=2,
    ),
    "flash": _FLASH,
    "pro": replace(
        _FLASH,
        hidden=7168,
        inter=3072,
        heads=128,
        q_lora=1536,
        o_groups=16,
        experts=384,
        index_top_k=1024,
        ratios=(128, 128, *(4, 128) * 29, 4),
        route_scale=2.5,
    ),
}


def dimensions(preset: str, layers: int | None = None, **overrides: Any) -> Dimensions:
    """The dimensions of ``preset``, some of them changed.

    Args:
        preset: A key of ``PRESETS``.
        layers: The first so many layers; further ones go on alternating
            ratios 4 and 128. Not together with ``ratios``.
        overrides: Fields of ``Dimensions``.

    Raises:
        InvalidArgumentError: an unknown preset or field, or a value no model can have.
    """
    if preset not in PRESETS:
        raise InvalidArgumentError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    base = PRESETS[preset]
    unknown = overrides.keys() - vars(base).keys()
    if unknown:
        raise InvalidArgumentError(
            f"no dimension {', '.join(sorted(unknown))}; there are {', '.join(vars(base))}"
        )
    if layers is not None:
        if "ratios" in overrides:
            raise InvalidArgumentError("give layers or ratios, not both")
        if layers < 1:
            raise InvalidArgumentError(f"layers must be 1 or more, not {layers}")
        further = (128, 4) if base.ratios[-1] == 4 else (4, 128)
        overrides["ratios"] = (base.ratios + further * layers)[:layers]
    ratios = overrides["ratios"] = tuple(overrides.get("ratios", base.ratios))
    overrides.setdefault("hash_layers", min(base.hash_layers, len(ratios)))
    return replace(base, **overrides)
