"""The model as a GGUF file: written with quantised weights, read back as f32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from scripts.demo_model.architecture import Model
from scripts.demo_model.config import ROPE_DIMENSIONS, STREAMS, Config
from scripts.demo_model.q4_k import quantise_q4_k
from scripts.demo_model.vocabulary import Vocabulary

ARCHITECTURE = "deepseek4"


def tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """GGUF name and parameter or buffer, in a fixed order."""
    for name in ("token_embd", "output", "output_norm"):
        yield f"{name}.weight", getattr(model, name)
    for part in ("fn", "base", "scale"):
        yield f"output_hc_{part}.weight", getattr(model, f"output_hc_{part}")
    for layer, block in enumerate(model.blocks):
        for name, parameter in block.named_parameters():
            name = name.replace("indexer_proj", "indexer.proj")
            name = name.replace("indexer_attn_q_b", "indexer.attn_q_b")
            yield f"blk.{layer}.{name}.weight", parameter
        if block.hashed:
            yield f"blk.{layer}.ffn_gate_tid2eid.weight", block.ffn_gate_tid2eid
        else:
            yield f"blk.{layer}.exp_probs_b.bias", block.exp_probs_b


def kind_of(name: str) -> Kind:
    """How a tensor is stored: experts in 4 bits, matrices in 8, what steers the cache in 16."""
    small = (".bias", "_base.weight", "_scale.weight", "norm.weight", "sinks.weight")
    if "tid2eid" in name:
        return Kind.I32
    if name.endswith(small):
        return Kind.F32
    if "_exps" in name:
        return Kind.Q4_K
    if any(part in name for part in ("compressor", "indexer", "_fn.", "ffn_gate_inp")):
        return Kind.F16
    return Kind.Q8_0


def _metadata(writer: Any, config: Config, name: str, about: str) -> None:
    c, layers = config, len(config.ratios)
    writer.add_name(name)
    writer.add_description(about)
    writer.add_license("MIT")
    writer.add_file_type(15)
    integers = {
        "block_count": layers,
        "context_length": c.context,
        "embedding_length": c.hidden,
        "embedding_length_out": c.hidden * STREAMS,
        "vocab_size": c.vocabulary,
        "feed_forward_length": c.expert_width,
        "attention.head_count": c.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.q_lora_rank": c.query_rank,
        "attention.output_group_count": c.output_groups,
        "attention.output_lora_rank": c.output_rank,
        "attention.sliding_window": 128,
        "attention.indexer.head_count": c.index_heads,
        "attention.indexer.key_length": c.index_dim,
        "attention.indexer.top_k": c.index_top,
        "rope.dimension_count": ROPE_DIMENSIONS,
        "rope.scaling.original_context_length": c.yarn_context,
        "expert_count": c.experts,
        "expert_used_count": c.experts_used,
        "expert_feed_forward_length": c.expert_width,
        "expert_shared_count": 1,
        "expert_gating_func": 4,
        "hash_layer_count": c.hash_layers,
        "hyper_connection.count": STREAMS,
        "hyper_connection.sinkhorn_iterations": c.sinkhorn_iterations,
    }
    floats = {
        "attention.layer_norm_rms_epsilon": c.epsilon,
        "attention.compress_rope_freq_base": c.compressed_rope_base,
        "rope.freq_base": c.rope_base,
        "rope.scaling.factor": c.yarn_factor,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "expert_weights_scale": c.route_scale,
        "hyper_connection.epsilon": c.epsilon,
    }
    for key, value in integers.items():
        writer.add_uint32(f"{ARCHITECTURE}.{key}", value)
    for key, number in floats.items():
        writer.add_float32(f"{ARCHITECTURE}.{key}", number)
    writer.add_string(f"{ARCHITECTURE}.rope.scaling.type", "yarn")
    writer.add_bool(f"{ARCHITECTURE}.expert_weights_norm", True)
    writer.add_array(f"{ARCHITECTURE}.attention.compress_ratios", list(c.ratios))
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        writer.add_array(f"{ARCHITECTURE}.{key}", [c.swiglu_limit] * layers)


def write(path: Path, model: Model, vocabulary: Vocabulary, name: str, about: str) -> None:
    """Write ``model``; the file appears under its name only when it is whole."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(part), ARCHITECTURE)
    _metadata(writer, model.config, name, about)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("joyai-llm")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    for tensor_name, tensor in tensors(model):
        kind = kind_of(tensor_name)
        if kind is Kind.I32:
            writer.add_tensor(tensor_name, tensor.cpu().numpy().astype(np.int32))
            continue
        values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        if kind is Kind.F32:
            writer.add_tensor(tensor_name, values)
        elif kind is Kind.F16:
            writer.add_tensor(tensor_name, values.astype(np.float16))
        elif kind is Kind.Q4_K:
            writer.add_tensor(tensor_name, quantise_q4_k(values), raw_dtype=kind)
        else:
            writer.add_tensor(tensor_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def load_weights(path: Path, model: Model) -> None:
    """Fill ``model`` from a file of the same shape.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape.
    """
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    with torch.no_grad():
        for name, target in tensors(model):
            tensor = stored[name]
            values: NDArray[Any] = tensor.data
            if tensor.tensor_type not in (Kind.F32, Kind.F16, Kind.I32):
                values = gguf.quants.dequantize(values, tensor.tensor_type)
            if values.size != target.numel():
                raise ValueError(f"{name} has {values.size} values, not {target.numel()}")
            target.copy_(torch.from_numpy(np.array(values)).view(target.shape))
    for block in model.blocks:
        if block.hashed:
            block.fill_hash_mask()
