"""What the sessions of one engine remember together in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import pyds4
from models import MIX, TINY, cold, evaluate, random_tokens, synthetic_path
from pyds4.engine import Engine
from pyds4.session import Session

LONG = random_tokens(1500, seed=1)
OTHER = random_tokens(1500, seed=2)


@pytest.fixture
def model() -> Iterator[Engine]:
    """An engine of its own, because what it remembers is what is tested."""
    with pyds4.Engine(synthetic_path(TINY, MIX)) as engine:
        engine.prefixes.budget_bytes = 1 << 28
        yield engine


def same_as_cold(session: Session) -> bool:
    with pyds4.Engine(synthetic_path(TINY, MIX)) as fresh:
        return bool(np.array_equal(session.logits, cold(fresh, session.tokens)[-1]))


def test_an_engine_without_a_budget_remembers_nothing() -> None:
    with pyds4.Engine(synthetic_path(TINY, MIX)) as engine:
        with engine.session() as first:
            first.prefill(LONG[:300])
        with engine.session() as second:
            assert second.prefill(LONG[:300]) == 0
        assert engine.prefixes.stats().entry_count == 0


def test_another_session_goes_on_from_the_end_of_a_prompt(model: Engine) -> None:
    first, second = model.session(), model.session()
    first.prefill(LONG[:300])
    assert second.prefill(LONG[:400]) == 300
    assert second.resume.source == "memory"
    assert same_as_cold(second)


def test_the_same_prompt_in_another_session_evaluates_nothing(model: Engine) -> None:
    first, second = model.session(), model.session()
    first.prefill(LONG[:300])
    assert second.prefill(LONG[:300]) == 300
    assert np.array_equal(first.logits, second.logits)


def test_rewind_leaves_something_to_evaluate(model: Engine) -> None:
    first, second = model.session(), model.session()
    first.prefill(LONG[:300])
    assert second.rewind(LONG[:300]) < 300
    assert second.position == second.resume.reused


def test_a_closed_session_stays_of_use(model: Engine) -> None:
    with model.session() as first:
        first.prefill(LONG[:300])
        for token in LONG[300:340]:
            first.decode(token)
    with model.session() as second:
        assert second.prefill(LONG[:350]) == 340
        assert same_as_cold(second)


def test_turning_to_another_prompt_loses_nothing(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG[:300])
        for token in LONG[300:330]:
            session.decode(token)
        session.prefill(OTHER[:200])
        assert session.prefill(LONG[:400]) == 330
        assert same_as_cold(session)


def test_the_third_prompt_finds_the_place_where_the_first_two_parted(model: Engine) -> None:
    shared = LONG[:900]
    prompts = [shared + OTHER[at : at + 100] for at in (0, 200, 400)]
    reused = []
    for prompt in prompts:
        with model.session() as session:
            reused.append(session.prefill(prompt))
            assert same_as_cold(session)
    assert reused == [0, 512, 900]


def test_what_no_budget_holds_is_given_up(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG)
    full = model.prefixes.stats()
    model.prefixes.budget_bytes = full.byte_count // 4
    rest = model.prefixes.stats()
    assert rest.byte_count <= full.byte_count // 4
    assert rest.evicted > 0
    model.prefixes.budget_bytes = 0
    assert model.prefixes.stats().byte_count == 0
    assert model.prefixes.stats().entry_count == 0


def test_what_was_used_last_is_given_up_last(model: Engine) -> None:
    for prompt in (LONG[:400], OTHER[:400]):
        with model.session() as session:
            session.prefill(prompt)
    with model.session() as session:
        assert session.prefill(LONG[:400]) == 400
    model.prefixes.budget_bytes = model.prefixes.stats().byte_count - 1
    with model.session() as session:
        assert session.rewind(LONG[:401]) == 400


def test_shared_memory_is_counted_once(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG[:1024])
        before = model.prefixes.stats().byte_count
        forks = [session.fork() for _ in range(20)]
        for fork in forks:
            fork.close()
        assert model.prefixes.stats().byte_count == before


def test_clear_forgets_all_but_what_sessions_keep(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG[:300])
        model.prefixes.clear()
        with model.session() as other:
            assert other.rewind(LONG[:300]) == 0
        assert session.rewind(LONG[:310]) == 300


def test_a_fork_costs_nothing_until_it_goes_on(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG)
        forks = [session.fork() for _ in range(500)]
        for index, fork in enumerate(forks[:3]):
            tail = OTHER[index : index + 9]
            logits = evaluate(fork, tail)[-1]
            assert np.array_equal(logits, cold(model, LONG + tail)[-1])
        for fork in forks:
            fork.close()


# ---------------------------------------------------------------------- why not more


def test_a_hit_says_so(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG[:300])
        session.prefill(LONG[:301])
        assert session.resume.reason(LONG[:301]).startswith("hit: all but the last of 301")


def test_a_conversation_that_goes_on_differs_nowhere(model: Engine) -> None:
    with model.session() as session:
        session.prefill(LONG[:300])
        session.prefill(LONG[:340])
        found = session.resume
        assert (found.reused, found.known, found.expected) == (300, 300, None)
        reason = found.reason(LONG[:340])
        assert "known up to 300" in reason
        assert "differs" not in reason


def test_a_miss_names_the_first_difference_and_the_text_around_it(model: Engine) -> None:
    with model.session() as first:
        first.prefill(LONG[:600])
    prompt = [*LONG[:580], 7, *OTHER[:20]]
    with model.session() as session:
        session.rewind(prompt)
        found = session.resume
        assert (found.reused, found.known, found.expected) == (512, 580, LONG[580])
        reason = found.reason(prompt, decode=lambda ids: "".join(f"<{i}>" for i in ids))
        assert "differs at 580" in reason
        assert f"<{LONG[579]}>" in reason
        assert f"instead of '<{LONG[580]}>'" in reason


def test_an_unknown_prompt_is_told_from_a_changed_one(model: Engine) -> None:
    with model.session() as session:
        session.rewind(LONG[:300])
        assert session.resume.known == 0
        assert session.resume.reason(LONG[:300]).startswith("miss")
