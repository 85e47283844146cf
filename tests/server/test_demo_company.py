"""Conversations beside each other: nobody's words or cached prefix depend on who else is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from protocol_agents import READ, WEATHER, Agent, ChatAgent, MessagesAgent, ResponsesAgent, Turn
from server_harness import serving

import pyds4
from models import DEMO

POOL_ALONE = {"memory_cache_gib": 0, "max_active": 8}
"""Sessions keep what is cached; nothing else does."""


FILE = "host = example\nport = 8471\nname = abc"


async def _read(agent: Agent, file: str, port: int) -> list[Turn]:
    asked = await agent.say(f"Read {file} and tell me the value of port")
    return [asked, await agent.give(f"host = example\nport = {port}\nname = abc")]


async def _weather(agent: Agent, here: str, there: str) -> list[Turn]:
    asked = await agent.say(f"What is the weather in {here} and in {there}?")
    return [asked, await agent.give("12 C, rainy", "24 C, sunny")]


async def _four_conversations(url: str, *, at_once: bool) -> list[list[Turn]]:
    agents: list[Agent] = [
        ChatAgent(url, tools=[READ], streams=True, thinks=False),
        MessagesAgent(url, tools=[READ], streams=False, thinks=True),
        ResponsesAgent(url, tools=[WEATHER], streams=True, thinks=True),
        ChatAgent(url, tools=[READ, WEATHER], streams=False, thinks=False),
    ]
    work = [
        _read(agents[0], "config.ini", 8471),
        _read(agents[1], "server.conf", 9090),
        _weather(agents[2], "Paris", "Rome"),
        _weather(agents[3], "Oslo", "Lima"),
    ]
    try:
        return list(await asyncio.gather(*work)) if at_once else [await one for one in work]
    finally:
        for agent in agents:
            await agent.close()


def _said(turns: Sequence[Turn]) -> list[object]:
    """What does not differ from run to run: everything but the ids of calls and what was cached."""
    return [
        (turn.text, turn.reasoning, [(call.name, call.arguments) for call in turn.calls])
        for turn in turns
    ]


async def test_four_conversations_at_once_go_as_each_goes_alone() -> None:
    with pyds4.Engine(DEMO) as engine:
        async with serving(engine, **POOL_ALONE) as served:
            together = await _four_conversations(served.url, at_once=True)
        async with serving(engine, **POOL_ALONE) as served:
            alone = await _four_conversations(served.url, at_once=False)
    assert [_said(turns) for turns in together] == [_said(turns) for turns in alone]
    assert [turns[1].text for turns in alone] == [
        "The value of port is 8471.",
        "The value of port is 9090.",
        "It is 12 °C and rainy in Paris.\nIt is 24 °C and sunny in Rome.",
        "It is 12 °C and rainy in Oslo.\nIt is 24 °C and sunny in Lima.",
    ]
    for asked, told in together:
        assert told.cached_tokens >= asked.total_tokens - 1


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
async def test_titles_do_not_cost_the_main_conversation_its_prefix(at_once: bool) -> None:
    titles = 6  # more than there are sessions
    with pyds4.Engine(DEMO) as engine:
        async with serving(engine, **POOL_ALONE | {"max_active": 2, "max_sessions": 3}) as served:
            main = ChatAgent(served.url, tools=[READ, WEATHER], streams=True, thinks=False)

            async def title(number: int) -> int:
                side = ChatAgent(served.url, streams=False, thinks=False)
                said = await side.say(
                    f"Write a title for conversation {number} about port {number}"
                )
                await side.close()
                return said.completion_tokens

            asked = await main.say("Read config.ini and tell me the value of port")
            if at_once:
                beside = asyncio.gather(*(title(number) for number in range(titles)))
                told = await main.give(FILE)
                wrote = await beside
            else:
                wrote = [await title(number) for number in range(titles)]
                told = await main.give(FILE)
            later = await main.say("What is the weather in Oslo?")
            await main.close()
    assert min(wrote) > 0
    assert told.text == "The value of port is 8471."
    assert told.cached_tokens >= asked.total_tokens - 1
    assert [call.arguments for call in later.calls] == [{"city": "Oslo"}]
    assert later.cached_tokens >= told.total_tokens - 1
