"""The server that ``pyds4 launch`` points an agent at: found, or started for the occasion."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import urlsplit

from pyds4.cli.console import note
from pyds4.cli.failure import CommandError, UsageError
from pyds4.cli.launch_clients import Server

_TIMEOUT_S = 30.0
_POLL_S = 0.2
_MAX_SAID = 1 << 20
_ANY_KEY = "pyds4"
"""Agents insist on a key even where the server asks for none."""


def find(url: str, key: str | None) -> Server:
    """The server at ``url``.

    Raises:
        UsageError: ``url`` is no HTTP address.
        CommandError: nobody answers there, or not as this server does; says what to do.
    """
    base = _base(url)
    try:
        return _ask(base, key)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            wanted = "another API key" if key else "an API key"
            raise CommandError(
                f"the server at {base} wants {wanted} (--api-key, PYDS4_API_KEY)"
            ) from None
        if error.code == 503:
            raise CommandError(
                f"the server at {base} is still loading its model; try again in a moment"
            ) from None
        raise CommandError(f"{base} answers, but with HTTP status {error.code}") from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise CommandError(
            f"no server at {base} ({reason}): start one with 'pyds4 serve --model FILE', "
            "or add --serve"
        ) from None


def _base(url: str) -> str:
    """``url`` without ``/v1`` and slashes at its end."""
    parts = urlsplit(url)
    try:
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        fine = False
    if not fine:
        raise UsageError(f"--url: expected something like http://127.0.0.1:8000, found {url!r}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _ask(base: str, key: str | None) -> Server:
    """The model at ``base``.

    Raises:
        OSError: nobody answers, or with an error status.
        CommandError: what answers is not this server.
    """
    request = urllib.request.Request(f"{base}/v1/models")
    if key:
        request.add_header("authorization", f"Bearer {key}")
    # Without proxies: the address is this machine's more often than not.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_S) as reply:
        raw: bytes = reply.read(1 << 20)
    try:
        card: Any = json.loads(raw)["data"][0]
        return Server(base, str(card["id"]), int(card["context_length"]), key or _ANY_KEY)
    except (ValueError, LookupError, TypeError):
        raise CommandError(
            f"{base} answers, but not as pyds4: its /v1/models names no model with a context_length"
        ) from None


@contextlib.contextmanager
def started(model: str | None, key: str | None) -> Iterator[Server]:
    """A server on a free port of this machine within a block.

    Raises:
        CommandError: it ended before it served; with the end of what it said.
    """
    command = [sys.executable, "-m", "pyds4", "serve", "--host", "127.0.0.1", "--port", "0", "-q"]
    if model:
        command += ["--model", model]
    environment = os.environ | ({"PYDS4_API_KEY": key} if key else {})
    with tempfile.TemporaryFile() as said, _ended_by_signals():
        # In a session of its own, so that Ctrl-C in the agent does not end the server.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            note("starting a server; a large model takes a while to load")
            yield _ask(_address(process, said), key)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    """Where the server serves, which it says once its model is loaded, however long that takes."""
    while True:
        has_ended = process.poll() is not None
        # The server writes at the shared offset of this file, so it is read past it.
        text = os.pread(said.fileno(), _MAX_SAID, 0).decode("utf-8", "replace")
        told = re.search(r" is served at (http://\S+)", text)
        if told:
            return told[1]
        if has_ended:
            break
        time.sleep(_POLL_S)
    lines = text.strip().splitlines()
    reason = lines[-1].removeprefix("pyds4: error: ") if lines else f"status {process.returncode}"
    raise CommandError(f"the server did not start: {reason}")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A terminal that closes, or someone's kill, ends this program in order: its server too."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
