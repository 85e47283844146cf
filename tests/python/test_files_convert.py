"""Checkpoints become GGUF files and nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_writer as writer
import numpy as np
import pytest
from checkpoint_writer import Array, Stored, plain
from gguf import GGUFReader
from gguf.quants import dequantize
from golden import COLUMNS, prompts

from pyds4.cli import main
from pyds4.engine import Engine, StepItem
from pyds4.errors import ModelFileError
from pyds4.files.convert import convert_checkpoint
from pyds4.files.source import raw_metadata
from pyds4.model_file import ModelFile
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
    tmp_path: Path, name: str, style: str
) -> None:
    weights = fixture_weights(name)
    tensors = writer.stored(weights, style, plain)
    writer.save(tmp_path / "saved", tensors, FIXTURES[name][0], shards=3)
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


def test_the_converted_file_gives_the_golden_logits(tmp_path: Path) -> None:
    tensors = writer.stored(fixture_weights("a"), "official", plain)
    writer.save(tmp_path / "saved", tensors, FIXTURES["a"][0])
    convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf", recipe_name="exact")
    golden = prompts("a")[130]
    with Engine(tmp_path / "out.gguf", backend="cpu", roundings=False) as engine:
        item = StepItem(engine.session(), golden.tokens.tolist(), all_logits=True)
        result = engine.step([item])[0]
    assert result.logits is not None
    got = result.logits[:, COLUMNS]
    assert np.linalg.norm(got - golden.logits) / np.linalg.norm(golden.logits) < 1e-5


class Quantised:
    """Stores experts as FP4, projections as FP8, the rest BF16 or F32, and notes what they say."""

    def __init__(self) -> None:
        self.said: dict[str, list[Array]] = {}
        self.mxfp4: dict[str, list[tuple[Array, Array]]] = {}

    def __call__(self, name: str, key: str, weight: Array) -> Stored:
        if "_exps" in name:
            packed, scales, said = writer.to_fp4(weight)
            self.said.setdefault(name, []).append(said)
            self.mxfp4.setdefault(name, []).append((packed, scales))
            return {key: ("I8", packed), key.replace(".weight", ".scale"): ("F8_E8M0", scales)}
        if any(part in name for part in ("attn_q", "attn_kv.", "attn_output", "shexp")) and (
            weight.ndim == 2
        ):
            codes, scales, said = writer.to_fp8(weight)
            self.said[name] = [said]
            return {key: ("F8_E4M3", codes), key.replace(".weight", ".scale"): ("F8_E8M0", scales)}
        if weight.dtype == np.int32 or weight.ndim == 1 or name.endswith("_ape.weight"):
            self.said[name] = [weight]
            return plain(name, key, weight)
        self.said[name] = [weight]
        return {key: ("BF16", writer.to_bf16(weight))}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quantised]:
    """Fixture a as the official checkpoint stores its tensors, with a drafter to be left out."""
    store = Quantised()
    tensors = writer.stored(fixture_weights("a"), "official", store)
    tensors["mtp.0.enorm.weight"] = ("F32", np.ones(256, np.float32))
    directory = tmp_path_factory.mktemp("official")
    writer.save(directory, tensors, FIXTURES["a"][0], shards=4)
    return directory, store


def test_fp8_fp4_and_bf16_lose_nothing_in_an_exact_conversion(
    official: tuple[Path, Quantised], tmp_path: Path
) -> None:
    directory, store = official
    done = convert_checkpoint(directory, tmp_path / "out.gguf", recipe_name="exact")
    assert done.skipped == ["mtp.0.enorm.weight"]
    assert done.types["blk.0.attn_q_a.weight"].name == "BF16"
    assert done.types["blk.0.ffn_up_exps.weight"].name == "MXFP4"
    found = numbers(tmp_path / "out.gguf")
    for name, said in store.said.items():
        expected = np.stack(said) if len(said) > 1 else said[0]
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_experts_keep_their_very_bits_in_mxfp4(
    official: tuple[Path, Quantised], tmp_path: Path
) -> None:
    directory, store = official
    convert_checkpoint(directory, tmp_path / "out.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    for name, experts in store.mxfp4.items():
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
    said = np.stack(store.said[name])
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
    store = Quantised()
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


def test_layers_given_by_kind_are_understood(tmp_path: Path) -> None:
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention"}
    ratios = FIXTURES["a"][0].ratios
    names = [kinds.get(ratio, "heavily_compressed_attention") for ratio in ratios]
    tensors = writer.stored(fixture_weights("a"), "hf", plain)
    writer.save(tmp_path / "saved", tensors, FIXTURES["a"][0])
    for key, value in (("compress_ratios", None), ("layer_types", names)):
        edit_config(key, value)(tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "out.gguf", recipe_name="q8")
    file = ModelFile(tmp_path / "out.gguf")
    assert file["deepseek4.attention.compress_ratios"] == list(ratios)
