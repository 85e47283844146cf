"""The parts of a DeepSeek-V4 GGUF file, for any dimensions: metadata and list of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gguf.constants import GGUFValueType

from ..errors import InvalidArgumentError
from .vocabulary import make_vocabulary
from .writer import Typed

__all__ = ["Dimensions", "Fill", "Role", "TensorPlan", "metadata", "plan"]

STREAMS = 4
"""Residual streams of a hyper-connection."""


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """What distinguishes one model of the family from another; names as in model files where
    these have short ones.

    Attributes:
        ratios: Compress ratio of each layer: 0 (window only), 4 (with indexer) or 128.
        hash_layers: Layers from the first on that choose experts by token id.
        yarn_factor: Context is ``yarn_factor * yarn_context`` tokens.
    """

    hidden: int
    inter: int
    heads: int
    head_dim: int
    q_lora: int
    o_groups: int
    o_lora: int
    experts: int
    experts_used: int
    index_heads: int
    index_dim: int
    index_top_k: int
    window: int
    vocab: int
    ratios: tuple[int, ...]
    hash_layers: int
    route_scale: float
    swiglu_clamp: float
    yarn_factor: float
    yarn_context: int
    rope_dims: int = 64
    rope_theta: float = 10000.0
    compress_theta: float = 160000.0
    norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "hash_layers" else 1
            if isinstance(value, int) and value < least:
                raise InvalidArgumentError(f"{name} must be {least} or more, not {value}")
        if not self.ratios or not set(self.ratios) <= {0, 4, 128}:
            raise InvalidArgumentError(f"ratios must be 0, 4 or 128 each, not {self.ratios}")
        if self.experts_used > self.experts:
            raise InvalidArgumentError(
                f"experts_used must be at most experts = {self.experts}, not {self.experts_used}"
            )
        if self.heads % self.o_groups:
            raise InvalidArgumentError(
                f"o_groups must divide heads = {self.heads}, not be {self.o_groups}"
            )
        if self.rope_dims > min(self.head_dim, self.index_dim):
            raise InvalidArgumentError(
                f"rope_dims must be at most head_dim = {self.head_dim} and "
                f"index_dim = {self.index_dim}, not {self.rope_dims}"
            )

    @property
    def context(self) -> int:
        return int(self.yarn_factor * self.yarn_context)


class Role(StrEnum):
    """Groups of tensors that a quantised file stores alike."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    DENSE = "dense"
    """Attention projections and shared experts."""
    SMALL = "small"
    """Hyper-connections, compressors, indexers, routers."""
    EXPERTS_IN = "experts_in"
    """Gate and up matrices of the routed experts."""
    EXPERTS_OUT = "experts_out"
    """Down matrices of the routed experts."""
    VECTOR = "vector"
    """Always float32."""
    TABLE = "table"
    """Always int32."""


class Fill(StrEnum):
    """How the numbers of a tensor come about."""

    MATRIX = "matrix"
    VECTOR = "vector"
    SCALES = "scales"
    """The three scales of a hyper-connection: about 0.75, 1 and 1.25."""
    CONSTANT = "constant"
    TABLE = "table"
    """Distinct expert ids for each token."""


@dataclass(frozen=True)
class TensorPlan:
    """A tensor before its numbers exist; ``shape`` in ggml's order."""

    name: str
    shape: tuple[int, ...]
    role: Role
    fill: Fill
    std: float = 0.0
    mean: float = 0.0


