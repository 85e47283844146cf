"""What a generation tells its listeners, whatever the protocol they speak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "stop_sequence", "length", "tool_calls", "repetition"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the content with its log-probability (natural logarithm).

    ``top`` holds the most likely tokens at this place, best first, as (id, logprob).
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where the cached tokens of a prompt came from, and why there were not more of them.

    ``source`` is nothing, session, memory or disk. ``reason`` may hold words of the prompt: it is
    for the client that sent it, not for a log.
    """

    source: str = "nothing"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is evaluated up to ``done`` of ``total`` tokens; ``cached`` were there before."""

    done: int
    total: int
    cached: int
    lookup: Lookup = field(default=Lookup())


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A fragment of the arguments' JSON text."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete; ``arguments`` is the whole JSON text."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallAborted:
    """The call broke off: it was none. What was sent of it must not be acted upon."""

    index: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation. ``reasoning_tokens`` are part of ``completion_tokens``."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a generation that went well."""

    reason: FinishReason
    usage: Usage
    stop_sequence: str | None = None
    timing: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a generation that did not; nothing follows for any choice."""

    message: str
    kind: Literal["engine", "shutdown"] = "engine"


Event = (
    Prefilled
    | Reasoning
    | Content
    | CallStart
    | CallArguments
    | CallEnd
    | CallAborted
    | Finished
    | Failed
)


@dataclass(frozen=True, slots=True)
class Update:
    """An event of one of the ``n`` choices of a request."""

    choice: int
    event: Event
