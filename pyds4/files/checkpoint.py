"""Names and shapes of original checkpoints, in both of their spellings, as those of GGUF.

``official``: as published with the weights: ``layers.N.attn.wq_a.weight``, one tensor an expert.
``hf``: as ``transformers`` saves the model: ``model.layers.N.self_attn.q_a_proj.weight``, experts
stacked (``mlp.experts.gate_up_proj`` [experts, 2 · inner, hidden]) or one tensor each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..synth.model import STREAMS, Dimensions, TensorPlan, metadata, plan
from .safetensors import Checkpoint, StoredTensor
from .storage import StoredMatrix

__all__ = ["CheckpointModel", "open_checkpoint", "read_dimensions"]

_OFFICIAL_TOP = {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
    "output_hc_fn.weight": "hc_head_fn",
    "output_hc_base.weight": "hc_head_base",
    "output_hc_scale.weight": "hc_head_scale",
}
_HF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output_hc_fn.weight": "model.hc_head.hc_fn",
    "output_hc_base.weight": "model.hc_head.hc_base",
    "output_hc_scale.weight": "model.hc_head.hc_scale",
}
# GGUF's name behind "blk.N.", the official one behind "layers.N.", HF's behind "model.layers.N.".
_LAYER = [
    ("attn_norm.weight", "attn_norm.weight", "input_layernorm.weight"),
    ("ffn_norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight"),
    ("attn_sinks.weight", "attn.attn_sink", "self_attn.sinks"),
    ("attn_q_a.weight", "attn.wq_a.weight", "self_attn.q_a_proj.weight"),
    ("attn_q_a_norm.weight", "attn.q_norm.weight", "self_attn.q_a_norm.weight"),
    ("attn_q_b.weight", "attn.wq_b.weight", "self_attn.q_b_proj.weight"),
    ("attn_kv.weight", "attn.wkv.weight", "self_attn.kv_proj.weight"),
    ("attn_kv_a_norm.weight", "attn.kv_norm.weight", "self_attn.kv_norm.weight"),
    ("attn_output_a.weight", "attn.wo_a.weight", "self_attn.o_a_proj.weight"),
    ("attn_output_b.weight", "attn.wo_b.weight", "self_attn.o_b_proj.weight"),
    ("indexer.proj.weight", "attn.indexer.weights_proj.weight",
     "self_attn.compressor.indexer.scorer.weights_proj.weight"),
    ("indexer.attn_q_b.weight", "attn.indexer.wq_b.weight",
     "self_attn.compressor.indexer.q_b_proj.weight"),
    ("ffn_gate_inp.weight", "ffn.gate.weight", "mlp.gate.weight"),
    ("exp_probs_b.bias", "ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_tid2eid.weight", "ffn.gate.tid2eid", "mlp.gate.tid2eid"),
    ("ffn_gate_shexp.weight", "ffn.shared_experts.w1.weight",
     "mlp.shared_experts.gate_proj.weight"),
    ("ffn_up_shexp.weight", "ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight"),
    ("ffn_down_shexp.weight", "ffn.shared_experts.w2.weight",
     "mlp.shared_experts.down_proj.weight"),
]  # fmt: skip
for _kind in ("attn", "ffn"):
    for _part in ("fn", "base", "scale"):
        _LAYER.append((f"hc_{_kind}_{_part}.weight", f"hc_{_kind}_{_part}", f"{_kind}_hc.{_part}"))
for _gguf, _official, _hf in (
    ("attn_compressor", "attn.compressor", "self_attn.compressor"),
    ("indexer_compressor", "attn.indexer.compressor", "self_attn.compressor.indexer"),
):
    _LAYER += [
        (f"{_gguf}_kv.weight", f"{_official}.wkv.weight", f"{_hf}.kv_proj.weight"),
        (f"{_gguf}_gate.weight", f"{_official}.wgate.weight", f"{_hf}.gate_proj.weight"),
        (f"{_gguf}_ape.weight", f"{_official}.ape", f"{_hf}.position_bias"),
        (f"{_gguf}_norm.weight", f"{_official}.norm.weight", f"{_hf}.kv_norm.weight"),
    ]
_OFFICIAL_LAYER = {gguf: official for gguf, official, _ in _LAYER}
_HF_LAYER = {gguf: hf for gguf, _, hf in _LAYER}
# (official, HF) of one expert's matrix; HF's stack and which half of its rows.
_EXPERTS = {
    "ffn_gate_exps.weight": ("w1", "gate_proj", "gate_up_proj", 0),
    "ffn_up_exps.weight": ("w3", "up_proj", "gate_up_proj", 1),
    "ffn_down_exps.weight": ("w2", "down_proj", "down_proj", 0),
}
_SCALE_SUFFIXES = (".scale", ".weight_scale_inv", ".weight_scale")


@dataclass(frozen=True)
class CheckpointModel:
    """A checkpoint whose every tensor has been found and checked.

    Attributes:
        matrices: By GGUF name: the matrices of the tensor, one unless it is routed experts.
        tables: By GGUF name: tables of integers.
        skipped: Tensors of drafters, which the main model's file does not hold.
    """

    dimensions: Dimensions
    config: dict[str, Any]
    style: str
    plan: list[TensorPlan]
    matrices: dict[str, list[StoredMatrix]]
    tables: dict[str, StoredTensor]
    skipped: list[str]
    checkpoint: Checkpoint

    def metadata(self, name: str, file_type: int) -> dict[str, Any]:
        """Without the tokenizer's."""
        entries = metadata(self.dimensions, name, file_type)
        c = self.config
        entries["deepseek4.context_length"] = int(
            c.get("max_position_embeddings", self.dimensions.context)
        )
        rope = _rope(c)
        for key, given, kind in (
            ("hyper_connection.sinkhorn_iterations", c.get("hc_sinkhorn_iters"), int),
            ("hyper_connection.epsilon", c.get("hc_eps"), float),
            ("rope.scaling.yarn_beta_fast", rope.get("beta_fast"), float),
            ("rope.scaling.yarn_beta_slow", rope.get("beta_slow"), float),
        ):
            if given is not None:
                entries[f"deepseek4.{key}"] = kind(given)
        return {k: v for k, v in entries.items() if not k.startswith("tokenizer.")}


