"""logits: every position's scores, whatever the chunks; every bad input by name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import TINY_VOCABULARY, error_of, run, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import pyds4
from pyds4.cli.failure import CommandError
from pyds4.cli.logits import read_tokens


def save(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    ids = np.random.default_rng(3).integers(0, TINY_VOCABULARY, 150, dtype=np.int32)
    return save(tmp_path / "tokens.npy", ids)


def test_rows_are_what_a_session_gives_after_each_token(tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    assert run("logits", tiny_model(), tokens, out).status == 0
    rows = np.load(out)
    ids = np.load(tokens).tolist()
    assert rows.shape == (len(ids), TINY_VOCABULARY)
    assert rows.dtype == np.float32
    with pyds4.Engine(tiny_model()) as engine, engine.session() as session:
        for position in (0, 15, 16, 127, 128, 149):
            session.prefill(ids[: position + 1])
            np.testing.assert_array_equal(rows[position], session.logits)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_do_not_change_a_bit(chunk: int, tokens: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    assert run("logits", tiny_model(), tokens, whole).status == 0
    assert run("logits", tiny_model(), tokens, parts, "--chunk", chunk, "-t", 1).status == 0
    assert whole.read_bytes() == parts.read_bytes()


def test_roundings_can_be_switched_off(tokens: Path, tmp_path: Path) -> None:
    on, off = tmp_path / "on.npy", tmp_path / "off.npy"
    assert run("logits", tiny_model(), tokens, on).status == 0
    assert run("logits", tiny_model(), tokens, off, "--roundings", "off").status == 0
    assert on.read_bytes() != off.read_bytes()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_any_kind_of_integer_will_do(kind: Any, tmp_path: Path) -> None:
    tokens = save(tmp_path / "t.npy", np.array([1, 2, 3], kind))
    assert run("logits", tiny_model(), tokens, tmp_path / "out.npy").status == 0
    assert np.load(tmp_path / "out.npy").shape == (3, TINY_VOCABULARY)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((2, 3), np.int32), "one dimension, found shape (2, 3)"),
        (np.int64(4), "one dimension, found shape ()"),
        (np.zeros(3), "integers, found float64"),
        (np.array([True]), "integers, found bool"),
        (np.array(["a"]), "integers"),
        (np.zeros(0, np.int32), "holds no tokens"),
        (np.array([1, TINY_VOCABULARY]), "id 512 at position 1 is outside the vocabulary of 512"),
        (np.array([5, 6, -1]), "id -1 at position 2"),
        (np.array([2**64 - 1], np.uint64), "at position 0"),
        (np.array([2**32]), "id 4294967296 at position 0"),
        (np.zeros(5000, np.int32), "5000 tokens, the model's context is 4096"),
    ],
)
def test_bad_tokens_are_named_and_nothing_is_written(
    values: Any, said: str, tmp_path: Path
) -> None:
    tokens = save(tmp_path / "t.npy", values)
    message = error_of("logits", tiny_model(), tokens, tmp_path / "out.npy")
    assert said in message
    assert str(tokens) in message
    assert sorted(tmp_path.iterdir()) == [tokens]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a .npy file"),
        (b"1 2 3", "not a .npy file"),
        (b"PK\x03\x04 an archive", "not a .npy file"),
        (b"\x93NUMPY", "damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': 'nope'", "damaged"),
        (b"\x93NUMPY\x09\x00\x10\x00", "damaged"),
    ],
)
def test_what_is_no_array_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    tokens = tmp_path / "t.npy"
    tokens.write_bytes(content)
    assert said in error_of("logits", tiny_model(), tokens, tmp_path / "out.npy")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_an_array_gets_past_the_check(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = save(Path(directory) / "t.npy", np.arange(5))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(6, 100))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(6, len(content)))])
        try:
            ids = read_tokens(str(path))
        except (CommandError, OSError):
            return
        assert ids.ndim == 1
        assert ids.size > 0


def test_a_truncated_array_is_named(tmp_path: Path) -> None:
    tokens = save(tmp_path / "t.npy", np.arange(100))
    tokens.write_bytes(tokens.read_bytes()[:-8])
    assert "damaged" in error_of("logits", tiny_model(), tokens, tmp_path / "out.npy")


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    tokens = tmp_path / "t.npy"
    np.save(tokens, np.array([{}], object), allow_pickle=True)
    assert "damaged" in error_of("logits", tiny_model(), tokens, tmp_path / "out.npy")


def test_missing_files_and_folders_are_named(tokens: Path, tmp_path: Path) -> None:
    assert "no.npy" in error_of("logits", tiny_model(), tmp_path / "no.npy", tmp_path / "o.npy")
    assert "no.gguf" in error_of("logits", tmp_path / "no.gguf", tokens, tmp_path / "o.npy")
    assert "no directory" in error_of("logits", tiny_model(), tokens, tmp_path / "no" / "o.npy")


def test_an_interrupted_run_leaves_no_file(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object, token: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pyds4.Session, "decode", interrupt)
    assert run("logits", tiny_model(), tokens, tmp_path / "out.npy", "--chunk", 1).status == 130
    assert sorted(tmp_path.iterdir()) == [tokens]
