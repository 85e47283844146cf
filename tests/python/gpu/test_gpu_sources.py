"""The kernels' sources: fresh, acceptable to Metal as far as we can tell, and to NVRTC."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gpu_emulator
import pytest

KERNELS = gpu_emulator.ROOT / "swift" / "Compute" / "Metal"
GENERATED = gpu_emulator.ROOT / "swift" / "GPUSources"
MSL = gpu_emulator.ROOT / "tests" / "msl"


@pytest.mark.parametrize(("language", "name"), [("metal", "kernels.metal"), ("cuda", "kernels.cu")])
def test_embedded_sources_are_those_of_the_kernels(
    language: str, name: str, tmp_path: Path
) -> None:
    out = tmp_path / name
    subprocess.run(
        [sys.executable, str(gpu_emulator.SCRIPTS / "library.py"), language, "-o", str(out)],
        check=True,
    )
    assert out.read_text() == (GENERATED / name).read_text(), (
        f"run scripts/msl/library.py {language} -o {GENERATED / name}"
    )


def _lint(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(gpu_emulator.SCRIPTS / "lint.py"), *map(str, files)],
        env=gpu_emulator.toolchain(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_are_plain_metal() -> None:
    done = _lint(*sorted(KERNELS.glob("*.metal")), MSL / "accepted.metal")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in (MSL / "refused").glob("*.metal")))
def test_lint_refuses(name: str) -> None:
    assert _lint(MSL / "refused" / name).returncode != 0


def test_metal_device_type_checks_without_a_mac() -> None:
    script = gpu_emulator.SCRIPTS / "check_metal_device.sh"
    done = subprocess.run(
        ["sh", str(script)],
        env=gpu_emulator.toolchain(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nvrtc_compiles_the_kernels_for_hopper(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("nvidia")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [lib for place in places for lib in place.glob("*/lib/libnvrtc.so.1[23]")]
    if not found:
        pytest.skip("pip install nvidia-cuda-nvrtc to compile the kernels for NVIDIA GPUs")
    done = subprocess.run(
        [
            sys.executable,
            str(gpu_emulator.SCRIPTS / "nvrtc.py"),
            str(GENERATED / "kernels.cu"),
            str(tmp_path / "kernels.cubin"),
            "sm_90",
        ],
        env={**os.environ, "NVRTC": str(found[0])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
