"""A prefix that one backend kept on disk is continued by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from golden import error
from gpu_emulator import library
from numpy.typing import NDArray

import pyds4
from models import F32, random_tokens, synthetic_path
from pyds4.synth import dimensions

# A layer of each ratio: emulating more takes long.
MODEL = dimensions("tiny", hidden=64, inter=64, index_heads=2, ratios=(4, 128), hash_layers=1)

PREFIX = random_tokens(132, seed=5)
REST = random_tokens(9, seed=6)

# Both compute in f32 on the same stored rows, in another order of sums.
TOLERANCE = 1e-4


def _go_on(
    path: Path, directory: Path, backend: str, tokens: list[int]
) -> tuple[int, NDArray[np.float32]]:
    """Tokens that were found on disk, and the logits after ``tokens``, by a fresh engine."""
    with pyds4.Engine(path, backend=cast(Any, backend)) as engine:
        store = engine.keep_prefixes(directory, reserve_bytes=0, fewest_tokens=1)
        with engine.session() as session:
            found = session.prefill(tokens)
            logits = session.logits
            session.save()
        store.flush()
    return found, logits


@pytest.mark.parametrize("writer", ["cpu", "emulated"])
def test_a_prefix_of_one_backend_is_continued_by_the_other(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYDS4_EMULATOR", str(library()))
    monkeypatch.setenv("PYDS4_GPU_EXACT", "1")
    reader = "emulated" if writer == "cpu" else "cpu"
    path = synthetic_path(MODEL, F32)
    assert _go_on(path, tmp_path, writer, PREFIX)[0] == 0
    found, logits = _go_on(path, tmp_path, reader, PREFIX + REST)
    assert found == len(PREFIX)
    cold = _go_on(path, tmp_path / "empty", "cpu", PREFIX + REST)[1]
    assert error(logits[None], cold[None]) <= TOLERANCE
    assert logits.argmax() == cold.argmax()
