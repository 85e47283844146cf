"""Downloads through the real huggingface_hub client, from a hub of our own on the loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pyds4.engine import Engine
from pyds4.errors import ModelFileError
from pyds4.files.manifest import (
    check_manifest,
    make_manifest,
    manifest_path,
    read_manifest,
    verify_manifest,
    write_manifest,
)
from pyds4.model_file import ModelFile
from pyds4.synth import dimensions, synthesize

REPOSITORY, FILE, COMMIT = "someone/models", "tiny.gguf", "c0ffee" * 6 + "beef"


@dataclass
class Hub:
    """What the hub has and how it misbehaves."""

    content: bytes
    status: int = 200
    token: str | None = None
    drop_after: int | None = None
    """Bytes after which the next connection breaks; only that one."""
    corrupt: bool = False
    claimed_size: int | None = None
    ranges: list[str] = field(default_factory=list)
    gets: int = 0

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *ignored: object) -> None:
            pass

        def fail(self, status: int, code: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if code:
                self.send_header("X-Error-Code", code)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()

        def answer(self, body: bool) -> None:
            allowed = (
                hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}"
            )
            if not allowed:
                return self.fail(401)
            if hub.status != 200:
                return self.fail(hub.status)
            if not self.path.startswith(f"/{REPOSITORY}/resolve/"):
                return self.fail(404, "RepoNotFound")
            if not self.path.endswith(f"/{FILE}"):
                return self.fail(404, "EntryNotFound")
            wanted = self.headers.get("Range", "")
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and body else 0
            content = bytes(len(hub.content)) if hub.corrupt else hub.content
            self.send_response(206 if start else 200)
            size = hub.claimed_size if hub.claimed_size is not None else len(content)
            self.send_header("ETag", f'"{hub.digest}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(size - start))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if not body:
                return None
            hub.gets += 1
            hub.ranges.append(wanted)
            end = len(content)
            if hub.drop_after is not None:
                end, hub.drop_after = start + hub.drop_after, None
            self.wfile.write(content[start:end])
            if end != len(content):
                self.close_connection = True
            return None

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

    return Handler


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("hub") / FILE
    synthesize(path, dimensions("tiny", layers=1))
    return path.read_bytes()


@dataclass
class Machine:
    """A user's machine: the command line with directories of its own."""

    home: Path
    endpoint: str

    @property
    def models(self) -> Path:
        return self.home / "models"

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "hf"),
            "PYDS4_MODELS": str(self.models),
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            **environment,
        }
        command = [sys.executable, "-m", "pyds4", *words]
        return subprocess.run(
            command, env=settings, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture
def hub(content: bytes) -> Hub:
    return Hub(content)


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Iterator[Machine]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Machine(tmp_path, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_file_is_fetched_once_verified_listed_checked_and_removed(
    hub: Hub, machine: Machine
) -> None:
    first = machine.run("download", REPOSITORY, FILE, "--profile", "0731")
    assert first.returncode == 0, first.stderr
    place = machine.models / FILE
    assert place.read_bytes() == hub.content
    manifest = json.loads((machine.models / f"{FILE}.manifest.json").read_text())
    assert manifest["files"][0].pop("modified_ns") > 0
    assert manifest["files"] == [{"name": FILE, "bytes": len(hub.content), "sha256": hub.digest}]
    assert manifest["profile"] == "0731"
    assert manifest["origin"] == f"{REPOSITORY}@{COMMIT}"
    gets = hub.gets
    assert machine.run("download", REPOSITORY, FILE).returncode == 0
    assert hub.gets == gets
    offline = machine.run("download", REPOSITORY, FILE, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert FILE in machine.run("models").stdout
    assert machine.run("models", "--check", "tiny").returncode == 0
    removed = machine.run("models", "--remove", "tiny")
    assert removed.returncode == 0, removed.stderr
    assert not list(machine.models.iterdir())
    assert not [path for path in (machine.home / "hf").rglob("*") if path.is_file() and
                path.stat().st_size == len(hub.content)]  # fmt: skip


def test_a_dropped_connection_is_resumed_where_it_broke(hub: Hub, machine: Machine) -> None:
    # The client writes in pieces of 10 MiB, and resumes behind the last whole one.
    hub.content += bytes(20 << 20)
    hub.drop_after = 12 << 20
    done = machine.run("download", REPOSITORY, FILE)
    assert done.returncode == 0, done.stderr
    assert (machine.models / FILE).read_bytes() == hub.content
    assert hub.ranges[-1] == f"bytes={10 << 20}-"


def test_a_file_with_the_wrong_digest_is_not_kept(hub: Hub, machine: Machine) -> None:
    hub.corrupt = True
    done = machine.run("download", REPOSITORY, FILE)
    assert done.returncode == 1
    assert f"expected {hub.digest}" in done.stderr
    assert not (machine.models / FILE).exists()
    hub.corrupt = False
    again = machine.run("download", REPOSITORY, FILE)
    assert again.returncode == 0, again.stderr
    assert (machine.models / FILE).read_bytes() == hub.content


def test_a_private_repository_says_what_token_to_give(hub: Hub, machine: Machine) -> None:
    hub.token = "secret"
    refused = machine.run("download", REPOSITORY, FILE)
    assert refused.returncode == 1
    assert "HF_TOKEN" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    allowed = machine.run("download", REPOSITORY, FILE, HF_TOKEN="secret")
    assert allowed.returncode == 0, allowed.stderr


def test_a_hub_that_asks_for_patience_is_reported(hub: Hub, machine: Machine) -> None:
    hub.status = 429
    done = machine.run("download", REPOSITORY, FILE)
    assert done.returncode == 1
    assert "patience" in done.stderr


def test_too_little_room_is_said_before_anything_is_fetched(hub: Hub, machine: Machine) -> None:
    hub.claimed_size = 1 << 60
    done = machine.run("download", REPOSITORY, FILE)
    assert done.returncode == 1
    assert "GiB free" in done.stderr
    assert hub.gets == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("someone/else", FILE), 1, "does not exist"),
        ((REPOSITORY, "other.gguf"), 1, "has no file other.gguf"),
        (("q9",), 1, "no model called 'q9'"),
        ((REPOSITORY,), 2, "which file"),
        (("mxfp4",), 1, "whole checkpoint"),
    ],
)
def test_what_does_not_exist_is_said(
    machine: Machine, words: tuple[str, ...], status: int, message: str
) -> None:
    done = machine.run("download", *words)
    assert (done.returncode, message in done.stderr) == (status, True), done.stderr


