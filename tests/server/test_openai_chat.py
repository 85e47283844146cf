"""POST /v1/chat/completions through the official SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from server_fakes import FakeEngine
from server_harness import Serve, Served

READ: Any = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Read a file.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
        },
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


async def test_answer_arrives_whole(served: Served) -> None:
    answer = await served.openai.chat.completions.create(model="any", messages=HI)
    choice = answer.choices[0]
    assert choice.message.content == "Hello!"
    assert choice.finish_reason == "stop"
    assert answer.model == "any"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert served.engine.prompts == ["<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"]


async def test_streamed_pieces_add_up_to_the_answer(serve: Serve) -> None:
    text = "Grüße, 世界! 🎉 and more"
    async with serve(FakeEngine([text])) as served:
        stream = await served.openai.chat.completions.create(
            model="any", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


async def test_stream_has_no_usage_unless_asked(served: Served) -> None:
    stream = await served.openai.chat.completions.create(model="m", messages=HI, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_reasoning_comes_apart_from_content(serve: Serve) -> None:
    async with serve(FakeEngine(["I think.</think>I say."])) as served:
        answer = await served.openai.chat.completions.create(
            model="m", messages=HI, reasoning_effort="high"
        )
        message: Any = answer.choices[0].message
        assert message.reasoning_content == "I think."
        assert message.reasoning == "I think."
        assert message.content == "I say."
        assert answer.usage is not None
        details = answer.usage.completion_tokens_details
        assert details is not None
        assert details.reasoning_tokens is not None
        assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
        assert served.engine.prompts[0].endswith("<｜Assistant｜><think>")


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, True),
        ({"reasoning_effort": "xhigh"}, True),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": False}, "reasoning_effort": "high"}, False),
    ],
)
async def test_thinking_follows_the_most_explicit_word(
    served: Served, body: dict[str, Any], thinks: bool
) -> None:
    await served.openai.chat.completions.create(model="m", messages=HI, extra_body=body)
    assert served.engine.prompts[0].endswith("<think>" if thinks else "</think>")


async def test_tool_call_and_result_make_a_round_trip(serve: Serve) -> None:
    async with serve(FakeEngine([CALL, "The port is 8471."])) as served:
        messages: list[Any] = [{"role": "user", "content": "Which port?"}]
        first = await served.openai.chat.completions.create(
            model="m", messages=messages, tools=[READ]
        )
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert message.content is None
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "read",
            {"path": "config.ini"},
        )
        messages += [
            message.model_dump(exclude_unset=True),
            {"role": "tool", "tool_call_id": call.id, "content": "port = 8471"},
        ]
        second = await served.openai.chat.completions.create(
            model="m", messages=messages, tools=[READ]
        )
        assert second.choices[0].message.content == "The port is 8471."
        assert served.engine.prompts[1].endswith(
            f"{CALL}<｜end▁of▁sentence｜><｜User｜><tool_result>port = 8471</tool_result>"
            "<｜Assistant｜></think>"
        )
        assert second.usage is not None
        assert second.usage.prompt_tokens_details is not None
        cached = second.usage.prompt_tokens_details.cached_tokens
        assert first.usage is not None
        assert cached is not None
        assert cached >= first.usage.total_tokens - 2


async def test_streamed_tool_call_has_its_id_and_name_first(serve: Serve) -> None:
    async with serve(FakeEngine([CALL])) as served:
        stream = await served.openai.chat.completions.create(
            model="m", messages=HI, tools=[READ], stream=True
        )
        chunks = [chunk async for chunk in stream]
    deltas = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]
    assert deltas[0].id
    assert deltas[0].function is not None
    assert deltas[0].function.name == "read"
    assert all(delta.id is None for delta in deltas[1:])
    fragments = [delta.function.arguments or "" for delta in deltas if delta.function]
    assert json.loads("".join(fragments)) == {"path": "config.ini"}
    assert len(fragments) > 2
    assert all(not c.choices[0].delta.content for c in chunks if c.choices)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("cut", range(20, 60, 7))
async def test_truncated_call_is_no_call(serve: Serve, cut: int) -> None:
    tokens = FakeEngine().tokenizer.encode(CALL)
    async with serve(FakeEngine([tokens[:cut]])) as served:
        answer = await served.openai.chat.completions.create(
            model="m", messages=HI, tools=[READ], max_tokens=min(cut, len(tokens) - 12)
        )
    assert answer.choices[0].finish_reason == "length"
    assert not answer.choices[0].message.tool_calls


async def test_max_tokens_ends_with_length(served: Served) -> None:
    answer = await served.openai.chat.completions.create(model="m", messages=HI, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string_is_never_shown(serve: Serve, stream: bool) -> None:
    async with serve(FakeEngine(["one two END three"])) as served:
        if stream:
            pieces = await served.openai.chat.completions.create(
                model="m", messages=HI, stop=["END"], stream=True
            )
            text = "".join([c.choices[0].delta.content or "" async for c in pieces])
        else:
            answer = await served.openai.chat.completions.create(model="m", messages=HI, stop="END")
            assert answer.choices[0].finish_reason == "stop"
            text = answer.choices[0].message.content or ""
    assert text == "one two "


async def test_several_choices_are_answered_apart(served: Served) -> None:
    answer = await served.openai.chat.completions.create(model="m", messages=HI, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Hello!"}
    stream = await served.openai.chat.completions.create(model="m", messages=HI, n=2, stream=True)
    texts = ["", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hello!", "Hello!"]


async def test_logprobs_cover_the_content(served: Served) -> None:
    answer = await served.openai.chat.completions.create(
        model="m", messages=HI, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(t.bytes or ()) for t in logprobs.content) == b"Hello!"
    assert all(-0.01 < token.logprob <= 0 for token in logprobs.content)
    assert all(token.top_logprobs[0].token == token.token for token in logprobs.content)
    assert all(len(token.top_logprobs) == 2 for token in logprobs.content)


async def test_tool_choice_none_bans_calls(serve: Serve) -> None:
    async with serve(FakeEngine([CALL])) as served:
        answer = await served.openai.chat.completions.create(
            model="m", messages=HI, tools=[READ], tool_choice="none", max_tokens=30
        )
        assert not answer.choices[0].message.tool_calls
        assert "｜DSML｜" not in (answer.choices[0].message.content or "")
        assert '"name": "read"' in served.engine.prompts[0]


@pytest.mark.parametrize("effort", ["none", "high"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "read"}}])
async def test_required_call_is_forced(serve: Serve, choice: Any, effort: Any) -> None:
    rest = CALL.split('name="read">\n')[1]
    thought = "Hm.</think>" if effort == "high" else ""
    async with serve(FakeEngine([thought + rest])) as served:
        other: Any = {"type": "function", "function": {"name": "write", "parameters": {}}}
        answer = await served.openai.chat.completions.create(
            model="m",
            messages=HI,
            tools=[READ, other],
            tool_choice=choice,
            reasoning_effort=effort,
        )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    if choice != "required":
        assert calls[0].function.name == "read"
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_only_one_call_without_parallel_calls(serve: Serve) -> None:
    invoke = CALL.split("tool_calls>\n", 1)[1].rsplit("\n</｜DSML｜tool", 1)[0]
    two = CALL.replace(invoke, f"{invoke}\n{invoke}")
    async with serve(FakeEngine([two])) as served:
        both = await served.openai.chat.completions.create(model="m", messages=HI, tools=[READ])
        one = await served.openai.chat.completions.create(
            model="m", messages=HI, tools=[READ], parallel_tool_calls=False
        )
    assert len(both.choices[0].message.tool_calls or ()) == 2
    assert len(one.choices[0].message.tool_calls or ()) == 1
    assert one.choices[0].finish_reason == "tool_calls"


async def test_thinking_budget_closes_the_reasoning(serve: Serve) -> None:
    async with serve(FakeEngine(["word " * 200])) as served:
        answer = await served.openai.chat.completions.create(
            model="m",
            messages=HI,
            max_tokens=40,
            extra_body={"thinking": {"type": "enabled", "budget_tokens": 10}},
        )
    message: Any = answer.choices[0].message
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 11
    assert message.reasoning_content
    assert message.content


async def test_legacy_functions_get_a_function_call(serve: Serve) -> None:
    async with serve(FakeEngine([CALL])) as served:
        answer = await served.openai.chat.completions.create(
            model="m", messages=HI, functions=[READ["function"]]
        )
    message = answer.choices[0].message
    assert message.function_call is not None
    assert message.function_call.name == "read"
    assert answer.choices[0].finish_reason == "function_call"


async def test_last_assistant_message_is_continued(serve: Serve) -> None:
    async with serve(FakeEngine(["lo!"])) as served:
        messages: Any = [*HI, {"role": "assistant", "content": "Hel"}]
        answer = await served.openai.chat.completions.create(model="m", messages=messages)
        assert served.engine.prompts[0].endswith("<｜Assistant｜></think>Hel")
    assert answer.choices[0].message.content == "lo!"


async def test_overflow_is_refused_with_the_words_clients_look_for(serve: Serve) -> None:
    async with serve(FakeEngine(context=16)) as served:
        messages: Any = [{"role": "user", "content": "word " * 50}]
        with pytest.raises(openai.BadRequestError) as refused:
            await served.openai.chat.completions.create(model="m", messages=messages, stream=True)
    assert refused.value.code == "context_length_exceeded"
    assert "maximum context length is 16 tokens" in refused.value.message


async def test_answer_ends_where_the_context_does(serve: Serve) -> None:
    async with serve(FakeEngine(["word " * 400], context=64)) as served:
        answer = await served.openai.chat.completions.create(model="m", messages=HI)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 64


async def test_content_is_null_until_it_comes_where_calls_may_come_instead(serve: Serve) -> None:
    tool: Any = {"type": "function", "function": {"name": "go"}}
    async with serve(FakeEngine(["Hello!"])) as served:
        for tools, first in ((None, ""), ([tool], None)):
            body = {"model": "m", "messages": HI, "stream": True, "tools": tools}
            reply = await served.http.post("/v1/chat/completions", json=body)
            lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
            deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
            assert deltas[0] == {"role": "assistant", "content": first}
            assert "".join(delta.get("content") or "" for delta in deltas) == "Hello!"