def open_checkpoint(directory: Path) -> CheckpointModel:
    """Find and check every tensor of a checkpoint; no weights are read.

    Raises:
        ModelFileError: something is missing, of another shape or of a type that cannot be
            converted, or the files do not go together; names tensor, file and expectation.
    """
    config = _read_config(directory)
    dimensions = read_dimensions(config, directory / "config.json")
    checkpoint = Checkpoint(directory)
    style = (
        "hf" if any(name.startswith("model.layers.") for name in checkpoint.tensors) else "official"
    )
    finder = _Finder(checkpoint, style, dimensions)
    plans = plan(dimensions)
    matrices, tables = {}, {}
    for tensor in plans:
        if tensor.name.endswith("tid2eid.weight"):
            tables[tensor.name] = finder.table(tensor)
        else:
            matrices[tensor.name] = finder.matrices(tensor)
    unused = [name for name in checkpoint.tensors if name not in finder.used]
    skipped = [name for name in unused if _is_drafter(name, len(dimensions.ratios))]
    strange = [name for name in unused if name not in set(skipped)]
    if strange:
        raise ModelFileError(
            f"{directory}: {len(strange)} tensors belong to no part of the model, such as "
            f"{', '.join(repr(name) for name in strange[:3])}"
        )
    return CheckpointModel(dimensions, config, style, plans, matrices, tables, skipped, checkpoint)


def _is_drafter(name: str, layers: int) -> bool:
    parts = name.removeprefix("model.").split(".")
    if parts[0] in ("mtp", "nextn"):
        return True
    return parts[0] == "layers" and parts[1].isdigit() and int(parts[1]) >= layers


