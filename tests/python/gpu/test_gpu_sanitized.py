"""The emulated kernels under Clang's sanitizers: what they touch is theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gpu_emulator
import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_kernels_touch_only_what_is_theirs() -> None:
    tests = ["-k", "fast", str(HERE / "test_gpu_kernels.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *tests],
        env=gpu_emulator.sanitized(),
        cwd=gpu_emulator.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed" in done.stdout
