"""Sinkhorn normalisation of 4 x 4 matrices, forward and backward, as one operation.

Twenty iterations as separate operations would keep forty intermediate results for every token and
sublayer. Here only the divisors are kept, and the backward pass undoes one division after the
other. On a GPU the Triton kernels of ``sinkhorn_triton`` do the same in registers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_kernels: Any = None


def use_kernels(device: str) -> str:
    """Turn the Triton kernels on if they work here and agree with the plain version."""
    global _kernels
    _kernels = None
    try:
        from scripts.demo_model import sinkhorn_triton
    except ImportError as error:
        return f"plain version: {error}"
    x = torch.randn(4099, 16, device=device) * 2
    gradient = torch.randn_like(x)
    expected, divisors = _forward(x, 20, 1e-6)
    result, kept = sinkhorn_triton.forward(x, 20, 1e-6)
    back = sinkhorn_triton.backward(gradient, result, kept, 1e-6)
    difference = max(
        (result - expected).abs().max().item(),
        (back - _backward(gradient, expected, divisors, 1e-6)).abs().max().item(),
    )
    if not difference < 1e-4:
        return f"plain version: the kernels are {difference:.1e} off"
    _kernels = sinkhorn_triton
    return f"Triton kernels, {difference:.1e} off"


def _forward(x: Tensor, iterations: int, epsilon: float) -> tuple[Tensor, Tensor]:
    c = torch.softmax(x.float().view(-1, 4, 4), -1) + epsilon
    divisors = []
    for k in range(2 * iterations - 1):
        d = c.sum(1 if k % 2 == 0 else 2, keepdim=True) + epsilon
        c = c / d
        divisors.append(d.reshape(-1, 4))
    return c.reshape(x.shape), torch.stack(divisors)


def _backward(gradient: Tensor, y: Tensor, divisors: Tensor, epsilon: float) -> Tensor:
    dy, y = gradient.float().reshape(-1, 4, 4), y.view(-1, 4, 4)
    for k in range(divisors.shape[0] - 1, -1, -1):
        axis = 1 if k % 2 == 0 else 2
        d = divisors[k].unsqueeze(axis)
        dy = (dy - (dy * y).sum(axis, keepdim=True)) / d
        y = y * d
    p = y - epsilon
    return (p * (dy - (dy * p).sum(2, keepdim=True))).reshape(gradient.shape)


@torch.library.custom_op("demo::sinkhorn", mutates_args=())
def _op(x: Tensor, iterations: int, epsilon: float) -> tuple[Tensor, Tensor]:
    if x.is_cuda and _kernels:
        return _kernels.forward(x, iterations, epsilon)
    return _forward(x, iterations, epsilon)


@_op.register_fake
def _(x: Tensor, iterations: int, epsilon: float) -> tuple[Tensor, Tensor]:
    divisors = x.new_empty((2 * iterations - 1, x.numel() // 16, 4), dtype=torch.float32)
    return torch.empty_like(x, dtype=torch.float32), divisors


@torch.library.custom_op("demo::sinkhorn_backward", mutates_args=())
def _backward_op(gradient: Tensor, y: Tensor, divisors: Tensor, epsilon: float) -> Tensor:
    if gradient.is_cuda and _kernels:
        return _kernels.backward(gradient, y, divisors, epsilon)
    return _backward(gradient, y, divisors, epsilon)


@_backward_op.register_fake
def _(gradient: Tensor, y: Tensor, divisors: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(gradient, dtype=torch.float32)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(output[0], output[1])
    ctx.epsilon = inputs[2]


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    y, divisors = ctx.saved_tensors
    return _backward_op(gradient.contiguous(), y, divisors, ctx.epsilon), None, None


_op.register_autograd(_differentiate, setup_context=_save)


def sinkhorn(x: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Row softmax, then columns and rows in turn; ``x`` is [..., 16], row-major 4 x 4."""
    return _op(x.contiguous(), iterations, epsilon)[0]
