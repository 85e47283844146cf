"""POST /v1/messages and count_tokens through the official SDK."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import pytest
from server_fakes import FakeEngine
from server_harness import Serve, Served

from pyds4.errors import BackendError

READ: Any = {
    "name": "read",
    "description": "Read a file.",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    },
}
CALL = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="read">\n'
    '<｜DSML｜parameter name="path" string="true">config.ini</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    "</｜DSML｜tool_calls>"
)
HI: Any = [{"role": "user", "content": "Hi"}]
THINK: Any = {"type": "enabled", "budget_tokens": 2000}


async def events_of(served: Served, **body: Any) -> list[tuple[str, Any]]:
    """The raw events of a streamed message."""
    sent = {"model": "m", "max_tokens": 500, "messages": HI, "stream": True} | body
    response = await served.http.post("/v1/messages?beta=true", json=sent)
    assert response.status_code == 200, response.text
    events = []
    for frame in response.text.split("\n\n"):
        lines = [line for line in frame.split("\n") if line and not line.startswith(":")]
        if lines:
            assert lines[0].startswith("event: ")
            events.append((lines[0][7:], json.loads(lines[1][6:])))
    return events


async def test_message_arrives_whole(served: Served) -> None:
    message = await served.anthropic.messages.create(model="any", max_tokens=100, messages=HI)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].type == "text"
    assert message.content[0].text == "Hello!"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 1
    assert message.model == "any"


async def test_streamed_message_is_the_whole_one(serve: Serve) -> None:
    async with (
        serve(FakeEngine(["I think.</think>I call." + CALL])) as served,
        served.anthropic.messages.stream(
            model="m", max_tokens=500, messages=HI, tools=[READ], thinking=THINK
        ) as stream,
    ):
        message = await stream.get_final_message()
    thought, text, call = message.content
    assert thought.type == "thinking"
    assert thought.thinking == "I think."
    assert thought.signature
    assert text.type == "text"
    assert text.text == "I call."
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("read", {"path": "config.ini"})
    assert call.id.startswith("toolu_")
    assert message.stop_reason == "tool_use"


async def test_events_keep_their_order(serve: Serve) -> None:
    async with serve(FakeEngine(["Hm.</think>So." + CALL])) as served:
        tool = READ | {"cache_control": {"type": "ephemeral"}}
        events = await events_of(served, thinking={"type": "adaptive"}, tools=[tool])
    kinds = [kind for kind, _ in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    open_index = None
    for kind, event in events:
        assert event["type"] == kind
        if kind == "content_block_start":
            assert open_index is None
            open_index = event["index"]
        elif kind == "content_block_delta":
            assert event["index"] == open_index
        elif kind == "content_block_stop":
            assert event["index"] == open_index
            open_index = None
    starts = [e["content_block"]["type"] for kind, e in events if kind == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    deltas = [event["delta"] for kind, event in events if kind == "content_block_delta"]
    assert next(d["signature"] for d in deltas if d["type"] == "signature_delta")
    partial = "".join(d["partial_json"] for d in deltas if d["type"] == "input_json_delta")
    assert json.loads(partial) == {"path": "config.ini"}
    assert dict(events)["message_delta"]["delta"]["stop_reason"] == "tool_use"


async def test_tool_result_round_trip_reuses_the_conversation(serve: Serve) -> None:
    async with serve(FakeEngine(["Hm.</think>" + CALL, "Done.</think>It is 8471."])) as served:
        body: Any = {"model": "m", "max_tokens": 500, "tools": [READ], "thinking": THINK}
        first = await served.anthropic.messages.create(messages=HI, **body)
        call = first.content[-1]
        assert call.type == "tool_use"
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "port = 8471"}],
            "cache_control": {"type": "ephemeral"},
        }
        # A client that leaves the thinking out still gets the cached turn.
        answer: Any = {"role": "assistant", "content": [call.model_dump()]}
        messages = [*HI, answer, {"role": "user", "content": [result]}]
        second = await served.anthropic.messages.create(messages=messages, **body)
        assert "<think>Hm.</think>" in served.engine.prompts[1]
        assert served.engine.prompts[1].endswith(
            "<tool_result>port = 8471</tool_result><｜Assistant｜><think>"
        )
    cached = second.usage.cache_read_input_tokens
    assert cached is not None
    used = first.usage.input_tokens + first.usage.output_tokens
    assert cached >= used - 2
    assert second.usage.input_tokens < 40


async def test_count_tokens_is_what_a_message_then_uses(served: Served) -> None:
    body: Any = {"model": "m", "messages": HI, "system": "Be brief.", "tools": [READ]}
    counted = await served.anthropic.messages.count_tokens(**body)
    message = await served.anthropic.messages.create(max_tokens=5, **body)
    assert counted.input_tokens == message.usage.input_tokens


async def test_volatile_parts_of_claude_code_stay_out_of_the_prompt(served: Served) -> None:
    def system(cch: str) -> Any:
        return [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={cch};"},
            {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}},
        ]

    for cch in ("aaaa", "bbbb"):
        await served.http.post(
            "/v1/messages?beta=true",
            json={
                "model": "claude-x",
                "max_tokens": 32000,
                "system": system(cch),
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {"role": "system", "content": "Mode: plan."},
                ],
                "thinking": {"type": "adaptive"},
                "output_config": {"effort": "high"},
                "context_management": {"edits": []},
                "metadata": {"user_id": "u"},
            },
            headers={"anthropic-beta": "unheard-of-2030", "anthropic-version": "2023-06-01"},
        )
    assert (
        served.engine.prompts
        == ["<｜begin▁of▁sentence｜>You help.<｜User｜>Hi\n\nMode: plan.<｜Assistant｜><think>"] * 2
    )


async def test_deferred_tools_stand_where_they_were_loaded(served: Served) -> None:
    late = READ | {"name": "late", "defer_loading": True}
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "ToolSearch", "input": {"query": "late"}}
    reference = {"type": "tool_reference", "tool_name": "late"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [reference]}
    body: dict[str, Any] = {"model": "m", "max_tokens": 9, "tools": [READ, late, search]}
    before = await served.http.post("/v1/messages", json=body | {"messages": HI})
    after = await served.http.post(
        "/v1/messages",
        json=body
        | {
            "messages": [
                *HI,
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [result]},
            ]
        },
    )
    assert before.status_code == after.status_code == 200
    first, second = served.engine.prompts
    assert '"name": "late"' not in first
    head, _, tail = second.partition("<tool_result>")
    assert '"name": "late"' not in head
    assert '"name": "late"' in tail
    assert second.startswith(first.split("<｜User｜>")[0])


async def test_images_are_refused_but_named_in_tool_results(served: Served) -> None:
    image: Any = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "AA=="},
    }
    with pytest.raises(anthropic.BadRequestError, match="reads text only"):
        await served.anthropic.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": [image]}]
        )
    result: Any = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    await served.anthropic.messages.create(
        model="m", max_tokens=9, messages=[{"role": "user", "content": [result]}]
    )
    assert "<tool_result>[Unsupported image]</tool_result>" in served.engine.prompts[0]


async def test_stop_sequence_is_reported(serve: Serve) -> None:
    async with serve(FakeEngine(["one END two"])) as served:
        message = await served.anthropic.messages.create(
            model="m", max_tokens=99, messages=HI, stop_sequences=["END"]
        )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


@pytest.mark.parametrize(
    ("choice", "calls"),
    [({"type": "any"}, True), ({"type": "tool", "name": "read"}, True), ({"type": "none"}, False)],
)
async def test_tool_choice_is_enforced(serve: Serve, choice: Any, calls: bool) -> None:
    rest = CALL.split('name="read">\n')[1]
    async with serve(FakeEngine([rest if calls else CALL])) as served:
        message = await served.anthropic.messages.create(
            model="m", max_tokens=60, messages=HI, tools=[READ], tool_choice=choice
        )
    assert (message.stop_reason == "tool_use") is calls


async def test_truncated_call_ends_its_block_and_is_no_tool_use(serve: Serve) -> None:
    async with serve(FakeEngine([CALL])) as served:
        tokens = len(served.engine.tokenizer.encode(CALL))
        events = await events_of(served, tools=[READ], max_tokens=tokens - 20)
        assert dict(events)["message_delta"]["delta"]["stop_reason"] == "max_tokens"
        kinds = [kind for kind, _ in events]
        assert kinds.count("content_block_start") == kinds.count("content_block_stop")


async def test_errors_have_anthropics_shape(serve: Serve) -> None:
    engine = FakeEngine(context=20)
    async with serve(engine, max_active=1, max_waiting=0) as served:
        long: Any = [{"role": "user", "content": "word " * 60}]
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 20"):
            await served.anthropic.messages.create(model="m", max_tokens=9, messages=long)
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await served.anthropic.messages.create(model="m", max_tokens=0, messages=HI)
        engine.gate.clear()
        first = asyncio.create_task(
            served.anthropic.messages.create(model="m", max_tokens=9, messages=HI)
        )
        while not served.active:
            await asyncio.sleep(0.005)
        with pytest.raises(anthropic.APIStatusError) as overloaded:
            await served.anthropic.messages.create(model="m", max_tokens=9, messages=HI)
        assert overloaded.value.status_code == 529
        assert overloaded.value.response.json()["error"]["type"] == "overloaded_error"
        assert overloaded.value.response.headers["retry-after"]
        engine.gate.set()
        await first


async def test_engine_error_in_a_stream_is_an_error_event(serve: Serve) -> None:
    engine = FakeEngine()
    async with serve(engine) as served:
        engine.fail_step = BackendError("on fire")
        events = await events_of(served)
    assert events[-1][0] == "error"
    assert "on fire" in events[-1][1]["error"]["message"]


async def test_silence_is_filled_with_pings(serve: Serve) -> None:
    async with serve(FakeEngine(step_s=0.3), keepalive_s=0.05) as served:
        events = await events_of(served, max_tokens=2)
    assert [kind for kind, _ in events].count("ping") > 2
