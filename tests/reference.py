"""A second implementation of the whole forward pass, in double precision and with nothing clever.

It shares no code with the engine and keeps no state: every prompt is evaluated at once, every
matrix of scores is built in full. It takes the weights as numbers, so a quantised file is compared
with what its blocks mean.

Two things are f32 on purpose, because they are part of the model and not noise: the angle of the
rotary embedding (position times frequency, as the reference implementation computes it) and the
quotient that becomes the scale of an FP8 or FP4 block.

Roundings of a value within float noise of the border between two codes may go either way. Such
flips are small but real changes, and later rows see them. `jitter` multiplies every tensor on its
way into a rounding by 1 + noise: rows that come out alike under several seeds do not hang on one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyds4.synth import Dimensions

Array = NDArray[np.float64]
Sublayer = Callable[[Array], Array]
STREAMS = 4
OVERLAPPING = 4
HC_EPSILON = 1e-6
ITERATIONS = 20


@dataclass(frozen=True)
class Rounding:
    """What the engine rounds on purpose.

    Args:
        memory: FP8 rows, FP4 index rows and queries (the model's own activation roundings).
        int8: Matrices whose inputs become int8 in blocks of 32, as those of quantised weights do.
        jitter: Relative noise on what is about to be rounded; see the module's text.
        seed: Of that noise.
    """

    memory: bool = False
    int8: Collection[str] = ()
    jitter: float = 0.0
    seed: int = 0


class Reference:
    """One model: ``weights`` by GGUF name in numpy's order of axes (outputs, inputs)."""

    def __init__(
        self,
        dimensions: Dimensions,
        weights: Mapping[str, NDArray[np.generic]],
        rounding: Rounding | None = None,
    ) -> None:
        self.d = dimensions
        self.weights: dict[str, NDArray[Any]] = {
            name: w if w.dtype == np.int32 else w.astype(np.float64) for name, w in weights.items()
        }
        self.rounding = rounding or Rounding()
        self._noise = np.random.default_rng(self.rounding.seed)

    def logits(self, tokens: NDArray[np.int32]) -> Array:
        """[n] ids → [n, vocabulary] scores after each of them."""
        positions = np.arange(len(tokens))
        x = self._weight("token_embd")[tokens]
        streams = np.repeat(x[:, None, :], STREAMS, axis=1)
        for layer in range(len(self.d.ratios)):
            streams = self._block(f"blk.{layer}.", layer, streams, tokens, positions)
        mix = self._mix(streams, "output_hc")
        pre = _sigmoid(mix * self._weight("output_hc_scale") + self._weight("output_hc_base"))
        x = np.einsum("ti,tid->td", pre + HC_EPSILON, streams)
        return self._project("output", self._norm(x, "output_norm"))

    # ------------------------------------------------------------------ parts

    def _block(
        self,
        p: str,
        layer: int,
        streams: Array,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int64],
    ) -> Array:
        ratio, is_hash = self.d.ratios[layer], layer < self.d.hash_layers
        streams = self._around(
            streams,
            f"{p}hc_attn",
            f"{p}attn_norm",
            lambda x: self._attention(p, x, positions, ratio),
        )
        return self._around(
            streams, f"{p}hc_ffn", f"{p}ffn_norm", lambda x: self._moe(p, x, tokens, is_hash)
        )

    def _weight(self, name: str) -> Array:
        full = name if name in self.weights else f"{name}.weight"
        weight: Array = self.weights[full]
        return weight

    def _project(self, name: str, x: Array) -> Array:
        y: Array = self._rounded_input(f"{name}.weight", x) @ self._weight(name).T
        return y

    def _rounded_input(self, name: str, x: Array) -> Array:
        return int8_blocks(self._jittered(x)) if name in self.rounding.int8 else x

    def _jittered(self, x: Array) -> Array:
        if not self.rounding.jitter:
            return x
        return x * (1 + self.rounding.jitter * self._noise.standard_normal(x.shape))

    def _norm(self, x: Array, name: str | None) -> Array:
        y: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.d.norm_epsilon)
        return y if name is None else y * self._weight(name)

    def _mix(self, streams: Array, name: str) -> Array:
        # Multiplied before they are normed, as the report writes it: a norm is a factor a row.
        flat = streams.reshape(len(streams), -1)
        rms: Array = np.sqrt(np.mean(flat * flat, axis=-1, keepdims=True) + self.d.norm_epsilon)
        return self._project(f"{name}_fn", flat) / rms

    def _around(self, streams: Array, hc: str, norm: str, sublayer: Sublayer) -> Array:
        """One sublayer inside its hyper-connection (report §2.2)."""
        mix = self._mix(streams, hc)
        base, scale = self._weight(f"{hc}_base"), self._weight(f"{hc}_scale")
        pre = _sigmoid(mix[:, :4] * scale[0] + base[:4]) + HC_EPSILON
        post = 2 * _sigmoid(mix[:, 4:8] * scale[1] + base[4:8])
        comb = sinkhorn((mix[:, 8:] * scale[2] + base[8:]).reshape(-1, 4, 4))
        x = np.einsum("ti,tid->td", pre, streams)
        y = sublayer(self._norm(x, norm))
        mixed: Array = np.einsum("tij,tid->tjd", comb, streams)
        return post[:, :, None] * y[:, None, :] + mixed

    def _attention(self, p: str, x: Array, positions: NDArray[np.int64], ratio: int) -> Array:
        d, n = self.d, len(x)
        latent = self._norm(self._project(f"{p}attn_q_a", x), f"{p}attn_q_a_norm")
        q = self._project(f"{p}attn_q_b", latent).reshape(n, d.heads, d.head_dim)
        q = self._rope(self._norm(q, None), positions, ratio)
        kv = self._norm(self._project(f"{p}attn_kv", x), f"{p}attn_kv_a_norm")
        rows = self._kept(self._rope(kv, positions, ratio))
        age = positions[:, None] - positions[None, :]
        visible = (age >= 0) & (age < d.window)
        if ratio:
            pooled = self._compressed(f"{p}attn_compressor", x, ratio, d.head_dim)
            rows = np.concatenate([rows, self._kept(pooled)])
            ready = self._ready(n, ratio)
            if ratio == OVERLAPPING:
                ready = self._selected(p, x, latent, positions, ready)
            visible = np.concatenate([visible, ready], axis=1)
        scores = (q.reshape(-1, d.head_dim) @ rows.T).reshape(n, d.heads, -1) / np.sqrt(d.head_dim)
        scores = np.where(visible[:, None, :], scores, -np.inf)
        sinks = np.broadcast_to(self._weight(f"{p}attn_sinks")[None, :, None], (n, d.heads, 1))
        chances = _softmax(np.concatenate([scores, sinks], axis=-1))[..., :-1]
        out = (chances.reshape(-1, len(rows)) @ rows).reshape(q.shape)
        out = self._rope(out, positions, ratio, inverse=True)
        groups = out.reshape(n, d.o_groups, -1)
        matrix = self._weight(f"{p}attn_output_a").reshape(d.o_groups, d.o_lora, -1)
        groups = self._rounded_input(f"{p}attn_output_a.weight", groups)
        mixed = np.einsum("tgi,goi->tgo", groups, matrix, optimize=True).reshape(n, -1)
        return self._project(f"{p}attn_output_b", mixed)

    def _ready(self, n: int, ratio: int) -> NDArray[np.bool_]:
        """[n, rows]: row w stands for a window that ends at or before the token."""
        ends = (np.arange(n // ratio) + 1) * ratio - 1
        return ends[None, :] <= np.arange(n)[:, None]

    def _compressed(self, name: str, x: Array, ratio: int, dim: int) -> Array:
        """Every complete window of ``ratio`` tokens as one row, normed and rotated."""
        windows = len(x) // ratio
        kv = self._project(f"{name}_kv", x)
        gate = self._project(f"{name}_gate", x)
        gate = gate + np.tile(self._weight(f"{name}_ape"), (windows + 1, 1))[: len(x)]
        shape = (windows, ratio, kv.shape[1])
        kv, gate = (v[: windows * ratio].reshape(shape) for v in (kv, gate))
        if ratio == OVERLAPPING:
            # The first series of the window before, then the second of the window itself.
            none = np.full((1, ratio, dim), -np.inf)
            before = np.concatenate([none, gate[:, :, :dim]])[:windows]
            gate = np.concatenate([before, gate[:, :, dim:]], axis=1)
            before = np.concatenate([np.zeros_like(none), kv[:, :, :dim]])[:windows]
            kv = np.concatenate([before, kv[:, :, dim:]], axis=1)
        pooled = np.sum(_softmax(gate, axis=1) * kv, axis=1)
        return self._rope(self._norm(pooled, f"{name}_norm"), np.arange(windows) * ratio, ratio)

    def _selected(
        self,
        p: str,
        x: Array,
        latent: Array,
        positions: NDArray[np.int64],
        ready: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        d, n = self.d, len(x)
        keys = self._compressed(f"{p}indexer_compressor", x, OVERLAPPING, d.index_dim)
        q = self._project(f"{p}indexer.attn_q_b", latent).reshape(n, d.index_heads, d.index_dim)
        q = self._rope(q, positions, OVERLAPPING)
        if self.rounding.memory:
            keys, q = (fp4_blocks(self._jittered(hadamard(v))) for v in (keys, q))
        hits = np.maximum(q.reshape(-1, d.index_dim) @ keys.T, 0).reshape(n, d.index_heads, -1)
        weights = self._project(f"{p}indexer.proj", x)
        scores = np.einsum("th,ths->ts", weights, hits) / np.sqrt(d.index_dim * d.index_heads)
        scores = np.where(ready, scores, -np.inf)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : d.index_top_k]
        chosen = np.zeros_like(ready)
        np.put_along_axis(chosen, best, True, axis=1)
        return chosen & ready

    def _kept(self, rows: Array) -> Array:
        """Rows as attention memory holds them; the rotated values are not rounded."""
        if not self.rounding.memory:
            return rows
        plain = self.d.head_dim - self.d.rope_dims
        return np.concatenate(
            [fp8_blocks(self._jittered(rows[:, :plain])), rows[:, plain:]], axis=1
        )

    def _rope(
        self, x: Array, positions: NDArray[np.int64], ratio: int, inverse: bool = False
    ) -> Array:
        d = self.d
        half = np.arange(d.rope_dims // 2)
        base = d.compress_theta if ratio else d.rope_theta
        frequency = base ** (-2 * half / d.rope_dims)
        if ratio:
            frequency = yarn(frequency, base, d)
        turns = positions.astype(np.float32)[:, None] * frequency.astype(np.float32)
        turns = turns.reshape(len(x), *[1] * (x.ndim - 2), len(half))
        angle = turns.astype(np.float64) * (-1 if inverse else 1)
        out = x.copy()
        even, odd = x[..., -d.rope_dims :: 2], x[..., -d.rope_dims + 1 :: 2]
        out[..., -d.rope_dims :: 2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., -d.rope_dims + 1 :: 2] = even * np.sin(angle) + odd * np.cos(angle)
        return out

    def _moe(self, p: str, x: Array, tokens: NDArray[np.int32], is_hash: bool) -> Array:
        d = self.d
        scores = np.sqrt(np.logaddexp(0, self._project(f"{p}ffn_gate_inp", x)))
        if is_hash:
            chosen = self.weights[f"{p}ffn_gate_tid2eid.weight"][tokens].astype(np.int64)
        else:
            key = scores + self._weight(f"{p}exp_probs_b.bias")
            chosen = np.argsort(-key, axis=1, kind="stable")[:, : d.experts_used]
        weights = np.take_along_axis(scores, chosen, axis=1)
        weights = weights / weights.sum(axis=1, keepdims=True) * d.route_scale
        y = self._shared(p, x)
        gates, ups, downs = (self._weight(f"{p}ffn_{k}_exps") for k in ("gate", "up", "down"))
        into = self._rounded_input(f"{p}ffn_gate_exps.weight", x)
        for expert in range(d.experts):
            token, place = np.nonzero(chosen == expert)
            hidden = self._swiglu(into[token] @ gates[expert].T, into[token] @ ups[expert].T)
            hidden *= weights[token, place][:, None]
            hidden = self._rounded_input(f"{p}ffn_down_exps.weight", hidden)
            y[token] += hidden @ downs[expert].T  # a token takes an expert once
        return y

    def _shared(self, p: str, x: Array) -> Array:
        gate, up = (self._project(f"{p}ffn_{k}_shexp", x) for k in ("gate", "up"))
        return self._project(f"{p}ffn_down_shexp", self._swiglu(gate, up))

    def _swiglu(self, gate: Array, up: Array) -> Array:
        clamp = self.d.swiglu_clamp
        gate = np.minimum(gate, clamp)
        return gate * _sigmoid(gate) * np.clip(up, -clamp, clamp)


# ---------------------------------------------------------------------- functions of numbers


def yarn(frequency: Array, base: float, d: Dimensions) -> Array:
    """Frequencies stretched by YaRN (β 32 and 1), without its attention factor."""

    def pair(turns: float) -> float:
        return float(
            d.rope_dims * np.log(d.yarn_context / (turns * 2 * np.pi)) / (2 * np.log(base))
        )

    low, high = max(np.floor(pair(32)), 0), min(np.ceil(pair(1)), d.rope_dims - 1)
    ramp = np.clip((np.arange(len(frequency)) - low) / max(high - low, 0.001), 0, 1)
    stretched: Array = frequency / d.yarn_factor * ramp + frequency * (1 - ramp)
    return stretched


def sinkhorn(comb: Array, iterations: int = ITERATIONS, epsilon: float = HC_EPSILON) -> Array:
    """[n, 4, 4] → doubly stochastic, as far as ``iterations`` passes go."""
    comb = _softmax(comb) + epsilon
    comb = comb / (comb.sum(axis=1, keepdims=True) + epsilon)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(axis=2, keepdims=True) + epsilon)
        comb = comb / (comb.sum(axis=1, keepdims=True) + epsilon)
    return comb


def e4m3_values() -> Array:
    """The 127 finite magnitudes of FP8 e4m3 in the order of their codes."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    values: Array = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return values


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nearest_code(values: Array, magnitudes: Array) -> NDArray[np.int64]:
    """The code of the nearest magnitude to each |value|; ties go to the even code."""
    v = np.minimum(np.abs(values), magnitudes[-1])
    above = np.searchsorted(magnitudes, v).clip(1, len(magnitudes) - 1)
    below = above - 1
    up, down = magnitudes[above] - v, v - magnitudes[below]
    to_upper = (up < down) | ((up == down) & (above % 2 == 0))
    codes: NDArray[np.int64] = np.where(to_upper, above, below)
    return codes


def block_scale(x: Array, block: int, largest: float, least: float) -> Array:
    """2^ceil(log2(amax / largest)) of each block of the last axis, [..., blocks, 1]."""
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    amax = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), least).astype(np.float32)
    mantissa, exponent = np.frexp(amax / np.float32(largest))
    scale: Array = np.ldexp(1.0, exponent - (mantissa == 0.5))
    return scale


def _round_blocks(x: Array, block: int, magnitudes: Array, least: float) -> Array:
    scale = block_scale(x, block, float(magnitudes[-1]), least)
    v = x.reshape(*x.shape[:-1], x.shape[-1] // block, block) / scale
    rounded = np.sign(v) * magnitudes[nearest_code(v, magnitudes)] * scale
    out: Array = rounded.reshape(x.shape)
    return out


def fp8_blocks(x: Array) -> Array:
    """FP8 e4m3 in blocks of 64 with power-of-two scales."""
    return _round_blocks(x, 64, e4m3_values(), 1e-4)


def fp4_blocks(x: Array) -> Array:
    """FP4 e2m1 in blocks of 32 with power-of-two scales."""
    return _round_blocks(x, 32, E2M1, 6 * 2.0**-126)


def hadamard(x: Array) -> Array:
    """The last axis times Sylvester's matrix / √dim."""
    matrix = np.ones((1, 1))
    while len(matrix) < x.shape[-1]:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    product: Array = x @ matrix / np.sqrt(x.shape[-1])
    return product


def int8_blocks(x: Array) -> Array:
    """Blocks of 32 as int8 with a scale of amax / 127, nearest even."""
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // 32, 32)
    amax = np.abs(blocks).max(axis=-1, keepdims=True)
    scale = amax / np.float32(127)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    rounded = np.rint(blocks * inverse).astype(np.float64) * scale
    out: Array = rounded.reshape(x.shape)
    return out


def _sigmoid(x: Array) -> Array:
    value: Array = 1 / (1 + np.exp(-x))
    return value


def _softmax(x: Array, axis: int = -1) -> Array:
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    chances: Array = weights / weights.sum(axis=axis, keepdims=True)
    return chances
