"""Which session a request continues.

Agents send the whole conversation again with every request, so the session that served the last
request already holds most of the next prompt. The pool keeps sessions when their request ends and
gives a new request the one that shares the longest beginning with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pyds4_server.engine_api import EngineLike, SessionLike

MIN_SHARED_TOKENS = 32
"""Below this a shared beginning is the template's, not the conversation's."""


@dataclass(eq=False, slots=True)
class PooledSession:
    """A session and the tokens it has seen. ``tokens`` is kept here because reading the engine's
    own list would copy it at every look."""

    session: SessionLike
    tokens: list[int] = field(default_factory=list)
    busy: bool = True
    last_used_s: float = 0.0


class SessionPool:
    """Up to ``limit`` sessions, busy and idle. Used by the scheduler's thread alone."""

    def __init__(
        self,
        engine: EngineLike,
        limit: int,
        context: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._limit = limit
        self._context = context
        self._clock = clock
        self._sessions: list[PooledSession] = []

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def cached_tokens(self) -> int:
        """Tokens held by all sessions."""
        return sum(len(pooled.tokens) for pooled in self._sessions)

    def acquire(self, prompt: Sequence[int]) -> tuple[PooledSession, int]:
        """A session for ``prompt`` and how much of it is there already: all of it, if the logits
        behind it are known.

        A session whose end the prompt does not contain is forked, not rewound: a title or subagent
        request that shares the main conversation's beginning leaves it whole, and a fork costs
        no memory until it grows.

        Raises:
            PyDS4Error: the engine has no room for another session.
        """
        prompt = list(prompt)
        best: PooledSession | None = None
        shared = 0
        for pooled in self._sessions:
            common = common_prefix(pooled.tokens, prompt)
            if common > shared or (common == shared and best is not None and best.busy):
                best, shared = pooled, common
        if best is None or shared < MIN_SHARED_TOKENS:
            # Another session's checkpoints, or the disk, may know more than the pool.
            return self._rewound(self._fresh(), prompt)
        if not best.busy and shared == len(best.tokens):
            best.busy = True
            return self._rewound(best, prompt)
        self._make_room(keep=best)
        forked = PooledSession(best.session.fork(), list(best.tokens))
        self._sessions.append(forked)
        return self._rewound(forked, prompt)

    def fork(self, source: PooledSession) -> PooledSession:
        """A busy copy of a busy session, for a further answer to the same prompt."""
        self._make_room(keep=source)
        forked = PooledSession(source.session.fork(), list(source.tokens))
        self._sessions.append(forked)
        return forked

    def release(self, pooled: PooledSession) -> None:
        """The request is over; the session stays for the next one."""
        pooled.busy = False
        pooled.last_used_s = self._clock()

    def discard(self, pooled: PooledSession) -> None:
        """The session is of no use any more: its last step failed."""
        if pooled in self._sessions:
            self._sessions.remove(pooled)
            pooled.session.close()

    def by_last_use(self) -> list[PooledSession]:
        """All of them, the one used longest ago first."""
        return sorted(self._sessions, key=lambda pooled: pooled.last_used_s)

    def close(self) -> None:
        """Close every session."""
        while self._sessions:
            self._sessions.pop().session.close()

    def _fresh(self) -> PooledSession:
        self._make_room()
        pooled = PooledSession(self._engine.session(self._context))
        self._sessions.append(pooled)
        return pooled

    def _rewound(self, pooled: PooledSession, prompt: list[int]) -> tuple[PooledSession, int]:
        kept = pooled.session.rewind(prompt, whole=True)
        pooled.tokens = prompt[:kept]
        return pooled, kept

    def _make_room(self, keep: PooledSession | None = None) -> None:
        """Close the idle session that is least worth keeping, if the pool is full."""
        while len(self._sessions) >= self._limit:
            idle = [p for p in self._sessions if not p.busy and p is not keep]
            if not idle:
                return
            self.discard(min(idle, key=self._worth))

    def _worth(self, pooled: PooledSession) -> float:
        """Tokens that no other session holds, worth half after ten idle minutes: what goes first
        are short side requests and branches of a conversation that is still there."""
        others = (other for other in self._sessions if other is not pooled)
        shared = max((common_prefix(pooled.tokens, other.tokens) for other in others), default=0)
        idle_s = self._clock() - pooled.last_used_s
        return (len(pooled.tokens) - shared) / (1.0 + idle_s / 600.0)


def common_prefix(left: list[int], right: list[int]) -> int:
    """Length of the common beginning, by halving: slices compare at C speed."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
