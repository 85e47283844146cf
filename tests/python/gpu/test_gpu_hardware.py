"""Golden logits on a real GPU: PYDS4_TEST_BACKEND=cuda or metal says that there is one."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np
import pytest
from golden import COLUMNS, error, prompts

import pyds4
from models import fixture_path
from pyds4.engine import StepItem

BACKEND = os.environ.get("PYDS4_TEST_BACKEND")
pytestmark = pytest.mark.skipif(BACKEND is None, reason="PYDS4_TEST_BACKEND names no GPU")

EXACT_BOUND = 1e-4


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("n", [1, 5, 17, 130, 300, 700])
@pytest.mark.parametrize("prefill", [1.0, 0.5])
def test_logits_agree_with_the_oracle(
    name: str, n: int, prefill: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYDS4_GPU_EXACT", "1")
    wanted = prompts(name)[n]
    model = pyds4.Engine(fixture_path(name), backend=cast(Any, BACKEND), roundings=False)
    cut = max(1, int(n * prefill))
    with model, model.session() as session:
        found = []
        tokens = [int(token) for token in wanted.tokens]
        for part in [tokens[:cut], *([token] for token in tokens[cut:])]:
            item = StepItem(session, part, all_logits=True)
            result = model.step([item])[0]
            assert result.logits is not None
            found.append(result.logits)
    logits = np.concatenate(found)
    assert error(logits[:, COLUMNS], wanted.logits) <= EXACT_BOUND
    assert (logits.argmax(axis=1) == wanted.best).mean() >= 0.995


def test_a_thousand_runs_give_one_answer() -> None:
    tokens = [int(t) for t in prompts("b")[17].tokens]
    model = pyds4.Engine(fixture_path("b"), backend=cast(Any, BACKEND))
    with model:
        answers = set()
        for _ in range(1000):
            with model.session() as session:
                session.prefill(tokens)
                answers.add(session.logits.tobytes())
    assert len(answers) == 1
