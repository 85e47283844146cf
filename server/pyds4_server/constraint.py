"""Forced tokens: the opening of a tool call, when a request demands one.

All openings that are allowed (one for each tool) are token sequences; at every step the tokens
that continue at least one of them are the only ones allowed. Where all agree, the token is forced.
"""

from __future__ import annotations

from collections.abc import Sequence


class OneOf:
    """Follows tokens along a set of sequences until one of them is complete."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = [tuple(sequence) for sequence in sequences if sequence]
        self._depth = 0

    @property
    def is_complete(self) -> bool:
        return not self._sequences

    def allowed(self) -> frozenset[int]:
        """The tokens that may come next; empty once complete."""
        return frozenset(sequence[self._depth] for sequence in self._sequences)

    def advance(self, token: int) -> None:
        """Take ``token``; sequences that do not have it here are out."""
        self._depth += 1
        kept = [s for s in self._sequences if s[self._depth - 1] == token]
        finished = any(len(sequence) == self._depth for sequence in kept)
        self._sequences = [] if finished else kept
