"""Prefixes in memory, and what became of a look-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyds4._native import check, ffi, lib

Source = Literal["nothing", "session", "memory", "disk"]
_SOURCES: tuple[Source, ...] = ("nothing", "session", "memory", "disk")


@dataclass(frozen=True, slots=True)
class Resume:
    """What the last ``rewind`` or ``prefill`` of a session found.

    Attributes:
        reused: Tokens of the prompt that need not be evaluated.
        known: Tokens the prompt shares with some known timeline. Those between ``reused`` and this
            are evaluated again, because no place to go on from was kept between.
        source: Who had them: the session itself, another one in memory, the disk.
        expected: The id which that timeline has at position ``known``, where the prompt differs;
            None when it ends there or only its keys are known.
        bytes_read: From disk.
    """

    reused: int
    known: int
    source: Source
    expected: int | None
    bytes_read: int

    def reason(
        self,
        prompt: Sequence[int],
        decode: Callable[[Sequence[int]], str] | None = None,
        around: int = 8,
    ) -> str:
        """Why not all of ``prompt`` was reused, in words.

        Args:
            prompt: The ids that were looked up.
            decode: Turns ids into text, such as ``Tokenizer.decode``; without it ids are shown.
            around: Tokens shown before and behind the first difference.
        """
        if self.reused >= len(prompt) - 1:
            all_of = "all of" if self.reused >= len(prompt) else "all but the last of"
            return f"hit: {all_of} {len(prompt)} tokens ({self.source})"

        def show(ids: Sequence[int]) -> str:
            return repr(decode(ids)) if decode is not None else str(list(ids))

        kept = f"{self.reused} of {len(prompt)} tokens reused ({self.source})"
        if self.known == 0:
            return f"miss: {kept}; nothing known begins with {show(prompt[:around])}"
        if self.known >= len(prompt) - 1:
            return f"partial: {kept}; all is known, but no place behind {self.reused} was kept"
        before = show(prompt[max(0, self.known - around) : self.known])
        found = show(prompt[self.known : self.known + around])
        gap = ""
        if self.known - self.reused > 0:
            gap = f"; no place between {self.reused} and there was kept"
        if self.expected is None:
            # What is known ends here, as it does whenever a conversation goes on.
            return f"partial: {kept}; known up to {self.known}: after {before} comes {found}{gap}"
        instead = f" instead of {show([self.expected])}"
        return (
            f"partial: {kept}; differs at {self.known}: after {before} comes {found}{instead}{gap}"
        )


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """What `Prefixes` holds and how often it was of use."""

    budget_bytes: int
    byte_count: int
    entry_count: int
    hits: int
    misses: int
    evicted: int
    reused_tokens: int


class Prefixes:
    """What all sessions of an engine remember together, in memory. Off until it has a budget."""

    def __init__(self, engine_handle: Any) -> None:
        self._handle = engine_handle

    @property
    def budget_bytes(self) -> int:
        """Bytes that prefixes may take beside open sessions; 0 keeps none."""
        return self.stats().budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, value: int) -> None:
        lib.pyds4_engine_prefix_budget(self._handle, max(0, value))

    def stats(self) -> PrefixStats:
        """Counts since the engine was opened."""
        out = ffi.new("pyds4_prefixes *")
        lib.pyds4_engine_prefixes(self._handle, out)
        return PrefixStats(*(int(getattr(out, name)) for name in PrefixStats.__slots__))

    def clear(self) -> None:
        """Forget them all; sessions keep their own."""
        lib.pyds4_engine_prefixes_clear(self._handle)


def last_resume(session_handle: Any) -> Resume:
    """What the session's last ``rewind`` or ``prefill`` found."""
    out = ffi.new("pyds4_resume *")
    check(lib.pyds4_session_resume(session_handle, out))
    return Resume(
        reused=int(out.reused),
        known=int(out.known),
        source=_SOURCES[out.source],
        expected=None if out.expected < 0 else int(out.expected),
        bytes_read=int(out.byte_count),
    )
