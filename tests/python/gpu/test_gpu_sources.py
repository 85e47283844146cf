"""The kernels' sources: fresh, acceptable to Metal as far as we can tell, and to NVRTC."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gpu_emulator
import pytest

from pyds4 import cuda

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
    # The others are for devices with memory of their own, which Metal's have not.
    plain = [f for f in KERNELS.glob("*.metal") if not f.stem.endswith(("_int8", "_wide"))]
    done = _lint(*sorted(plain), MSL / "accepted.metal")
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


def test_compiler_of_an_installed_wheel_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, version in (("cuda_nvrtc", 12), ("cu13", 13)):
        library = tmp_path / "nvidia" / part / "lib" / f"libnvrtc.so.{version}"
        library.parent.mkdir(parents=True)
        library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(cuda.COMPILER_VARIABLE, "")
    monkeypatch.delenv(cuda.COMPILER_VARIABLE)
    found = cuda.find_compiler()
    assert found is not None
    assert int(found.suffix[1:]) >= 13
    cuda.name_compiler()
    assert os.environ[cuda.COMPILER_VARIABLE] == str(found)
    monkeypatch.setenv(cuda.COMPILER_VARIABLE, "mine")
    cuda.name_compiler()
    assert os.environ[cuda.COMPILER_VARIABLE] == "mine"


def test_nvrtc_compiles_the_kernels_for_hopper(tmp_path: Path) -> None:
    compiler = cuda.find_compiler()
    if compiler is None:
        pytest.skip("pip install nvidia-cuda-nvrtc to compile the kernels for NVIDIA GPUs")
    done = subprocess.run(
        [
            sys.executable,
            str(gpu_emulator.SCRIPTS / "nvrtc.py"),
            str(GENERATED / "kernels.cu"),
            str(tmp_path / "kernels.cubin"),
            "sm_90a",
        ],
        env={**os.environ, "NVRTC": str(compiler)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
