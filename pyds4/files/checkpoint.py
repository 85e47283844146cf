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
from ..synth.names import EXPERTS, HF_LAYER, HF_TOP, OFFICIAL_LAYER, OFFICIAL_TOP
from .safetensors import Checkpoint, StoredTensor
from .storage import StoredMatrix

__all__ = ["CheckpointModel", "open_checkpoint", "read_dimensions"]

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
                return f"model.layers.{layer}.{HF_LAYER[rest]}"
            return f"layers.{layer}.{OFFICIAL_LAYER[rest]}"
        return (HF_TOP if self._is_hf else OFFICIAL_TOP)[name]

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
        official, hf, stack, half = EXPERTS[rest]
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
    """The YaRN parameters, which ``transformers`` keeps for compressed layers alone."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return dict(given["compress"] if isinstance(given.get("compress"), dict) else given)


def _thetas(config: dict[str, Any]) -> tuple[float, float]:
    """The base of the rotation, of window layers and of compressed ones."""
    given = config.get("rope_parameters") or {}
    main, compress = (
        part if isinstance(part := given.get(kind), dict) else {} for kind in ("main", "compress")
    )
    return (
        float(config.get("rope_theta") or main.get("rope_theta", 10000.0)),
        float(config.get("compress_rope_theta") or compress.get("rope_theta", 160000.0)),
    )


def _rope_dims(config: dict[str, Any]) -> int:
    if "qk_rope_head_dim" in config:
        return int(config["qk_rope_head_dim"])
    return int(config["head_dim"] * float(config.get("partial_rotary_factor") or 64 / 512))


_ALWAYS: dict[str, Any] = {
    "hc_mult": STREAMS,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "n_shared_experts": 1,
    "tie_word_embeddings": False,
}
"""What every model of the family says, if it says anything; another value is another network."""


def _check_constants(config: dict[str, Any]) -> None:
    for key, expected in _ALWAYS.items():
        found = config.get(key, expected)
        if found != expected:
            raise ValueError(f"{key}: expected {expected!r}, found {found!r}")
    rates = config.get("compress_rates") or {}
    for kind, found in rates.items():
        if found != _LAYER_RATIOS.get(kind):
            raise ValueError(f"compress_rates: {kind}: {found!r} is not of this family")


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
    theta, compress_theta = _thetas(config)
    try:
        _check_constants(config)
        layers = config["num_hidden_layers"]
        hashed = config.get("num_hash_layers")
        if hashed is None:
            hashed = config.get("mlp_layer_types", []).count("hash_moe")
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
            rope_dims=_rope_dims(config),
            rope_theta=theta,
            compress_theta=compress_theta,
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        )
        if len(dimensions.ratios) != layers:
            raise ValueError(f"compress ratios of {len(dimensions.ratios)} of {layers} layers")
        return dimensions
    except KeyError as error:
        raise ModelFileError(f"{path}: {error.args[0]} is missing") from None
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: {error}") from None
