"""serve: every setting of the server is an option, and the server really runs."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyds4_server
import pytest
from cli_support import DEMO, error_of, run
from pyds4_server import Settings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What ``pyds4_server.serve`` would be called with; the settings are checked as there."""
    calls: list[dict[str, Any]] = []
    engine = {"backend", "roundings", "threads", "on_ready"}

    def serve(model: Path, **given: Any) -> None:
        Settings(**{name: value for name, value in given.items() if name not in engine})
        calls.append({"model": model, **given})

    monkeypatch.setattr(pyds4_server, "serve", serve)
    monkeypatch.delenv("PYDS4_API_KEY", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield calls
    root.handlers[:] = handlers
    root.setLevel(level)


def test_every_setting_is_an_option() -> None:
    text = run("serve", "--help").out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_what_is_not_given_is_left_to_the_server(served: list[dict[str, Any]]) -> None:
    assert run("serve", "-m", DEMO).status == 0
    (call,) = served
    call.pop("on_ready")
    assert call == {"model": Path(DEMO), "backend": "auto", "roundings": True, "threads": None}


def test_options_reach_the_server(served: list[dict[str, Any]]) -> None:
    words = "--port 8123 --strict-model --model-aliases a --model-aliases b --keepalive-s 2.5"
    outcome = run("serve", *words.split(), "--no-repetition-guard", "-t", 3, "--roundings", "off")
    assert outcome.status == 0, outcome.err
    (call,) = served
    settings = Settings(**{k: v for k, v in call.items() if k in Settings.model_fields})
    assert settings.port == 8123
    assert settings.strict_model
    assert settings.model_aliases == ("a", "b")
    assert settings.keepalive_s == 2.5
    assert not settings.repetition_guard
    assert call["threads"] == 3
    assert call["roundings"] is False


def test_options_win_over_the_configuration_file(
    served: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'model = "{DEMO}"\nport = 1\nmodel-name = "x"\nroundings = false\n')
    assert run("serve", "--config", path, "--port", "2").status == 0
    (call,) = served
    assert (call["port"], call["model_name"], call["roundings"]) == ("2", "x", False)
    assert call["model"] == Path(DEMO)


def test_keys_may_come_from_the_environment(
    served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYDS4_API_KEY", "one, two")
    run("serve")
    run("serve", "--api-keys", "three")
    assert [call["api_keys"] for call in served] == [("one", "two"), ["three"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port"),
        (["--port", "http"], "--port"),
        (["--max-active", "0"], "--max-active"),
        (["--keepalive-s", "soon"], "--keepalive-s"),
    ],
)
def test_a_wrong_setting_is_named(
    served: list[dict[str, Any]], words: list[str], said: str
) -> None:
    assert f"error: {said}: " in error_of("serve", *words, status=2)
    assert served == []


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("colour = 1", 2, "colour: no such setting"),
        ("port = [1]", 2, "--port"),
        ("threads = 'two'", 2, "threads: expected int"),
        ("port 1", 1, "not TOML"),
    ],
)
def test_a_wrong_configuration_is_named(
    served: list[dict[str, Any]], tmp_path: Path, text: str, status: int, said: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert said in error_of("serve", "--config", path, status=status)


def test_a_wrong_key_is_not_shown(served: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("api_keys = [123456789]")
    assert "123456789" not in error_of("serve", "--config", path, status=2)


def test_an_open_address_needs_a_key() -> None:
    message = error_of("serve", "-m", DEMO, "--host", "0.0.0.0", "--port", "0", status=2)
    assert "API key" in message


def test_the_server_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyds4", "serve", "-m", DEMO, "--port", "0"]
    command += ["--log-format", "json", "--disk-cache-directory", str(tmp_path / "kv")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"is served at (\S+) ", line):
                break
            assert json.loads(line)["level"] == "info"
        assert found
        with urllib.request.urlopen(f"{found[1]}/health") as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert (tmp_path / "kv").is_dir()
