"""Synthetic checkpoints: what ``pyds4 convert`` reads, of any size, with random weights.

As the published ones: routed experts FP4 in blocks of 32, other large matrices FP8 with a scale for
128 × 128, the rest BF16 and F32; one safetensors file for a layer and an index. ``hf`` gives the
names, stacked experts and configuration that ``transformers`` saves.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from .blocks import BlockSource
from .model import STREAMS, Dimensions, Role, TensorPlan, plan
from .names import EXPERTS, HF_LAYER, HF_TOP, OFFICIAL_LAYER, OFFICIAL_TOP
from .synthesize import TensorTypes, synthetic_tensors
from .vocabulary import make_vocabulary
from .writer import Progress, Tensor

__all__ = [
    "Style",
    "checkpoint_bytes",
    "checkpoint_config",
    "checkpoint_tokenizer",
    "synthesize_checkpoint",
]

Style = Literal["official", "hf"]
Bytes = NDArray[np.uint8]

_SIZES = {"F32": 4, "BF16": 2, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
_KINDS = {0: "sliding_attention", 4: "compressed_sparse_attention",
          128: "heavily_compressed_attention"}  # fmt: skip
_STEP = 1 << 22
_F8_SPREAD = 1.2
"""Root mean square of the e4m3 numbers that are drawn: ±0.5 to ±1.875."""


@dataclass(frozen=True)
class _Stored:
    """A tensor of the checkpoint; ``parts`` makes its bytes, some megabytes at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[Any]]

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]


def checkpoint_bytes(dimensions: Dimensions, style: Style = "official") -> int:
    """How large the weights of such a checkpoint are."""
    shards = _shards(dimensions, style, 0).values()
    return sum(stored.byte_count for shard in shards for stored in shard)


