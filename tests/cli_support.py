"""What the tests of the command line share."""

from __future__ import annotations

import atexit
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from pyds4.cli import main
from pyds4.default_model import find_model

DEMO = str(find_model())
TINY_VOCABULARY = 512


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def run(*words: object, stdin: str | None = None) -> Outcome:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO((stdin or "").encode()), encoding="utf-8")
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "stdin", given):
        status = main([str(word) for word in words])
    return Outcome(status, out.getvalue(), err.getvalue())


def error_of(*words: object, status: int = 1, stdin: str | None = None) -> str:
    """The one line of a command that must fail with ``status``."""
    outcome = run(*words, stdin=stdin)
    assert outcome.status == status, outcome
    line = outcome.err.splitlines()[-1]
    assert line.startswith("pyds4")
    assert ": error: " in line
    if status == 1:
        assert outcome.err == line + "\n"
        assert outcome.out == ""
    return line


@cache
def tiny_model() -> str:
    """A synthetic model with one layer of each kind, written once a test run."""
    from pyds4.synth import dimensions, synthesize

    directory = tempfile.mkdtemp(prefix="pyds4-cli-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory) / "tiny.gguf"
    synthesize(path, dimensions("tiny"), threads=1)
    return str(path)
