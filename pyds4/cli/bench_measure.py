"""The measurements behind ``pyds4 bench``: our own engine's prefill and decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyds4.cli.console import Progress
from pyds4.cli.relay import call

if TYPE_CHECKING:
    from pyds4.engine import Engine
    from pyds4.session import Session

OURS = "pyds4"
_POLL_S = 0.25


@dataclass(frozen=True)
class Measurement:
    """One timed run.

    Attributes:
        engine: `OURS`, or the peer's name.
        kind: ``prefill`` or ``decode``.
        context: Tokens of the prompt, or before the first decoded token.
        sessions: Sequences decoded together.
        tokens: Of all sessions together.
        repeat: Counts from 0.
        weight_bytes_per_step: Read for one token of each session, on average; 0 for prefill.
        memory_bytes_per_s: What memory gave just before and after, on average; 0 when not measured.
    """

    engine: str
    kind: str
    context: int
    sessions: int
    tokens: int
    repeat: int
    seconds: float
    weight_bytes_per_step: float = 0.0
    memory_bytes_per_s: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second, of all sessions together."""
        return self.tokens / self.seconds

    @property
    def weight_bytes_per_s(self) -> float:
        return self.weight_bytes_per_step * self.rate / self.sessions

    @property
    def memory_share(self) -> float:
        """Of the memory's read rate; 0 when unknown."""
        known = self.memory_bytes_per_s > 0
        return self.weight_bytes_per_s / self.memory_bytes_per_s if known else 0.0


class Bench:
    """Runs prompts of random ids through an engine and times them."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self._engine = engine
        self._random = np.random.default_rng(seed)

    def tokens(self, count: int) -> list[int]:
        """Random ids. Every text costs the same, but not every text uses as many experts."""
        ids: list[int] = self._random.integers(0, self._engine.config.vocab_size, count).tolist()
        return ids

    def warm_up(self, tokens: int) -> None:
        """Bring the weights into memory and the threads to life."""
        with self._engine.session() as session:
            self._prefill(session, self.tokens(tokens), "warm-up")

    def prefill(self, context: int) -> tuple[Session, float]:
        """A new session filled with ``context`` tokens at once, and the seconds it took."""
        session = self._engine.session()
        try:
            return session, self._prefill(session, self.tokens(context), f"prefill {context}")
        except BaseException:
            session.close()
            raise

    def _prefill(self, session: Session, tokens: list[int], label: str) -> float:
        def timed() -> float:
            started = time.perf_counter()
            session.prefill(tokens)
            return time.perf_counter() - started

        with _watched(label, lambda: session.position, len(tokens)):
            return call(session, timed)

    def decode(self, filled: Session, count: int, sessions: int) -> float:
        """Seconds for ``count`` further tokens of each of ``sessions`` copies of ``filled``."""
        from pyds4.engine import StepItem

        with ExitStack() as stack:
            copies = [stack.enter_context(filled.fork()) for _ in range(sessions)]

            def step() -> None:
                items = [StepItem(copy, self.tokens(1)) for copy in copies]
                for result in self._engine.step(items):
                    if result.error is not None:
                        raise result.error

            def timed() -> float:
                step()  # the first copies what the forks share
                started = time.perf_counter()
                for _ in range(count):
                    step()
                return time.perf_counter() - started

            start = copies[0].position
            label = f"decode at {start}, {sessions} at once"
            with _watched(label, lambda: copies[0].position - start - 1, count):
                return call(copies[0], timed)


@contextmanager
def _watched(label: str, done: Callable[[], int], total: int) -> Iterator[None]:
    """Show progress by looking on: telling of it would cost time in what is measured."""
    finished = threading.Event()

    with Progress(label) as progress:

        def look() -> None:
            while not finished.wait(_POLL_S):
                progress.update(max(0, done()), total)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
