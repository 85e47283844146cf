"""Checkpoints become GGUF files and nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_writer as writer
import numpy as np
import pytest
from checkpoint_writer import Array, Quantised, Stored, plain
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from golden import COLUMNS, prompts

from pyds4.cli import main
from pyds4.default_model import find_model
from pyds4.engine import Engine, StepItem
from pyds4.errors import ModelFileError
from pyds4.files.convert import convert_checkpoint
from pyds4.files.source import raw_metadata
from pyds4.model_file import ModelFile
from pyds4.synth import Tensor, TensorTypes, dimensions, synthesize, write_gguf
from pyds4.synth.checkpoint import Style
from pyds4.synth.fixtures import FIXTURES, fixture_weights, write_fixture


def numbers(path: Path) -> dict[str, Array]:
    """Decoded by PyPI gguf, in numpy's shapes."""
    out = {}
    for tensor in GGUFReader(path).tensors:
        shape = tuple(int(extent) for extent in tensor.shape[::-1])
        data = tensor.data
        is_table = tensor.name.endswith("tid2eid.weight")
        out[tensor.name] = (data if is_table else dequantize(data, tensor.tensor_type)).reshape(
            shape
        )
    return out


@pytest.mark.parametrize("style", ["official", "hf"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_checkpoint_in_f32_comes_back_as_the_file_it_was_saved_from(
    tmp_path: Path, name: str, style: Style
) -> None:
    weights = fixture_weights(name)
    tensors = writer.stored(weights, style, plain)
    writer.save(tmp_path / "saved", tensors, FIXTURES[name][0], shards=3, style=style)
    done = convert_checkpoint(
        tmp_path / "saved", tmp_path / "out.gguf", recipe_name="exact", name="x"
    )
    assert done.style == style
    assert done.skipped == []
    write_fixture(tmp_path / "fixture.gguf", name)
    found = numbers(tmp_path / "out.gguf")
    assert list(found) == list(weights)
    for key, weight in weights.items():
        np.testing.assert_array_equal(found[key], weight, err_msg=key)
    ours, theirs = (raw_metadata(ModelFile(tmp_path / f"{f}.gguf")) for f in ("out", "fixture"))
    assert list(ours) == list(theirs)
    for key in theirs:
        if key not in ("general.name", "general.file_type"):
            assert ours[key].encode() == theirs[key].encode(), key


@pytest.mark.parametrize("style", ["official", "hf"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_the_converted_file_gives_the_golden_logits(
    tmp_path: Path, name: str, style: Style
) -> None:
    tensors = writer.stored(fixture_weights(name), style, plain)
    writer.save(tmp_path / "saved", tensors, FIXTURES[name][0], style=style)
    convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf", recipe_name="exact")
    golden = prompts(name)[130]
    got = logits_of(tmp_path / "out.gguf", golden.tokens)[:, COLUMNS]
    assert np.linalg.norm(got - golden.logits) / np.linalg.norm(golden.logits) < 1e-5


def logits_of(path: Path, tokens: Array) -> Array:
    """After every token, without the model's roundings."""
    with Engine(path, backend="cpu", roundings=False) as engine:
        item = StepItem(engine.session(), tokens.tolist(), all_logits=True)
        result = engine.step([item])[0]
    assert result.logits is not None
    return result.logits


@pytest.mark.parametrize(
    ("style", "experts", "scales"),
    [
        ("official", "fp4", "F8_E8M0"),
        ("official", "fp8", "F8_E8M0"),
        ("hf", "fp4", "F8_E8M0"),
        ("hf", "fp4", "F32"),
        ("hf", "fp8", "U8"),
        ("hf", "fp8", "F32"),
    ],
)
def test_quantised_checkpoints_lose_nothing_in_an_exact_conversion(
    tmp_path: Path, style: Style, experts: str, scales: str
) -> None:
    store = Quantised(style, experts, scales)
    tensors = writer.stored(fixture_weights("as"), style, store)
    writer.save(tmp_path / "saved", tensors, FIXTURES["as"][0], shards=2, style=style)
    done = convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf", recipe_name="exact")
    assert done.style == style
    found = numbers(tmp_path / "out.gguf")
    assert found.keys() == store.said.keys()
    for name, said in store.said.items():
        np.testing.assert_array_equal(found[name], said, err_msg=name)
    # Whoever multiplies in these formats rounds otherwise, but computes the same model.
    write_gguf(
        tmp_path / "f32.gguf",
        raw_metadata(ModelFile(tmp_path / "out.gguf")),
        [as_tensor(name, store.said[name]) for name in found],
    )
    tokens = prompts("a")[17].tokens
    stored, plain_numbers = (logits_of(tmp_path / f"{f}.gguf", tokens) for f in ("out", "f32"))
    error = np.linalg.norm(stored - plain_numbers) / np.linalg.norm(plain_numbers)
    assert error < 0.03


def as_tensor(name: str, weight: Array) -> Tensor:
    kind = GGMLQuantizationType.I32 if weight.dtype == np.int32 else GGMLQuantizationType.F32
    return Tensor(name, weight.shape[::-1], kind, np.ascontiguousarray(weight))


@pytest.mark.parametrize("style", ["official", "hf"])
def test_the_demo_model_comes_back_from_a_checkpoint(tmp_path: Path, style: Style) -> None:
    demo = ModelFile(find_model())
    weights = numbers(find_model())
    vocabulary = tuple(demo[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
    tensors = writer.stored(weights, style, plain)
    shape = writer.dimensions_of(demo)
    writer.save(tmp_path / "saved", tensors, shape, 2, style, vocabulary)  # type: ignore[arg-type]
    edit_config("max_position_embeddings", demo["deepseek4.context_length"])(tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf", recipe_name="exact")
    found = numbers(tmp_path / "out.gguf")
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)
    ours, theirs = raw_metadata(ModelFile(tmp_path / "out.gguf")), raw_metadata(demo)
    for key in theirs:
        if key.startswith(("deepseek4.", "tokenizer.ggml.")):
            assert ours[key].encode() == theirs[key].encode(), key
    tokens = np.arange(300, 340, dtype=np.int32)
    back, original = (logits_of(path, tokens) for path in (tmp_path / "out.gguf", find_model()))
    assert np.linalg.norm(back - original) / np.linalg.norm(original) < 0.03


def test_synthetic_checkpoints_of_both_styles_make_the_same_file(tmp_path: Path) -> None:
    for style in ("official", "hf"):
        assert main(["synth", "tiny", str(tmp_path / style), "--checkpoint", style]) == 0
        words = [str(tmp_path / style), str(tmp_path / f"{style}.gguf"), "--name", "x"]
        assert main(["convert", *words]) == 0
    assert (tmp_path / "hf.gguf").read_bytes() == (tmp_path / "official.gguf").read_bytes()
    synthesize(tmp_path / "same.gguf", dimensions("tiny"), TensorTypes.named(experts="mxfp4"))
    ours, direct = numbers(tmp_path / "hf.gguf"), numbers(tmp_path / "same.gguf")
    assert ours.keys() == direct.keys()
    np.testing.assert_array_equal(
        ours["blk.2.ffn_up_exps.weight"], direct["blk.2.ffn_up_exps.weight"]
    )
    assert main(["synth", "tiny", str(tmp_path / "hf"), "--checkpoint", "hf"]) == 1


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quantised]:
    """Fixture a as the official checkpoint stores its tensors, with a drafter to be left out."""
    store = Quantised("official")
    tensors = writer.stored(fixture_weights("a"), "official", store)
    tensors["mtp.0.enorm.weight"] = ("F32", np.ones(256, np.float32))
    directory = tmp_path_factory.mktemp("official")
    writer.save(directory, tensors, FIXTURES["a"][0], shards=4)
    return directory, store


def test_an_exact_conversion_takes_the_smallest_types_that_hold_everything(
    official: tuple[Path, Quantised], tmp_path: Path
) -> None:
    done = convert_checkpoint(official[0], tmp_path / "out.gguf", recipe_name="exact")
    assert done.skipped == ["mtp.0.enorm.weight"]
    assert done.types["blk.0.attn_q_a.weight"].name == "BF16"
    assert done.types["blk.0.ffn_up_exps.weight"].name == "MXFP4"


def test_experts_keep_their_very_bits_in_mxfp4(
    official: tuple[Path, Quantised], tmp_path: Path
) -> None:
    directory, store = official
    convert_checkpoint(directory, tmp_path / "out.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    for name, experts in store.fp4.items():
        assert tensors[name].tensor_type.name == "MXFP4"
        for data, (packed, scales) in zip(tensors[name].data, experts, strict=True):
            blocks = np.asarray(data).reshape(len(scales), -1, 17)
            np.testing.assert_array_equal(blocks[..., 0], scales)
            low, high = blocks[..., 1:] & 15, blocks[..., 1:] >> 4
            codes = np.concatenate([low, high], -1).reshape(len(scales), -1)
            bytes = packed.view(np.uint8)
            np.testing.assert_array_equal(codes[:, 0::2] | codes[:, 1::2] << 4, bytes)
    published = {"attn_q_a": "Q8_0", "attn_compressor_kv": "F16", "attn_norm": "F32"}
    for part, type in published.items():
        assert tensors[f"blk.1.{part}.weight"].tensor_type.name == type


@pytest.mark.parametrize("recipe", ["q2", "q2-q4", "q4", "q8"])
def test_recipes_quantise_experts_on_the_way(
    official: tuple[Path, Quantised], tmp_path: Path, recipe: str
) -> None:
    directory, store = official
    out = tmp_path / "out.gguf"
    assert main(["convert", str(directory), str(out), "--recipe", recipe]) == 0
    found, name = numbers(out), "blk.2.ffn_gate_exps.weight"
    said = store.said[name]
    error = np.linalg.norm(found[name] - said) / np.linalg.norm(said)
    assert error < {"q2": 0.4, "q2-q4": 0.1, "q4": 0.1, "q8": 0.01}[recipe]
    with Engine(out) as engine, engine.session() as session:
        session.prefill([5, 6, 7])
        assert np.isfinite(session.logits).all()


def test_the_bytes_do_not_depend_on_the_threads(
    official: tuple[Path, Quantised], tmp_path: Path
) -> None:
    for threads in (1, 3):
        convert_checkpoint(
            official[0], tmp_path / f"{threads}.gguf", recipe_name="q2", name="x", threads=threads
        )
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


# Bad input


def small() -> Stored:
    return writer.stored(fixture_weights("a"), "official", plain)


def remove_shard(directory: Path) -> None:
    (directory / "model-00002-of-00003.safetensors").unlink()


def cut_shard(directory: Path) -> None:
    path = directory / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(directory: Path) -> None:
    path = directory / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def edit_config(key: str, value: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config[key] = value
        if value is None:
            del config[key]
        path.write_text(json.dumps(config))

    return edit


def remove_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, r"model-00002-of-00003.safetensors is missing, which holds '"),
        (cut_shard, r"model-00001-of-00003.safetensors is cut short: tensor '.*' ends at byte"),
        (cut_header, r"not a safetensors file, or cut short"),
        (edit_config("hidden_size", 128), r"tensor 'embed.weight': expected shape \(512, 128\)"),
        (edit_config("hidden_size", None), r"config.json: hidden_size is missing"),
        (edit_config("model_type", "llama"), r"expected 'deepseek_v4', found 'llama'"),
        (edit_config("num_hidden_layers", 7), r"compress ratios of 6 of 7 layers"),
        (edit_config("vocab_size", 100), r"expected shape"),
        (edit_config("scoring_func", "sigmoid"), r"scoring_func: expected 'sqrtsoftplus', found"),
        (edit_config("compress_rates", {"x_attention": 2}), r"compress_rates: x_attention: 2"),
        (remove_tokenizer, r"tokenizer.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    writer.save(tmp_path / "saved", small(), FIXTURES["a"][0], shards=3)
    damage(tmp_path / "saved")
    with pytest.raises(ModelFileError, match=message):
        convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


KEY = "layers.1.attn.wq_b.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY: None}, rf"tensor '{KEY}' is missing \(for 'blk.1.attn_q_b.weight'\)"),
        ({KEY: ("I16", np.zeros((1024, 256), np.int16))}, "cannot convert dtype I16"),
        (
            {KEY: ("F32", np.zeros((1024, 255), np.float32))},
            rf"'{KEY}': expected shape \(1024, 256\), found \(1024, 255\)",
        ),
        ({KEY: ("F8_E4M3", np.zeros((1024, 256), np.uint8))}, "F8_E4M3 without scales"),
        ({"layers.0.odd": ("F32", np.zeros(3, np.float32))}, "belong to no part .*'layers.0.odd'"),
        ({KEY: ("F32", np.full((1024, 256), np.inf, np.float32))}, "row 0, column 0 is inf"),
        (
            {"layers.0.ffn.gate.tid2eid": ("I64", np.full((512, 4), 16, np.int64))},
            "entry 0 names expert 16 of 16",
        ),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tensors = small()
    for key, value in change.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    writer.save(tmp_path / "saved", tensors, FIXTURES["a"][0])
    with pytest.raises(ModelFileError, match=message):
        convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_scale_of_the_wrong_shape_is_named(
    official: tuple[Path, Quantised], tmp_path: Path
) -> None:
    store = Quantised("official")
    tensors = writer.stored(fixture_weights("a"), "official", store)
    key = "layers.0.ffn.experts.3.w2.scale"
    tensors[key] = ("F8_E8M0", tensors[key][1][:, :4])
    writer.save(tmp_path / "saved", tensors, FIXTURES["a"][0])
    with pytest.raises(ModelFileError, match=rf"'{key}': expected F8_E8M0 \(256, 8\)"):
        convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf")


def test_a_target_that_cannot_be_written_is_named(
    official: tuple[Path, Quantised], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(official[0]), str(tmp_path / "absent" / "out.gguf")]) == 1
    assert "absent" in capsys.readouterr().err
