"""Synthetic models: what is in the file, and that it is the same each time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from pyds4.errors import InvalidArgumentError
from pyds4.synth import (
    PRESETS,
    RANDOM_TYPES,
    Dimensions,
    TensorTypes,
    dimensions,
    synthesize,
    synthetic_tensors,
    tensor_type,
)
from pyds4.synth.vocabulary import make_vocabulary


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> gguf.GGUFReader:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    synthesize(path, dimensions("tiny"))
    return gguf.GGUFReader(path)


def test_tiny_has_every_kind_of_layer(tiny: gguf.GGUFReader) -> None:
    names = {tensor.name for tensor in tiny.tensors}
    with_compressor = {f"blk.{n}.attn_compressor_kv.weight" in names for n in range(4)}
    with_indexer = {f"blk.{n}.indexer.proj.weight" in names for n in range(4)}
    hashed = {f"blk.{n}.ffn_gate_tid2eid.weight" in names for n in range(4)}
    assert with_compressor == with_indexer == hashed == {True, False}
    for layer in range(4):
        is_hashed = f"blk.{layer}.ffn_gate_tid2eid.weight" in names
        assert is_hashed != (f"blk.{layer}.exp_probs_b.bias" in names)
    assert tiny.fields["deepseek4.attention.compress_ratios"].contents() == [0, 4, 128, 4]


def test_metadata_says_what_the_shapes_are(tiny: gguf.GGUFReader) -> None:
    meta = {key: field.contents() for key, field in tiny.fields.items()}
    shapes = {tensor.name: tensor.shape.tolist() for tensor in tiny.tensors}
    hidden, vocab = meta["deepseek4.embedding_length"], meta["deepseek4.vocab_size"]
    inter, experts = meta["deepseek4.expert_feed_forward_length"], meta["deepseek4.expert_count"]
    head_dim, heads = (
        meta["deepseek4.attention.key_length"],
        meta["deepseek4.attention.head_count"],
    )
    assert shapes["token_embd.weight"] == [hidden, vocab]
    assert len(meta["tokenizer.ggml.tokens"]) == len(meta["tokenizer.ggml.token_type"]) == vocab
    assert shapes["blk.0.ffn_gate_exps.weight"] == [hidden, inter, experts]
    assert shapes["blk.0.ffn_down_exps.weight"] == [inter, hidden, experts]
    assert shapes["blk.1.attn_compressor_kv.weight"] == [hidden, 2 * head_dim]
    assert shapes["blk.1.attn_compressor_ape.weight"] == [2 * head_dim, 4]
    assert shapes["blk.2.attn_compressor_kv.weight"] == [hidden, head_dim]
    assert shapes["blk.2.attn_compressor_ape.weight"] == [head_dim, 128]
    groups = meta["deepseek4.attention.output_group_count"]
    rank = meta["deepseek4.attention.output_lora_rank"]
    assert shapes["blk.0.attn_output_a.weight"] == [heads * head_dim // groups, groups * rank]
    assert shapes["blk.0.attn_output_b.weight"] == [groups * rank, hidden]
    assert shapes["blk.0.hc_attn_fn.weight"] == [4 * hidden, 24]


def test_default_types_are_those_of_the_published_two_bit_files(tiny: gguf.GGUFReader) -> None:
    types = {tensor.name: tensor.tensor_type.name for tensor in tiny.tensors}
    assert types["token_embd.weight"] == "F16"
    assert types["output.weight"] == "Q8_0"
    assert types["blk.1.attn_q_a.weight"] == types["blk.1.ffn_up_shexp.weight"] == "Q8_0"
    assert types["blk.1.attn_compressor_ape.weight"] == types["blk.1.indexer.proj.weight"] == "F16"
    assert types["blk.1.ffn_gate_exps.weight"] == types["blk.1.ffn_up_exps.weight"] == "IQ2_XXS"
    assert types["blk.1.ffn_down_exps.weight"] == "Q2_K"
    assert types["blk.1.attn_norm.weight"] == types["blk.2.exp_probs_b.bias"] == "F32"
    assert types["blk.1.ffn_gate_tid2eid.weight"] == "I32"


def test_hash_tables_name_distinct_experts(tiny: gguf.GGUFReader) -> None:
    table = next(t for t in tiny.tensors if t.name == "blk.0.ffn_gate_tid2eid.weight").data
    assert table.shape == (512, 4)
    assert table.min() == 0
    assert table.max() == 15
    assert all(len(set(row)) == 4 for row in table.tolist())
    assert len({tuple(row) for row in table.tolist()}) > 400


def test_hash_table_in_parts_is_the_whole_table() -> None:
    tensors = synthetic_tensors(dimensions("tiny", vocab=10_000))
    table = next(t for t in tensors if t.name == "blk.0.ffn_gate_tid2eid.weight")
    whole = np.frombuffer(table.part(0, 40_000), "<i4")
    for start, count in [(0, 5), (16_383, 2), (3, 39_997), (39_999, 1)]:
        part = np.frombuffer(table.part(start, count), "<i4")
        np.testing.assert_array_equal(part, whole[start : start + count])


def test_same_seed_gives_the_same_file_with_any_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    digests = []
    for seed, threads in [(1, 1), (1, 5), (2, 1)]:
        synthesize(path, dimensions("tiny", layers=2), seed=seed, threads=threads)
        digests.append(digest(path))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("type", sorted(RANDOM_TYPES), ids=lambda type: type.name)
def test_every_type_can_take_every_role(tmp_path: Path, type: GGMLQuantizationType) -> None:
    path = tmp_path / "m.gguf"
    synthesize(path, dimensions("tiny", layers=2), TensorTypes.uniform(type))
    read = gguf.GGUFReader(path)
    types = {tensor.tensor_type for tensor in read.tensors}
    assert types == {type, GGMLQuantizationType.F32, GGMLQuantizationType.I32}


def bytes_by_type(dims: Dimensions, types: TensorTypes) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in synthetic_tensors(dims, types):
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.byte_count
    return sizes


def test_flash_has_the_size_of_the_published_file() -> None:
    sizes = bytes_by_type(dimensions("flash"), TensorTypes())
    gib = {name: round(size / 2**30, 3) for name, size in sizes.items()}
    assert gib == {
        "F16": 2.041,
        "F32": 0.002,
        "Q8_0": 6.146,
        "I32": 0.009,
        "IQ2_XXS": 44.344,
        "Q2_K": 28.219,
    }
    assert len(synthetic_tensors(dimensions("flash"))) == 1328
    four_bit = bytes_by_type(dimensions("flash"), TensorTypes.named(experts="q4_k"))
    assert sum(four_bit.values()) / 2**30 == pytest.approx(153, abs=0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_cut_and_extend_a_preset(preset: str) -> None:
    whole = PRESETS[preset].ratios
    assert dimensions(preset).ratios == whole
    assert dimensions(preset, layers=1).ratios == whole[:1]
    assert dimensions(preset, layers=1).hash_layers <= 1
    longer = dimensions(preset, layers=len(whole) + 4).ratios
    assert longer[: len(whole)] == whole
    assert longer[len(whole) - 2 :] in {(4, 128) * 3, (128, 4) * 3}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden": 0}, "hidden must be 1 or more"),
        ({"hash_layers": -1}, "hash_layers must be 0 or more"),
        ({"ratios": (0, 8)}, "ratios must be 0, 4 or 128"),
        ({"ratios": ()}, "ratios must be 0, 4 or 128"),
        ({"experts_used": 17}, "experts_used must be at most experts = 16"),
        ({"o_groups": 3}, "o_groups must divide heads = 8"),
        ({"rope_dims": 256}, "rope_dims must be at most head_dim = 128"),
        ({"layers": 0}, "layers must be 1 or more"),
        ({"layers": 2, "ratios": (0, 4)}, "give layers or ratios, not both"),
        ({"depth": 2}, "no dimension depth"),
        ({"preset": "huge"}, "no preset 'huge'; there are tiny, mid, flash, pro"),
    ],
)
def test_impossible_dimension_is_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=complaint):
        dimensions(**{"preset": "tiny", **change})


def test_row_that_is_not_whole_blocks_names_the_tensor(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'blk\.0\.ffn_down_exps\.weight': rows of 128"):
        synthesize(tmp_path / "m.gguf", dimensions("tiny", inter=128))


def test_vocabulary_without_room_for_all_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="264 tokens or more, not 263"):
        synthesize(tmp_path / "m.gguf", dimensions("tiny", vocab=263))


def test_types_by_name() -> None:
    types = TensorTypes.named(dense="Q4_0", experts="q4_k+MXFP4")
    assert types.dense is GGMLQuantizationType.Q4_0
    assert types.experts_in is GGMLQuantizationType.Q4_K
    assert types.experts_out is GGMLQuantizationType.MXFP4
    assert TensorTypes.named(experts="q6_k").experts_out is GGMLQuantizationType.Q6_K
    assert TensorTypes.named() == TensorTypes()
    with pytest.raises(InvalidArgumentError, match="no tensor type 'q1'; there are bf16, f16"):
        tensor_type("q1")


@pytest.mark.parametrize("size", [264, 265, 512, 513, 4096])
def test_vocabulary_has_distinct_tokens_and_merges_that_make_them(size: int) -> None:
    tokens, types, merges = make_vocabulary(size)
    assert len(tokens) == len(set(tokens)) == len(types) == size
    assert len(merges) == len(set(merges))
    assert {merge.replace(" ", "", 1) for merge in merges} <= set(tokens)
