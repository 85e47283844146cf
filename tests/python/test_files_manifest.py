"""Manifests bind what belongs together, and the engine goes by them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyds4._native import check, lib
from pyds4.cli import main
from pyds4.engine import Engine
from pyds4.errors import InvalidArgumentError, ModelFileError
from pyds4.files.manifest import make_manifest, manifest_path, read_manifest, write_manifest
from pyds4.synth import dimensions, synthesize


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    synthesize(path, dimensions("tiny"))
    return path


def identity(path: Path) -> bytes:
    with Engine(path) as engine:
        return engine.identity


def error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) != 0
    return capsys.readouterr().err


def test_kept_prefixes_belong_to_the_digest_that_a_manifest_binds(
    model: Path, tmp_path: Path
) -> None:
    sampled = identity(model)
    write_manifest(model, make_manifest(model))
    bound = identity(model)
    assert bound != sampled
    # Another name and another time of the same bytes are the same model, once they are checked.
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "n.gguf"
    copy.write_bytes(model.read_bytes())
    write_manifest(copy, make_manifest(copy))
    assert identity(copy) == bound
    os.utime(copy, ns=(1, 1))
    assert identity(copy) == sampled
    assert main(["models", "--check", str(copy)]) == 0
    assert identity(copy) == bound


def test_one_changed_byte_is_another_model_to_a_manifest(model: Path) -> None:
    write_manifest(model, make_manifest(model))
    before = identity(model)
    data = bytearray(model.read_bytes())
    data[len(data) // 3] ^= 1  # between the samples
    model.write_bytes(data)
    os.utime(model, ns=(1, 1))  # whatever the resolution of the file system's clock
    assert main(["models", "--check", str(model)]) == 1
    write_manifest(model, make_manifest(model))
    assert identity(model) != before


def test_a_bound_identity_cannot_change_once_it_is_used(model: Path) -> None:
    with Engine(model) as engine:
        assert len(engine.identity) == 20
        with pytest.raises(InvalidArgumentError, match="bind it before anything is kept"):
            check(lib.pyds4_engine_bind(engine.handle, b"x"))


def test_a_file_that_is_not_the_one_bound_is_refused_with_the_reason(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(model, make_manifest(model))
    path = manifest_path(model)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "tokenizer_sha256": "0" * 64}))
    with pytest.raises(ModelFileError, match="its tokenizer is not the one"):
        Engine(model)
    path.write_text(json.dumps({**data, "files": [{**data["files"][0], "bytes": 5}]}))
    with pytest.raises(ModelFileError, match=r"binds 5 bytes, found \d+; download it again"):
        Engine(model)
    path.write_text("{")
    assert "m.gguf.manifest.json: not a manifest" in error(capsys, "run", "-m", model, "-p", "x")


def test_a_prompt_profile_that_is_not_the_models_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--bind", str(model), "--profile", "0731", "--recipe", "mine"]) == 0
    manifest = read_manifest(model)
    assert manifest is not None
    assert (manifest.profile, manifest.recipe) == ("0731", "mine")
    for command in ("run", "verify"):
        words = ["-m", model, "-p", "x"] if command == "run" else [model, "--text", model]
        said = error(capsys, command, *words, "--profile", "preview")
        assert "m.gguf.manifest.json binds the model to 0731" in said
    with Engine(model) as engine:
        assert engine.profile == "0731"
    assert main(["run", "-m", str(model), "-p", "x", "-n", "1", "--effort", "low"]) == 0


def test_bound_vectors_are_what_verify_compares_with(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "its manifest binds none" in error(capsys, "verify", model)
    vectors = tmp_path / "vectors.json"
    token = {"bytes": [65], "logprob": -1.0, "top_logprobs": [{"bytes": [65], "logprob": -1.0}]}
    vectors.write_text(json.dumps({"vectors": [{"prompt": "A", "tokens": [token]}]}))
    elsewhere = tmp_path / "x" / "vectors.json"
    said = error(capsys, "models", "--bind", model, "--vectors", elsewhere)
    assert "does not lie beside" in said
    assert main(["models", "--bind", str(model), "--vectors", str(vectors)]) == 0
    capsys.readouterr()
    assert main(["verify", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vectors"]["steps"] == 1
    vectors.write_text("{}")
    assert "SHA-256 is" in error(capsys, "models", "--check", model)


def test_a_file_written_anew_loses_the_manifest_of_the_earlier_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    words = ["quantize", str(model), str(out), "--tensor", "*_exps.weight=q4_0"]
    assert main(words) == 0
    write_manifest(out, make_manifest(out))
    capsys.readouterr()
    assert main(words) == 0
    assert f"the manifest of the earlier {out} was removed" in capsys.readouterr().err
    assert not manifest_path(out).exists()
    Engine(out).close()