def metadata(dimensions: Dimensions, name: str, file_type: int) -> dict[str, Any]:
    """The metadata in file order, all that llama.cpp and pyds4 ask for.

    Args:
        name: ``general.name``.
        file_type: ``general.file_type``, a ``gguf.LlamaFileType``.
    """
    d = dimensions
    layers = len(d.ratios)
    model = {
        "block_count": layers,
        "context_length": d.context,
        "embedding_length": d.hidden,
        "embedding_length_out": d.hidden * STREAMS,
        "vocab_size": d.vocab,
        "feed_forward_length": d.inter,
        "attention.head_count": d.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": d.head_dim,
        "attention.value_length": d.head_dim,
        "attention.layer_norm_rms_epsilon": d.norm_epsilon,
        "attention.q_lora_rank": d.q_lora,
        "attention.output_group_count": d.o_groups,
        "attention.output_lora_rank": d.o_lora,
        "attention.sliding_window": d.window,
        "attention.compress_ratios": list(d.ratios),
        "attention.compress_rope_freq_base": d.compress_theta,
        "attention.indexer.head_count": d.index_heads,
        "attention.indexer.key_length": d.index_dim,
        "attention.indexer.top_k": d.index_top_k,
        "rope.dimension_count": d.rope_dims,
        "rope.freq_base": d.rope_theta,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": d.yarn_factor,
        "rope.scaling.original_context_length": d.yarn_context,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "expert_count": d.experts,
        "expert_used_count": d.experts_used,
        "expert_feed_forward_length": d.inter,
        "expert_shared_count": 1,
        "expert_gating_func": 4,  # sqrt(softplus)
        "expert_weights_scale": d.route_scale,
        "expert_weights_norm": True,
        "swiglu_clamp_exp": [d.swiglu_clamp] * layers,
        "swiglu_clamp_shexp": [d.swiglu_clamp] * layers,
        "hash_layer_count": d.hash_layers,
        "hyper_connection.count": STREAMS,
        "hyper_connection.sinkhorn_iterations": 20,
        "hyper_connection.epsilon": 1e-6,
    }
    vocabulary = make_vocabulary(d.vocab)
    return {
        "general.architecture": "deepseek4",
        "general.name": name,
        "general.file_type": file_type,
        **{f"deepseek4.{key}": value for key, value in model.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "joyai-llm",
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        # Empty when the vocabulary is too small for a merge.
        "tokenizer.ggml.merges": Typed.array(GGUFValueType.STRING, vocabulary.merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


def plan(dimensions: Dimensions) -> list[TensorPlan]:
    """All tensors in file order.

    Spreads follow from the number of inputs, so that activations keep their size and every part
    (each gate, norm, bias and compressor) moves the logits noticeably.
    """
    d = dimensions
    tensors = [
        TensorPlan("token_embd.weight", (d.hidden, d.vocab), Role.EMBEDDING, Fill.MATRIX, 1.0),
        _vector("output_norm.weight", d.hidden, mean=1.0, std=0.2),
        _matrix("output.weight", d.hidden, d.vocab, role=Role.OUTPUT, gain=2.0),
        _matrix("output_hc_fn.weight", STREAMS * d.hidden, STREAMS, role=Role.SMALL),
        _vector("output_hc_base.weight", STREAMS, std=0.5),
        TensorPlan("output_hc_scale.weight", (1,), Role.VECTOR, Fill.CONSTANT, mean=0.875),
    ]
    for layer, ratio in enumerate(d.ratios):
        prefix = f"blk.{layer}."
        for parts in (
            _hyper_connections(d, prefix),
            _attention(d, prefix),
            _compressors(d, prefix, ratio),
            _experts(d, prefix, is_hashed=layer < d.hash_layers),
        ):
            tensors += parts
    return tensors


def _matrix(
    name: str, inputs: int, outputs: int, *, role: Role, gain: float = 1.0, experts: int = 0
) -> TensorPlan:
    shape = (inputs, outputs, experts) if experts else (inputs, outputs)
    return TensorPlan(name, shape, role, Fill.MATRIX, gain * (1.0 / math.sqrt(inputs)))


def _vector(name: str, *shape: int, std: float, mean: float = 0.0) -> TensorPlan:
    role = Role.VECTOR if len(shape) == 1 else Role.SMALL
    return TensorPlan(name, shape, role, Fill.VECTOR, std, mean)


def _hyper_connections(d: Dimensions, prefix: str) -> Iterator[TensorPlan]:
    mix = (2 + STREAMS) * STREAMS
    for kind in ("attn", "ffn"):
        name = f"{prefix}hc_{kind}"
        yield _matrix(f"{name}_fn.weight", STREAMS * d.hidden, mix, role=Role.SMALL)
        yield _vector(f"{name}_base.weight", mix, std=0.75)
        yield TensorPlan(f"{name}_scale.weight", (3,), Role.VECTOR, Fill.SCALES)


def _attention(d: Dimensions, prefix: str) -> Iterator[TensorPlan]:
    rows = d.heads * d.head_dim
    low_rank = d.o_groups * d.o_lora
    dense = Role.DENSE
    yield _vector(f"{prefix}attn_norm.weight", d.hidden, mean=1.0, std=0.25)
    yield _vector(f"{prefix}ffn_norm.weight", d.hidden, mean=1.0, std=0.25)
    yield _vector(f"{prefix}attn_sinks.weight", d.heads, mean=0.5, std=1.0)
    yield _matrix(f"{prefix}attn_q_a.weight", d.hidden, d.q_lora, role=dense)
    yield _vector(f"{prefix}attn_q_a_norm.weight", d.q_lora, mean=1.0, std=0.25)
    yield _matrix(f"{prefix}attn_q_b.weight", d.q_lora, rows, role=dense)
    yield _matrix(f"{prefix}attn_kv.weight", d.hidden, d.head_dim, role=dense)
    yield _vector(f"{prefix}attn_kv_a_norm.weight", d.head_dim, mean=1.25, std=0.25)
    yield _matrix(
        f"{prefix}attn_output_a.weight", rows // d.o_groups, low_rank, role=dense, gain=2.0
    )
    yield _matrix(f"{prefix}attn_output_b.weight", low_rank, d.hidden, role=dense, gain=1.5)


def _compressors(d: Dimensions, prefix: str, ratio: int) -> Iterator[TensorPlan]:
    if ratio:
        # At ratio 4 windows overlap, so there are two series of keys and gates.
        width = (2 if ratio == 4 else 1) * d.head_dim
        name = f"{prefix}attn_compressor"
        yield _matrix(f"{name}_kv.weight", d.hidden, width, role=Role.SMALL)
        yield _matrix(f"{name}_gate.weight", d.hidden, width, role=Role.SMALL, gain=1.5)
        yield _vector(f"{name}_ape.weight", width, ratio, std=0.75)
        yield _vector(f"{name}_norm.weight", d.head_dim, mean=1.25, std=0.25)
    if ratio == 4:
        width = 2 * d.index_dim
        name = f"{prefix}indexer_compressor"
        yield _matrix(f"{prefix}indexer.proj.weight", d.hidden, d.index_heads, role=Role.SMALL)
        yield _matrix(
            f"{prefix}indexer.attn_q_b.weight",
            d.q_lora,
            d.index_heads * d.index_dim,
            role=Role.SMALL,
        )
        yield _matrix(f"{name}_kv.weight", d.hidden, width, role=Role.SMALL)
        yield _matrix(f"{name}_gate.weight", d.hidden, width, role=Role.SMALL, gain=1.5)
        yield _vector(f"{name}_ape.weight", width, ratio, std=0.75)
        yield _vector(f"{name}_norm.weight", d.index_dim, mean=1.0, std=0.25)


def _experts(d: Dimensions, prefix: str, *, is_hashed: bool) -> Iterator[TensorPlan]:
    yield _matrix(f"{prefix}ffn_gate_inp.weight", d.hidden, d.experts, role=Role.SMALL)
    if is_hashed:
        yield TensorPlan(
            f"{prefix}ffn_gate_tid2eid.weight", (d.experts_used, d.vocab), Role.TABLE, Fill.TABLE
        )
    else:
        yield _vector(f"{prefix}exp_probs_b.bias", d.experts, std=0.25)
    for suffix, into, out, experts in (
        ("exps", Role.EXPERTS_IN, Role.EXPERTS_OUT, d.experts),
        ("shexp", Role.DENSE, Role.DENSE, 0),
    ):
        for part in ("gate", "up"):
            name = f"{prefix}ffn_{part}_{suffix}.weight"
            yield _matrix(name, d.hidden, d.inter, role=into, experts=experts)
        name = f"{prefix}ffn_down_{suffix}.weight"
        yield _matrix(name, d.inter, d.hidden, role=out, gain=1.5, experts=experts)
