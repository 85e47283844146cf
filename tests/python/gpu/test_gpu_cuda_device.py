"""CUDADevice over a driver of no GPU (tests/msl/fake_cuda.cpp): launches, copies and graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_emulator
import pytest
from golden import COLUMNS, error, prompts

import pyds4
from models import fixture_path
from pyds4.engine import StepItem

EXACT_BOUND = 1e-5
FAKE = gpu_emulator.ROOT / "tests" / "msl" / "fake_cuda.cpp"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that is NVRTC as well."""
    folder = tmp_path_factory.mktemp("cuda")
    command = ["clang++", "-std=c++17", "-O1", "-Wall", "-shared", "-fPIC"]
    out = folder / "libcuda.so.1"
    done = subprocess.run(
        [*command, str(FAKE), "-o", str(out)],
        env=gpu_emulator.toolchain(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def _child(driver: Path, cache: Path, **variables: str) -> dict[str, Any]:
    """What `_decode` reports in a process that finds the driver."""
    paths = [str(Path(__file__).parent), str(gpu_emulator.ROOT), str(gpu_emulator.ROOT / "tests")]
    environment = {
        **os.environ,
        "PYDS4_EMULATOR": str(gpu_emulator.library()),
        "LD_LIBRARY_PATH": str(driver),
        "PYDS4_NVRTC": str(driver / "libcuda.so.1"),
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": os.pathsep.join(paths),
        **variables,
    }
    code = "import test_gpu_cuda_device as t; t._decode()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _counts() -> list[int]:
    """Launches, graphs replayed, graphs made."""
    import ctypes

    counts = (ctypes.c_long * 3)()
    ctypes.CDLL("libcuda.so.1").fake_cuda_counts(counts)
    return list(counts)


def _decode() -> None:
    """Two sessions of one prompt, in company and alone; prints distances and counts."""
    wanted = prompts("a")[17]
    tokens = [int(token) for token in wanted.tokens]
    distances, counts = [], []
    model = pyds4.Engine(fixture_path("a"), backend="cuda", roundings=False)
    with model, model.session() as first, model.session() as second:
        first.prefill(tokens[:3])
        second.prefill(tokens[:4])
        for at in range(3, 10):
            # Company of one kind, then another order of the same, then each alone.
            sessions = [(first, at), (second, at + 1)]
            steps = [sessions[:: 1 if at < 7 else -1]] if at < 9 else [[s] for s in sessions]
            for step in steps:
                before = _counts()
                items = [StepItem(s, [tokens[p]], all_logits=True) for s, p in step]
                for (_, p), result in zip(step, model.step(items), strict=True):
                    assert result.logits is not None
                    distances.append(error(result.logits[:, COLUMNS], wanted.logits[p : p + 1]))
                counts.append([b - a for a, b in zip(before, _counts(), strict=True)])
    print(json.dumps({"most": max(distances), "counts": counts}))


@pytest.mark.parametrize("early", [False, True])
def test_replayed_graphs_give_the_golden_logits(driver: Path, tmp_path: Path, early: bool) -> None:
    report = _child(driver, tmp_path, **({"PYDS4_CUDA_EARLY_LAUNCH": "1"} if early else {}))
    assert report["most"] <= EXACT_BOUND
    # Launched first and made into graphs when they come again; then replayed, whoever comes first.
    assert report["counts"][0][0] > 100
    assert sum(made for _, _, made in report["counts"][:3]) > 0
    for launches, replays, made in report["counts"][3:6]:
        assert launches <= 2
        assert replays > 0
        assert made == 0
    kept = [path.name for path in (tmp_path / "pyds4").iterdir()]
    assert kept
    assert all(name.startswith("gpu-sm_90a-") and name.endswith(".cubin") for name in kept)


def test_device_that_takes_no_more_graphs_is_used_without(driver: Path, tmp_path: Path) -> None:
    report = _child(driver, tmp_path, FAKE_CUDA_MOST_GRAPHS="1")
    assert report["most"] <= EXACT_BOUND
    assert report["counts"][-1][0] > 100
