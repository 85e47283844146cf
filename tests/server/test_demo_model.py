"""End to end: the official SDKs, the server, the engine and the demo model's own words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from server_harness import serving_in_background

import pyds4

MODEL = Path(__file__).parents[2] / "models" / "pyds4-demo-q4_k.gguf"
READ: Any = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Read a file.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "description": "The file path"}},
            "required": ["path"],
        },
    },
}
QUESTION = "Read config.ini and tell me the value of port"
FILE = "host = example\nport = 8471\nname = abc"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demo model behind the real server."""
    with pyds4.Engine(MODEL) as engine, serving_in_background(engine) as url:
        yield url


def _client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    )


async def _streamed(client: openai.AsyncOpenAI, messages: Any, **more: Any) -> tuple[Any, Any]:
    """A streamed turn as a message to send back, and its usage."""
    stream = await client.chat.completions.create(
        model="demo",
        messages=messages,
        tools=[READ],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        **more,
    )
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, Any] = {}
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            message["content"] += choice.delta.content or ""
            for delta in choice.delta.tool_calls or ():
                assert delta.function is not None
                if delta.index not in calls:
                    function = {"name": delta.function.name, "arguments": ""}
                    calls[delta.index] = {"id": delta.id, "type": "function", "function": function}
                calls[delta.index]["function"]["arguments"] += delta.function.arguments or ""
    if calls:
        message["tool_calls"] = list(calls.values())
    return message, usage


@pytest.mark.parametrize("effort", ["none", "high"])
async def test_streamed_tool_call_and_its_result(url: str, effort: str) -> None:
    async with _client(url) as client:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        asked, first = await _streamed(client, messages, reasoning_effort=effort)
        (call,) = asked["tool_calls"]
        assert call["function"]["name"] == "read"
        assert json.loads(call["function"]["arguments"]) == {"path": "config.ini"}
        messages += [asked, {"role": "tool", "tool_call_id": call["id"], "content": FILE}]
        told, second = await _streamed(client, messages, reasoning_effort=effort)
        assert told["content"] == "The value of port is 8471."
        assert second.prompt_tokens_details.cached_tokens >= first.total_tokens - 1


async def test_streams_at_once_say_what_each_says_alone(url: str) -> None:
    questions = [f"What is {a} + {a + 3}?" for a in range(2, 8)]

    async def ask(client: openai.AsyncOpenAI, question: str) -> str:
        answer = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": question}], temperature=0
        )
        return answer.choices[0].message.content or ""

    async with _client(url) as client:
        alone = [await ask(client, question) for question in questions]
        together = await asyncio.gather(*(ask(client, question) for question in questions))
    assert together == alone
    assert len(set(alone)) > 1


async def test_a_seed_repeats_a_sample(url: str) -> None:
    async def sample(seed: int) -> list[str | None]:
        answer = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=6,
            seed=seed,
            n=2,
            max_tokens=20,
        )
        return [choice.message.content for choice in answer.choices]

    async with _client(url) as client:
        first = await sample(1)
        assert await sample(1) == first
        assert await sample(2) != first
        assert first[0] != first[1]


async def test_required_call_is_made_where_none_would_be(url: str) -> None:
    async with _client(url) as client:
        answer: Any = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hello!"}],
            tools=[READ],
            tool_choice="required",
            temperature=0,
            max_tokens=60,
        )
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "read"
        json.loads(call.function.arguments)


async def test_anthropic_sdk_streams_thinking_and_a_tool_use(url: str) -> None:
    tool: Any = {
        "name": "read",
        "description": "Read a file.",
        "input_schema": READ["function"]["parameters"],
    }
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client,
        client.messages.stream(
            model="demo",
            max_tokens=500,
            extra_body={"temperature": 0},
            messages=[{"role": "user", "content": QUESTION}],
            tools=[tool],
            thinking={"type": "enabled", "budget_tokens": 1024},
        ) as stream,
    ):
        message = await stream.get_final_message()
    thought, call = message.content
    assert thought.type == "thinking"
    assert "config.ini" in thought.thinking
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("read", {"path": "config.ini"})


async def test_thinking_budget_holds_on_the_model(url: str) -> None:
    async with _client(url) as client:
        answer = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": QUESTION}],
            tools=[READ],
            temperature=0,
            extra_body={"thinking": {"type": "enabled", "budget_tokens": 4}},
            max_tokens=80,
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5
