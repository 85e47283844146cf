"""Small agents over the official SDKs: one conversation each, whatever the protocol.

A test is written once and run over every protocol, streamed and in one piece.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anthropic
import openai

MAX_TOKENS = 400
THINKING_TOKENS = 1024
"""What Anthropic's API asks for at least; no answer of the demo model reasons that long."""


@dataclass(frozen=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str
    parameters: dict[str, str]
    """Names, all of them strings, and what they are."""

    @property
    def schema(self) -> dict[str, Any]:
        properties = {
            name: {"type": "string", "description": about}
            for name, about in self.parameters.items()
        }
        return {"type": "object", "properties": properties, "required": list(self.parameters)}


READ = Tool("read", "Read a file.", {"path": "The file path"})
WEATHER = Tool("get_weather", "Get the current weather for a city.", {"city": "The city"})


@dataclass(frozen=True)
class Call:
    """A call as a client sees it."""

    id: str
    name: str
    arguments: Any


@dataclass(frozen=True)
class Turn:
    """What the model said, and what it cost."""

    text: str
    reasoning: str
    calls: list[Call]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Agent(ABC):
    """One conversation. It sends everything back as it came, as agents do.

    Args:
        url: The server's.
        streams: Have answers streamed, and put them together again.
        thinks: Ask for reasoning.
    """

    def __init__(
        self, url: str, *, tools: Sequence[Tool] = (), streams: bool, thinks: bool
    ) -> None:
        self.tools = tools
        self.streams = streams
        self.thinks = thinks
        self.history: list[Any] = []
        self.latest: Turn | None = None
        self.client = self.connect(url)

    async def say(self, text: str) -> Turn:
        """The model's answer to what a user says."""
        self.history.append({"role": "user", "content": text})
        self.latest = await self.answer()
        return self.latest

    async def give(self, *results: str) -> Turn:
        """The model's answer to the results of its latest calls, in their order."""
        assert self.latest is not None
        self.give_results(list(zip(self.latest.calls, results, strict=True)))
        self.latest = await self.answer()
        return self.latest

    async def close(self) -> None:
        await self.client.close()

    @abstractmethod
    def connect(self, url: str) -> Any:
        """The SDK's client."""

    @abstractmethod
    async def answer(self) -> Turn:
        """Send the history, take the answer into it."""

    @abstractmethod
    def give_results(self, results: list[tuple[Call, str]]) -> None:
        """Take results of calls into the history."""


class ChatAgent(Agent):
    """OpenAI's chat completions."""

    def connect(self, url: str) -> openai.AsyncOpenAI:
        return _openai_client(url)

    async def answer(self) -> Turn:
        body: dict[str, Any] = {
            "model": "demo",
            "messages": self.history,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "reasoning_effort": "high" if self.thinks else "none",
        }
        if self.tools:
            body["tools"] = [as_function(tool) for tool in self.tools]
        if self.streams:
            options = {"include_usage": True}
            async with self.client.chat.completions.stream(**body, stream_options=options) as s:
                completion = await s.get_final_completion()
        else:
            completion = await self.client.chat.completions.create(**body)
        message = completion.choices[0].message
        self.history.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        usage = completion.usage
        return Turn(
            text=message.content or "",
            reasoning=getattr(message, "reasoning_content", None) or "",
            calls=[
                Call(call.id, call.function.name, json.loads(call.function.arguments))
                for call in message.tool_calls or ()
            ],
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )

    def give_results(self, results: list[tuple[Call, str]]) -> None:
        self.history += [
            {"role": "tool", "tool_call_id": call.id, "content": result} for call, result in results
        ]


class MessagesAgent(Agent):
    """Anthropic's messages."""

    def connect(self, url: str) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            base_url=url, api_key="any", max_retries=0, _strict_response_validation=True
        )

    async def answer(self) -> Turn:
        thinking = {"type": "enabled", "budget_tokens": THINKING_TOKENS}
        body: dict[str, Any] = {
            "model": "demo",
            "max_tokens": THINKING_TOKENS + MAX_TOKENS,
            "messages": self.history,
            "tools": [
                {"name": tool.name, "description": tool.description, "input_schema": tool.schema}
                for tool in self.tools
            ],
            "thinking": thinking if self.thinks else {"type": "disabled"},
            "extra_body": {"temperature": 0},
        }
        if self.streams:
            async with self.client.messages.stream(**body) as stream:
                message = await stream.get_final_message()
        else:
            message = await self.client.messages.create(**body)
        blocks = message.content
        self.history.append({"role": "assistant", "content": [b.to_dict() for b in blocks]})
        usage = message.usage
        return Turn(
            text="".join(block.text for block in blocks if block.type == "text"),
            reasoning="".join(block.thinking for block in blocks if block.type == "thinking"),
            calls=[Call(b.id, b.name, b.input) for b in blocks if b.type == "tool_use"],
            prompt_tokens=usage.input_tokens
            + usage.cache_read_input_tokens
            + usage.cache_creation_input_tokens,
            cached_tokens=usage.cache_read_input_tokens,
            completion_tokens=usage.output_tokens,
        )

    def give_results(self, results: list[tuple[Call, str]]) -> None:
        blocks = [
            {"type": "tool_result", "tool_use_id": call.id, "content": result}
            for call, result in results
        ]
        self.history.append({"role": "user", "content": blocks})


