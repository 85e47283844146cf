"""End to end: what is asked of the server holds on the engine and a model that talks.

Conversations over every protocol are in `test_demo_protocols`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import protocol_agents
import pytest
from protocol_agents import as_function
from server_harness import serving_in_background

import pyds4

MODEL = Path(__file__).parents[2] / "models" / "pyds4-demo-q4_k.gguf"
READ: Any = as_function(protocol_agents.READ)
QUESTION = "Read config.ini and tell me the value of port"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demo model behind the real server."""
    with pyds4.Engine(MODEL) as engine, serving_in_background(engine) as url:
        yield url


def _client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    )


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