def synthesize_checkpoint(
    directory: str | os.PathLike[str],
    dimensions: Dimensions,
    *,
    style: Style = "official",
    seed: int = 0,
    progress: Progress | None = None,
) -> int:
    """Write a checkpoint with random weights and return the size of its weights in bytes.

    Args:
        directory: Made if it does not exist.
        progress: Called with bytes written and bytes in all.

    Raises:
        OSError: it cannot be written, or the disk has too little room (checked first).
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(dimensions, style, seed)
    total = sum(stored.byte_count for shard in shards.values() for stored in shard)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise OSError(
            f"{folder} needs {total / 2**30:.2f} GiB, the disk has {free / 2**30:.2f} GiB free"
        )
    done, places = 0, {}
    for file, shard in shards.items():
        partial = folder / f"{file}.partial"
        with partial.open("wb") as out:
            out.write(_header(shard))
            for stored in shard:
                for part in stored.parts():
                    done += out.write(np.ascontiguousarray(part).data.cast("B"))
                    if progress is not None:
                        progress(done, total)
        partial.replace(folder / file)
        places.update(dict.fromkeys((stored.name for stored in shard), file))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "config.json").write_text(json.dumps(checkpoint_config(dimensions, style), indent=2))
    vocabulary = make_vocabulary(dimensions.vocab)
    tokenizer = checkpoint_tokenizer(vocabulary.tokens, vocabulary.types, vocabulary.merges)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _header(shard: list[_Stored]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for stored in shard:
        end = at + stored.byte_count
        entries[stored.name] = {
            "dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [at, end]
        }  # fmt: skip
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# Tensors


def _shards(d: Dimensions, style: Style, seed: int) -> dict[str, list[_Stored]]:
    """The tensors of each file; the first holds what belongs to no layer."""
    plans = plan(d)
    bf16 = GGMLQuantizationType.BF16
    mxfp4 = GGMLQuantizationType.MXFP4
    types = TensorTypes(bf16, bf16, bf16, bf16, mxfp4, mxfp4)
    tensors = {tensor.name: tensor for tensor in synthetic_tensors(d, types, seed)}
    source = BlockSource(seed)
    groups: dict[str, list[_Stored]] = {}
    count = len(d.ratios) + 1
    for tensor in plans:
        layer = int(tensor.name.split(".")[1]) + 1 if tensor.name.startswith("blk.") else 0
        shard = groups.setdefault(f"model-{layer + 1:05}-of-{count:05}.safetensors", [])
        if tensor.role in (Role.EXPERTS_IN, Role.EXPERTS_OUT):
            shard += _experts(tensor, tensors, style)
        elif tensor.role is Role.DENSE:
            shard += _fp8(tensor, _spelling(tensor.name, style), source, style)
        else:
            shard.append(_plain(tensor, tensors[tensor.name], _spelling(tensor.name, style)))
    return groups


def _spelling(name: str, style: Style) -> str:
    if not name.startswith("blk."):
        return (HF_TOP if style == "hf" else OFFICIAL_TOP)[name]
    _, layer, rest = name.split(".", 2)
    if style == "hf":
        return f"model.layers.{layer}.{HF_LAYER[rest]}"
    return f"layers.{layer}.{OFFICIAL_LAYER[rest]}"


def _plain(tensor: TensorPlan, made: Tensor, name: str) -> _Stored:
    is_table = made.type is GGMLQuantizationType.I32
    kind = "BF16" if made.type is GGMLQuantizationType.BF16 else "F32"

    def parts() -> Iterator[Any]:
        for start in range(0, made.block_count, _STEP):
            data = made.part(start, min(_STEP, made.block_count - start))
            yield np.frombuffer(data, "<i4").astype("<i8") if is_table else data

    return _Stored(name, "I64" if is_table else kind, tensor.shape[::-1], parts)


def _fp8(tensor: TensorPlan, name: str, source: BlockSource, style: Style) -> list[_Stored]:
    rows, columns = tensor.shape[::-1]
    scales = (-(-rows // 128), -(-columns // 128))
    exponent = 127 + round(math.log2(tensor.std / _F8_SPREAD))

    def codes() -> Iterator[Any]:
        rng = source.rng(tensor.name)
        for start in range(0, rows * columns, _STEP):
            drawn = np.frombuffer(rng.bytes(min(_STEP, rows * columns - start)), np.uint8)
            yield (drawn & 0x8F) | 0x30

    def exponents() -> Iterator[Any]:
        yield source.rng(f"{tensor.name} scales").integers(
            exponent - 1, exponent + 2, scales, np.uint8
        )

    suffix = ".weight_scale_inv" if style == "hf" else ".scale"
    return [
        _Stored(name, "F8_E4M3", (rows, columns), codes),
        _Stored(name.removesuffix(".weight") + suffix, "F8_E8M0", scales, exponents),
    ]


def _experts(tensor: TensorPlan, tensors: dict[str, Tensor], style: Style) -> list[_Stored]:
    """FP4 experts one by one, or stacked; gate and up stand in one stack, made with gate."""
    _, layer, rest = tensor.name.split(".", 2)
    official, _, stack, half = EXPERTS[rest]
    columns, rows, experts = tensor.shape
    if style == "official":
        out = []
        for expert in range(experts):
            base = f"layers.{layer}.ffn.experts.{expert}.{official}"
            made = [(tensors[tensor.name], expert)]
            out += _fp4(f"{base}.weight", f"{base}.scale", (rows, columns), made)
        return out
    if half == 1:
        return []
    names = [tensor.name]
    if stack == "gate_up_proj":
        names.append(tensor.name.replace("gate_exps", "up_exps"))
    base = f"model.layers.{layer}.mlp.experts.{stack}"
    made = [(tensors[name], expert) for expert in range(experts) for name in names]
    shape = (experts, len(names) * rows, columns)
    return _fp4(base, f"{base}_scale_inv", shape, made)


def _fp4(
    name: str, scale_name: str, shape: tuple[int, ...], made: list[tuple[Tensor, int]]
) -> list[_Stored]:
    """Weights and scales of ``made``'s matrices (tensor and which of it), behind one another."""
    *front, columns = shape
    blocks = math.prod(shape) // 32 // len(made)

    def read(tensor: Tensor, index: int) -> Bytes:
        return np.frombuffer(tensor.part(index * blocks, blocks), np.uint8).reshape(-1, 17)

    def codes() -> Iterator[Any]:
        for tensor, index in made:
            # A byte holds codes i and i + 16; it shall hold 2i and 2i + 1.
            data = read(tensor, index)[:, 1:]
            low, high = data & 15, data >> 4
            packed = np.empty((len(data), 16), np.uint8)
            packed[:, :8] = low[:, 0::2] | (low[:, 1::2] << 4)
            packed[:, 8:] = high[:, 0::2] | (high[:, 1::2] << 4)
            yield packed

    def scales() -> Iterator[Any]:
        for tensor, index in made:
            yield read(tensor, index)[:, 0]

    return [
        _Stored(name, "I8", (*front, columns // 2), codes),
        _Stored(scale_name, "F8_E8M0", (*front, columns // 32), scales),
    ]


# What stands beside the weights


def checkpoint_config(d: Dimensions, style: Style = "official") -> dict[str, Any]:
    """``config.json`` of a model of dimensions ``d``, as published or as ``transformers`` saves."""
    yarn = {
        "factor": d.yarn_factor,
        "original_max_position_embeddings": d.yarn_context,
        "beta_fast": 32,
        "beta_slow": 1,
    }
    config: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": d.vocab,
        "hidden_size": d.hidden,
        "moe_intermediate_size": d.inter,
        "num_hidden_layers": len(d.ratios),
        "num_attention_heads": d.heads,
        "head_dim": d.head_dim,
        "q_lora_rank": d.q_lora,
        "o_groups": d.o_groups,
        "o_lora_rank": d.o_lora,
        "n_routed_experts": d.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": d.experts_used,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True,
        "routed_scaling_factor": d.route_scale,
        "swiglu_limit": d.swiglu_clamp,
        "index_n_heads": d.index_heads,
        "index_head_dim": d.index_dim,
        "index_topk": d.index_top_k,
        "hc_mult": STREAMS,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "max_position_embeddings": d.context,
        "rms_norm_eps": d.norm_epsilon,
        "sliding_window": d.window,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if style == "official":
        return config | {
            "qk_rope_head_dim": d.rope_dims,
            "compress_ratios": list(d.ratios),
            "num_hash_layers": d.hash_layers,
            "rope_theta": d.rope_theta,
            "compress_rope_theta": d.compress_theta,
            "rope_scaling": {"type": "yarn", **yarn},
        }
    part = d.rope_dims / d.head_dim
    return config | {
        "partial_rotary_factor": part,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "layer_types": [_KINDS[ratio] for ratio in d.ratios],
        "mlp_layer_types": [
            "hash_moe" if layer < d.hash_layers else "moe" for layer in range(len(d.ratios))
        ],
        "rope_parameters": {
            "main": {
                "rope_type": "default",
                "rope_theta": d.rope_theta,
                "partial_rotary_factor": part,
            },
            "compress": {
                "rope_type": "yarn",
                "rope_theta": d.compress_theta,
                "partial_rotary_factor": part,
                "attention_factor": 1.0,
                **yarn,
            },
        },
    }


def checkpoint_tokenizer(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]
) -> dict[str, Any]:
    """``tokenizer.json``: a GGUF vocabulary in the form of the ``tokenizers`` library."""
    plain, added = {}, []
    for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == 1:
            plain[text] = id
        else:
            added.append({"id": id, "content": text, "special": kind == 3})
    pairs = [merge.split(" ") for merge in merges]
    return {"added_tokens": added, "model": {"type": "BPE", "vocab": plain, "merges": pairs}}
