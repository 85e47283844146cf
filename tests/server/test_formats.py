"""Answers and tool calls in the form that a request demands, whatever the model would say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from pyds4_server.formats import Formats
from pyds4_server.generation import Generation, GenerationRequest, SpecialTokens
from pyds4_server.grammar import Grammar, GrammarError, check_schema, compiler_for
from pyds4_server.sampling import SamplingOptions, TokenChooser
from pyds4_server.strict_calls import call_grammar
from server_fakes import TOKENIZER, FakeEngine
from server_harness import Serve, serving

import pyds4
from pyds4 import Sampler, Sampling
from pyds4.chat import parse
from pyds4.default_model import find_model

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
DSML = TOKENIZER.token_id("｜DSML｜")
HI: Any = [{"role": "user", "content": "hi"}]


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int
    unit: Literal["cm", "inch"]


class Thing(BaseModel):
    """One of everything that a schema is usually made of."""

    model_config = ConfigDict(extra="forbid")
    name: str
    kind: Literal["a", "b"]
    count: int
    share: float | None
    sizes: list[Size] = Field(max_length=3)
    is_new: bool


THING = '{"name": "x \\"y\\"", "kind": "b", "count": 3, "share": null, "sizes": [], "is_new": true}'


def chat_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, **more}}


# The grammar by itself


def drawn(grammar: Grammar, seed: int, free: int, closers: Sequence[str]) -> str:
    """A text that the grammar allows: ``free`` random tokens, then the first of ``closers``."""
    chance = random.Random(seed)
    following = grammar.begin()
    tokens: list[int] = []
    eos = TOKENIZER.eos_id
    closing = [eos, *map(TOKENIZER.token_id, closers)]
    while True:
        mask = following.allowed()
        allowed = np.flatnonzero(mask).tolist()
        if len(tokens) < free and allowed != [eos]:
            token = chance.choice(allowed)
        else:
            token = next((t for t in closing if t is not None and mask[t]), allowed[0])
        if token == eos:
            return TOKENIZER.decode(tokens)
        tokens.append(token)
        assert len(tokens) < 1000
        following.advance(token)


SEEDS, LENGTHS = st.integers(0, 2**32), st.integers(0, 150)


@settings(deadline=None, max_examples=40)
@given(SEEDS, LENGTHS)
def test_whatever_tokens_come_the_text_fits_the_schema(seed: int, free: int) -> None:
    grammar = compiler_for(TOKENIZER).from_schema(Thing.model_json_schema(), strict=True)
    Thing.model_validate_json(drawn(grammar, seed, free, '"}]0a'))


@settings(deadline=None, max_examples=40)
@given(SEEDS, LENGTHS)
def test_any_object_is_json(seed: int, free: int) -> None:
    grammar = compiler_for(TOKENIZER).from_schema({"type": "object"}, strict=False)
    assert isinstance(json.loads(drawn(grammar, seed, free, '"}]0a')), dict)


TOOL: Any = {
    "name": "resize",
    "parameters": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "size": {"$ref": "#/$defs/Size"},
            "mode": {"enum": ["fit", "fill", 3]},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "times": {"type": ["integer", "string"]},
        },
        "required": ["path", "size", "mode"],
        "additionalProperties": False,
        "$defs": {"Size": Size.model_json_schema()},
    },
    "strict": True,
}
TOOLS: Any = [
    {"type": "function", "function": TOOL},
    {"type": "function", "function": {"name": "free"}},
]


def calls_of(block: str) -> list[Any]:
    """The calls of a block that stands at the end of an answer."""
    assert block.endswith("</｜DSML｜tool_calls>")
    turn = parse(f"\n\n<｜DSML｜{block}<｜end▁of▁sentence｜>", "chat")
    return list(turn["tool_calls"])


@settings(deadline=None, max_examples=40)
@given(SEEDS, LENGTHS)
def test_whatever_tokens_come_a_strict_call_fits_its_schema(seed: int, free: int) -> None:
    assert DSML is not None
    grammar = compiler_for(TOKENIZER).from_lark(call_grammar(TOOLS[:1], {"resize"}, DSML))
    for call in calls_of(drawn(grammar, seed, free, ("｜DSML｜", "</", *'"}]/<0a'))):
        arguments = json.loads(call["function"]["arguments"])
        assert {"path", "size", "mode"} <= set(arguments) <= set(TOOL["parameters"]["properties"])
        assert isinstance(arguments["path"], str)
        assert arguments["mode"] in ("fit", "fill", 3)
        assert isinstance(arguments.get("note"), str | None)
        assert isinstance(arguments.get("times", 1), int | str)
        Size.model_validate(arguments["size"])


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "thing"}, "thing"),
        ({"type": "object", "properties": 3}, "properties"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"$ref": "http://example.com/schema.json"}, "example.com"),
        ({"type": "string", "pattern": "("}, "unclosed"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"enum": []}, "anyOf"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(schema: Any, says: str) -> None:
    with pytest.raises(GrammarError, match=says.replace(".", r"\.")):
        check_schema(schema)
    with pytest.raises(GrammarError):
        compiler_for(TOKENIZER).from_schema(schema, strict=False)


def test_a_deep_schema_is_refused_not_followed() -> None:
    schema: Any = {"type": "integer"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="recursion limit"):
        check_schema(schema)


def test_equal_schemas_are_compiled_once() -> None:
    compiler = compiler_for(TOKENIZER)
    schema = {"type": "object", "title": "compiled once"}
    assert compiler.from_schema(schema, strict=True) is compiler.from_schema(schema, strict=True)
    assert compiler is compiler_for(TOKENIZER)


def test_blanks_between_parts_come_to_an_end() -> None:
    following = compiler_for(TOKENIZER).from_schema({"type": "object"}, strict=False).begin()
    blank = TOKENIZER.token_id(" ")
    assert blank is not None
    following.advance(TOKENIZER.encode("{")[0])
    count = 0
    while following.allowed()[blank]:
        following.advance(blank)
        count += 1
    assert 1 < count < 100


# In an answer


def generated(wanted: str, request: GenerationRequest, most: int = 300) -> Generation:
    """What becomes of an answer whose model wants to say ``wanted``."""
    vocab = TOKENIZER.vocab_size
    sampler = Sampler(Sampling(temperature=0.0))
    chooser = TokenChooser(SamplingOptions(temperature=0.0), request.prompt, vocab, sampler)
    generation = Generation(request, TOKENIZER, SpecialTokens.of(TOKENIZER), chooser)
    plan = TOKENIZER.encode(wanted)
    at = 0
    while generation.finish_reason is None and len(generation.tokens) < most:
        scores = np.zeros(vocab, np.float32)
        scores[plan[at] if at < len(plan) else TOKENIZER.eos_id or 0] = 20.0
        if generation.engine_may_sample:
            token = int(np.argmax(scores))
        else:
            token = generation.choose(scores)
        at += at < len(plan) and token == plan[at]
        generation.accept(token)
    return generation


def said(generation: Generation) -> str:
    return TOKENIZER.decode(token for token in generation.tokens if token != TOKENIZER.eos_id)


def text_format(schema: Any) -> Formats:
    return Formats(compiler_for(TOKENIZER).from_schema(schema, strict=False), None)


FINITE = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "unit": {"enum": ["cm", "inch"]}},
    "required": ["ok", "unit"],
    "additionalProperties": False,
}


def test_reasoning_is_free_and_the_answer_is_not() -> None:
    request = GenerationRequest(
        prompt=[5], max_tokens=300, thinking=True, formats=text_format(FINITE)
    )
    generation = generated("So: {not json}</think>Sure, here it is!", request)
    reasoning, _, answer = said(generation).partition("</think>")
    assert reasoning == "So: {not json}"
    assert set(json.loads(answer)) == {"ok", "unit"}
    assert generation.finish_reason == "stop"


def test_a_fitting_answer_is_left_as_it_is() -> None:
    wanted = '{"ok": true,\n "unit": "inch"}'
    request = GenerationRequest(prompt=[5], max_tokens=300, formats=text_format(FINITE))
    assert said(generated(wanted, request)) == wanted


def test_an_answer_goes_on_from_the_prompts_beginning_of_it() -> None:
    request = GenerationRequest(
        prompt=[5], max_tokens=300, prefill='{"ok": fal', formats=text_format(FINITE)
    )
    assert json.loads('{"ok": fal' + said(generated("Sure!", request)))["ok"] is False


def test_text_in_the_token_that_ends_the_reasoning_counts() -> None:
    """A marker that is spelled with ordinary tokens may end in the middle of one."""
    request = GenerationRequest(
        prompt=[5], max_tokens=300, thinking=True, formats=text_format(FINITE)
    )
    fused = TOKENIZER.token_id(">>")
    assert fused is not None
    spelled = [*TOKENIZER.encode("Hm</think", special=False), fused]
    vocab = TOKENIZER.vocab_size
    sampler = Sampler(Sampling(temperature=0.0))
    chooser = TokenChooser(SamplingOptions(temperature=0.0), [5], vocab, sampler)
    generation = Generation(request, TOKENIZER, SpecialTokens.of(TOKENIZER), chooser)
    for token in spelled:
        assert generation.engine_may_sample
        generation.accept(token)
    assert not generation.engine_may_sample
    scores = np.zeros(vocab, np.float32)
    assert TOKENIZER.decode([generation.choose(scores)]).startswith("{")


CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{}">\n{}'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


def parameter(name: str, value: str, string: bool) -> str:
    kind = "true" if string else "false"
    return f'<｜DSML｜parameter name="{name}" string="{kind}">{value}</｜DSML｜parameter>\n'


def test_a_tool_may_be_called_instead_of_an_answer_in_the_format() -> None:
    wanted = CALL.format("free", parameter("x", "1", False))
    request = GenerationRequest(
        prompt=[5], max_tokens=300, tools=TOOLS, formats=text_format(FINITE)
    )
    generation = generated(wanted, request)
    assert said(generation) == wanted
    assert generation.finish_reason == "tool_calls"


def call_formats(*strict: str) -> Formats:
    assert DSML is not None
    return Formats(None, compiler_for(TOKENIZER).from_lark(call_grammar(TOOLS, strict, DSML)))


def test_a_strict_call_that_fits_is_left_as_it_is() -> None:
    wanted = "I look." + CALL.format(
        "resize",
        parameter("path", "a </b>\n<c> </ d", True)
        + parameter("size", '{"width": 3, "unit": "cm"}', False)
        + parameter("mode", "fill", True)
        + parameter("note", "null", False),
    )
    request = GenerationRequest(
        prompt=[5], max_tokens=600, tools=TOOLS, formats=call_formats("resize")
    )
    assert said(generated(wanted, request, 600)) == wanted


def test_a_strict_call_is_kept_to_its_schema() -> None:
    wanted = CALL.format("resize", parameter("mode", "stretch", True))
    request = GenerationRequest(
        prompt=[5], max_tokens=600, tools=TOOLS, formats=call_formats("resize")
    )
    text = said(generated(wanted, request, 120))
    assert 'parameter name="path" string="true">' in text
    assert 'name="mode"' not in text.partition('name="path"')[0]


def test_other_tools_beside_a_strict_one_stay_free() -> None:
    for body in (parameter("any", "[1, {}]", False), "", "\n", parameter("a", "b", True) * 2):
        wanted = CALL.format("free", body)
        request = GenerationRequest(
            prompt=[5], max_tokens=300, tools=TOOLS, formats=call_formats("resize")
        )
        assert said(generated(wanted, request)) == wanted


def test_a_forced_call_of_a_strict_tool_keeps_its_schema() -> None:
    request = GenerationRequest(
        prompt=[5],
        max_tokens=300,
        tools=TOOLS,
        tool_choice="required",
        callable_names=["resize"],
        formats=Formats(text_format(FINITE).text, call_formats("resize").calls),
    )
    text = said(generated("No!", request, 100))
    assert text.startswith(
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="resize">\n<｜DSML｜parameter name="path"'
    )


def test_a_format_that_becomes_too_complex_ends_the_answer_not_the_server() -> None:
    from pyds4_server.grammar import FollowingError

    following = compiler_for(TOKENIZER).from_schema({"const": 1}, strict=False).begin()
    with pytest.raises(FollowingError, match="could not be followed"):
        following.advance(TOKENIZER.encode("x")[0])


# Over the protocols


async def test_chat_answers_as_the_sdk_parses_it(serve: Serve) -> None:
    async with serve(FakeEngine([THING])) as served:
        answer = await served.openai.chat.completions.parse(
            model="m", messages=HI, response_format=Thing
        )
        assert answer.choices[0].message.parsed == Thing.model_validate_json(THING)
        async with served.openai.chat.completions.stream(
            model="m", messages=HI, response_format=Thing
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == Thing.model_validate_json(THING)


async def test_responses_answer_as_the_sdk_parses_it(serve: Serve) -> None:
    async with serve(FakeEngine([THING])) as served:
        answer = await served.openai.responses.parse(model="m", input="hi", text_format=Thing)
        assert answer.output_parsed == Thing.model_validate_json(THING)


async def test_messages_answer_as_the_sdk_parses_it(serve: Serve) -> None:
    async with serve(FakeEngine([THING])) as served:
        answer = await served.anthropic.messages.parse(
            model="m", messages=HI, max_tokens=200, output_format=Thing
        )
        assert answer.parsed_output == Thing.model_validate_json(THING)


def bodies(schema: Any) -> list[tuple[str, dict[str, Any], str]]:
    """A request with ``schema`` for every protocol and place, and how the place is called."""
    named = {"type": "json_schema", "name": "s", "schema": schema, "strict": True}
    plain = {"type": "json_schema", "schema": schema}
    messages: dict[str, Any] = {"messages": HI, "max_tokens": 300}
    return [
        (
            CHAT,
            {"messages": HI, "response_format": chat_format(schema, strict=True)},
            "response_format.json_schema.schema",
        ),
        (RESPONSES, {"input": "hi", "text": {"format": named}}, "text.format.schema"),
        (MESSAGES, messages | {"output_format": plain}, "output_format.schema"),
        (
            MESSAGES,
            messages | {"output_config": {"format": plain}},
            "output_config.format.schema",
        ),
    ]


def text_of(path: str, reply: Any) -> str:
    if path == CHAT:
        return str(reply["choices"][0]["message"]["content"])
    if path == RESPONSES:
        return str(reply["output"][-1]["content"][0]["text"])
    return str(reply["content"][0]["text"])


async def test_every_protocol_forces_the_format(serve: Serve) -> None:
    async with serve(FakeEngine(["Sure! I would love to."])) as served:
        for path, body, _ in bodies(FINITE):
            reply = await served.http.post(path, json=body | {"model": "m", "temperature": 0})
            assert reply.status_code == 200, reply.text
            assert set(json.loads(text_of(path, reply.json()))) == {"ok", "unit"}
        chat = {"model": "m", "messages": HI, "response_format": {"type": "json_object"}}
        reply = await served.http.post(CHAT, json=chat | {"max_tokens": 5})
        assert text_of(CHAT, reply.json()).startswith("{")


@pytest.mark.parametrize(
    ("schema", "says"), [({"type": "thing"}, "thing"), ({"not": {"type": "string"}}, "not")]
)
async def test_every_protocol_names_the_schema_at_fault(
    serve: Serve, schema: Any, says: str
) -> None:
    async with serve() as served:
        for path, body, where in bodies(schema):
            reply = await served.http.post(path, json=body | {"model": "m"})
            assert reply.status_code == 400
            message = reply.json()["error"]["message"]
            assert message.startswith(f"{where}: ")
            assert says in message


async def test_what_cannot_be_enforced_is_passed_over_unless_strict(serve: Serve) -> None:
    schema = {**FINITE, "not": {"type": "string"}}
    async with serve(FakeEngine(["No."])) as served:
        body = {"model": "m", "messages": HI, "response_format": chat_format(schema)}
        reply = await served.http.post(CHAT, json=body)
        assert set(json.loads(text_of(CHAT, reply.json()))) == {"ok", "unit"}


async def test_a_begun_answer_that_does_not_fit_is_refused(serve: Serve) -> None:
    async with serve(FakeEngine(["no"])) as served:
        messages = [*HI, {"role": "assistant", "content": "Sure: "}]
        body = {"model": "m", "messages": messages, "response_format": chat_format(FINITE)}
        reply = await served.http.post(CHAT, json=body)
        assert reply.status_code == 400
        assert "does not fit" in reply.json()["error"]["message"]
        messages[-1]["content"] = '{"ok": true'
        reply = await served.http.post(CHAT, json=body)
        assert json.loads('{"ok": true' + text_of(CHAT, reply.json()))["ok"] is True


COUNT: Any = {
    "type": "object",
    "properties": {"mode": {"enum": ["fast", "slow"]}},
    "required": ["mode"],
    "additionalProperties": False,
}


async def test_every_protocol_keeps_strict_calls_to_their_schema(serve: Serve) -> None:
    wanted = CALL.format("go", parameter("speed", "7", False))
    async with serve(FakeEngine([wanted])) as served:
        function = {"name": "go", "parameters": COUNT, "strict": True}
        chat = {"messages": HI, "tools": [{"type": "function", "function": function}]}
        reply = await served.http.post(CHAT, json=chat | {"model": "m"})
        (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["mode"] in ("fast", "slow")

        responses = {"input": "hi", "tools": [{"type": "function", **function}]}
        reply = await served.http.post(RESPONSES, json=responses | {"model": "m"})
        assert json.loads(reply.json()["output"][-1]["arguments"])["mode"] in ("fast", "slow")

        tool = {"name": "go", "input_schema": COUNT, "strict": True}
        anthropic = {"messages": HI, "tools": [tool], "max_tokens": 300}
        reply = await served.http.post(MESSAGES, json=anthropic | {"model": "m"})
        assert reply.json()["content"][-1]["input"]["mode"] in ("fast", "slow")


async def test_a_strict_tool_with_a_wrong_schema_is_named(serve: Serve) -> None:
    function = {
        "name": "go",
        "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"type": "thing"}}},
    }
    fine = {"type": "function", "function": {"name": "fine"}}
    body = {
        "model": "m",
        "messages": HI,
        "tools": [fine, {"type": "function", "function": function}],
    }
    async with serve() as served:
        reply = await served.http.post(CHAT, json=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"].startswith("tools[1].parameters: ")
        function["strict"] = False
        assert (await served.http.post(CHAT, json=body)).status_code == 200


async def test_a_real_model_keeps_to_the_format() -> None:
    """Whatever it would have said: the logits are the engine's, and drawn from at random."""
    question: Any = [{"role": "user", "content": "Say anything at all."}]
    tool = {"name": "go", "parameters": COUNT, "strict": True}
    with pyds4.Engine(find_model()) as engine:
        async with serving(engine) as served:
            for seed in range(3):
                body = {"model": "m", "messages": question, "seed": seed, "temperature": 1.5}
                form = {"response_format": chat_format(FINITE, strict=True)}
                reply = await served.http.post(CHAT, json=body | form)
                assert set(json.loads(text_of(CHAT, reply.json()))) == {"ok", "unit"}
                forced: Any = {"tools": [{"type": "function", "function": tool}]}
                forced["tool_choice"] = "required"
                forced["parallel_tool_calls"] = False
                reply = await served.http.post(CHAT, json=body | forced)
                (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
                assert json.loads(call["function"]["arguments"])["mode"] in ("fast", "slow")
