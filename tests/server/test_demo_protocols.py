"""The demo model's own words over every protocol: talk, reasoning, tools, several at once."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from protocol_agents import AGENTS, READ, WEATHER, Agent
from server_harness import serving_in_background

import pyds4
from models import DEMO

Meet = Callable[..., AbstractAsyncContextManager[Agent]]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demo model behind the real server."""
    with pyds4.Engine(DEMO) as engine, serving_in_background(engine) as url:
        yield url


@pytest.fixture(params=AGENTS, ids=lambda kind: kind.__name__)
def meet(request: pytest.FixtureRequest, url: str) -> Meet:
    """An agent of one protocol, within an ``async with`` block."""

    @asynccontextmanager
    async def meeting(**options: Any) -> AsyncIterator[Agent]:
        agent: Agent = request.param(url, **options)
        try:
            yield agent
        finally:
            await agent.close()

    return meeting


@pytest.mark.parametrize(("streams", "thinks"), [(True, False), (False, True)])
async def test_a_conversation_goes_on(meet: Meet, streams: bool, thinks: bool) -> None:
    async with meet(streams=streams, thinks=thinks) as agent:
        turns = [
            await agent.say(said)
            for said in (
                "What are you?",
                "The flute was built in 1703.\n\nWhen was the flute built?",
                "What is 47 + 85?",
                "When was the flute built?",
            )
        ]
    assert turns[0].text.startswith("I am the pyds4 demo model")
    assert [turn.text for turn in turns[1:]] == [
        "The flute was built in 1703.",
        "47 + 85 = 132",
        "The flute was built in 1703.",
    ]
    assert [turn.calls for turn in turns] == [[]] * 4
    if thinks:
        assert all(turn.reasoning for turn in turns)
        assert "7 + 5 = 12" in turns[2].reasoning
    else:
        assert not any(turn.reasoning for turn in turns)
        # Nothing of the earlier turns is evaluated again but for the last token, which was never
        # fed. (While thinking the template drops earlier reasoning, so that prompts change.)
        for before, after in itertools.pairwise(turns):
            assert after.cached_tokens >= before.total_tokens - 1


@pytest.mark.parametrize("thinks", [False, True])
async def test_a_file_is_read_and_its_value_told(meet: Meet, thinks: bool) -> None:
    async with meet(tools=[READ], streams=True, thinks=thinks) as agent:
        asked = await agent.say("Read config.ini and tell me the value of port")
        (call,) = asked.calls
        assert (call.name, call.arguments) == ("read", {"path": "config.ini"})
        assert ("config.ini" in asked.reasoning) is thinks
        told = await agent.give("host = example\nport = 8471\nname = abc")
    assert told.text == "The value of port is 8471."
    assert told.calls == []
    assert told.cached_tokens >= asked.total_tokens - 1


@pytest.mark.parametrize(("streams", "thinks"), [(True, False), (False, True)])
async def test_two_tools_are_called_at_once(meet: Meet, streams: bool, thinks: bool) -> None:
    async with meet(tools=[WEATHER], streams=streams, thinks=thinks) as agent:
        asked = await agent.say("What is the weather in Paris and in Rome?")
        assert [(call.name, call.arguments) for call in asked.calls] == [
            ("get_weather", {"city": "Paris"}),
            ("get_weather", {"city": "Rome"}),
        ]
        assert len({call.id for call in asked.calls}) == 2
        told = await agent.give("12 C, rainy", "24 C, sunny")
        assert told.text == "It is 12 °C and rainy in Paris.\nIt is 24 °C and sunny in Rome."
        assert told.cached_tokens >= asked.total_tokens - 1
        again = await agent.say("What is the weather in Oslo?")
    (call,) = again.calls
    assert call.arguments == {"city": "Oslo"}
    assert again.cached_tokens >= told.total_tokens - 1
