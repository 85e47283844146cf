"""The library and the wheel must work where no Swift is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyds4 import _native

ROOT = Path(__file__).parents[2]


def needed_libraries(path: Path) -> set[str]:
    """What the dynamic linker must find, by binutils' readelf."""
    text = subprocess.run(
        ["readelf", "-d", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return {line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line}


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_library_needs_nothing_but_the_c_and_cxx_runtimes() -> None:
    families = ("libc.", "libm.", "libgcc_s.", "libstdc++.", "ld-linux", "libdl.", "libpthread.")
    assert [n for n in needed_libraries(_native.library_path) if not n.startswith(families)] == []


def test_a_missing_library_is_an_error_that_says_how_to_build_it(tmp_path: Path) -> None:
    code = "import pyds4; pyds4.Engine('x')"
    environment = {**os.environ, "PYDS4_LIBRARY": str(tmp_path / "absent.so")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "swift build -c release" in run.stderr
    assert str(tmp_path / "absent.so") in run.stderr


@pytest.mark.slow
def test_wheel_answers_in_a_fresh_environment_without_swift(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([binaries / "pip", "install", "--quiet", str(wheel)], check=True)
    without_swift = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(tmp_path)}
    answer = subprocess.run(
        [binaries / "pyds4", "run", "-p", "What are you?"],
        env=without_swift, cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "demo model" in answer.stdout
