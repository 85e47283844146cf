"""POST /v1/responses through the official SDK, and as Codex speaks it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pyds4_server.responses.convert import seal, unseal
from server_fakes import FakeEngine
from server_harness import Serve, Served

from pyds4.errors import BackendError

READ: Any = {
    "type": "function",
    "name": "read",
    "description": "Read a file.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    },
}


def call_of(name: str, **arguments: str) -> str:
    parameters = "\n".join(
        f'<｜DSML｜parameter name="{key}" string="true">{value}</｜DSML｜parameter>'
        for key, value in arguments.items()
    )
    return (
        f'\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{name}">\n{parameters}\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )


async def events_of(served: Served, **body: Any) -> list[Any]:
    """The events of a streamed response, checked for what every one must have."""
    sent = {"model": "m", "input": "Hi", "stream": True} | body
    response = await served.http.post("/v1/responses", json=sent)
    assert response.status_code == 200, response.text
    events = []
    for frame in response.text.split("\n\n"):
        lines = [line for line in frame.split("\n") if line and not line.startswith(":")]
        if lines:
            events.append(json.loads(lines[1].removeprefix("data: ")))
            assert lines[0] == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def test_response_arrives_whole(served: Served) -> None:
    response = await served.openai.responses.create(
        model="any", instructions="Be brief.", input="Hi"
    )
    assert response.output_text == "Hello!"
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens > 1
    assert served.engine.prompts == [
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>"
    ]


async def test_streamed_response_is_the_whole_one(serve: Serve) -> None:
    text = "I think.</think>I read." + call_of("read", path="config.ini")
    async with (
        serve(FakeEngine([text])) as served,
        served.openai.responses.stream(
            model="m", input="Hi", tools=[READ], reasoning={"effort": "high", "summary": "auto"}
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        response = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    thought, message, call = response.output
    assert thought.type == "reasoning"
    assert thought.summary[0].text == "I think."
    assert message.type == "message"
    assert response.output_text == "I read."
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("read", {"path": "config.ini"})
    assert call.call_id.startswith("call_")


async def test_every_item_is_added_and_done_once_in_order(serve: Serve) -> None:
    text = "Hm.</think>So." + call_of("read", path="a")
    async with serve(FakeEngine([text])) as served:
        events = await events_of(served, tools=[READ], reasoning={"effort": "low"})
    added = [e["item"]["id"] for e in events if e["type"] == "response.output_item.added"]
    done = [e["item"]["id"] for e in events if e["type"] == "response.output_item.done"]
    final = events[-1]["response"]
    assert added == done == [item["id"] for item in final["output"]]
    for event in events:
        if "output_index" in event:
            identity = event.get("item_id") or event["item"]["id"]
            assert identity == added[event["output_index"]]
    text_deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(text_deltas) == "So."
    arguments = [
        e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta"
    ]
    assert json.loads("".join(arguments)) == {"path": "a"}


async def test_codex_turn_with_namespace_and_sealed_reasoning(serve: Serve) -> None:
    tools = [
        READ,
        {
            "type": "namespace",
            "name": "mcp__docs",
            "description": "Docs.",
            "tools": [READ | {"name": "search"}],
        },
        {"type": "web_search", "external_web_access": False},
        {"type": "custom", "name": "apply_patch", "description": "Patch.", "format": {}},
    ]
    answers = [
        "Hm.</think>" + call_of("mcp__docs__search", path="x"),
        "Now.</think>" + call_of("apply_patch", input="*** Begin Patch"),
        "Fine.</think>Done.",
    ]
    body: dict[str, Any] = {
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "abc",
        "reasoning": {"effort": "medium"},
    }
    items: list[Any] = [
        {"type": "message", "role": "developer", "content": [_text("You are Codex.")]},
        {"type": "message", "role": "user", "content": [_text("Find x.")]},
    ]
    async with serve(FakeEngine(answers)) as served:
        final = (await events_of(served, input=items, **body))[-1]["response"]
        thought, call = final["output"]
        assert (call["namespace"], call["name"]) == ("mcp__docs", "search")
        assert unseal(thought["encrypted_content"]) == "Hm."
        del thought["content"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "found"}
        items += [thought, call, result]
        final = (await events_of(served, input=items, **body))[-1]["response"]
        patch = final["output"][1]
        assert (patch["type"], patch["input"]) == ("custom_tool_call", "*** Begin Patch")
        output = {
            "type": "custom_tool_call_output",
            "call_id": patch["call_id"],
            "output": [_text("ok")],
        }
        items += [*final["output"], output]
        final = (await events_of(served, input=items, **body))[-1]["response"]
        assert final["output"][-1]["content"][0]["text"] == "Done."
        cached = final["usage"]["input_tokens_details"]["cached_tokens"]
        assert final["usage"]["input_tokens"] - cached < 30
        assert "web_search" not in served.engine.prompts[0]
        assert "<think>Hm.</think>" in served.engine.prompts[1]


def _text(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


async def test_previous_response_is_continued(served: Served) -> None:
    first = await served.openai.responses.create(model="m", input="One")
    second = await served.openai.responses.create(
        model="m", input="Two", previous_response_id=first.id
    )
    assert served.engine.prompts[1].endswith(
        "<｜User｜>One<｜Assistant｜></think>Hello!<｜end▁of▁sentence｜><｜User｜>Two<｜Assistant｜></think>"
    )
    assert (await served.openai.responses.retrieve(second.id)).output_text == "Hello!"
    items = await served.openai.responses.input_items.list(second.id)
    assert len(items.data) == 3
    await served.openai.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.create(model="m", input="x", previous_response_id=first.id)


async def test_only_so_many_responses_are_kept(serve: Serve) -> None:
    async with serve(stored_responses=2) as served:
        made = [await served.openai.responses.create(model="m", input=f"{i}") for i in range(3)]
        with pytest.raises(openai.NotFoundError):
            await served.openai.responses.retrieve(made[0].id)
        assert (await served.openai.responses.retrieve(made[2].id)).id == made[2].id
        unstored = await served.openai.responses.create(model="m", input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            await served.openai.responses.retrieve(unstored.id)


async def test_a_call_that_broke_off_is_never_done(serve: Serve) -> None:
    call = call_of("read", path="config.ini and a long path that goes on")
    async with serve(FakeEngine([call])) as served:
        tokens = len(served.engine.tokenizer.encode(call))
        events = await events_of(served, tools=[READ], max_output_tokens=tokens - 25)
    kinds = [event["type"] for event in events]
    assert kinds[-1] == "response.incomplete"
    assert "response.function_call_arguments.delta" in kinds
    assert "response.output_item.done" not in kinds
    assert events[-1]["response"]["output"] == []
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_engine_error_ends_with_response_failed(serve: Serve) -> None:
    engine = FakeEngine()
    async with serve(engine) as served:
        engine.fail_step = BackendError("on fire")
        events = await events_of(served)
    assert events[-1]["type"] == "response.failed"
    assert "on fire" in events[-1]["response"]["error"]["message"]


async def test_silence_is_filled_with_events(serve: Serve) -> None:
    async with serve(FakeEngine(step_s=0.3), keepalive_s=0.05) as served:
        events = await events_of(served, max_output_tokens=2)
    assert [event["type"] for event in events].count("response.in_progress") > 4


async def test_websockets_are_refused_at_once(served: Served) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    response = await served.http.get("/v1/responses", headers=upgrade)
    assert response.status_code == 405


async def test_input_tokens_are_counted(served: Served) -> None:
    counted = await served.http.post(
        "/v1/responses/input_tokens", json={"model": "m", "input": "Hi"}
    )
    response = await served.openai.responses.create(model="m", input="Hi")
    assert response.usage is not None
    assert counted.json()["input_tokens"] == response.usage.input_tokens


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": [{"type": "message", "content": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0]"),
        ({"input": []}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ],
)
async def test_the_field_at_fault_is_named(
    served: Served, change: dict[str, Any], param: str
) -> None:
    response = await served.http.post("/v1/responses", json={"model": "m", "input": "Hi"} | change)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("sealed", ["", "gAAAA", "pyds4.", "pyds4.!!", "pyds4.AAAA"])
def test_foreign_seals_open_to_nothing(sealed: str) -> None:
    assert not unseal(sealed)
    assert unseal(seal("Grüße, 世界")) == "Grüße, 世界"
