"""Same bits whatever the chunks, the threads, the company and the instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden import COLUMNS, error, prompts
from numpy.typing import NDArray

from models import (
    F32,
    MIX,
    TINY,
    cold,
    engine,
    fixture_path,
    in_chunks,
    random_tokens,
    synthetic_path,
)
from pyds4.engine import Engine, StepItem
from pyds4.sampling import GREEDY, Sampling
from pyds4.synth import TensorTypes

ROOT = Path(__file__).resolve().parents[2]
PROMPT = np.array(random_tokens(300, seed=5), np.int32)

MODELS = pytest.mark.parametrize(
    ("types", "roundings"),
    [(F32, False), (F32, True), (MIX, False), (MIX, True)],
    ids=["f32", "f32-rounded", "mix", "mix-rounded"],
)


@MODELS
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_chunks_do_not_change_bits(
    types: TensorTypes, roundings: bool, threads: int
) -> None:
    path = synthetic_path(TINY, types)
    wanted = cold(engine(path, roundings, 1), PROMPT)
    model = engine(path, roundings, threads)
    assert model.threads == threads
    np.testing.assert_array_equal(cold(model, PROMPT), wanted)
    for sizes in ([1], [3], [64], [128, 5, 1, 1, 130]):
        np.testing.assert_array_equal(in_chunks(model, PROMPT, sizes), wanted)


@MODELS
def test_company_in_a_step_does_not_change_bits(types: TensorTypes, roundings: bool) -> None:
    model = engine(synthetic_path(TINY, types), roundings, 2)
    alone = cold(model, PROMPT)
    others = [random_tokens(n, seed=n) for n in (1, 7, 200)]
    with model.session() as session:
        at = 0
        company = [model.session() for _ in others]
        # Prompt chunks and single tokens, beside sessions of other lengths that do the same.
        for turn, size in enumerate([5, 1, 1, 130, 1, 60, 1, 1, 100]):
            items = [StepItem(session, PROMPT[at : at + size], all_logits=True)]
            items += [
                StepItem(other, tokens[: 1 + turn % 3] if turn else tokens, all_logits=True)
                for other, tokens in zip(company, others, strict=True)
            ]
            order = np.random.default_rng(turn).permutation(len(items))
            results = model.step([items[i] for i in order])
            assert all(result.error is None for result in results)
            mine = results[int(np.flatnonzero(order == 0)[0])].logits
            np.testing.assert_array_equal(mine, alone[at : at + size])
            at += size
        for other in company:
            with other:
                assert np.array_equal(other.logits, cold(model, other.tokens)[-1])


def test_more_sessions_than_one_pass_holds_are_all_served() -> None:
    model = engine(synthetic_path(TINY, F32))
    sessions = [model.session() for _ in range(7)]
    prompt = random_tokens(600)
    results = model.step([StepItem(session, prompt, GREEDY) for session in sessions])
    assert len({result.token for result in results}) == 1
    for session in sessions:
        with session:
            assert session.position == 600


@pytest.fixture
def tiny() -> Engine:
    return engine(synthetic_path(TINY, F32))


def test_an_empty_step_is_nothing(tiny: Engine) -> None:
    assert tiny.step([]) == []


def test_a_failing_item_does_not_touch_the_others(tiny: Engine) -> None:
    other = engine(synthetic_path(TINY, MIX))
    good, full, empty, foreign = (
        tiny.session(),
        tiny.session(context=2),
        tiny.session(),
        other.session(),
    )
    results = tiny.step(
        [
            StepItem(full, [9, 10, 11]),
            StepItem(good, [9, 10, 11], Sampling(temperature=0)),
            StepItem(empty, []),
            StepItem(foreign, [9]),
            StepItem(good, [12]),
        ]
    )
    messages = [str(result.error) for result in results]
    assert "context of 2" in messages[0]
    assert results[1].error is None
    assert results[1].token == int(good.logits.argmax())
    assert "no tokens" in messages[2]
    assert "another engine" in messages[3]
    assert "only once" in messages[4]
    assert [s.position for s in (good, full, empty, foreign)] == [3, 0, 0, 0]
    np.testing.assert_array_equal(good.logits, cold(tiny, [9, 10, 11])[-1])
    for session in (good, full, empty, foreign):
        session.close()


# ---------------------------------------------------------------------- instruction sets

_CHILD = """
import sys, numpy as np
from pyds4._native import lib, text
from models import cold, engine
from pathlib import Path
path, tokens, roundings, out = sys.argv[1:]
np.save(out, cold(engine(Path(path), roundings == "on"), np.load(tokens)))
print(text(lib.pyds4_instruction_set()))
"""


def _evaluated_with(isa: str, path: Path, roundings: str, folder: Path) -> NDArray[np.float32]:
    """Logits of PROMPT in a process of its own: the choice is made once a process."""
    tokens, out = folder / "tokens.npy", folder / "logits.npy"
    np.save(tokens, prompts("a")[130].tokens)
    environment = os.environ | {
        "PYDS4_ISA": isa,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, "-c", _CHILD, str(path), str(tokens), roundings, str(out)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    if found.stdout.strip() != isa:
        pytest.skip(f"this machine has no {isa}")
    logits: NDArray[np.float32] = np.load(out)
    return logits


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "neon"])
def test_every_instruction_set_agrees_with_the_oracle_and_with_the_bits_of_this_one(
    isa: str, tmp_path: Path
) -> None:
    path = fixture_path("a")
    found = _evaluated_with(isa, path, "off", tmp_path)
    wanted = prompts("a")[130]
    assert error(found[:, COLUMNS], wanted.logits) <= 2e-5
    np.testing.assert_array_equal(found.argmax(axis=1), wanted.best)
    np.testing.assert_array_equal(found, cold(engine(path, False), wanted.tokens))


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "neon"])
def test_every_instruction_set_gives_the_same_bits_for_quantised_weights(
    isa: str, tmp_path: Path
) -> None:
    path = synthetic_path(TINY, MIX)
    found = _evaluated_with(isa, path, "on", tmp_path)
    np.testing.assert_array_equal(found, cold(engine(path), prompts("a")[130].tokens))
