"""One block: attention, then experts, each inside a hyper-connection.

A row of the batch holds several documents, each starting at a multiple of 128 and separated by
masks. That equals one document per row, because rotary positions only matter relatively and every
compression ratio divides the start of a document.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.demo_model import rounding
from scripts.demo_model.config import ROPE_DIMENSIONS, STREAMS, WINDOW, Config
from scripts.demo_model.sinkhorn import sinkhorn

_NEVER = -1e30


@dataclass(frozen=True)
class Run:
    """How a forward pass is computed. ``rounded`` imitates the quantised caches."""

    rounded: bool = True
    bfloat16: bool = True
    select: bool = True
    """Attend only to the rows that the indexer selects."""
    teach_index: bool = True
    """Compute the loss that makes the indexer follow the attention."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.bfloat16 if self.bfloat16 else torch.float32


def rms(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """Root mean square norm over the last dimension, in f32."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + epsilon)
    return y if weight is None else y * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position on interleaved pairs of the last 64 dimensions."""
    plain, r = x[..., :-ROPE_DIMENSIONS], x[..., -ROPE_DIMENSIONS:].float()
    a, b = r[..., 0::2], r[..., 1::2]
    y = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((plain, y.to(x.dtype)), -1)


def _drawn(*shape: int, scale: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * scale)


def _ones(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape))


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