def test_offline_without_the_file_says_so(machine: Machine) -> None:
    done = machine.run("download", REPOSITORY, FILE, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE" in done.stderr


# Manifests


@pytest.fixture
def bound(tmp_path: Path) -> Path:
    model = tmp_path / "tiny.gguf"
    synthesize(model, dimensions("tiny", layers=1))
    write_manifest(model, make_manifest(model, profile="preview", recipe="q2"))
    return model


def test_a_manifest_reads_back_and_agrees_with_its_file(bound: Path) -> None:
    manifest = verify_manifest(bound)
    assert manifest == read_manifest(bound)
    assert manifest.profile == "preview"


def test_another_tokenizer_or_size_is_refused(bound: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    synthesize(other, dimensions("tiny", layers=1, vocab=600))
    text = manifest_path(bound).read_text()
    manifest_path(other).write_text(text.replace("tiny.gguf", "other.gguf"))
    with pytest.raises(ModelFileError, match=r"other.gguf: .* binds \d+ bytes, found"):
        check_manifest(other, ModelFile(other))
    sizes = str(bound.stat().st_size), str(other.stat().st_size)
    manifest_path(other).write_text(text.replace("tiny.gguf", "other.gguf").replace(*sizes))
    with pytest.raises(ModelFileError, match="its tokenizer is not the one"):
        check_manifest(other, ModelFile(other))


def test_an_engine_refuses_a_file_that_is_not_the_one_its_manifest_binds(bound: Path) -> None:
    with Engine(bound) as engine:
        assert engine.manifest is not None
        assert engine.manifest.profile == "preview"
    with bound.open("ab") as file:
        file.write(bytes(32))
    with pytest.raises(ModelFileError, match=r"binds .* bytes, found"):
        Engine(bound)


def test_a_flipped_bit_is_found_by_the_digest(bound: Path) -> None:
    data = bytearray(bound.read_bytes())
    data[-100] ^= 1
    bound.write_bytes(data)
    assert check_manifest(bound, ModelFile(bound)) is not None
    with pytest.raises(ModelFileError, match="SHA-256 is"):
        verify_manifest(bound)


def test_what_is_not_a_manifest_is_refused(bound: Path) -> None:
    manifest_path(bound).write_text('{"version": 9}')
    with pytest.raises(ModelFileError, match="not a manifest: version 9"):
        read_manifest(bound)
