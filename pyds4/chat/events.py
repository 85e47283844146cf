"""What a stream of text turns out to mean, piece by piece.

For one call the order is ``ToolCallStart``, any number of ``ToolArgumentsDelta``, then either
``ToolCallEnd`` (now it is a call) or ``ToolCallAborted`` (it never was). Calls do not interleave.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of what the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """An invoke was opened. ``index`` counts from 0 over the whole answer."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """More JSON text; the fragments of one finished call concatenate to a valid object."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The invoke was closed: call ``name`` with ``arguments``, a whole JSON object as text."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallAborted:
    """The invoke was never closed; ``text`` is the markup as the model wrote it."""

    index: int
    name: str
    text: str


Event = (
    ReasoningDelta
    | ContentDelta
    | ToolCallStart
    | ToolArgumentsDelta
    | ToolCallEnd
    | ToolCallAborted
)


def coalesced(events: list[Event]) -> list[Event]:
    """The same stream with neighbouring deltas of one kind joined."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        match last, event:
            case (ReasoningDelta(a), ReasoningDelta(b)):
                joined[-1] = ReasoningDelta(a + b)
            case (ContentDelta(a), ContentDelta(b)):
                joined[-1] = ContentDelta(a + b)
            case (ToolArgumentsDelta(i, a), ToolArgumentsDelta(j, b)) if i == j:
                joined[-1] = ToolArgumentsDelta(i, a + b)
            case _:
                joined.append(event)
    return joined
