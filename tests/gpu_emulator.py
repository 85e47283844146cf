"""The GPU kernels on the CPU: builds the emulator with Swift's own clang, runs single kernels.

Modes: ``fast``; ``race`` checks every access (bounds of the bound buffers, races between barriers,
threadgroup memory that nobody wrote); ``asan`` has Clang's address and undefined behaviour
sanitizers, whose run-time library must then be loaded before Python (`sanitized`).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts" / "msl"
SANITIZED = "PYDS4_EMULATOR_SANITIZED"
Buffer = NDArray[Any] | bytes | None
MODES = pytest.mark.parametrize("mode", ["fast", "race"])


def toolchain() -> dict[str, str]:
    """The environment in which clang++ is Swift's; skips the test when there is no Swift."""
    swift = shutil.which("swift") or shutil.which("swift", path="/opt/swift/usr/bin")
    if swift is None:
        pytest.skip("no swift on PATH: its clang builds the emulator of the GPU kernels")
    folder = str(Path(swift).resolve().parent)
    return {**os.environ, "PATH": folder + os.pathsep + os.environ["PATH"]}


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pyds4-emulator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def sanitized() -> dict[str, str]:
    """The environment of a process in which ``fast`` libraries are ``asan`` ones."""
    environment = toolchain()
    command = ["clang", f"-print-file-name=libclang_rt.asan-{platform.machine()}.so"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    runtime = found.stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("this clang has no address sanitizer")
    options = "detect_leaks=0:abort_on_error=0"
    return {**environment, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options, SANITIZED: "1"}


@cache
def library(mode: str = "fast", source: str = "all", *defines: str) -> Path:
    """Builds all kernels, or one source file, for the emulator."""
    if mode == "fast" and SANITIZED in os.environ:
        mode = "asan"
    out = _folder() / f"{Path(source).stem}-{mode}{len(defines)}.so"
    command = ["sh", str(SCRIPTS / "build_host.sh"), source, str(out), mode, *defines]
    done = subprocess.run(command, env=toolchain(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def run(
    path: Path, kernel: str, buffers: Sequence[Buffer], *, grid: Sequence[int], threads: int
) -> str:
    """Runs one kernel over ``buffers``, which it changes in place.

    Returns:
        What the emulator objects to, or an empty string.
    """
    emulator = ctypes.CDLL(str(path))
    emulator.msl_error.restype = ctypes.c_char_p
    pointers = (ctypes.c_void_p * len(buffers))()
    sizes = (ctypes.c_size_t * len(buffers))()
    kept = [
        np.frombuffer(b, np.uint8).copy() if isinstance(b, bytes) else b for b in buffers
    ]  # alive until the kernel returns
    for i, array in enumerate(kept):
        if array is not None:
            pointers[i], sizes[i] = array.ctypes.data, array.nbytes
    status = emulator.msl_dispatch(
        kernel.encode(),
        (ctypes.c_uint * 3)(*grid, *(1,) * (3 - len(grid))),
        (ctypes.c_uint * 3)(threads, 1, 1),
        len(pointers),
        pointers,
        sizes,
        0,
        None,
    )
    return str(emulator.msl_error().decode()) if status else ""


def check(
    mode: str, kernel: str, buffers: list[Buffer], grid: tuple[int, ...], threads: int
) -> None:
    """Runs a kernel of the whole library; the test fails with what the emulator objects to."""
    complaint = run(library(mode), kernel, buffers, grid=grid, threads=threads)
    assert not complaint, complaint


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Normally distributed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nan(*shape: int) -> NDArray[np.float32]:
    """Output that a kernel must overwrite."""
    return np.full(shape, np.nan, np.float32)
