"""Muon for the large matrices, AdamW for everything else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_MUON = (
    "attn_q_a",
    "attn_q_b",
    "attn_kv",
    "attn_output_a",
    "attn_output_b",
    "attn_compressor_kv",
    "attn_compressor_gate",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
)
_BETA1, _BETA2 = 0.9, 0.98


def _multiplier(name: str) -> float:
    """AdamW's learning rate for one parameter, relative to the others."""
    last = name.rsplit(".", 1)[-1]
    if last.endswith("_fn"):
        return 0.15
    if last == "token_embd":
        return 2.0
    routing = last == "ffn_gate_inp" or last in ("indexer_proj", "indexer_attn_q_b")
    return 0.5 if routing or last in ("indexer_compressor_kv", "indexer_compressor_gate") else 1.0


class Optimizer:
    """One step for all parameters; gradients are clipped to norm 1 and cleared."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float, decay: float) -> None:
        self.muon_rate, self.adam_rate, self.decay, self.steps = muon_rate, adam_rate, decay, 0
        named = list(model.named_parameters())
        self._muon = [(n, p) for n, p in named if n.rsplit(".", 1)[-1] in _MUON]
        self._adam = [(n, p) for n, p in named if n.rsplit(".", 1)[-1] not in _MUON]
        self.parameters = [p for _, p in self._muon + self._adam]
        self._momentum = {n: torch.zeros_like(p) for n, p in self._muon + self._adam}
        self._square = {n: torch.zeros_like(p) for n, p in self._adam}
        self._by_rate: dict[float, list[int]] = {}
        for index, (name, _) in enumerate(self._adam):
            self._by_rate.setdefault(_multiplier(name), []).append(index)
        self._by_shape: dict[tuple[int, int], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self._muon:
            rows, columns = parameter.shape[-2:]
            shape = (min(rows, columns), max(rows, columns))
            self._by_shape.setdefault(shape, []).append((name, parameter))

    def state(self) -> dict[str, Any]:
        """What ``load`` takes."""
        return {"momentum": self._momentum, "square": self._square, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was saved."""
        self.steps = state["steps"]
        for held, saved in ((self._momentum, "momentum"), (self._square, "square")):
            for name, tensor in held.items():
                tensor.copy_(state[saved][name])

    @torch.no_grad()
    def step(self, factor: float) -> Tensor:
        """One step at ``factor`` times the learning rates; returns the gradients' norm."""
        self.steps += 1
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        scale = (1.0 / norm.clamp_min(1e-6)).clamp(max=1.0)
        # A gradient that is not finite makes an empty step.
        scale = torch.where(torch.isfinite(scale), scale, torch.zeros_like(scale))
        torch._foreach_mul_(gradients, scale)
        count = len(self._muon)
        self._step_adam(gradients[count:], factor)
        self._step_muon(gradients[:count], factor)
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def _step_adam(self, gradients: list[Tensor], factor: float) -> None:
        parameters = [p for _, p in self._adam]
        momentum = [self._momentum[n] for n, _ in self._adam]
        square = [self._square[n] for n, _ in self._adam]
        torch._foreach_lerp_(momentum, gradients, 1 - _BETA1)
        torch._foreach_mul_(square, _BETA2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - _BETA2)
        divisor = torch._foreach_div(square, 1 - _BETA2**self.steps)
        torch._foreach_sqrt_(divisor)
        torch._foreach_add_(divisor, 1e-10)
        for multiplier, members in self._by_rate.items():
            rate = self.adam_rate * factor * multiplier
            matrices = [parameters[i] for i in members if parameters[i].dim() >= 2]
            if matrices:
                torch._foreach_mul_(matrices, 1 - rate * self.decay * 0.5)
            torch._foreach_addcdiv_(
                [parameters[i] for i in members],
                [momentum[i] for i in members],
                [divisor[i] for i in members],
                -rate / (1 - _BETA1**self.steps),
            )

    def _step_muon(self, gradients: list[Tensor], factor: float) -> None:
        """Orthogonalise the momentum of all matrices of a shape at once (Newton-Schulz)."""
        momentum = [self._momentum[n] for n, _ in self._muon]
        torch._foreach_lerp_(momentum, gradients, 0.05)
        looked_ahead = torch._foreach_lerp(gradients, momentum, 0.95)
        updates = {n: u for (n, _), u in zip(self._muon, looked_ahead, strict=True)}
        rate = self.muon_rate * factor
        for (rows, columns), members in self._by_shape.items():
            flat = []
            for name, _ in members:
                update = updates[name]
                wide = update.shape[-2] <= update.shape[-1]
                flat.append((update if wide else update.mT).reshape(-1, rows, columns))
            x = torch.cat(flat)
            x = x.bfloat16() if x.is_cuda else x
            x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
                x = torch.baddbmm(x, b, x, beta=3.4445)
            at = 0
            for (_, parameter), part in zip(members, flat, strict=True):
                y = x[at : at + part.shape[0]]
                at += part.shape[0]
                if parameter.shape[-2] > parameter.shape[-1]:
                    y = y.mT
                step = y.reshape(parameter.shape).to(parameter.dtype)
                parameter.mul_(1 - rate * self.decay)
                parameter.add_(step, alpha=-rate * 0.2 * math.sqrt(columns))
