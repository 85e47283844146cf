"""Finding NVIDIA's run-time compiler where ``pip install nvidia-cuda-nvrtc`` puts it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

COMPILER_VARIABLE = "PYDS4_NVRTC"
"""Names libnvrtc.so for the engine."""


def find_compiler() -> Path | None:
    """The newest libnvrtc.so of the installed wheels, if any."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [file for place in places for file in place.glob("*/lib/libnvrtc.so.1[0-9]")]
    return max(found, key=lambda file: int(file.suffix[1:]), default=None)


def name_compiler() -> None:
    """Tell the engine where the wheel's compiler is, unless someone named one already."""
    if COMPILER_VARIABLE not in os.environ and (found := find_compiler()) is not None:
        os.environ[COMPILER_VARIABLE] = str(found)
