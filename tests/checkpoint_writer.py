"""Saves weights under GGUF names as a checkpoint: official or HF spelling, plain, FP8 or FP4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyds4.synth.model import Dimensions
from pyds4.synth.names import EXPERTS, HF_LAYER, HF_TOP, OFFICIAL_LAYER, OFFICIAL_TOP
from pyds4.synth.vocabulary import make_vocabulary

Array = np.ndarray[Any, Any]
Stored = dict[str, tuple[str, Array]]
"""dtype and bytes-alike array by tensor name."""


def fp8_values() -> Array:
    """All finite e4m3 numbers by code, from the definition."""
    values = np.full(256, np.nan, np.float32)
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        if exponent == 15 and mantissa == 7:
            continue
        value = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        values[code] = -value if code & 128 else value
    return values


FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def to_fp8(weight: Array) -> tuple[Array, Array, Array]:
    """(codes, e8m0 scales of 128 × 128, the numbers they stand for)."""
    table = fp8_values()
    rows, columns = weight.shape
    order = np.argsort(np.nan_to_num(table[:127]))
    codes, out = np.empty(weight.shape, np.uint8), np.empty(weight.shape, np.float32)
    scales = np.empty((-(-rows // 128), -(-columns // 128)), np.uint8)
    for r in range(0, rows, 128):
        for c in range(0, columns, 128):
            block = weight[r : r + 128, c : c + 128]
            exponent = int(np.ceil(np.log2(max(np.abs(block).max(), 1e-20) / 448)))
            scaled = np.abs(block) * 2.0**-exponent
            at = np.clip(np.searchsorted(table[order], scaled), 1, 126)
            near = np.where(
                scaled - table[order[at - 1]] < table[order[at]] - scaled, order[at - 1], order[at]
            )
            code = (near | np.where(block < 0, 128, 0)).astype(np.uint8)
            codes[r : r + 128, c : c + 128] = code
            out[r : r + 128, c : c + 128] = table[code] * np.float32(2.0**exponent)
            scales[r // 128, c // 128] = exponent + 127
    return codes, scales, out


def to_fp4(weight: Array) -> tuple[Array, Array, Array]:
    """(packed codes, e8m0 scales of 32, the numbers they stand for)."""
    blocks = weight.reshape(-1, 32)
    top = np.maximum(np.abs(blocks).max(1), 1e-20)
    exponents = np.ceil(np.log2(top / 6)).astype(np.int64)
    scale = (2.0**exponents).astype(np.float32)[:, None]
    codes = np.abs(blocks[..., None] / scale[..., None] - FP4_VALUES).argmin(-1).astype(np.uint8)
    out = (FP4_VALUES[codes] * scale).reshape(weight.shape)
    codes = codes.reshape(weight.shape)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).view(np.int8)
    return packed, (exponents + 127).astype(np.uint8).reshape(len(weight), -1), out


def to_bf16(weight: Array) -> Array:
    """Truncated: exact for the fixtures' matrices."""
    return (np.ascontiguousarray(weight, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def config_of(d: Dimensions) -> dict[str, Any]:
    return {
        "model_type": "deepseek_v4",
        "vocab_size": d.vocab,
        "hidden_size": d.hidden,
        "moe_intermediate_size": d.inter,
        "num_hidden_layers": len(d.ratios),
        "num_attention_heads": d.heads,
        "head_dim": d.head_dim,
        "qk_rope_head_dim": d.rope_dims,
        "q_lora_rank": d.q_lora,
        "o_groups": d.o_groups,
        "o_lora_rank": d.o_lora,
        "n_routed_experts": d.experts,
        "num_experts_per_tok": d.experts_used,
        "routed_scaling_factor": d.route_scale,
        "swiglu_limit": d.swiglu_clamp,
        "num_hash_layers": d.hash_layers,
        "compress_ratios": list(d.ratios),
        "compress_rope_theta": d.compress_theta,
        "index_n_heads": d.index_heads,
        "index_head_dim": d.index_dim,
        "index_topk": d.index_top_k,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rope_theta": d.rope_theta,
        "rope_scaling": {
            "type": "yarn",
            "factor": d.yarn_factor,
            "original_max_position_embeddings": d.yarn_context,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "max_position_embeddings": d.context,
        "rms_norm_eps": d.norm_epsilon,
        "sliding_window": d.window,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def plain(name: str, key: str, weight: Array) -> Stored:
    """F32, tables as the official I64."""
    if weight.dtype == np.int32:
        return {key: ("I64", weight.astype(np.int64))}
    return {key: ("F32", weight)}


def stored(
    weights: dict[str, Array], style: str, store: Callable[[str, str, Array], Stored]
) -> Stored:
    """The checkpoint's tensors; ``store(GGUF name, checkpoint name, matrix)`` chooses the type."""
    out: Stored = {}
    top, layers = (HF_TOP, HF_LAYER) if style == "hf" else (OFFICIAL_TOP, OFFICIAL_LAYER)
    for name, weight in weights.items():
        if not name.startswith("blk."):
            out |= store(name, top[name], weight)
            continue
        _, layer, rest = name.split(".", 2)
        prefix = f"model.layers.{layer}." if style == "hf" else f"layers.{layer}."
        if rest not in EXPERTS:
            out |= store(name, prefix + layers[rest], weight)
        elif style == "hf":
            if rest == "ffn_gate_exps.weight":
                up = weights[name.replace("gate_exps", "up_exps")]
                both = np.concatenate([weight, up], 1)
                out[f"{prefix}mlp.experts.gate_up_proj"] = ("F32", both)
            elif rest == "ffn_down_exps.weight":
                out[f"{prefix}mlp.experts.down_proj"] = ("F32", weight)
        else:
            for expert, matrix in enumerate(weight):
                key = f"{prefix}ffn.experts.{expert}.{EXPERTS[rest][0]}.weight"
                out |= store(name, key, matrix)
    return out


def save(directory: Path, tensors: Stored, dimensions: Dimensions, shards: int = 1) -> None:
    """Write config, tokenizer, shards and, for more than one, the index."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_of(dimensions)))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_of(dimensions.vocab)))
    names = list(tensors)
    places: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(directory / file, part)
        places |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(path: Path, tensors: Stored) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(data.shape),
            "data_offsets": [at, at + data.nbytes],
        }
        at += data.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(np.ascontiguousarray(data).tobytes())


def tokenizer_of(size: int) -> dict[str, Any]:
    """The synthetic vocabulary in the form of the ``tokenizers`` library."""
    vocabulary = make_vocabulary(size)
    plain, added = {}, []
    for id, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == 1:
            plain[text] = id
        else:
            added.append({"id": id, "content": text, "special": kind == 3})
    return {
        "added_tokens": added,
        "model": {
            "type": "BPE",
            "vocab": plain,
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    }
