"""The whole network in plain PyTorch, written for training speed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.demo_model.block import Block, Place, Run, rms
from scripts.demo_model.config import ROPE_DIMENSIONS, STREAMS, WINDOW, Config


def frequencies(config: Config, compressed: bool) -> Tensor:
    """Rotary frequencies, with YaRN on compressed layers."""
    base = config.compressed_rope_base if compressed else config.rope_base
    exponents = torch.arange(0, ROPE_DIMENSIONS, 2, dtype=torch.float64) / ROPE_DIMENSIONS
    f = 1.0 / base**exponents
    if not compressed:
        return f.float()

    def correction(rotations: float) -> float:
        ratio = config.yarn_context / (rotations * 2 * math.pi)
        return ROPE_DIMENSIONS * math.log(ratio) / (2 * math.log(base))

    low = max(math.floor(correction(32)), 0)
    high: float = min(math.ceil(correction(1)), ROPE_DIMENSIONS - 1)
    high = high + 0.001 if low == high else high
    steps = torch.arange(ROPE_DIMENSIONS // 2, dtype=torch.float64)
    ramp = ((steps - low) / (high - low)).clamp(0, 1)
    return (f / config.yarn_factor * ramp + f * (1 - ramp)).float()


def hadamard(size: int) -> Tensor:
    """The normalised Hadamard matrix; ``size`` is a power of two."""
    h = torch.ones(1, 1)
    while h.shape[0] < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / math.sqrt(size)


class Model(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        torch.manual_seed(config.seed)
        hidden, vocabulary = config.hidden, config.vocabulary
        self.token_embd = nn.Parameter(torch.randn(vocabulary, hidden) * 0.7)
        self.output = nn.Parameter(torch.randn(vocabulary, hidden) * 0.02)
        self.output_norm = nn.Parameter(torch.ones(hidden))
        self.output_hc_fn = nn.Parameter(torch.randn(STREAMS, STREAMS * hidden) * 0.01)
        self.output_hc_base = nn.Parameter(torch.zeros(STREAMS))
        self.output_hc_scale = nn.Parameter(torch.ones(1))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(len(config.ratios)))
        self.register_buffer("hadamard", hadamard(config.index_dim), persistent=False)
        self.register_buffer("rope_raw", frequencies(config, False), persistent=False)
        self.register_buffer("rope_compressed", frequencies(config, True), persistent=False)

    def _places(self, documents: Tensor, valid: Tensor) -> dict[int, Place]:
        """A place for each ratio. ``documents`` [rows, tokens] numbers the documents of a row."""
        tokens, device = documents.shape[1], documents.device
        i = torch.arange(tokens, device=device)
        near = (i // WINDOW * WINDOW - WINDOW)[:, None] + torch.arange(2 * WINDOW, device=device)
        seen = (near <= i[:, None]) & (near > i[:, None] - WINDOW) & (near >= 0)
        window = seen & (documents[:, near.clamp_min(0)] == documents[:, :, None])
        by_four = documents[:, ::4]
        first = torch.ones_like(by_four, dtype=torch.bool)
        first[:, 1:] = by_four[:, 1:] != by_four[:, :-1]
        places = {}
        for ratio in sorted(set(self.config.ratios)):
            f = self.rope_compressed if ratio else self.rope_raw
            angles = i.float()[:, None] * f
            compressed = first
            if ratio:
                rows = torch.arange(tokens // ratio, device=device)
                whole = (rows[None, :] + 1) * ratio <= i[:, None] + 1
                own = documents[:, ::ratio][:, None, :] == documents[:, :, None]
                compressed = whole & own
            rope = (angles.cos(), angles.sin())
            places[ratio] = Place(rope, window, compressed, first, self.hadamard, valid)
        return places

    def trunk(
        self, ids: Tensor, run: Run, documents: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Streams [rows, tokens, 4, hidden], the indexers' loss, loads [layers, experts]."""
        assert ids.shape[1] % WINDOW == 0, "rows are whole blocks"
        if documents is None:
            documents = torch.zeros_like(ids, dtype=torch.int32)
        if valid is None:
            valid = torch.ones(ids.shape, device=ids.device)
        places = self._places(documents, valid)
        embedded = functional.embedding(ids, self.token_embd)[:, :, None]
        streams = embedded.expand(*ids.shape, STREAMS, self.config.hidden).contiguous()
        losses, loads = [], []
        for block in self.blocks:
            streams, loss, load = block(streams, ids, run, places[block.ratio])
            losses.append(loss)
            loads.append(load)
        return streams, torch.stack(losses).sum(), torch.stack(loads)

    def head(self, streams: Tensor, run: Run) -> Tensor:
        """Logits [rows, tokens, vocabulary]."""
        c = self.config
        flat = streams.flatten(2)
        mix = functional.linear(flat, self.output_hc_fn)
        mix = mix * torch.rsqrt(flat.square().mean(-1, keepdim=True) + c.epsilon)
        pre = torch.sigmoid(mix * self.output_hc_scale + self.output_hc_base) + c.epsilon
        x = rms((pre[..., None] * streams).sum(2), self.output_norm, c.epsilon)
        return functional.linear(x.to(run.dtype), self.output.to(run.dtype))
