# mypy: disable-error-code="no-untyped-def"
"""Triton kernels for `sinkhorn`: one program normalises 64 matrices in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _fwd(x, y, sums, N, eps, ITERS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i4 = tl.arange(0, 4)
    off = n[:, None, None] * 16 + i4[None, :, None] * 4 + i4[None, None, :]
    ok = (n[:, None, None] < N) & (i4[None, :, None] < 4) & (i4[None, None, :] < 4)
    v = tl.load(x + off, mask=ok, other=0.0).to(tl.float32)
    so = n[:, None] * 4 + i4[None, :]
    sok = (n[:, None] < N) & (i4[None, :] < 4)
    v = tl.exp(v - tl.max(v, axis=2)[:, :, None])
    c = v / tl.sum(v, axis=2)[:, :, None] + eps
    d = tl.sum(c, axis=1) + eps
    c = c / d[:, None, :]
    tl.store(sums + so, d, mask=sok)
    for k in range(ITERS - 1):
        d2 = tl.sum(c, axis=2) + eps
        c = c / d2[:, :, None]
        tl.store(sums + (2 * k + 1) * N * 4 + so, d2, mask=sok)
        d3 = tl.sum(c, axis=1) + eps
        c = c / d3[:, None, :]
        tl.store(sums + (2 * k + 2) * N * 4 + so, d3, mask=sok)
    tl.store(y + off, c, mask=ok)


@triton.jit
def _bwd(g, y, sums, dx, N, eps, ITERS: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i4 = tl.arange(0, 4)
    off = n[:, None, None] * 16 + i4[None, :, None] * 4 + i4[None, None, :]
    ok = (n[:, None, None] < N) & (i4[None, :, None] < 4) & (i4[None, None, :] < 4)
    so = n[:, None] * 4 + i4[None, :]
    sok = (n[:, None] < N) & (i4[None, :] < 4)
    dy = tl.load(g + off, mask=ok, other=0.0).to(tl.float32)
    c = tl.load(y + off, mask=ok, other=0.0)
    for kk in range(ITERS - 1):
        k = ITERS - 2 - kk
        d3 = tl.load(sums + (2 * k + 2) * N * 4 + so, mask=sok, other=1.0)
        dy = (dy - tl.sum(dy * c, axis=1)[:, None, :]) / d3[:, None, :]
        c = c * d3[:, None, :]
        d2 = tl.load(sums + (2 * k + 1) * N * 4 + so, mask=sok, other=1.0)
        dy = (dy - tl.sum(dy * c, axis=2)[:, :, None]) / d2[:, :, None]
        c = c * d2[:, :, None]
    d = tl.load(sums + so, mask=sok, other=1.0)
    dy = (dy - tl.sum(dy * c, axis=1)[:, None, :]) / d[:, None, :]
    p = c * d[:, None, :] - eps
    dxv = p * (dy - tl.sum(dy * p, axis=2)[:, :, None])
    tl.store(dx + off, dxv, mask=ok)


def forward(x: Tensor, iters: int, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised matrices, and every divisor on the way."""
    x = x.contiguous()
    N = x.numel() // 16
    y = torch.empty_like(x, dtype=torch.float32)
    sums = torch.empty((2 * iters - 1, N, 4), dtype=torch.float32, device=x.device)
    _fwd[(triton.cdiv(N, 64),)](x, y, sums, N, eps, iters, 64)
    return y, sums


def backward(g: Tensor, y: Tensor, sums: Tensor, eps: float) -> Tensor:
    """The gradient for the input of ``forward``."""
    g = g.contiguous()
    N = g.numel() // 16
    dx = torch.empty_like(g, dtype=torch.float32)
    _bwd[(triton.cdiv(N, 64),)](g, y, sums, dx, N, eps, (sums.shape[0] + 1) // 2, 64)
    return dx
