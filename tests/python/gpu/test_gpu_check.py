"""scripts/gpu_check, on the emulator: its report, not a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import gpu_emulator

SCRIPT = gpu_emulator.ROOT / "scripts" / "gpu_check"


def _check(*options: str, emulator: str) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--backend", "emulated", *options],
        env={**os.environ, "PYDS4_EMULATOR": emulator, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_report_says_how_far_golden_logits_are_away() -> None:
    emulator = str(gpu_emulator.library())
    status, lines = _check(
        "--sections", "golden", "--names", "a", "--lengths", "1", emulator=emulator
    )
    assert status == 0
    errors = [line["error"] for line in lines if "error" in line]
    assert len(errors) == 2
    assert max(errors) < 1e-4
    assert lines[-1] == {"failed": [], "ok": True}


def test_section_that_dies_is_reported_and_the_next_one_runs() -> None:
    status, lines = _check("--sections", "repeat,golden", emulator="/nowhere")
    assert status == 1
    assert [line["section"] for line in lines if "error" in line] == ["repeat", "golden"]
    assert "cannot be opened" in lines[0]["error"]
    assert lines[-1] == {"failed": ["repeat", "golden"], "ok": False}
