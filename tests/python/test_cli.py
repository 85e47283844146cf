"""The command as a whole: help, exit statuses, the default model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import DEMO, error_of, run
from hypothesis import given
from hypothesis import strategies as st

from pyds4 import default_model
from pyds4.cli import COMMANDS, inspect
from pyds4.cli.failure import one_line
from pyds4.errors import ModelFileError, PyDS4Error


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_needs_neither_library_nor_anything_slow_to_import() -> None:
    script = (
        "import sys; from pyds4.cli import main; status = main(['--help']); "
        "slow = {'numpy', 'rich', 'pydantic', 'sanic', 'tokenizers', 'pyds4._native'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules); sys.exit(status)"
    )
    done = python("-c", script, PYDS4_LIBRARY="/nowhere/libpyds4.so")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_a_missing_library_is_one_line() -> None:
    done = python("-m", "pyds4", "run", "-p", "Hi", PYDS4_LIBRARY="/nowhere/libpyds4.so")
    assert done.returncode == 1
    assert done.stderr.startswith("pyds4: error: the pyds4 engine library was not found")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_explains_itself(command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.status == 0
    assert f"usage: pyds4 {command}" in outcome.out
    assert COMMANDS[command][1:] in outcome.out


def test_version_names_the_engine_and_its_library() -> None:
    outcome = run("--version")
    assert outcome.status == 0
    assert outcome.out.startswith("pyds4 0.")
    assert "libpyds4" in outcome.out


def test_no_command_shows_the_help_and_fails() -> None:
    outcome = run()
    assert outcome.status == 2
    assert "commands:" in outcome.out


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["--frobnicate"],
        ["inspect", "--frobnicate"],
        ["bench"],
        ["run", "-p", "Hi", "--max-tokens", "0"],
        ["run", "-p", "Hi", "--threads", "many"],
        ["inspect", "--context", "8q"],
    ],
)
def test_a_senseless_command_line_is_status_2(words: list[str]) -> None:
    outcome = run(*words)
    assert outcome.status == 2
    assert ": error: " in outcome.err.splitlines()[-1]
    assert outcome.out == ""


def test_a_missing_model_is_named() -> None:
    assert "nowhere.gguf" in error_of("run", "-p", "Hi", "-m", "nowhere.gguf")


def test_a_file_that_is_no_model_says_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("This is not a model, whatever its name says.")
    message = error_of("inspect", path)
    assert str(path) in message
    assert "GGUF" in message


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "execute", interrupted)
    assert run("inspect", DEMO).status == 130


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(inspect, "execute", mistaken)
    with pytest.raises(ZeroDivisionError):
        run("inspect", DEMO)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    # More output than a pipe and its reader hold, so that the writer is still at it.
    long = tmp_path / "long.txt"
    long.write_text("one two three " * 50_000, encoding="utf-8")
    command = [sys.executable, "-m", "pyds4", "tokenize", "--file", str(long)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_output_to_a_pipe_has_no_control_characters() -> None:
    done = python("-m", "pyds4", "inspect", DEMO, "--tensors", FORCE_COLOR="1", TERM="xterm")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout


@given(st.text())
def test_errors_are_one_line_whatever_they_say(text: str) -> None:
    line = one_line(PyDS4Error(text))
    assert line
    assert len(line.splitlines()) == 1


def test_an_error_of_the_system_names_its_file() -> None:
    assert one_line(FileNotFoundError(2, "No such file", "a.txt")) == "a.txt: No such file"
    assert one_line(OSError(98, "cannot listen")) == "cannot listen"


def test_the_default_model_is_the_one_named_then_the_environments_then_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYDS4_MODEL", "/models/mine.gguf")
    assert default_model.find_model("/models/named.gguf") == Path("/models/named.gguf")
    assert default_model.find_model() == Path("/models/mine.gguf")
    monkeypatch.delenv("PYDS4_MODEL")
    assert default_model.find_model().name == default_model.DEMO_NAME


def test_without_any_model_the_error_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PYDS4_MODEL", raising=False)
    monkeypatch.setattr(default_model, "demo_directories", lambda: (tmp_path,))
    with pytest.raises(ModelFileError, match="--model"):
        default_model.find_model()
