"""Files that are no model: what is wrong is named, by key or tensor; and what a good file tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.constants import GGUFValueType

import pyds4
from models import DEMO, F32, MIX, SMALL, TINY, altered, cold, engine, random_tokens, synthetic_path
from pyds4.errors import (
    BackendError,
    InvalidArgumentError,
    ModelFileError,
    PyDS4Error,
    UnsupportedModelError,
)
from pyds4.model_file import ModelFile
from pyds4.synth import Tensor, Typed, plan

ARCH = "deepseek4."
ALL_TENSORS = [tensor.name for tensor in plan(SMALL)]
# Each once, whatever the layer.
KINDS = list({re.sub(r"\d+", "", name): name for name in ALL_TENSORS}.values())


def _refuse(path: Path, error: type[PyDS4Error], *parts: str) -> None:
    with pytest.raises(error) as caught:
        pyds4.Engine(path)
    message = str(caught.value)
    for part in (path.name, *parts):
        assert part in message, message


# ---------------------------------------------------------------------- metadata

REQUIRED = [
    "block_count",
    "context_length",
    "embedding_length",
    "vocab_size",
    "attention.head_count",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.q_lora_rank",
    "attention.output_group_count",
    "attention.output_lora_rank",
    "attention.sliding_window",
    "attention.compress_ratios",
    "attention.compress_rope_freq_base",
    "attention.indexer.head_count",
    "attention.indexer.key_length",
    "attention.indexer.top_k",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_weights_scale",
    "swiglu_clamp_exp",
    "hash_layer_count",
    "hyper_connection.count",
    "hyper_connection.sinkhorn_iterations",
    "hyper_connection.epsilon",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    _refuse(altered("missing-key", entries={ARCH + key: None}), ModelFileError, ARCH + key)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_key_of_another_type_is_named(key: str) -> None:
    path = altered("wrong-type", entries={ARCH + key: "a text"})
    _refuse(path, ModelFileError, ARCH + key, "string")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_count", 0, "from 1"),
        ("block_count", 5000, "5000"),
        ("context_length", 0, "from 1"),
        ("context_length", 2**31, "2147483648"),
        ("embedding_length", 2**20, "1048576"),
        ("vocab_size", 0, "from 1"),
        ("attention.head_count", 0, "from 1"),
        ("attention.head_count_kv", 8, "shared row"),
        ("attention.key_length", 96, "multiple of 64"),
        ("attention.value_length", 64, "128"),
        ("attention.output_group_count", 3, "divisor of the 8 heads"),
        ("attention.sliding_window", 0, "from 1"),
        ("attention.compress_ratios", [0, 4], "each of 4 layers"),
        ("attention.compress_ratios", [0, 4, 1, 4], "from 2"),
        ("attention.compress_ratios", [0, 4, -4, 4], "-4"),
        ("attention.indexer.key_length", 100, "power of two"),
        ("attention.indexer.key_length", 32, "at least the rotated 64"),
        ("attention.indexer.top_k", 0, "from 1"),
        ("rope.dimension_count", 63, "even number"),
        ("rope.dimension_count", 256, "128"),
        ("rope.scaling.type", "linear", "yarn or none"),
        ("rope.scaling.factor", 0.0, "more than 0"),
        ("rope.scaling.factor", float("nan"), "more than 0"),
        ("rope.scaling.original_context_length", 0, "from 1"),
        ("rope.scaling.yarn_beta_fast", -1.0, "more than 0"),
        ("rope.scaling.yarn_beta_slow", float("inf"), "more than 0"),
        ("rope.freq_base", 0.0, "more than 1"),
        ("rope.freq_base", float("nan"), "more than 1"),
        ("attention.compress_rope_freq_base", -5.0, "more than 1"),
        ("attention.layer_norm_rms_epsilon", -1.0, "0 to 1"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "0 to 1"),
        ("hyper_connection.epsilon", float("inf"), "0 to 1"),
        ("hyper_connection.count", 2, "4"),
        ("hyper_connection.sinkhorn_iterations", 0, "from 1"),
        ("expert_used_count", 17, "16"),
        ("expert_used_count", 0, "from 1"),
        ("expert_shared_count", 2, "1"),
        ("expert_gating_func", 2, "sqrt of softplus"),
        ("expert_weights_scale", float("nan"), "a number"),
        ("swiglu_clamp_exp", [1.5, 1.5], "each of 4 layers"),
        ("swiglu_clamp_exp", [1.5, 1.5, float("nan"), 1.5], "a number"),
        ("swiglu_clamp_shexp", [1.5] * 5, "each of 4 layers"),
        ("hash_layer_count", 5, "at most 4"),
    ],
)
def test_a_value_no_model_has_is_named(key: str, value: Any, said: str) -> None:
    path = altered("bad-value", entries={ARCH + key: value})
    _refuse(path, PyDS4Error, ARCH + key, said)


def test_another_architecture_is_named() -> None:
    path = altered("llama", entries={"general.architecture": "llama"})
    _refuse(path, UnsupportedModelError, "general.architecture", "'llama'", "deepseek4")


def test_a_missing_architecture_is_named() -> None:
    path = altered("no-arch", entries={"general.architecture": None})
    _refuse(path, ModelFileError, "general.architecture")


def test_optional_keys_may_be_missing() -> None:
    optional = ["attention.head_count_kv", "attention.value_length", "expert_gating_func",
                "expert_shared_count", "expert_weights_norm", "swiglu_clamp_shexp",
                "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"]  # fmt: skip
    path = altered("optional", entries={ARCH + key: None for key in optional})
    tokens = random_tokens(20)
    with pyds4.Engine(path) as found:
        wanted = cold(engine(synthetic_path(SMALL, F32)), tokens)
        np.testing.assert_array_equal(cold(found, tokens), wanted)


# ---------------------------------------------------------------------- tensors


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_tensor_is_named(name: str) -> None:
    _refuse(altered("missing-tensor", drop=[name]), UnsupportedModelError, f"'{name}' is missing")


def _one_row_less(tensor: Tensor) -> Tensor:
    shape = (*tensor.shape[:-1], tensor.shape[-1] - 1) if tensor.shape[-1] > 1 else (2,)
    return replace(tensor, shape=shape, data=np.zeros(shape[::-1], np.int32))


@pytest.mark.parametrize("name", KINDS)
def test_a_tensor_of_another_shape_is_named(name: str) -> None:
    path = altered("wrong-shape", replace=lambda t: _one_row_less(t) if t.name == name else t)
    _refuse(path, UnsupportedModelError, f"'{name}'", "expected shape")


def test_a_shape_may_say_its_trailing_ones() -> None:
    def widen(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=(*tensor.shape, 1)) if len(tensor.shape) == 1 else tensor

    tokens = random_tokens(20)
    with pyds4.Engine(altered("trailing-ones", replace=widen)) as found:
        wanted = cold(engine(synthetic_path(SMALL, F32)), tokens)
        np.testing.assert_array_equal(cold(found, tokens), wanted)


@pytest.mark.parametrize(
    ("type", "dtype"), [(Type.F64, np.float64), (Type.I32, np.int32), (Type.I8, np.int8)]
)
@pytest.mark.parametrize("name", ["blk.1.attn_q_b.weight", "blk.0.attn_norm.weight"])
def test_a_type_no_kernel_reads_is_named(name: str, type: Type, dtype: Any) -> None:
    def retype(tensor: Tensor) -> Tensor:
        if tensor.name != name:
            return tensor
        return replace(tensor, type=type, data=np.zeros(tensor.shape[::-1], dtype))

    path = altered("bad-type", replace=retype)
    _refuse(path, UnsupportedModelError, f"'{name}'", type.name.lower())


def _with_table(change: Callable[[Any], Any], type: Type = Type.I32) -> Path:
    name = "blk.1.ffn_gate_tid2eid.weight"

    def edit(tensor: Tensor) -> Tensor:
        if tensor.name != name:
            return tensor
        count = int(np.prod(tensor.shape))
        table = np.array(tensor.data(0, count)) if callable(tensor.data) else tensor.data
        return replace(tensor, type=type, data=change(table))

    return altered("bad-table", replace=edit)


@pytest.mark.parametrize(("index", "value"), [(0, 16), (7, -1), (2047, 2**31 - 1)])
def test_a_table_that_names_a_missing_expert_is_refused(index: int, value: int) -> None:
    def spoil(table: Any) -> Any:
        table[index] = value
        return table

    _refuse(
        _with_table(spoil),
        UnsupportedModelError,
        "'blk.1.ffn_gate_tid2eid.weight'",
        f"entry {index} names expert {value} of 16",
    )


def test_a_table_of_another_type_is_refused() -> None:
    path = _with_table(lambda table: table.astype(np.float32), Type.F32)
    _refuse(path, UnsupportedModelError, "'blk.1.ffn_gate_tid2eid.weight'", "i32", "f32")


# ---------------------------------------------------------------------- files and options


def test_no_file_and_no_gguf_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nothing\.gguf"):
        pyds4.Engine(tmp_path / "nothing.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("this is a text and no model, long enough to hold a header")
    _refuse(text, ModelFileError, "GGUF")
    empty = tmp_path / "empty.gguf"
    empty.touch()
    _refuse(empty, ModelFileError)
    with pytest.raises(ModelFileError, match="director"):
        pyds4.Engine(tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999999])
def test_a_truncated_model_is_refused(tmp_path: Path, share: float) -> None:
    whole = synthetic_path(SMALL, F32).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    _refuse(path, ModelFileError)


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_a_backend_that_is_not_here_is_named(backend: Any) -> None:
    with pytest.raises(BackendError, match=backend):
        pyds4.Engine(synthetic_path(SMALL, F32), backend=backend)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'gpu'"):
        pyds4.Engine(synthetic_path(SMALL, F32), backend="gpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**40])
def test_an_impossible_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(InvalidArgumentError, match="threads"):
        pyds4.Engine(synthetic_path(SMALL, F32), threads=threads)


# ---------------------------------------------------------------------- good files


def test_metadata_is_read_as_it_was_written() -> None:
    values: dict[str, Any] = {
        "x.u8": Typed(GGUFValueType.UINT8, 200),
        "x.i8": Typed(GGUFValueType.INT8, -100),
        "x.u16": Typed(GGUFValueType.UINT16, 60000),
        "x.i16": Typed(GGUFValueType.INT16, -30000),
        "x.u64": Typed(GGUFValueType.UINT64, 2**63 + 1),
        "x.i64": Typed(GGUFValueType.INT64, -(2**62)),
        "x.f64": Typed(GGUFValueType.FLOAT64, 0.1),
        "x.bool": True,
        "x.text": "naïve ｜ text",
        "x.texts": ["", "a", "｜▁"],
        "x.bools": [True, False],
        "x.empty": Typed.array(GGUFValueType.STRING, []),
        "x.ints": [1, -2, 3],
    }
    with pyds4.Engine(altered("values", entries=values)) as found:
        for key, value in values.items():
            plain = value.value if isinstance(value, Typed) else value
            assert found.file[key] == plain, key
        assert found.file.describe("x.texts") == ("array of string", 3)
        assert found.file.describe("x.f64") == ("f64", 1)
        assert "x.none" not in found.file
        with pytest.raises(KeyError):
            _ = found.file["x.none"]
        assert set(values) <= set(found.file)


def test_the_directory_of_tensors_is_that_of_the_plan() -> None:
    path = synthetic_path(TINY, MIX)
    file = ModelFile(path)
    found = {tensor.name: tensor for tensor in file.tensors}
    assert list(found) == [tensor.name for tensor in plan(TINY)]
    for planned in plan(TINY):
        tensor = found[planned.name]
        assert tensor.shape == planned.shape
        assert tensor.type == MIX.of(planned.role).name.lower()
        assert tensor.computable == (tensor.type != "i32")
        assert tensor.offset + tensor.byte_count <= file.byte_count == path.stat().st_size
    assert file.paths == [str(path)]


def test_memory_need_grows_with_the_context_and_shrinks_with_the_roundings() -> None:
    file = ModelFile(synthetic_path(TINY, MIX))
    small, large = file.memory(100), file.memory(4000)
    assert small.weights == large.weights == sum(t.byte_count for t in file.tensors)
    assert small.kv < large.kv < file.memory(4000, roundings=False).kv
    assert large.total == large.weights + large.kv + large.buffers


def test_configuration_is_that_of_the_file() -> None:
    config = engine(synthetic_path(SMALL, F32)).config
    assert config.compress_ratios == SMALL.ratios
    assert (config.hidden_size, config.vocab_size) == (SMALL.hidden, SMALL.vocab)
    assert (config.head_count, config.head_dim, config.rope_dim) == (8, 128, 64)
    assert (config.expert_count, config.expert_used_count) == (16, 4)
    assert config.context_length == SMALL.context


@pytest.mark.skipif(not DEMO.exists(), reason="the demo model is not here")
def test_the_demo_model_opens_and_counts() -> None:
    with pyds4.Engine(DEMO) as found:
        tokens = found.tokenizer.encode("one two three")
        logits = cold(found, tokens)
        assert np.isfinite(logits).all()
        assert logits.shape == (len(tokens), found.config.vocab_size)
