"""The NEON kernels, under emulation, give the bits of this machine's kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "swift" / "CKernels"
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
CROSS_LIBC = Path("/usr/aarch64-linux-gnu/lib/libc.a")
# A Swift toolchain brings its own clang, beside the compiler.
CLANG = shutil.which("clang") or str(Path(shutil.which("swift") or "/").resolve().parent / "clang")
FLAGS = ["-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-static"]

pytestmark = pytest.mark.skipif(
    QEMU is None or not CROSS_LIBC.exists() or not Path(CLANG).exists(),
    reason="needs clang, qemu-user and an aarch64 libc to link with",
)


def build(to: Path, *target: str) -> Path:
    names = ("thread_pool", "cpu_features", "experts", "runs", "kv_rows", "indexer_int8")
    files = [SOURCES / f"{name}.c" for name in names]
    files += [*SOURCES.glob("quant_*.c"), *SOURCES.glob("matmul*.c"), HERE / "digest.c"]
    command = [CLANG, *target, *FLAGS, f"-I{SOURCES}", f"-I{SOURCES / 'include'}", "-o", str(to)]
    subprocess.run([*command, *map(str, files), "-lm", "-lpthread"], check=True)
    return to


def run(command: list[str], isa: str) -> tuple[str, str]:
    """Standard output and the instruction set that was used."""
    environment = {**os.environ, "PYDS4_ISA": isa}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout, done.stderr.strip()


def test_neon_gives_the_bits_of_this_machine(tmp_path: Path) -> None:
    here, used = run([str(build(tmp_path / "here"))], "")
    assert len(here.splitlines()) == 13
    assert here.splitlines()[-1].startswith("indexer 1 ")
    foreign = str(build(tmp_path / "neon", "--target=aarch64-linux-gnu", "-fuse-ld=lld"))
    for isa in ("neon", "plain"):
        there, emulated = run([str(QEMU), "-cpu", "max", foreign], isa)
        assert emulated == isa
        assert there == here, f"{isa} differs from {used}"
