"""Whatever a session went through, it stands where a fresh one would: bit for bit."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from models import F32, MIX, TINY, cold, engine, random_tokens, synthetic_path
from pyds4.engine import Engine, StepItem
from pyds4.errors import ContextFullError, SessionCancelled
from pyds4.sampling import GREEDY
from pyds4.session import Session

CONTEXT = 640
# An id depends on its index and a letter alone: histories meet again, and part at chosen places.
STEMS = [random_tokens(CONTEXT, seed=letter) for letter in range(3)]
# Around windows (4, 16, 128) and the boundary where checkpoints are kept (512).
LENGTHS = [1, 3, 4, 5, 8, 15, 16, 17, 20, 31, 33, 64, 127, 128, 129, 140, 511, 512, 513, 530]

lengths = st.sampled_from(LENGTHS)
letters = st.integers(0, 2)
choices = st.integers(0, 2**16)


@cache
def last_logits(model: Engine, tokens: tuple[int, ...]) -> NDArray[np.float32]:
    """Those of a fresh session; histories meet the same tokens again and again."""
    logits: NDArray[np.float32] = cold(model, list(tokens))[-1]
    return logits


class Histories(RuleBasedStateMachine):
    """Some sessions of one engine, and the ids each should hold."""

    types = MIX
    roundings = True

    def __init__(self) -> None:
        super().__init__()
        path = synthetic_path(TINY, self.types)
        self.fast = engine(path, self.roundings, 2)
        self.plain = engine(path, self.roundings, 1)
        self.sessions: list[tuple[Session, list[int]]] = []

    def _wanted(self, tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return last_logits(self.plain, tokens)

    def _check(self, session: Session, tokens: list[int]) -> None:
        assert session.tokens == tokens
        np.testing.assert_array_equal(session.logits, self._wanted(tuple(tokens)))

    def _pick(self, choice: int) -> tuple[Session, list[int]]:
        return self.sessions[choice % len(self.sessions)]

    def _prompt(self, tokens: list[int], keep: int, letter: int, length: int) -> list[int]:
        """Goes on from the first part of ``tokens`` with one of the stems."""
        kept = tokens[: keep % (len(tokens) + 1)]
        return (kept + STEMS[letter][len(kept) : length])[:CONTEXT] or STEMS[letter][:1]

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def open(self) -> None:
        self.sessions.append((self.fast.session(context=CONTEXT), []))

    @precondition(lambda self: self.sessions)
    @rule(choice=choices, keep=choices, letter=letters, length=lengths)
    def prefill(self, choice: int, keep: int, letter: int, length: int) -> None:
        session, tokens = self._pick(choice)
        prompt = self._prompt(tokens, keep, letter, length)
        reused = session.prefill(prompt)
        assert 0 <= reused <= len(prompt)
        assert prompt[:reused] == tokens[:reused]
        if prompt[: len(tokens)] == tokens and len(prompt) > len(tokens):
            assert reused == len(tokens)
        tokens[:] = prompt
        self._check(session, tokens)

    @precondition(lambda self: self.sessions)
    @rule(choice=choices, letter=letters, count=st.integers(1, 6))
    def decode(self, choice: int, letter: int, count: int) -> None:
        session, tokens = self._pick(choice)
        for _ in range(count):
            token = STEMS[letter][len(tokens) % CONTEXT]
            if len(tokens) == CONTEXT:
                with pytest.raises(ContextFullError):
                    session.decode(token)
                return
            session.decode(token)
            tokens.append(token)
        self._check(session, tokens)

    @precondition(lambda self: 0 < len(self.sessions) < 4)
    @rule(choice=choices)
    def fork(self, choice: int) -> None:
        session, tokens = self._pick(choice)
        self.sessions.append((session.fork(), list(tokens)))

    @precondition(lambda self: self.sessions)
    @rule(choice=choices, keep=choices, letter=letters, length=lengths)
    def rewind(self, choice: int, keep: int, letter: int, length: int) -> None:
        session, tokens = self._pick(choice)
        prompt = self._prompt(tokens, keep, letter, length)
        kept = session.rewind(prompt)
        assert kept < len(prompt)
        assert prompt[:kept] == tokens[:kept]
        del tokens[kept:]

    @precondition(lambda self: self.sessions)
    @rule(
        letter=letters, count=st.lists(st.sampled_from([1, 1, 2, 17, 130]), min_size=4, max_size=4)
    )
    def step_together(self, letter: int, count: list[int]) -> None:
        items = []
        for (session, tokens), wanted in zip(self.sessions, count, strict=False):
            new = STEMS[letter][len(tokens) : len(tokens) + wanted]
            if new:
                items.append((StepItem(session, new, GREEDY), tokens, new))
        if not items:
            return
        results = self.fast.step([item for item, _, _ in items])
        for (item, tokens, new), result in zip(items, results, strict=True):
            assert result.error is None
            tokens += new
            self._check(item.session, tokens)
            assert result.token == int(self._wanted(tuple(tokens)).argmax())

    @precondition(lambda self: self.sessions)
    @rule(choice=choices)
    def cancel(self, choice: int) -> None:
        session, tokens = self._pick(choice)
        if len(tokens) == CONTEXT:
            return
        session.cancel()
        with pytest.raises(SessionCancelled):
            session.prefill(tokens + STEMS[0][len(tokens) : len(tokens) + 1])
        assert session.tokens == tokens

    @precondition(lambda self: self.sessions)
    @rule(choice=choices)
    def close(self, choice: int) -> None:
        session, _ = self.sessions.pop(choice % len(self.sessions))
        session.close()

    @invariant()
    def positions_are_right(self) -> None:
        for session, tokens in self.sessions:
            assert session.position == len(tokens)

    def teardown(self) -> None:
        for session, tokens in self.sessions:
            if tokens:
                assert session.prefill(tokens) <= len(tokens)
                self._check(session, tokens)
            session.close()


class PlainHistories(Histories):
    types = F32
    roundings = False


LIMITS = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestRoundedHistories = Histories.TestCase
TestRoundedHistories.settings = LIMITS
TestPlainHistories = PlainHistories.TestCase
TestPlainHistories.settings = LIMITS
