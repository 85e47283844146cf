"""One timeline: what is reused, what is refused, what survives."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pyds4
from models import F32, MIX, TINY, cold, engine, evaluate, random_tokens, synthetic_path
from pyds4.engine import Engine, StepItem
from pyds4.errors import (
    ClosedError,
    ContextFullError,
    InvalidArgumentError,
    SessionCancelled,
    TokenOutOfRangeError,
)
from pyds4.session import Session

PROMPT = random_tokens(40)


@pytest.fixture(scope="module")
def model() -> Engine:
    return engine(synthetic_path(TINY, MIX))


def same_as_cold(session: Session) -> bool:
    """Its logits are the bits of a fresh session with the same tokens."""
    wanted = cold(session.engine, session.tokens)[-1]
    return bool(np.array_equal(session.logits, wanted))


# ---------------------------------------------------------------------- prefixes


def test_a_new_session_holds_nothing(model: Engine) -> None:
    with model.session() as session:
        assert (session.position, session.tokens) == (0, [])
        assert session.context_size == model.config.context_length
        with pytest.raises(InvalidArgumentError, match="no token"):
            _ = session.logits


def test_prefill_reuses_the_whole_past_when_the_prompt_goes_on(model: Engine) -> None:
    with model.session() as session:
        assert session.prefill(PROMPT[:30]) == 0
        assert session.prefill(PROMPT) == 30
        assert session.tokens == PROMPT
        assert same_as_cold(session)


def test_the_same_prompt_again_evaluates_nothing(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        before = session.logits
        assert session.prefill(PROMPT) == len(PROMPT)
        np.testing.assert_array_equal(session.logits, before)


@pytest.mark.parametrize("common", [0, 1, 19, 20, 21, 39])
def test_a_prompt_that_leaves_the_past_goes_on_from_the_end_of_an_earlier_prompt(
    model: Engine, common: int
) -> None:
    with model.session() as session:
        session.prefill(PROMPT[:20])
        session.prefill(PROMPT)
        other = PROMPT[:common] + random_tokens(10, seed=7)
        assert session.prefill(other) == (20 if common >= 20 else 0)
        assert session.tokens == other
        assert same_as_cold(session)


def test_a_prompt_that_is_the_beginning_of_the_past_is_evaluated_at_its_end(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        assert session.prefill(PROMPT[:20]) == 0
        assert same_as_cold(session)


def test_a_decoded_answer_is_left_without_losing_the_prompt(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        for token in random_tokens(5, seed=1):
            session.decode(token)
        assert session.prefill(PROMPT + random_tokens(3, seed=2)) == len(PROMPT)
        assert same_as_cold(session)


def test_long_prompts_leave_checkpoints_inside(model: Engine) -> None:
    prompt = random_tokens(1300)
    with model.session() as session:
        session.prefill(prompt)
        assert session.prefill([*prompt[:1200], 9, 10]) == 1024
        assert same_as_cold(session)
        assert session.prefill([*prompt[:600], 9]) == 512
        assert same_as_cold(session)


def test_rewind_evaluates_nothing_and_leaves_room_for_a_last_token(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT[:20])
        session.prefill(PROMPT)
        assert session.rewind([*PROMPT, 9]) == 40  # goes on from where it is
        assert session.rewind(PROMPT[:30]) == 20
        assert session.tokens == PROMPT[:20]
        with pytest.raises(InvalidArgumentError):
            _ = session.logits
        assert session.prefill(PROMPT) == 20
        assert same_as_cold(session)
        assert session.rewind([]) == 0
        assert session.position == 0


# ---------------------------------------------------------------------- forks


def test_forks_go_their_own_ways(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        with session.fork() as twin:
            np.testing.assert_array_equal(twin.logits, session.logits)
            for token in random_tokens(9, seed=3):
                twin.decode(token)
            assert session.tokens == PROMPT
            for token in random_tokens(6, seed=4):
                session.decode(token)
            assert twin.tokens == PROMPT + random_tokens(9, seed=3)
            assert same_as_cold(twin)
            assert same_as_cold(session)


def test_a_fork_outlives_the_session_it_came_from(model: Engine) -> None:
    session = model.session()
    session.prefill(PROMPT)
    twin = session.fork()
    session.close()
    twin.decode(11)
    assert same_as_cold(twin)
    assert twin.prefill([*PROMPT, 12]) == len(PROMPT)  # checkpoints are inherited
    assert same_as_cold(twin)
    twin.close()


# ---------------------------------------------------------------------- refusals


def test_a_full_context_leaves_the_session_unchanged(model: Engine) -> None:
    with model.session(context=20) as session:
        session.prefill(PROMPT[:15])
        before = session.logits
        with pytest.raises(ContextFullError, match=r"21 tokens .* context of 20"):
            session.prefill(PROMPT[:21])
        assert session.tokens == PROMPT[:15]
        np.testing.assert_array_equal(session.logits, before)
        assert session.prefill(PROMPT[:20]) == 15
        with pytest.raises(ContextFullError):
            session.decode(9)
        assert session.tokens == PROMPT[:20]
        assert same_as_cold(session)


@pytest.mark.parametrize("bad", [-1, TINY.vocab, 2**31, 2**40, 2**70, -(2**70)])
def test_an_id_outside_the_vocabulary_is_named_and_changes_nothing(model: Engine, bad: int) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        before = session.logits
        with pytest.raises(TokenOutOfRangeError, match=f"{bad} at index 3.* 0 to 511"):
            session.prefill([*PROMPT[:3], bad, 9])
        with pytest.raises(TokenOutOfRangeError, match=f"{bad} "):
            session.decode(bad)
        result = model.step([StepItem(session, [bad])])[0]
        assert isinstance(result.error, TokenOutOfRangeError)
        assert session.tokens == PROMPT
        np.testing.assert_array_equal(session.logits, before)


def test_a_bad_id_is_refused_before_anything_is_done_also_with_progress(model: Engine) -> None:
    prompt = random_tokens(600)
    with model.session() as session:
        session.prefill(PROMPT)
        calls: list[int] = []
        with pytest.raises(TokenOutOfRangeError, match="index 599"):
            session.prefill([*prompt[:599], 512], lambda done, _: calls.append(done))
        assert session.tokens == PROMPT
        assert calls == []


@pytest.mark.parametrize("tokens", [[1.5], ["a"], [[1, 2]], [None]])
def test_what_is_no_list_of_ids_is_refused(model: Engine, tokens: list[int]) -> None:
    with model.session() as session, pytest.raises((InvalidArgumentError, TypeError)):
        session.prefill(tokens)


def test_an_empty_prompt_is_refused(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        with pytest.raises(InvalidArgumentError, match="empty"):
            session.prefill([])
        assert session.tokens == PROMPT


@pytest.mark.parametrize("context", [0, -1, TINY.context + 1, 2**70])
def test_an_impossible_context_is_refused(model: Engine, context: int) -> None:
    with pytest.raises(InvalidArgumentError, match="context"):
        model.session(context=context)


# ---------------------------------------------------------------------- progress


def test_progress_counts_up_to_the_whole_prompt(model: Engine) -> None:
    prompt = random_tokens(1100)
    calls: list[tuple[int, int]] = []
    with model.session() as session:
        assert session.prefill(prompt, lambda done, total: calls.append((done, total))) == 0
        assert calls == [(0, 1100), (512, 1100), (1024, 1100), (1100, 1100)]
        assert same_as_cold(session)


def test_progress_does_not_change_what_is_reused(model: Engine) -> None:
    prompt = random_tokens(700)
    with model.session() as session:
        session.prefill(prompt)
        before = session.logits
        assert session.prefill(prompt, lambda *_: None) == 700
        np.testing.assert_array_equal(session.logits, before)


# ---------------------------------------------------------------------- cancelling


def test_cancel_stops_a_long_prefill_at_a_chunk_from_which_it_goes_on() -> None:
    roomy = dataclasses.replace(TINY, yarn_context=8 * TINY.yarn_context)
    model = engine(synthetic_path(roomy, F32))
    prompt = random_tokens(30_000)  # so long that no machine is done before it is cancelled
    with model.session() as session:
        outcome: list[BaseException | int] = []

        def work() -> None:
            try:
                outcome.append(session.prefill(prompt))
            except SessionCancelled as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        while session.position < 512 and thread.is_alive():
            time.sleep(0.001)
        session.cancel()
        thread.join()
        assert isinstance(outcome[0], SessionCancelled)
        position = session.position
        assert f"position {position}" in str(outcome[0])
        assert position % 512 == 0
        assert 512 <= position < 30_000
        assert session.tokens == prompt[:position]
        shorter = prompt[: position + 200]
        assert session.prefill(shorter) == position
        assert same_as_cold(session)


def test_a_cancel_while_idle_stops_the_next_call_only(model: Engine) -> None:
    with model.session() as session:
        session.prefill(PROMPT)
        session.cancel()
        with pytest.raises(SessionCancelled):
            session.decode(9)
        assert session.tokens == PROMPT
        assert same_as_cold(session)
        session.decode(9)
        assert same_as_cold(session)


def test_cancelling_one_session_of_a_step_does_not_touch_the_others(model: Engine) -> None:
    with model.session() as first, model.session() as second:
        first.cancel()
        results = model.step([StepItem(first, PROMPT), StepItem(second, PROMPT)])
        assert isinstance(results[0].error, SessionCancelled)
        assert results[1].error is None
        assert first.position == 0
        assert same_as_cold(second)


# ---------------------------------------------------------------------- life and death


def test_closed_objects_say_so(tmp_path: Path) -> None:
    model = pyds4.Engine(synthetic_path(TINY, F32))
    session = model.session()
    session.prefill(PROMPT)
    session.close()
    session.close()
    for use in (
        lambda: session.position,
        lambda: session.logits,
        lambda: session.tokens,
        lambda: session.byte_count,
        lambda: session.prefill(PROMPT),
        lambda: session.decode(9),
        session.fork,
        lambda: session.rewind([]),
        lambda: model.step([StepItem(session, [9])]),
    ):
        with pytest.raises(ClosedError, match="session is closed"):
            use()
    model.close()
    model.close()
    with pytest.raises(ClosedError, match="engine is closed"):
        model.session()


def test_cancel_after_close_is_harmless(model: Engine) -> None:
    session = model.session()
    session.close()
    session.cancel()  # a disconnecting client does not know


def test_sessions_go_on_after_their_engine_was_closed() -> None:
    path = synthetic_path(TINY, F32)
    model = pyds4.Engine(path)
    session = model.session()
    session.prefill(PROMPT[:20])
    model.close()
    gc.collect()
    session.prefill(PROMPT)
    session.decode(9)
    wanted = cold(engine(path), [*PROMPT, 9])[-1]
    np.testing.assert_array_equal(session.logits, wanted)
    session.close()


def test_a_session_closed_during_its_own_prefill_finishes_it_first(model: Engine) -> None:
    session = model.session()
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(session.prefill(random_tokens(1500))))
    thread.start()
    while session.position == 0 and thread.is_alive():
        time.sleep(0.001)
    session.close()
    thread.join()
    assert done == [0]
    with pytest.raises(ClosedError):
        _ = session.position


def test_memory_grows_with_use_and_not_with_the_context(model: Engine) -> None:
    with model.session() as session:
        empty = session.byte_count
        assert empty == model.file.memory(0).kv
        sizes = []
        for end in (1, 130, 1100, 2100):
            session.prefill(random_tokens(end))
            sizes.append(session.byte_count)
            assert session.byte_count == model.file.memory(end).kv
        assert sizes == sorted(sizes)
        assert sizes[-1] > sizes[0] > empty - 1
        session.rewind([])
        assert session.byte_count == empty


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_closed_sessions_give_their_memory_back(model: Engine) -> None:
    def use() -> int:
        session = model.session()
        session.prefill(PROMPT[:4])
        twin = session.fork()
        used = twin.byte_count
        twin.close()
        session.close()
        return used

    used = max(use() for _ in range(100))
    before = _resident()
    for _ in range(1000):
        use()
    # Keeping one session in ten would already be more.
    assert _resident() - before < 100 * used
    assert used > 100_000


# ---------------------------------------------------------------------- threads


def test_many_threads_use_sessions_of_one_engine(model: Engine) -> None:
    prompts = [random_tokens(31 + 17 * i, seed=i) for i in range(8)]
    wanted = [cold(model, prompt) for prompt in prompts]
    problems: list[str] = []

    def work(index: int) -> None:
        prompt, expected = prompts[index], wanted[index]
        for turn in range(3):
            with model.session() as session:
                start = 10 + turn
                session.prefill(prompt[:start])
                for at in range(start, 30):
                    session.decode(prompt[at])
                    if not np.array_equal(session.logits, expected[at]):
                        problems.append(f"session {index}, turn {turn}, position {at}")
                if not np.array_equal(evaluate(session, prompt[30:]), expected[30:]):
                    problems.append(f"session {index}, turn {turn}, rest")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_the_file_of_an_engine_keeps_it_alive() -> None:
    file = pyds4.Engine(synthetic_path(TINY, F32)).file
    gc.collect()
    assert file["general.architecture"] == "deepseek4"
    assert len(file.tensors) > 50
    file.close()
    with pytest.raises(ClosedError):
        _ = file.tensors