class Block(nn.Module):
    """Parameters have the names of their GGUF tensors, without dots: see ``export.TENSORS``."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        c = self.config = config
        self.ratio, self.hashed = c.ratios[layer], layer < c.hash_layers
        self.four_bit = False
        hidden, into, depth = c.hidden, c.hidden**-0.5, (2 * len(c.ratios)) ** -0.5
        self.attn_norm, self.ffn_norm = _ones(hidden), _ones(hidden)
        self._hyper_connections(layer)
        width, rank = c.heads * c.head_dim, c.query_rank
        self.attn_sinks = _zeros(c.heads)
        self.attn_q_a, self.attn_q_a_norm = _drawn(rank, hidden, scale=into), _ones(rank)
        self.attn_q_b = _drawn(width, rank, scale=rank**-0.5)
        self.attn_kv, self.attn_kv_a_norm = (
            _drawn(c.head_dim, hidden, scale=into),
            _ones(c.head_dim),
        )
        group = width // c.output_groups
        inner = c.output_groups * c.output_rank
        self.attn_output_a = _drawn(inner, group, scale=group**-0.5)
        self.attn_output_b = _drawn(hidden, inner, scale=inner**-0.5 * depth)
        if self.ratio:
            both = (2 if self.ratio == 4 else 1) * c.head_dim
            self.attn_compressor_kv = _drawn(both, hidden, scale=into)
            self.attn_compressor_gate = _drawn(both, hidden, scale=0.5 * into)
            self.attn_compressor_ape = _drawn(self.ratio, both, scale=0.02)
            self.attn_compressor_norm = _ones(c.head_dim)
        if self.ratio == 4:
            n = c.index_dim
            self.indexer_proj = _drawn(c.index_heads, hidden, scale=into)
            self.indexer_attn_q_b = _drawn(c.index_heads * n, rank, scale=rank**-0.5)
            self.indexer_compressor_kv = _drawn(2 * n, hidden, scale=into)
            self.indexer_compressor_gate = _drawn(2 * n, hidden, scale=0.5 * into)
            self.indexer_compressor_ape = _drawn(4, 2 * n, scale=0.02)
            self.indexer_compressor_norm = _ones(n)
        self._experts(into, depth)

    def _hyper_connections(self, layer: int) -> None:
        for offset, kind in enumerate(("attn", "ffn")):
            base = torch.zeros(24)
            base[:4] = -1.5
            base[(2 * layer + offset) % STREAMS] = 1.5
            base[4:8] = torch.randn(4) * 0.4
            base[8:] = (torch.eye(4) * 3).flatten() + torch.randn(16) * 0.1
            fn = _drawn(24, STREAMS * self.config.hidden, scale=0.01)
            self.register_parameter(f"hc_{kind}_fn", fn)
            self.register_parameter(f"hc_{kind}_base", nn.Parameter(base))
            self.register_parameter(f"hc_{kind}_scale", _ones(3))

    def _experts(self, into: float, depth: float) -> None:
        c = self.config
        count, width, hidden = c.experts, c.expert_width, c.hidden
        self.ffn_gate_inp = _drawn(count, hidden, scale=into)
        if self.hashed:
            drawn = [torch.randperm(count)[: c.experts_used] for _ in range(c.vocabulary)]
            self.register_buffer("ffn_gate_tid2eid", torch.stack(drawn).int())
            self.register_buffer("hash_mask", torch.zeros(c.vocabulary, count), persistent=False)
            self.fill_hash_mask()
        else:
            self.register_buffer("exp_probs_b", torch.zeros(count))
        out = width**-0.5 * depth
        self.ffn_gate_exps = _drawn(count, width, hidden, scale=into)
        self.ffn_up_exps = _drawn(count, width, hidden, scale=into)
        self.ffn_down_exps = _drawn(count, hidden, width, scale=out)
        self.ffn_gate_shexp = _drawn(width, hidden, scale=into)
        self.ffn_up_shexp = _drawn(width, hidden, scale=into)
        self.ffn_down_shexp = _drawn(hidden, width, scale=out)

    def fill_hash_mask(self) -> None:
        """Bring the mask up to date after the table was loaded."""
        mask = torch.zeros_like(self.hash_mask)
        self.hash_mask.copy_(mask.scatter_(1, self.ffn_gate_tid2eid.long(), 1.0))

    def _split(self, streams: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Streams [rows, tokens, 4, hidden] -> sublayer input, post [.., 4], comb [.., 4, 4]."""
        c = self.config
        fn, base, scale = (getattr(self, f"hc_{kind}_{part}") for part in ("fn", "base", "scale"))
        flat = streams.flatten(2)
        mix = functional.linear(flat, fn)
        mix = mix * torch.rsqrt(flat.square().mean(-1, keepdim=True) + c.epsilon)
        pre = torch.sigmoid(mix[..., :4] * scale[0] + base[:4]) + c.epsilon
        post = 2 * torch.sigmoid(mix[..., 4:8] * scale[1] + base[4:8])
        comb = sinkhorn(mix[..., 8:] * scale[2] + base[8:], c.sinkhorn_iterations, c.epsilon)
        return (pre[..., None] * streams).sum(2), post, comb.unflatten(-1, (4, 4))

    @staticmethod
    def _expand(streams: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """Stream j becomes post_j * y + sum over i of comb[i][j] * stream_i."""
        out = post[..., None] * y.float()[..., None, :]
        for i in range(STREAMS):
            out = out + comb[..., i, :, None] * streams[..., i, None, :]
        return out

    def _compress(
        self, x: Tensor, name: str, width: int, rope: tuple[Tensor, Tensor], first: Tensor
    ) -> Tensor:
        """One row for every ``ratio`` tokens; at ratio 4 it also mixes the window before."""
        rows, tokens, _ = x.shape
        r, windows = self.ratio, tokens // self.ratio
        parts = (getattr(self, f"{name}_{part}") for part in ("kv", "gate", "ape", "norm"))
        w_kv, w_gate, ape, norm = parts
        kv = functional.linear(x, w_kv.to(x.dtype)).view(rows, windows, r, -1)
        gate = functional.linear(x, w_gate.to(x.dtype)).view(rows, windows, r, -1).float() + ape
        if r == 4:
            before = (0, 0, 0, 0, 1, 0)
            old_kv = functional.pad(kv[:, :-1, :, :width], before)
            old_gate = functional.pad(gate[:, :-1, :, :width], before)
            old_gate = old_gate.masked_fill(first[:, :, None, None], _NEVER)
            kv = torch.cat((old_kv, kv[..., width:]), 2)
            gate = torch.cat((old_gate, gate[..., width:]), 2)
        pooled = (kv.float() * gate.softmax(2)).sum(2)
        return rotate(rms(pooled, norm, self.config.epsilon), rope[0][::r], rope[1][::r])

    def _index(self, x: Tensor, query: Tensor, run: Run, place: Place) -> Tensor:
        """Index scores [rows, tokens, windows]; the rest of the model gets no gradient from it."""
        c = self.config
        rows, tokens, _ = x.shape
        x, query = x.detach(), query.detach()
        keys = self._compress(x, "indexer_compressor", c.index_dim, place.rope, place.first)
        queries = functional.linear(query, self.indexer_attn_q_b.to(run.dtype))
        queries = queries.view(rows, tokens, c.index_heads, c.index_dim)
        queries = rotate(queries, place.rope[0][:, None], place.rope[1][:, None])
        if run.rounded:
            keys = rounding.index_row(keys, place.hadamard)
            queries = rounding.index_row(queries, place.hadamard)
        flat = queries.to(run.dtype).view(rows, tokens * c.index_heads, c.index_dim)
        scores = torch.bmm(flat, keys.to(run.dtype).transpose(1, 2))
        scores = scores.view(rows, tokens, c.index_heads, -1)
        weights = functional.linear(x, self.indexer_proj.to(run.dtype)).float()
        weights = weights * (c.index_dim**-0.5 * c.index_heads**-0.5)
        scores = (functional.relu(scores).float() * weights[..., None]).sum(2)
        return scores.masked_fill(~place.compressed, _NEVER)

    def _attend(self, x: Tensor, run: Run, place: Place) -> tuple[Tensor, Tensor]:
        """Attention output [rows, tokens, hidden] and the indexer's loss."""
        c = self.config
        dtype, (cos, sin) = run.dtype, place.rope
        rows, tokens, _ = x.shape
        blocks, heads, width = tokens // WINDOW, c.heads, c.head_dim
        x = x.to(dtype)
        low = functional.linear(x, self.attn_q_a.to(dtype))
        query = rms(low, self.attn_q_a_norm, c.epsilon).to(dtype)
        q = functional.linear(query, self.attn_q_b.to(dtype)).view(rows, tokens, heads, width)
        q = rotate(rms(q, None, c.epsilon), cos[:, None], sin[:, None])
        q = (q * width**-0.5).to(dtype)
        kv = rms(functional.linear(x, self.attn_kv.to(dtype)), self.attn_kv_a_norm, c.epsilon)
        kv = rotate(kv, cos, sin)
        if run.rounded:
            kv = rounding.cache_row(kv)
        kv = kv.to(dtype).view(rows, blocks, WINDOW, width)
        # A block of queries sees its own block of keys and the one before.
        near = torch.cat((functional.pad(kv[:, :-1], (0, 0, 0, 0, 1, 0)), kv), 2)
        near = near.view(rows * blocks, 2 * WINDOW, width)
        s = torch.bmm(q.view(rows * blocks, WINDOW * heads, width), near.transpose(1, 2))
        s = s.view(rows, tokens, heads, 2 * WINDOW).float()
        s = s.masked_fill(~place.window[:, :, None], _NEVER)
        index, far = None, None
        if self.ratio:
            far = self._compress(x, "attn_compressor", width, place.rope, place.first)
            far = (rounding.cache_row(far) if run.rounded else far).to(dtype)
            visible = place.compressed
            many = far.shape[1] > c.index_top
            if self.ratio == 4 and (run.teach_index or (run.select and many)):
                index = self._index(x, query, run, place)
                if run.select and many:
                    scores = index.detach()
                    best = scores.topk(c.index_top, dim=-1, sorted=False).values
                    visible = visible & (scores >= best.amin(-1, keepdim=True))
            s2 = torch.bmm(q.view(rows, tokens * heads, width), far.transpose(1, 2))
            s2 = s2.view(rows, tokens, heads, -1).float()
            s = torch.cat((s, s2.masked_fill(~visible[:, :, None], _NEVER)), -1)
        sink = self.attn_sinks.view(1, 1, heads, 1)
        top = torch.maximum(s.detach().amax(-1, keepdim=True), sink.detach())
        p = torch.exp(s - top)
        p = p / (p.sum(-1, keepdim=True) + torch.exp(sink - top))
        held = p.to(dtype)
        weights = held[..., : 2 * WINDOW].reshape(rows * blocks, WINDOW * heads, 2 * WINDOW)
        o = torch.bmm(weights, near).view(rows, tokens, heads, width)
        loss = x.new_zeros((), dtype=torch.float32)
        if far is not None:
            weights = held[..., 2 * WINDOW :].reshape(rows, tokens * heads, far.shape[1])
            o = o + torch.bmm(weights, far).view(rows, tokens, heads, width)
            if index is not None and run.teach_index:
                loss = _index_loss(p[..., 2 * WINDOW :].detach().sum(2), index, place)
        o = rotate(o, cos[:, None], -sin[:, None]).to(dtype)
        groups = self.attn_output_a.to(dtype).view(c.output_groups, c.output_rank, -1)
        o = torch.einsum("bsgi,goi->bsgo", o.reshape(rows, tokens, c.output_groups, -1), groups)
        return functional.linear(o.reshape(rows, tokens, -1), self.attn_output_b.to(dtype)), loss

    def _mixture(self, x: Tensor, ids: Tensor, run: Run, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Experts' output, and how many tokens each expert got. All experts are computed."""
        c, dtype = self.config, run.dtype
        rows, tokens, hidden = x.shape
        score = torch.sqrt(functional.softplus(functional.linear(x.float(), self.ffn_gate_inp)))
        if self.hashed:
            mask = self.hash_mask[ids]
        else:
            chosen = (score.detach() + self.exp_probs_b).topk(c.experts_used, -1).indices
            mask = (chosen[..., None] == torch.arange(c.experts, device=x.device)).any(-2).float()
        w = score * mask
        w = w / (w.sum(-1, keepdim=True) + 1e-20) * c.route_scale
        load = (mask.detach() * valid[..., None]).sum((0, 1))
        held = [self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps]
        gate, up, down = (rounding.four_bit(one) if self.four_bit else one for one in held)
        gates = torch.cat((gate.flatten(0, 1), self.ffn_gate_shexp), 0).to(dtype)
        ups = torch.cat((up.flatten(0, 1), self.ffn_up_shexp), 0).to(dtype)
        flat = down.permute(1, 0, 2).reshape(hidden, -1)
        downs = torch.cat((flat, self.ffn_down_shexp), 1).to(dtype)
        xb = x.to(dtype)
        h = functional.silu(functional.linear(xb, gates).float().clamp(max=c.swiglu_limit))
        h = h * functional.linear(xb, ups).float().clamp(-c.swiglu_limit, c.swiglu_limit)
        shares = torch.cat((w, torch.ones_like(w[..., :1])), -1)
        h = (h.view(rows, tokens, c.experts + 1, c.expert_width) * shares[..., None]).to(dtype)
        return functional.linear(h.view(rows, tokens, -1), downs), load

    def forward(
        self, streams: Tensor, ids: Tensor, run: Run, place: Place
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New streams, the indexer's loss, the experts' load."""
        x, post, comb = self._split(streams, "attn")
        y, loss = self._attend(rms(x, self.attn_norm, self.config.epsilon), run, place)
        streams = self._expand(streams, y, post, comb)
        x, post, comb = self._split(streams, "ffn")
        y, load = self._mixture(rms(x, self.ffn_norm, self.config.epsilon), ids, run, place.valid)
        return self._expand(streams, y, post, comb), loss, load


@dataclass(frozen=True)
class Place:
    """Where the tokens are: rotations, and what each may see."""

    rope: tuple[Tensor, Tensor]
    """Cosines and sines, [tokens, 32]."""
    window: Tensor
    """[rows, tokens, 256]: the raw keys of this block and the one before."""
    compressed: Tensor
    """[rows, tokens, windows]; unused without compression."""
    first: Tensor
    """[rows, tokens / 4]: windows that begin a document."""
    hadamard: Tensor
    valid: Tensor
    """[rows, tokens]: 0 for padding."""


def _index_loss(attended: Tensor, index: Tensor, place: Place) -> Tensor:
    """Divergence of the index softmax from the attention's mass on the compressed rows."""
    total = attended.sum(-1)
    share = attended / (total[..., None] + 1e-9)
    normaliser = torch.logsumexp(index, -1)
    score = torch.where(place.compressed, index - normaliser[..., None], 0.0)
    divergence = (share * (torch.log(share + 1e-9) - score)).sum(-1)
    weight = place.valid * total
    return (divergence * weight).sum() / (weight.sum() + 1e-6)
