"""What quantised caches and weights do to numbers, with gradients that pass straight through."""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.demo_model.config import ROPE_DIMENSIONS


def _through(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` forward, the identity backward."""
    return x + (rounded - x).detach()


def cache_row(x: Tensor) -> Tensor:
    """A row of the attention memory: FP8 e4m3 in blocks of 64, bfloat16 where the position is.

    Scales are powers of two, so that the largest value of a block fits below 448.
    """
    plain, positional = x[..., :-ROPE_DIMENSIONS].float(), x[..., -ROPE_DIMENSIONS:].float()
    y = plain.unflatten(-1, (-1, 64))
    largest = y.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(largest / 448.0)))
    v = (y / scale).clamp(-448, 448)
    # Three bits of mantissa; the smallest exponent is -6.
    step = torch.exp2(torch.floor(torch.log2(v.abs().clamp_min(2.0**-6))) - 3)
    rounded = (torch.round(v / step) * step * scale).flatten(-2)
    return torch.cat(
        (
            _through(plain, rounded.detach()),
            _through(positional, positional.bfloat16().float().detach()),
        ),
        -1,
    )


def index_row(x: Tensor, hadamard: Tensor) -> Tensor:
    """A row of the index memory, rotated: FP4 e2m1 in blocks of 32, scales powers of two."""
    z = x.float() @ hadamard
    y = z.unflatten(-1, (-1, 32))
    largest = y.abs().amax(-1, keepdim=True).clamp_min(6 * 2.0**-126)
    scale = torch.exp2(torch.ceil(torch.log2(largest / 6.0)))
    v = (y / scale).abs().clamp(max=6)
    step = torch.where(v < 2, 0.5, torch.where(v < 4, 1.0, 2.0))
    rounded = torch.round(v / step) * step * torch.sign(y) * scale
    return _through(z, rounded.flatten(-2).detach())


def four_bit(weight: Tensor) -> Tensor:
    """A weight as Q4_K will hold it: blocks of 32 along the input, minimum at most zero."""
    y = weight.detach().unflatten(-1, (-1, 32))
    low = y.amin(-1, keepdim=True).clamp(max=0)
    step = ((y.amax(-1, keepdim=True) - low) / 15).clamp_min(1e-8)
    rounded = (torch.round((y - low) / step).clamp(0, 15) * step + low).flatten(-2)
    return _through(weight, rounded)