class _Finder:
    def __init__(self, checkpoint: Checkpoint, style: str, dimensions: Dimensions) -> None:
        self._checkpoint = checkpoint
        self._is_hf = style == "hf"
        self._d = dimensions
        self.used: set[str] = set()

    def _spelling(self, name: str) -> str:
        if name.startswith("blk."):
            _, layer, rest = name.split(".", 2)
            if self._is_hf:
                return f"model.layers.{layer}.{_HF_LAYER[rest]}"
            return f"layers.{layer}.{_OFFICIAL_LAYER[rest]}"
        return (_HF_TOP if self._is_hf else _OFFICIAL_TOP)[name]

    def _find(self, name: str, wanted: str) -> StoredTensor:
        found = self._checkpoint.tensors.get(name)
        if found is None:
            raise ModelFileError(
                f"{self._checkpoint.path}: tensor {name!r} is missing (for {wanted!r})"
            )
        self.used.add(name)
        return found

    def table(self, tensor: TensorPlan) -> StoredTensor:
        found = self._find(self._spelling(tensor.name), tensor.name)
        if found.dtype not in ("I64", "I32"):
            raise ModelFileError(f"{found.label}: expected I64 or I32, found {found.dtype}")
        if found.shape != tensor.shape[::-1]:
            raise ModelFileError(
                f"{found.label}: expected shape {tensor.shape[::-1]}, found {found.shape}"
            )
        return found

    def matrices(self, tensor: TensorPlan) -> list[StoredMatrix]:
        if not tensor.name.endswith("_exps.weight"):
            return [self._matrix(self._spelling(tensor.name), tensor.name, tensor.shape)]
        _, layer, rest = tensor.name.split(".", 2)
        official, hf, stack, half = _EXPERTS[rest]
        columns, rows, experts = tensor.shape
        stacked = f"model.layers.{layer}.mlp.experts.{stack}"
        if self._is_hf and stacked in self._checkpoint.tensors:
            halves = 2 if stack == "gate_up_proj" else 1
            whole = self._matrix(stacked, tensor.name, (columns, halves * rows, experts))
            return [
                StoredMatrix(
                    self._checkpoint, whole.weight, whole.scale,
                    first=(expert * halves + half) * rows, rows=rows,
                )
                for expert in range(experts)
            ]  # fmt: skip
        names = (
            f"model.layers.{layer}.mlp.experts.{expert}.{hf}.weight"
            if self._is_hf
            else f"layers.{layer}.ffn.experts.{expert}.{official}.weight"
            for expert in range(experts)
        )
        found = [self._matrix(name, tensor.name, (columns, rows)) for name in names]
        for matrix in found:
            if matrix.exact_type is not found[0].exact_type:
                raise ModelFileError(
                    f"{matrix.label}: {matrix.weight.dtype}, but {found[0].weight.name!r} is "
                    f"{found[0].weight.dtype}: experts of a layer must be stored alike"
                )
        return found

    def _matrix(self, name: str, wanted: str, shape: tuple[int, ...]) -> StoredMatrix:
        weight = self._find(name, wanted)
        base = name.removesuffix(".weight")
        candidates = [base + suffix for suffix in _SCALE_SUFFIXES] + [f"{name}_scale_inv"]
        scale = next((key for key in candidates if self._is_scale(key, weight)), None)
        rows = math.prod(shape[1:])
        matrix = StoredMatrix(
            self._checkpoint, weight, self._find(scale, wanted) if scale else None, 0, rows
        )
        logical = (*weight.shape[:-1], matrix.columns) if weight.shape else ()
        if logical != shape[::-1]:
            raise ModelFileError(
                f"{weight.label}: expected shape {shape[::-1]}, found {logical} "
                f"({weight.dtype} {weight.shape})"
            )
        return matrix

    def _is_scale(self, key: str, weight: StoredTensor) -> bool:
        return weight.dtype in ("F8_E4M3", "I8", "U8") and key in self._checkpoint.tensors


# The configuration


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing: the model's shapes stand there") from None
    except ValueError as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("model_type") != "deepseek_v4":
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise ModelFileError(f"{path}: model_type: expected 'deepseek_v4', found {kind!r}")
    return config


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The YaRN parameters, which ``transformers`` may keep once for each kind of layer."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    for kind in ("compress", "main"):
        if isinstance(given.get(kind), dict) and "factor" in given[kind]:
            return dict(given[kind])
    return dict(given)


_LAYER_RATIOS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


def _ratios(config: dict[str, Any], layers: int) -> Iterator[int]:
    if "compress_ratios" in config:
        # Those of drafters may follow the layers'.
        yield from config["compress_ratios"][:layers]
    else:
        yield from (_LAYER_RATIOS[kind] for kind in config["layer_types"][:layers])


def read_dimensions(config: dict[str, Any], path: Path) -> Dimensions:
    """The shapes that ``config.json`` gives.

    Raises:
        ModelFileError: a value is missing or impossible; names it.
    """
    rope = _rope(config)
    try:
        layers = config["num_hidden_layers"]
        hashed = config.get("num_hash_layers")
        if hashed is None:
            hashed = config.get("mlp_layer_types", []).count("hash_moe")
        streams = config.get("hc_mult", STREAMS)
        if streams != STREAMS:
            raise ValueError(f"hc_mult: expected {STREAMS}, found {streams}")
        dimensions = Dimensions(
            hidden=config["hidden_size"],
            inter=config["moe_intermediate_size"],
            heads=config["num_attention_heads"],
            head_dim=config["head_dim"],
            q_lora=config["q_lora_rank"],
            o_groups=config["o_groups"],
            o_lora=config["o_lora_rank"],
            experts=config.get("n_routed_experts") or config["num_local_experts"],
            experts_used=config["num_experts_per_tok"],
            index_heads=config["index_n_heads"],
            index_dim=config["index_head_dim"],
            index_top_k=config["index_topk"],
            window=config["sliding_window"],
            vocab=config["vocab_size"],
            ratios=tuple(_ratios(config, layers)),
            hash_layers=hashed,
            route_scale=float(config["routed_scaling_factor"]),
            swiglu_clamp=float(config["swiglu_limit"]),
            yarn_factor=float(rope["factor"]),
            yarn_context=int(
                rope.get("original_max_position_embeddings")
                or config["original_max_position_embeddings"]
            ),
            rope_dims=int(config.get("qk_rope_head_dim", 64)),
            rope_theta=float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
            compress_theta=float(config.get("compress_rope_theta", 160000.0)),
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        )
        if len(dimensions.ratios) != layers:
            raise ValueError(f"compress ratios of {len(dimensions.ratios)} of {layers} layers")
        return dimensions
    except KeyError as error:
        raise ModelFileError(f"{path}: {error.args[0]} is missing") from None
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: {error}") from None
