"""What a sample is: a conversation of which some answers are scored.

A sample is made from a seed alone and knows every right answer, so the same code feeds training
and evaluation. It renders through ``pyds4.chat``, as a real conversation does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pyds4.chat import Prompt, render

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call of an answer."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model should say: reasoning is dropped in chat mode."""

    reasoning: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user's words or a round of tool results, and the answer to them."""

    asked: str | tuple[str, ...]
    answer: Answer


@dataclass(frozen=True, slots=True)
class Task:
    """A question that stands alone.

    ``shown`` is the answer when no reasoning is shown: hard sums then carry their steps.
    """

    family: str
    question: str
    reasoning: str
    answer: str
    shown: str | None = None

    def exchange(self, thinking: bool) -> Exchange:
        """The task as a turn of a conversation."""
        content = self.answer if thinking or self.shown is None else self.shown
        return Exchange(self.question, Answer(self.reasoning, content))


@dataclass(slots=True)
class Sample:
    """A conversation; the answers from exchange ``scored_from`` on count."""

    family: str
    exchanges: list[Exchange]
    thinking: bool
    system: str | None = None
    tools: list[Schema] = field(default_factory=list)
    effort: str | None = None
    scored_from: int = 0

    def messages(self, exchange_count: int | None = None) -> list[dict[str, Any]]:
        """OpenAI-style messages of the first ``exchange_count`` exchanges, answers included."""
        messages: list[dict[str, Any]] = []
        if self.system is not None or self.tools:
            head: dict[str, Any] = {"role": "system", "content": self.system or ""}
            if self.tools:
                head["tools"] = [{"type": "function", "function": tool} for tool in self.tools]
            messages.append(head)
        call_count = 0
        pending: list[str] = []
        for exchange in self.exchanges[:exchange_count]:
            if isinstance(exchange.asked, str):
                messages.append({"role": "user", "content": exchange.asked})
            else:
                for call_id, result in zip(pending, exchange.asked, strict=True):
                    messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
            answer = exchange.answer
            message: dict[str, Any] = {
                "role": "assistant",
                "content": answer.content,
                "reasoning_content": answer.reasoning,
            }
            pending = [f"call_{call_count + index}" for index in range(len(answer.calls))]
            call_count += len(pending)
            if answer.calls:
                message["tool_calls"] = [
                    {
                        "id": call_id,
                        "type": "function",
                        "function": {
                            "name": call.name,
                            "arguments": json.dumps(call.arguments, ensure_ascii=False),
                        },
                    }
                    for call_id, call in zip(pending, answer.calls, strict=True)
                ]
            messages.append(message)
        return messages

    def prompt(self, exchange_count: int | None = None) -> Prompt:
        """The conversation up to and including the answer of exchange ``exchange_count - 1``."""
        return render(
            self.messages(exchange_count),
            thinking_mode="thinking" if self.thinking else "chat",
            reasoning_effort=self.effort,
        )

    def scored(self) -> range:
        """Which exchanges count.

        While thinking without tools, reasoning of earlier turns is not rendered, so that only the
        last answer appears as the model gave it.
        """
        last = len(self.exchanges)
        if self.thinking and not self.tools:
            return range(last - 1, last)
        return range(self.scored_from, last)
