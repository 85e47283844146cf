"""Saves weights under GGUF names as a checkpoint: official or HF spelling, plain, FP8 or FP4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyds4.model_file import ModelFile
from pyds4.synth.checkpoint import Style, checkpoint_config, checkpoint_tokenizer
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
    middles = (FP4_VALUES[:7] + FP4_VALUES[1:8]) / 2
    codes = np.searchsorted(middles, np.abs(blocks) / scale).astype(np.uint8)
    codes |= (blocks < 0) * np.uint8(8)
    out = (FP4_VALUES[codes] * scale).reshape(weight.shape)
    codes = codes.reshape(weight.shape)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).view(np.int8)
    return packed, (exponents + 127).astype(np.uint8).reshape(len(weight), -1), out


def to_bf16(weight: Array) -> Array:
    """Truncated: exact for the fixtures' matrices."""
    return (np.ascontiguousarray(weight, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def plain(name: str, key: str, weight: Array) -> Stored:
    """F32, tables as the official I64."""
    if weight.dtype == np.int32:
        return {key: ("I64", weight.astype(np.int64))}
    return {key: ("F32", weight)}


class Quantised:
    """Stores experts as FP4 or FP8, projections as FP8, the rest BF16 or F32.

    Attributes:
        said: By GGUF name: the numbers that the stored ones stand for.
        fp4: By GGUF name: codes and exponents of each expert.
    """

    def __init__(self, style: Style, experts: str = "fp4", scales: str = "F8_E8M0") -> None:
        self.style, self.experts, self.scales = style, experts, scales
        self.said: dict[str, Array] = {}
        self.fp4: dict[str, list[tuple[Array, Array]]] = {}

    def __call__(self, name: str, key: str, weight: Array) -> Stored:
        if "_exps" in name:
            return self._expert_or_stack(name, key, weight)
        if weight.ndim == 2 and any(
            part in name for part in ("attn_q", "attn_kv.", "attn_output", "shexp")
        ):
            codes, scales, said = to_fp8(weight)
            self.said[name] = said
            return self._with_scales(key, "F8_E4M3", codes, scales)
        self.said[name] = weight
        if weight.dtype == np.int32 or weight.ndim == 1 or name.endswith("_ape.weight"):
            return plain(name, key, weight)
        return {key: ("BF16", to_bf16(weight))}

    def _expert_or_stack(self, name: str, key: str, weight: Array) -> Stored:
        is_fp4 = self.experts == "fp4"
        matrices = weight if weight.ndim == 3 else weight[None]
        made = [(to_fp4 if is_fp4 else to_fp8)(matrix) for matrix in matrices]
        said = np.stack([numbers for *_, numbers in made])
        if weight.ndim == 3 and "gate_exps" in name:
            rows = said.shape[1] // 2
            self.said[name] = said[:, :rows]
            self.said[name.replace("gate_exps", "up_exps")] = said[:, rows:]
        elif weight.ndim == 3:
            self.said[name] = said
        else:
            earlier = [self.said[name]] if name in self.said else []
            self.said[name] = np.concatenate([*earlier, said])
            self.fp4.setdefault(name, []).append(made[0][:2])
        codes, scales = (np.stack(parts) for parts in list(zip(*made, strict=True))[:2])
        if weight.ndim == 2:
            codes, scales = codes[0], scales[0]
        return self._with_scales(key, "I8" if is_fp4 else "F8_E4M3", codes, scales)

    def _with_scales(self, key: str, dtype: str, codes: Array, scales: Array) -> Stored:
        base = key.removesuffix(".weight")
        if self.style == "official":
            suffix = ".scale"
        else:
            suffix = ".weight_scale_inv" if base != key else "_scale_inv"
        if self.scales == "F32":
            scales = (scales.astype(np.uint32) << 23).view(np.float32)
        return {key: (dtype, codes), base + suffix: (self.scales, scales)}


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
            stack = f"{prefix}mlp.experts.{EXPERTS[rest][2]}"
            if rest == "ffn_gate_exps.weight":
                up = weights[name.replace("gate_exps", "up_exps")]
                out |= store(name, stack, np.concatenate([weight, up], 1))
            elif rest == "ffn_down_exps.weight":
                out |= store(name, stack, weight)
        else:
            for expert, matrix in enumerate(weight):
                key = f"{prefix}ffn.experts.{expert}.{EXPERTS[rest][0]}.weight"
                out |= store(name, key, matrix)
    return out


def save(
    directory: Path,
    tensors: Stored,
    dimensions: Dimensions,
    shards: int = 1,
    style: Style = "official",
    vocabulary: tuple[list[str], list[int], list[str]] | None = None,
) -> None:
    """Write config, tokenizer, shards and, for more than one, the index.

    ``vocabulary`` is (tokens, types, merges); the synthetic one when None.
    """
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(checkpoint_config(dimensions, style)))
    if vocabulary is None:
        made = make_vocabulary(dimensions.vocab)
        vocabulary = made.tokens, made.types, made.merges
    (directory / "tokenizer.json").write_text(json.dumps(checkpoint_tokenizer(*vocabulary)))
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


def dimensions_of(file: ModelFile) -> Dimensions:
    """The shapes that a GGUF file's metadata give."""

    def get(key: str) -> Any:
        return file[f"deepseek4.{key}"]

    ratios = get("attention.compress_ratios")
    return Dimensions(
        hidden=get("embedding_length"),
        inter=get("expert_feed_forward_length"),
        heads=get("attention.head_count"),
        head_dim=get("attention.key_length"),
        q_lora=get("attention.q_lora_rank"),
        o_groups=get("attention.output_group_count"),
        o_lora=get("attention.output_lora_rank"),
        experts=get("expert_count"),
        experts_used=get("expert_used_count"),
        index_heads=get("attention.indexer.head_count"),
        index_dim=get("attention.indexer.key_length"),
        index_top_k=get("attention.indexer.top_k"),
        window=get("attention.sliding_window"),
        vocab=get("vocab_size"),
        ratios=tuple(ratios),
        hash_layers=get("hash_layer_count"),
        route_scale=get("expert_weights_scale"),
        swiglu_clamp=get("swiglu_clamp_exp")[0],
        yarn_factor=get("rope.scaling.factor"),
        yarn_context=get("rope.scaling.original_context_length"),
        rope_dims=get("rope.dimension_count"),
        rope_theta=get("rope.freq_base"),
        compress_theta=get("attention.compress_rope_freq_base"),
        norm_epsilon=get("attention.layer_norm_rms_epsilon"),
    )