class ResponsesAgent(Agent):
    """OpenAI's responses, everything sent again: what Codex does."""

    def connect(self, url: str) -> openai.AsyncOpenAI:
        return _openai_client(url)

    async def answer(self) -> Turn:
        body: dict[str, Any] = {
            "model": "demo",
            "input": self.history,
            "temperature": 0,
            "max_output_tokens": MAX_TOKENS,
            "tools": [{"type": "function", **as_function(tool)["function"]} for tool in self.tools],
            "reasoning": {"effort": "high" if self.thinks else "none"},
            **self.continued(),
        }
        if self.streams:
            async with self.client.responses.stream(**body) as stream:
                response = await stream.get_final_response()
        else:
            response = await self.client.responses.create(**body)
        self.take(response)
        usage = response.usage
        return Turn(
            text=response.output_text,
            reasoning="".join(
                part.text
                for item in response.output
                if item.type == "reasoning"
                for part in item.content or ()
            ),
            calls=[
                Call(item.call_id, item.name, json.loads(item.arguments))
                for item in response.output
                if item.type == "function_call"
            ],
            prompt_tokens=usage.input_tokens,
            cached_tokens=usage.input_tokens_details.cached_tokens,
            completion_tokens=usage.output_tokens,
        )

    def give_results(self, results: list[tuple[Call, str]]) -> None:
        self.history += [
            {"type": "function_call_output", "call_id": call.id, "output": result}
            for call, result in results
        ]

    def continued(self) -> dict[str, Any]:
        """How a request says what it continues."""
        return {"store": False, "include": ["reasoning.encrypted_content"]}

    def take(self, response: Any) -> None:
        """Remember an answer for the next request."""
        self.history += [item.to_dict() for item in response.output]


class StoredResponsesAgent(ResponsesAgent):
    """OpenAI's responses, the server remembering the conversation."""

    previous: str | None = None

    def continued(self) -> dict[str, Any]:
        return {} if self.previous is None else {"previous_response_id": self.previous}

    def take(self, response: Any) -> None:
        self.previous = response.id
        self.history = []


def _openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    )


def as_function(tool: Tool) -> dict[str, Any]:
    """As OpenAI's chat completions take it."""
    about = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
    return {"type": "function", "function": about}


AGENTS: tuple[type[Agent], ...] = (ChatAgent, MessagesAgent, ResponsesAgent, StoredResponsesAgent)
