"""Stop strings on a stream: nothing of a match is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on, except what may be the beginning of a stop string.

    The match that is complete first ends the text, of several the one that begins first; so the
    result does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is safe to show; ``matched`` is set once a stop string has come."""
        if not self._stops or self.matched is not None:
            return text if self.matched is None else ""
        held = self._held + text
        found = [(at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            self._held = ""
            return held[:at]
        keep = max(self._partial(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What was held back for a match that never came."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _partial(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that begins ``stop``."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
