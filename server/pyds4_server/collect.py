"""A finished answer, for protocols that want it in one piece."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyds4_server.errors import GenerationFailedError, ShuttingDownError
from pyds4_server.events import (
    CallEnd,
    Content,
    Failed,
    Finished,
    Reasoning,
    TokenLogprob,
    Update,
    Usage,
)


@dataclass(slots=True)
class Answer:
    """One choice: its text by kind, its calls, and how it ended."""

    reasoning: str = ""
    content: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[CallEnd] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def finish(self) -> Finished:
        assert self.finished is not None
        return self.finished


class Collector:
    """Adds up the updates of ``n`` choices."""

    def __init__(self, n: int = 1) -> None:
        self.answers = [Answer() for _ in range(n)]
        self._parts: list[tuple[list[str], list[str]]] = [([], []) for _ in range(n)]
        self._open = n

    @property
    def is_complete(self) -> bool:
        return not self._open

    def add(self, updates: list[Update]) -> None:
        """Take what came.

        Raises:
            GenerationFailedError: the engine failed.
            ShuttingDownError: the server is going away.
        """
        for update in updates:
            event = update.event
            answer = self.answers[update.choice]
            reasoning, content = self._parts[update.choice]
            if isinstance(event, Reasoning):
                reasoning.append(event.text)
            elif isinstance(event, Content):
                content.append(event.text)
                answer.logprobs += event.logprobs
            elif isinstance(event, CallEnd):
                answer.calls.append(event)
            elif isinstance(event, Finished):
                answer.finished = event
                answer.reasoning, answer.content = "".join(reasoning), "".join(content)
                self._open -= 1
            elif isinstance(event, Failed):
                raise failure(event)

    def usage(self) -> Usage:
        """The token counts of all choices; the prompt counts once."""
        each = [answer.finish.usage for answer in self.answers]
        return add_usage(each)


def add_usage(each: list[Usage]) -> Usage:
    """Several choices of one prompt together."""
    return Usage(
        prompt_tokens=each[0].prompt_tokens,
        cached_tokens=each[0].cached_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in each),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in each),
    )


def failure(event: Failed) -> GenerationFailedError | ShuttingDownError:
    """The event as the error a client gets when nothing was sent yet."""
    if event.kind == "shutdown":
        return ShuttingDownError()
    return GenerationFailedError(f"The engine failed: {event.message}")
