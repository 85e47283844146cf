"""Noticing that a sequence only repeats itself."""

from __future__ import annotations

from collections.abc import Sequence


class RepetitionGuard:
    """Looks at the end of a sequence now and then.

    A sequence counts as stuck when its last ``window`` tokens are one piece of at most
    ``longest_period`` tokens over and over. The default window lets a table of zeros or a long
    rule pass: 1,024 tokens in which nothing new came are no answer any more.
    """

    def __init__(self, window: int = 1024, longest_period: int = 96, check_every: int = 64) -> None:
        self._window = window
        self._longest = longest_period
        self._every = check_every

    def repeats(self, tokens: Sequence[int]) -> bool:
        """Whether ``tokens`` has become stuck; looks only every ``check_every`` tokens."""
        count = len(tokens)
        if count < self._window or count % self._every:
            return False
        tail = list(tokens[-self._window :])
        return any(tail[period:] == tail[:-period] for period in range(1, self._longest + 1))
