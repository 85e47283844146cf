"""A restart costs a conversation nothing: what the demo model read is on disk, to the bit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from protocol_agents import READ, WEATHER, Agent, ChatAgent, MessagesAgent, ResponsesAgent
from server_harness import Served, serving

import pyds4
from models import DEMO
from pyds4.evals.source import Source

FILLER_CHARACTERS = 8700
"""Some 1,850 tokens of sentences about nothing."""

FEWEST_SAVED_TOKENS = 256
"""Fewer new tokens than these are not written to disk."""


@asynccontextmanager
async def started(directory: Path | None) -> AsyncIterator[Served]:
    """A fresh start of engine and server, with nothing but ``directory`` from before."""
    on_disk = {"disk_cache": True, "disk_cache_directory": directory, "disk_cache_gib": 1}
    with pyds4.Engine(DEMO) as engine:
        async with serving(engine, memory_cache_gib=0, **(on_disk if directory else {})) as served:
            yield served


async def _ask(served: Served, messages: list[Any]) -> tuple[Any, Any]:
    """The greedy answer, every logarithm of it, and the usage."""
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 60}
    body |= {"logprobs": True, "top_logprobs": 8}
    response = await served.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0], response.json()["usage"]


async def test_a_fact_3700_tokens_back_is_recalled_from_disk_with_the_same_bits(
    tmp_path: Path,
) -> None:
    source = Source(1)
    text = " ".join(
        [
            "The secret code for the lamp is 30814.",
            source.filler(FILLER_CHARACTERS),
            "The violin was built in 1889.",
            source.filler(FILLER_CHARACTERS),
        ]
    )
    far = {"role": "user", "content": f"{text}\n\nWhat is the secret code for the lamp?"}
    near = {"role": "user", "content": "When was the violin built?"}

    async with started(tmp_path) as served:
        first, cold = await _ask(served, [far])
    assert first["message"]["content"] == "The secret code for the lamp is 30814."
    assert cold["prompt_tokens"] >= 3700
    assert cold["prompt_tokens_details"]["cached_tokens"] == 0
    longer = [far, first["message"], near]

    async with started(tmp_path) as served:
        again, kept = await _ask(served, [far])
        later, _ = await _ask(served, longer)
    assert kept["prompt_tokens_details"]["cached_tokens"] >= kept["prompt_tokens"] - 1
    assert again == first
    assert later["message"]["content"] == "The violin was built in 1889."

    async with started(None) as served:
        expected, recomputed = await _ask(served, longer)
    assert recomputed["prompt_tokens_details"]["cached_tokens"] == 0
    assert later == expected


@pytest.mark.parametrize("kind", [ChatAgent, MessagesAgent, ResponsesAgent])
async def test_a_tool_result_arrives_after_the_restart(tmp_path: Path, kind: type[Agent]) -> None:
    async with started(tmp_path) as served:
        agent = kind(served.url, tools=[READ, WEATHER], streams=True, thinks=True)
        await agent.say("What is the weather in Oslo?")
        await agent.give("12 C, rainy")
        asked = await agent.say("Read config.ini and tell me the value of port")
        await agent.close()
    async with started(tmp_path) as served:
        agent.client = agent.connect(served.url)
        told = await agent.give("host = example\nport = 8471\nname = abc")
        await agent.close()
    assert told.text == "The value of port is 8471."
    assert told.cached_tokens > asked.total_tokens - FEWEST_SAVED_TOKENS
