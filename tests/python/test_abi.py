"""The C ABI as a C program and a C++ compiler see it (tests/c), and as cffi does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from models import F32, SMALL, synthetic_path
from pyds4 import _native
from pyds4.errors import PyDS4Error

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "swift" / "CPyDS4" / "include"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def _compiler(names: list[str]) -> str:
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no compiler: " + ", ".join(names))
    return found


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_c_program_gets_what_the_header_promises(tmp_path: Path) -> None:
    cc = _compiler([os.environ.get("CC", "cc"), "clang", "gcc"])
    program, library = tmp_path / "abi", _native.library_path
    _run(cc, "-std=c11", *WARNINGS, f"-I{INCLUDE}", ROOT / "tests" / "c" / "abi.c", "-o", program,
         library, f"-Wl,-rpath,{library.parent}", "-pthread")  # fmt: skip
    assert _run(program, synthetic_path(SMALL, F32)) == "ok\n"


def test_the_header_is_cpp_too(tmp_path: Path) -> None:
    cxx = _compiler([os.environ.get("CXX", "c++"), "clang++", "g++"])
    source = tmp_path / "header.cpp"
    source.write_text('#include "pyds4.h"\nint main() { return pyds4_version() == nullptr; }\n')
    _run(cxx, "-std=c++17", *WARNINGS, f"-I{INCLUDE}", "-fsyntax-only", source)


def test_every_function_of_the_header_is_in_the_library() -> None:
    text = re.sub(r"/\*.*?\*/", "", (INCLUDE / "pyds4.h").read_text(), flags=re.DOTALL)
    names = re.findall(r"\b(pyds4_\w+)\s*\(", text)
    assert len(names) > 30
    for name in names:
        assert getattr(_native.lib, name), name


def test_every_failing_status_has_an_error_of_its_own_tree() -> None:
    text = (INCLUDE / "pyds4.h").read_text()
    statuses = {
        name: int(value)
        for name, value in re.findall(r"(PYDS4_[A-Z_]+) = (\d+)", text)
        if name != "PYDS4_OK"
    }
    assert len(statuses) >= 10
    for name, value in statuses.items():
        error = _native.error_for(value, "why")
        assert type(error) is not PyDS4Error, name
        assert str(error) == "why"
