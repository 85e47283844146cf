"""What clients change between two requests must not cost the cache."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyds4_server.conversation import Conversation, arrange, effort_tier
from pyds4_server.repetition import RepetitionGuard
from pyds4_server.sessions import SessionPool, common_prefix
from pyds4_server.stop_strings import StopStrings
from server_fakes import TOKENIZER, FakeEngine
from server_harness import Serve, Served

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "edit",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "lines": {"type": "array"}},
        },
    },
}
# Spacing and key order that no serialiser would give back.
CALL = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="edit">\n'
    '<｜DSML｜parameter name="lines" string="false">[1,2,   3]</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="path" string="true">a.py</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>"
)


async def two_turns(served: Served, change: Any, **more: Any) -> tuple[Any, Any]:
    """Ask, send the answer back as ``change`` leaves it, ask on; both usages."""
    messages: list[Any] = [{"role": "user", "content": "Do it. " * 20}]
    body: Any = {"model": "m"} | more
    first: Any = await served.openai.chat.completions.create(messages=messages, **body)
    message = first.choices[0].message.model_dump(exclude_unset=True)
    messages.append(change(message) or message)
    calls = message.get("tool_calls")
    if calls:
        messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": "ok"})
    messages.append({"role": "user", "content": "And now?"})
    second: Any = await served.openai.chat.completions.create(messages=messages, **body)
    return first.usage, second.usage


def reserialised(message: Any) -> None:
    function = message["tool_calls"][0]["function"]
    swapped = dict(reversed(json.loads(function["arguments"]).items()))
    function["arguments"] = json.dumps(swapped, indent=2)


def without_reasoning(message: Any) -> None:
    message.pop("reasoning_content")
    message.pop("reasoning")


def as_parts(message: Any) -> None:
    message["content"] = [{"type": "text", "text": message["content"] + "\n"}]


@pytest.mark.parametrize("change", [reserialised, without_reasoning])
async def test_a_call_comes_back_changed_but_cached(serve: Serve, change: Any) -> None:
    async with serve(FakeEngine(["I think.</think>" + CALL, "Done.</think>Done."])) as served:
        first, second = await two_turns(served, change, tools=[TOOL], reasoning_effort="high")
    assert second.prompt_tokens_details.cached_tokens >= first.total_tokens - 1


async def test_words_come_back_as_they_were_sampled(serve: Serve) -> None:
    # The same text in more tokens than the tokenizer would make of it.
    sampled = [token for char in "Certainly, yes" for token in TOKENIZER.encode(char)]
    assert sampled != TOKENIZER.encode("Certainly, yes")
    async with serve(FakeEngine([sampled, "x"])) as served:
        first, second = await two_turns(served, as_parts)
    assert second.prompt_tokens_details.cached_tokens >= first.total_tokens - 1


async def test_an_edited_answer_is_taken_as_edited(serve: Serve) -> None:
    def edited(message: Any) -> None:
        message["content"] = "Something else."

    async with serve(FakeEngine(["An answer."])) as served:
        await two_turns(served, edited)
        assert "Something else." in served.engine.prompts[1]
        assert "An answer." not in served.engine.prompts[1]


async def test_dropped_reasoning_costs_only_the_answer(serve: Serve) -> None:
    async with serve(FakeEngine(["I think.</think>So."])) as served:
        first, second = await two_turns(served, lambda _: None, reasoning_effort="high")
        assert "I think." not in served.engine.prompts[1]
    assert second.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1


def test_system_messages_in_the_middle_stay_where_they_are() -> None:
    tool: Any = {"type": "function", "function": {"name": "x"}}
    conversation = Conversation(
        messages=[
            {"role": "system", "content": "One"},
            {"role": "system", "content": "Two"},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "Mind this."},
        ],
        tools=[tool],
    )
    assert arrange(conversation) == [
        {"role": "system", "content": "One\n\nTwo", "tools": [tool]},
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "Mind this."},
    ]


@pytest.mark.parametrize(
    ("profile", "word", "tier"),
    [
        ("preview", None, None),
        ("preview", "low", None),
        ("preview", "max", "max"),
        ("0731", None, "high"),
        ("0731", "minimal", "low"),
        ("0731", "medium", "high"),
        ("0731", "xhigh", "high"),
        ("0731", "max", "max"),
        ("0731", "unheard of", "high"),
    ],
)
def test_effort_follows_the_checkpoint(profile: str, word: str | None, tier: str | None) -> None:
    assert effort_tier(word, profile) == tier


def test_the_pool_evicts_what_is_least_worth_keeping() -> None:
    clock = [0.0]
    engine: Any = FakeEngine()
    pool = SessionPool(engine, 2, 4096, lambda: clock[0])

    def serve_prompt(prompt: list[int]) -> int:
        pooled, cached = pool.acquire(prompt)
        pooled.session.feed(prompt[cached:])  # type: ignore[attr-defined]
        pooled.tokens.extend(prompt[cached:])
        pool.release(pooled)
        return cached

    long, title = list(range(1000, 1500)), list(range(40))
    assert serve_prompt(long) == 0
    assert serve_prompt(title) == 0
    assert serve_prompt(list(range(500, 540))) == 0
    assert serve_prompt([*long, 7, 8]) == 500
    clock[0] = 86_400.0
    assert serve_prompt(list(range(300, 400))) == 0
    assert serve_prompt(list(range(600, 700))) == 0
    assert serve_prompt([*long, 7, 8, 9]) == 0
    assert len(pool) == engine.open_sessions == 2
    pool.close()
    assert engine.open_sessions == 0


@pytest.mark.parametrize("shared", [0, 1, 2, 63, 64, 65, 100])
def test_common_prefix_is_exact(shared: int) -> None:
    left = list(range(100))
    right = [*range(shared), *range(-100, 0)]
    assert common_prefix(left, right) == common_prefix(right, left) == shared


@pytest.mark.parametrize("cut", range(1, 12))
def test_stop_string_is_found_wherever_the_stream_is_cut(cut: int) -> None:
    text, stops = "ab<sto<stop>cd", StopStrings(["<stop>", "never"])
    shown = stops.feed(text[:cut]) + stops.feed(text[cut:])
    assert stops.matched == "<stop>"
    assert shown + stops.feed("more") == "ab<sto"


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    stops = StopStrings(["<stop>"])
    assert stops.feed("a <st") == "a "
    assert stops.feed("ay") == "<stay"
    assert stops.feed(" <sto") + stops.finish() == " <sto"
    assert stops.matched is None


def test_only_true_repetition_counts() -> None:
    guard = RepetitionGuard(window=64, longest_period=8, check_every=16)
    assert guard.repeats([1, 2, 3, 4] * 16)
    assert not guard.repeats([*([1, 2, 3, 4] * 15), 1, 2, 3, 5])
    assert not guard.repeats(list(range(9)) * 16)
    assert not guard.repeats([1] * 63)


async def test_the_profile_is_the_settings_or_the_models_own(serve: Serve) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "high"}
    prompts = []
    for bound, settings in (("0731", {}), ("0731", {"effort_profile": "preview"}), (None, {})):
        engine = FakeEngine()
        engine.profile = bound
        async with serve(engine, **settings) as served:
            answer = await served.http.post("/apply-template", json=body)
            prompts.append(answer.json()["prompt"])
    assert prompts[1] == prompts[2] != prompts[0]
