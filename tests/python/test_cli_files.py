"""inspect, tokenize and synth: the commands that read and write files but run no model."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import DEMO, error_of, run, tiny_model
from gguf.constants import GGMLQuantizationType, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

import pyds4
from pyds4.cli import synth
from pyds4.cli.options import integers
from pyds4.cli.tensor_roles import bytes_per_step
from pyds4.synth import PRESETS, RANDOM_TYPES, Tensor, Typed, dimensions, synthesize, write_gguf

# inspect


def inspected(*words: object) -> Any:
    outcome = run("inspect", *words, "--json")
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_inspect_reports_every_tensor_byte_once_by_type_and_by_role() -> None:
    report = inspected(tiny_model(), "--tensors")
    total = sum(tensor["byte_count"] for tensor in report["tensors"])
    for groups in (report["types"], report["roles"]):
        assert sum(group["bytes"] for group in groups) == total
        assert sum(group["tensors"] for group in groups) == report["tensor_count"]
        assert sum(group["parameters"] for group in groups) == report["parameter_count"]
    assert "other" not in {group["name"] for group in report["roles"]}


def test_inspect_gives_the_memory_of_the_contexts_asked_for() -> None:
    report = inspected(DEMO, "--context", "1000,2k")
    file = pyds4.ModelFile(DEMO)
    assert [need["context"] for need in report["memory"]] == [1000, 2048]
    for need in report["memory"]:
        assert need["kv"] == file.memory(need["context"]).kv
        assert need["total"] == need["weights"] + need["kv"] + need["buffers"]


def test_inspect_gives_memory_up_to_the_models_limit_by_default() -> None:
    report = inspected(DEMO)
    limit = report["metadata"]["deepseek4.context_length"]
    assert [need["context"] for need in report["memory"]] == [4096, limit]


def test_inspect_shows_long_arrays_by_length() -> None:
    report = inspected(DEMO)
    assert report["metadata"]["tokenizer.ggml.tokens"] == {"type": "array of string", "count": 4096}
    assert report["metadata"]["deepseek4.attention.compress_ratios"] == [0, 0, 4, 128, 4, 128, 4]


def other_model(path: Path) -> Path:
    """A sound GGUF file of another family, with all that is awkward to print."""
    rows = Typed(
        GGUFValueType.ARRAY,
        [Typed.array(GGUFValueType.UINT8, [1, 2]), Typed.array(GGUFValueType.UINT8, [])],
        GGUFValueType.ARRAY,
    )
    metadata = {"general.architecture": "llama", "general.name": "a\x1b[31mb\nc", "x.rows": rows}
    tensor = Tensor("blk.0.attn_q.weight", (32, 2), GGMLQuantizationType.F32, np.ones(64, "<f4"))
    write_gguf(path, metadata, [tensor])
    return path


def test_inspect_reads_models_of_other_families(tmp_path: Path) -> None:
    path = other_model(tmp_path / "llama.gguf")
    report = inspected(path)
    assert report["memory"] is None
    assert "llama" in report["memory_error"]
    assert report["roles"] == [{"name": "attention", "tensors": 1, "parameters": 64, "bytes": 256}]


def test_inspect_does_not_let_a_file_write_to_the_terminal(tmp_path: Path) -> None:
    outcome = run("inspect", other_model(tmp_path / "llama.gguf"))
    assert outcome.status == 0
    assert "\x1b" not in outcome.out
    assert r"a\x1b[31mb\nc" in outcome.out


def test_inspect_lists_the_same_as_a_table() -> None:
    outcome = run("inspect", DEMO, "--tensors")
    assert "blk.6.ffn_down_exps.weight" in outcome.out
    assert "24.31 MiB, 212 tensors, 25.6 M parameters" in outcome.out
    assert "attention memory" in outcome.out


@given(st.lists(st.integers(1, 4096), min_size=1))
def test_lists_of_numbers_read_back(numbers: list[int]) -> None:
    assert integers(1)(",".join(map(str, numbers))) == numbers
    assert integers(1)(", ".join(f"{n}k" for n in numbers)) == [n * 1024 for n in numbers]


def test_one_token_reads_every_weight_but_only_its_rows_and_experts() -> None:
    file = pyds4.ModelFile(tiny_model())
    shape = dimensions("tiny")
    expected = 0.0
    for tensor in file.tensors:
        part = 1.0
        if tensor.name.endswith("_exps.weight"):
            part = shape.experts_used / shape.experts
        elif tensor.name == "token_embd.weight" or "tid2eid" in tensor.name:
            part = 1 / shape.vocab
        expected += part * tensor.byte_count
    assert bytes_per_step(file) == pytest.approx(expected, rel=1e-12)
    # More sequences read more experts, and in the end all of them.
    all_rows = sum(t.byte_count for t in file.tensors if "exps" in t.name)
    growth = bytes_per_step(file, 2) - bytes_per_step(file)
    assert 0 < growth < bytes_per_step(file)
    assert bytes_per_step(file, 1000) > expected + all_rows * (
        1 - shape.experts_used / shape.experts
    )


# tokenize


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_comes_back_from_its_ids(text: str) -> None:
    encoded = run("tokenize", "--json", stdin=text)
    ids = json.loads(encoded.out)["ids"]
    assert json.loads(encoded.out)["text"] == text
    assert run("tokenize", "--count", stdin=text).out == f"{len(ids)}\n"
    decoded = run("tokenize", "--decode", " ".join(map(str, ids)))
    assert decoded.out == text


def test_markers_are_one_token_unless_told_otherwise() -> None:
    assert json.loads(run("tokenize", "<｜User｜>", "--json").out)["ids"] == [3]
    ids = json.loads(run("tokenize", "<｜User｜>", "--no-special", "--json").out)["ids"]
    assert 3 not in ids
    assert len(ids) > 1


def test_tokens_are_listed_with_their_text_even_within_a_character() -> None:
    lines = run("tokenize", " wör").out.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["' w'", r"b'\xc3'", r"b'\xb6'", "'r'"]


def test_line_ends_of_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes(b"a\r\nb")
    assert json.loads(run("tokenize", "--file", path, "--json").out)["text"] == "a\r\nb"


def test_ids_may_be_a_json_list() -> None:
    assert run("tokenize", "--decode", "[45, 3548]").out == "<User"


@pytest.mark.parametrize("ids", ["1 two", "-4", "1.5", "99999999999"])
def test_what_is_no_id_is_named(ids: str) -> None:
    assert "--decode" in error_of("tokenize", f"--decode={ids}", status=2)


def test_an_id_outside_the_vocabulary_is_named() -> None:
    assert "4096" in error_of("tokenize", "--decode", "4096")


def test_a_file_that_is_no_text_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"ab\xff")
    assert error_of("tokenize", "--file", path).endswith("not UTF-8 text at byte 2")


# synth


def test_synth_writes_what_the_library_writes(tmp_path: Path) -> None:
    outcome = run("synth", "tiny", tmp_path / "a.gguf", "--layers", 2, "--seed", 7, "-t", 1)
    assert outcome.status == 0, outcome.err
    synthesize(tmp_path / "b.gguf", dimensions("tiny", 2), seed=7)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_synth_takes_dimensions_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    words = ["--dimension", "experts=32", "--dimension", "ratios=0,4", "--experts", "q4_k"]
    assert run("synth", "tiny", path, *words, "--dimension", "swiglu_clamp=2.5").status == 0
    file = pyds4.ModelFile(path)
    assert file["deepseek4.expert_count"] == 32
    assert file["deepseek4.attention.compress_ratios"] == [0, 4]
    assert file["deepseek4.swiglu_clamp_exp"] == [2.5, 2.5]
    assert {t.type for t in file.tensors if "_exps" in t.name} == {"q4_k"}


def test_synth_keeps_an_existing_file_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("precious")
    assert "--force" in error_of("synth", "tiny", path)
    assert path.read_text() == "precious"
    assert run("synth", "tiny", path, "--force", "--layers", 1).status == 0
    assert path.read_bytes()[:4] == b"GGUF"


def test_synth_looks_for_room_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert "the disk has 1000 B free" in error_of("synth", "tiny", tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    outcome = run("synth", "flash", tmp_path / "a.gguf", "--dry-run")
    assert "43 layers, 1328 tensors, 80.76 GiB" in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["huge", "x.gguf"], 1, "no preset 'huge'"),
        (["tiny", "/nowhere/x.gguf"], 1, "there is no directory /nowhere"),
        (["tiny", "x.gguf", "--experts", "q9"], 1, "no tensor type 'q9'"),
        (["tiny", "x.gguf", "--dimension", "hiden=1"], 2, "hiden=1"),
        (["tiny", "x.gguf", "--dimension", "hidden=big"], 2, "'big'"),
        (["tiny", "x.gguf", "--dimension", "hidden=100"], 1, "blocks"),
        (["tiny", "x.gguf", "--dimension", "experts_used=99"], 1, "experts_used"),
    ],
)
def test_synth_says_what_it_cannot_make(
    words: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in error_of("synth", *words, status=status)
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_synth_lists_what_there_is() -> None:
    for preset in PRESETS:
        assert f"\n  {preset} " in synth.EPILOG
    types = synth.EPILOG.split("Tensor types: ")[1].split(".")[0].split()
    assert set(types) == {choice.name.lower() for choice in RANDOM_TYPES}
