"""Killed, stopped or out of room: what is left never looks finished, and is gone on with."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import checkpoint_writer as writer
import numpy as np
import pytest
from checkpoint_writer import plain
from gguf.constants import GGMLQuantizationType

from pyds4.files.convert import convert_checkpoint
from pyds4.files.imatrix import Importance
from pyds4.files.quantize import quantize_file
from pyds4.synth import Tensor, dimensions, synthesize, write_gguf
from pyds4.synth import writer as gguf_writer
from pyds4.synth.fixtures import FIXTURES, fixture_weights
from pyds4.synth.partial import PartialFile

KILLED = """
import os, signal, sys
import pyds4.synth.writer as writer
from pyds4.cli import main

writer._CHUNK_BYTES, writer._CHECKPOINT_BYTES = 1 << 16, 1 << 18
limit = int(sys.argv[1])
ordinary = writer.PartialFile.write

def write(self, data, offset):
    ordinary(self, data, offset)
    if offset > limit:
        os.kill(os.getpid(), signal.SIGKILL)

writer.PartialFile.write = write
sys.exit(main(sys.argv[2:]))
"""
"""Runs a command with small chunks and kills itself when it has written behind a byte."""


def killed(limit: int, *words: object) -> None:
    command = [sys.executable, "-c", KILLED, str(limit), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_writer, "_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(gguf_writer, "_CHECKPOINT_BYTES", 1 << 18)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "in.gguf"
    synthesize(path, dimensions("tiny"))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "saved"
    tensors = writer.stored(fixture_weights("a"), "official", plain)
    writer.save(directory, tensors, FIXTURES["a"][0], shards=2)
    return directory


class Observed:
    """Collects what a run says and from where it counts."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.first: int | None = None

    def progress(self, done: int, total: int) -> None:
        self.first = done if self.first is None else self.first

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_killed_quantization_is_gone_on_with(
    model: Path, tmp_path: Path, small_chunks: None
) -> None:
    rules = ["*ffn_*_exps.weight=q8_0"]
    quantize_file(model, tmp_path / "whole.gguf", rules=rules, threads=2)
    size = (tmp_path / "whole.gguf").stat().st_size
    out = tmp_path / "out.gguf"
    words = ["quantize", model, out, "--tensor", rules[0], "-t", 1]
    killed(size // 2, *words)
    assert not out.exists()
    killed(size * 3 // 4, *words)
    assert not out.exists()
    seen = Observed()
    quantize_file(model, out, rules=rules, progress=seen.progress, say=seen.say)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(seen.said) == 1
    assert seen.said[0].endswith("is gone on with")
    assert seen.first is not None
    assert seen.first > size // 2  # the second run went on too
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "whole.gguf"]


def test_a_killed_conversion_is_gone_on_with(
    checkpoint: Path, tmp_path: Path, small_chunks: None
) -> None:
    convert_checkpoint(checkpoint, tmp_path / "whole.gguf", recipe_name="q8")
    size = (tmp_path / "whole.gguf").stat().st_size
    out = tmp_path / "out.gguf"
    killed(size // 2, "convert", checkpoint, out, "--recipe", "q8", "-t", 1)
    assert not out.exists()
    seen = Observed()
    convert_checkpoint(checkpoint, out, recipe_name="q8", progress=seen.progress, say=seen.say)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert seen.first is not None
    assert seen.first > size // 4
    assert seen.said[0].endswith("is gone on with")


@pytest.mark.parametrize("change", ["recipe", "input", "importance", "journal", "header", "size"])
def test_what_was_made_otherwise_is_not_gone_on_with(
    model: Path, tmp_path: Path, small_chunks: None, change: str
) -> None:
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_bytes(model.read_bytes())
    partial, journal = (tmp_path / f"out.gguf.partial{end}" for end in ("", ".journal"))
    killed(1 << 21, "quantize", source, out, "--tensor", "*exps.weight=q4_0", "-t", 1)
    rules, importance = ["*exps.weight=q4_0"], None
    match change:
        case "recipe":
            rules = ["*exps.weight=mxfp4"]  # of another size too
        case "input":
            os.utime(source, ns=(1, 1))
        case "importance":
            name, columns = "blk.0.ffn_gate_exps.weight", dimensions("tiny").hidden
            experts = dimensions("tiny").experts
            sums = np.tile(np.arange(1.0, columns + 1), (experts, 1))
            importance = Importance({name: sums}, {name: np.ones(experts)})
        case "journal":
            journal.unlink()
        case "header":
            with partial.open("r+b") as file:
                file.seek(100)
                file.write(b"\xff")
        case "size":
            os.truncate(partial, 1 << 20)
    seen = Observed()
    options = {"rules": rules, "importance": importance}
    quantize_file(source, out, **options, progress=seen.progress, say=seen.say)  # type: ignore[arg-type]
    assert len(seen.said) == 1
    assert "starting anew" in seen.said[0]
    assert seen.first is not None
    assert seen.first <= 1 << 18
    quantize_file(source, tmp_path / "whole.gguf", **options)  # type: ignore[arg-type]
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_journal_cut_anywhere_claims_no_more_than_it_said(tmp_path: Path, cut: int) -> None:
    target = tmp_path / "x"
    file = PartialFile(target, b"head", 100, "me")
    for done in (7, 15):
        file.checkpoint(done)
    file.close(keep=True)
    journal = target.with_name("x.partial.journal")
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = PartialFile(target, b"head", 100, "me")
    again.close(keep=False)
    assert again.done == (7 if cut <= len('{"done": 15}\n') else 0)
    assert list(tmp_path.iterdir()) == []


def fails_after(limit: int, error: BaseException) -> Tensor:
    """A tensor of 1 MiB whose blocks behind ``limit`` cannot be made."""

    def make(start: int, count: int) -> bytes:
        if 4 * start >= limit:
            raise error
        return bytes(4 * count)

    return Tensor("t", (1 << 18,), GGMLQuantizationType.F32, make)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_what_stops_from_outside_leaves_what_can_be_gone_on_with(
    tmp_path: Path, small_chunks: None, stop: BaseException
) -> None:
    out, seen = tmp_path / "out.gguf", Observed()
    with pytest.raises(type(stop)):
        write_gguf(out, {}, [fails_after(1 << 19, stop)], made_from="x", threads=1)
    assert not out.exists()
    whole = fails_after(1 << 30, stop)
    write_gguf(out, {}, [whole], made_from="x", progress=seen.progress, say=seen.say)
    assert seen.first is not None
    assert seen.first > 1 << 19
    write_gguf(tmp_path / "whole.gguf", {}, [whole])
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_wrong_input_leaves_nothing(tmp_path: Path, small_chunks: None) -> None:
    with pytest.raises(ValueError, match="wrong"):
        write_gguf(tmp_path / "x", {}, [fails_after(1 << 19, ValueError("wrong"))], made_from="x")
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pyds4.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def test_room_is_looked_for_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match=r"out.gguf needs .* the disk has 0.0 MiB free: make room"):
        quantize_file(model, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_grow_is_named_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-c", LIMITED, "quantize", str(model), str(out), "-t", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this system lets files grow beyond RLIMIT_FSIZE")
    assert done.returncode == 1
    assert f"{out}: {os.strerror(errno.EFBIG)}" in done.stderr
    assert "MiB are needed): make room, or raise the limit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_named_and_what_is_there_is_kept(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, ordinary = tmp_path / "out.gguf", os.pwrite
    tensor = fails_after(1 << 30, ValueError())

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > 1 << 19:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ordinary(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"out.gguf: .*make room.* gone on with"):
        write_gguf(out, {}, [tensor], made_from="x", threads=1)
    monkeypatch.setattr(os, "pwrite", ordinary)
    assert not out.exists()
    seen = Observed()
    write_gguf(out, {}, [tensor], made_from="x", progress=seen.progress)
    assert seen.first is not None
    assert seen.first > 1 << 19


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ordinary = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return ordinary(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    expected = rf"out.gguf cannot be written: {os.strerror(number)}: choose another place"
    with pytest.raises(OSError, match=expected):
        write_gguf(tmp_path / "out.gguf", {}, [])


def test_a_directory_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a directory: give the name of a file in it"):
        write_gguf(tmp_path, {}, [])
    with pytest.raises(OSError, match=f"there is no directory {tmp_path / 'absent'}"):
        write_gguf(tmp_path / "absent" / "x.gguf", {}, [])
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "x", b"", 10, "a")
    with pytest.raises(OSError, match="is being written by another process"):
        PartialFile(tmp_path / "x", b"", 10, "a")
    first.close(keep=False)
    PartialFile(tmp_path / "x", b"", 10, "a").close(keep=False)
