"""llama.cpp's ``llama-bench``, run on the same file beside our own measurements."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pyds4.cli.failure import CommandError, UsageError

MICRO_BATCH = 2048
"""Tokens in one forward pass; its default of 512 reads the experts four times as often."""


class LlamaBench:
    """Prefill and decode speed of llama.cpp, one process a measurement."""

    name = "llama-bench"

    def __init__(self, program: str, model: Path, threads: int, extra: str = "") -> None:
        found = shutil.which(os.path.expanduser(program))
        if found is None:
            raise CommandError(f"{program}: not a program that can be run")
        self._command = [
            found,
            *("-m", str(model), "-t", str(threads), "-o", "json", "-r", "1"),
            *("-b", str(MICRO_BATCH), "-ub", str(MICRO_BATCH)),
            *shlex.split(extra),
        ]

    def prefill(self, tokens: int) -> float:
        """Tokens a second for a prompt of ``tokens``."""
        return self._measure("-p", str(tokens), "-n", "0")

    def decode(self, tokens: int, context: int) -> float:
        """Tokens a second for ``tokens`` tokens behind ``context`` others."""
        return self._measure("-p", "0", "-n", str(tokens), "-d", str(context))

    def _measure(self, *what: str) -> float:
        """The rate it reports.

        Raises:
            CommandError: it fails, or says something else than one measurement.
        """
        command = [*self._command, *what]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CommandError(f"{shlex.join(command)}: exit status {done.returncode}: {last[0]}")
        return parse_rate(done.stdout)


def parse_rate(output: str) -> float:
    """The rate in what ``llama-bench -o json`` prints for one test.

    Raises:
        CommandError: it is something else.
    """
    try:
        rows: Any = json.loads(output)
        (row,) = rows
        rate = float(row["avg_ts"])
    except (ValueError, TypeError, KeyError):
        raise CommandError(
            f"llama-bench: expected JSON with one test and its avg_ts, found {output[:80]!r}"
        ) from None
    if not rate > 0:
        raise CommandError(f"llama-bench: expected a rate above 0, found {rate}")
    return rate


def parse_peer(text: str) -> str:
    """The program in ``llama-bench=PATH``.

    Raises:
        UsageError: another peer, or no path.
    """
    kind, equals, program = text.partition("=")
    if kind != LlamaBench.name or not equals or not program:
        raise UsageError(f"--peer {text}: expected llama-bench=PATH")
    return program
