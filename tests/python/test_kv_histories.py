"""Random histories of sessions that share memory and a disk, against cold runs, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

import pyds4
from models import MIX, TINY, cold, engine, random_tokens, synthetic_path
from pyds4.engine import StepItem
from pyds4.kv import Store
from pyds4.session import Session

BRANCHES = [random_tokens(500, seed=seed) for seed in range(3)]
MODEL = synthetic_path(TINY, MIX)
_cold: dict[tuple[int, ...], NDArray[np.float32]] = {}


def cold_logits(ids: list[int]) -> NDArray[np.float32]:
    """The logits behind ``ids`` of an engine that keeps nothing."""
    key = tuple(ids)
    if key not in _cold:
        if len(_cold) > 3000:
            _cold.clear()
        for end, row in enumerate(cold(engine(MODEL), ids), start=1):
            _cold[key[:end]] = row
    return _cold[key]


class Histories(RuleBasedStateMachine):
    """Sessions of two engines on one directory: each is a process of its own as far as it knows.

    Prompts are made of few branches, so that they share beginnings of all lengths.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pyds4-histories-"))
        self.sessions: list[Session] = []
        self.checked: list[bool] = []

    @initialize(budget=st.sampled_from([0, 200_000, 1 << 28]), disk=st.booleans())
    def open(self, budget: int, disk: bool) -> None:
        self.engines = [pyds4.Engine(MODEL), pyds4.Engine(MODEL)]
        self.stores: list[Store] = []
        for model in self.engines:
            model.prefixes.budget_bytes = budget
            if disk:
                self.stores.append(self.attach(model))
        for which in (0, 1):
            self.sessions.append(self.engines[which].session())

    def attach(self, model: pyds4.Engine) -> Store:
        return model.keep_prefixes(
            self.directory, reserve_bytes=0, fewest_tokens=16, budget_bytes=1_000_000
        )

    def prompt(self, cuts: list[tuple[int, int]]) -> list[int]:
        """Pieces of the branches, one behind another, each from the place where the last ended."""
        ids: list[int] = []
        for branch, end in sorted(cuts, key=lambda cut: cut[1]):
            ids += BRANCHES[branch][len(ids) : end]
        return ids

    cuts = st.lists(
        st.tuples(
            st.integers(0, 2),
            st.one_of(
                st.sampled_from([1, 15, 16, 31, 32, 33, 127, 128, 129, 255, 256, 257]),
                st.integers(1, 400),
            ),
        ),
        min_size=1,
        max_size=3,
    )
    which = st.integers(0, 100)

    def pick(self, which: int) -> Session:
        return self.sessions[which % len(self.sessions)]

    @rule(which=which, cuts=cuts)
    def prefill(self, which: int, cuts: list[tuple[int, int]]) -> None:
        ids = self.prompt(cuts)
        session = self.pick(which)
        reused = session.prefill(ids)
        assert 0 <= reused <= len(ids)
        assert session.tokens == ids
        assert session.resume.reused == reused
        assert np.array_equal(session.logits, cold_logits(ids))

    @rule(which=which, cuts=cuts, whole=st.booleans())
    def rewind(self, which: int, cuts: list[tuple[int, int]], whole: bool) -> None:
        ids = self.prompt(cuts)
        session = self.pick(which)
        before = session.tokens
        kept = session.rewind(ids, whole=whole)
        assert kept <= (len(ids) if whole else len(ids) - 1)
        assert session.tokens == ids[:kept]
        assert session.resume.known >= kept
        if before == ids[: len(before)] and len(before) < len(ids):
            assert kept >= len(before)
        if kept == len(ids) and kept > 0:
            assert np.array_equal(session.logits, cold_logits(ids))

    @rule(which=which, branch=st.integers(0, 2), count=st.integers(1, 6))
    def decode(self, which: int, branch: int, count: int) -> None:
        session = self.pick(which)
        for _ in range(count):
            if session.position < 490:
                session.decode(BRANCHES[branch][session.position])
                assert np.array_equal(session.logits, cold_logits(session.tokens))

    @rule(which=which, branch=st.integers(0, 2), count=st.integers(1, 150))
    def step_together(self, which: int, branch: int, count: int) -> None:
        """Chunks of all sessions of one engine in one batch."""
        model = self.pick(which).engine
        work = []
        for session in self.sessions:
            start = session.position
            if session.engine is model and start + count <= 490:
                work.append(StepItem(session, BRANCHES[branch][start : start + count]))
        for result in model.step(work):
            assert result.error is None
        for item in work:
            assert np.array_equal(item.session.logits, cold_logits(item.session.tokens))

    @rule(which=which)
    def fork(self, which: int) -> None:
        if len(self.sessions) < 6:
            self.sessions.append(self.pick(which).fork())

    @precondition(lambda self: len(self.sessions) > 2)
    @rule(which=which)
    def close(self, which: int) -> None:
        self.sessions.pop(which % len(self.sessions)).close()

    @rule(which=which)
    def fresh(self, which: int) -> None:
        if len(self.sessions) < 6:
            self.sessions.append(self.engines[which % 2].session())

    @rule(which=which)
    def save(self, which: int) -> None:
        self.pick(which).save()

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        """The memory of one engine is gone; the disk is opened again."""
        self.engines[which].prefixes.clear()
        if self.stores:
            self.stores[which].flush()
            self.stores[which] = self.attach(self.engines[which])

    @precondition(lambda self: self.stores)
    @rule(which=st.integers(0, 1), at=st.integers(0, 1000), pin=st.booleans())
    def delete_or_pin(self, which: int, at: int, pin: bool) -> None:
        store = self.stores[which]
        store.flush()
        entries = store.entries()
        if entries:
            key = entries[at % len(entries)].key
            if pin:
                store.pin(key, not entries[at % len(entries)].pinned)
            else:
                store.delete(key)

    @precondition(lambda self: self.stores)
    @rule(at=st.integers(0, 1000), bit=st.integers(0, 1 << 30))
    def damage(self, at: int, bit: int) -> None:
        for store in self.stores:
            store.flush()
        files = sorted([*self.directory.glob("v1-*/*.rows"), *self.directory.glob("v1-*/*.state")])
        if files:
            path = files[at % len(files)]
            data = bytearray(path.read_bytes())
            data[bit // 8 % len(data)] ^= 1 << bit % 8
            path.write_bytes(data)

    @invariant()
    def budgets_hold(self) -> None:
        for model in getattr(self, "engines", []):
            stats = model.prefixes.stats()
            assert stats.byte_count <= stats.budget_bytes

    def teardown(self) -> None:
        for session in self.sessions:
            session.close()
        for store in getattr(self, "stores", []):
            store.flush()
        for model in getattr(self, "engines", []):
            model.close()
        shutil.rmtree(self.directory)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    # A failing history is long to run; what hypothesis would make of it for minutes is not.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
