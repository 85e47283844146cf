"""Rendering against the published encoder, and what client text can and cannot do to a prompt."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from chat_vectors import cases, tiny_vocabulary, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from pyds4.chat import Prompt, Segment, render
from pyds4.errors import RenderError, TokenizerError
from pyds4.tokenizer import Tokenizer

ALL_MARKERS = [
    text
    for text, kind in zip(tiny_vocabulary().tokens, tiny_vocabulary().token_types, strict=True)
    if kind in (3, 4)
]


def _render(case: dict[str, Any], profile: Any) -> Prompt:
    return render(case["messages"], profile=profile, **case["options"])


@pytest.mark.parametrize(("name", "profile"), [("render", "preview"), ("render_0731", "0731")])
def test_prompts_agree_with_the_published_encoder(name: str, profile: str) -> None:
    checked = 0
    for case in cases(name):
        before = json.dumps(case["messages"])
        if "expected_error" in case:
            with pytest.raises(RenderError):
                _render(case, profile)
        else:
            assert _render(case, profile).text == case["expected_prompt"], case["id"]
            checked += 1
        assert json.dumps(case["messages"]) == before, "render changed its input"
    assert checked > 190


@pytest.mark.parametrize("vocabulary", ["tiny", "v4"])
def test_ids_are_the_published_pipelines_unless_client_text_spells_a_marker(
    vocabulary: str,
) -> None:
    made = tokenizer(vocabulary)
    compared = 0
    for case in cases("render"):
        if "expected_error" in case:
            continue
        prompt = _render(case, "preview")
        ids = prompt.token_ids(made)
        assert made.decode(ids) == prompt.text
        client = [segment.text for segment in prompt.segments if not segment.is_marker]
        if not any(made.is_special(token) for text in client for token in made.encode(text)):
            assert ids == made.encode(prompt.text), case["id"]
            compared += 1
    assert compared > 250


def test_segments_alternate_and_markers_are_single_tokens() -> None:
    for case in cases("render"):
        if "expected_error" in case:
            continue
        segments = _render(case, "preview").segments
        for one, two in itertools.pairwise(segments):
            assert one.is_marker or two.is_marker
        assert all(tokenizer("v4").token_id(s.text) for s in segments[1:] if s.is_marker)


SPELLINGS = st.one_of(st.sampled_from(ALL_MARKERS), st.text(max_size=5))
EVIL = st.lists(SPELLINGS, max_size=4).map("".join)


@given(EVIL, EVIL, EVIL, EVIL, EVIL)
def test_no_client_text_adds_a_marker(
    system: str, question: str, result: str, name: str, value: str
) -> None:
    def prompt(*texts: str) -> Prompt:
        a, b, c, d, e = texts
        call = {"function": {"name": d, "arguments": {d: e, "k": [e]}}, "id": "1"}
        tool = {"function": {"name": d, "description": e}}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": a, "tools": [tool], "response_format": {"x": a}},
            {"role": "user", "content": b},
            {"role": "assistant", "content": b, "reasoning_content": c, "tool_calls": [call]},
            {"role": "tool", "content": c, "tool_call_id": "1"},
        ]
        return render(messages, thinking_mode="thinking")

    made = tokenizer("tiny")
    evil = prompt(system, question, result, name, value).token_ids(made)
    # "k" keeps the two parameters apart whatever `name` is.
    harmless = prompt("s", "q", "r", "k" if name == "k" else "n", "v").token_ids(made)
    assert [t for t in evil if made.is_special(t)] == [t for t in harmless if made.is_special(t)]


def test_arguments_may_arrive_already_parsed() -> None:
    def prompt(arguments: object) -> str:
        call = {"function": {"name": "f", "arguments": arguments}}
        messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
        return render(messages, thinking_mode="chat").text

    assert prompt({"a": "x", "b": [1]}) == prompt('{"a": "x", "b": [1]}')


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("hello", "message 0 is not an object"),
        ({"content": "x"}, "message 0 has the unknown role None"),
        ({"role": "user", "content": 5}, "message 0 .user.: content is int, not text"),
        ({"role": "tool", "content": {"a": 1}}, "tool result is dict"),
        ({"role": "tool", "content": ["x"]}, "not a content part"),
        ({"role": "system", "content": "", "tools": [{"name": "f"}]}, "tool 0 has no 'function'"),
        ({"role": "system", "tools": [{"function": {1j: 2}}]}, "cannot be written as JSON"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "tool call 0 lacks function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": None}}]},
            "arguments are NoneType",
        ),
        ({"role": "user", "content": "q", "task": "bogus"}, "task 'bogus'"),
    ],
)
def test_an_error_names_the_message_and_what_is_wrong(message: Any, text: str) -> None:
    with pytest.raises(RenderError, match=text):
        render([message], thinking_mode="chat")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"thinking_mode": "loud"}, "'loud'"),
        ({"thinking_mode": "chat", "reasoning_effort": "xhigh"}, "'xhigh'; preview knows"),
        ({"thinking_mode": "chat", "reasoning_effort": "low"}, "'low'; preview knows"),
        ({"thinking_mode": "chat", "profile": "0801"}, "'0801'"),
    ],
)
def test_an_unknown_option_is_named(options: Any, text: str) -> None:
    with pytest.raises(RenderError, match=text):
        render([], **options)


def test_a_vocabulary_without_a_marker_is_named() -> None:
    plain = tiny_vocabulary()
    made = Tokenizer.from_vocabulary(
        type(plain)(plain.tokens, plain.merges, [5] * 3 + plain.token_types[3:], plain.pre, 0, 1, 1)
    )
    with pytest.raises(TokenizerError, match="begin▁of▁sentence"):
        render([], thinking_mode="chat").token_ids(made)
    assert Prompt((Segment("Hi", is_marker=False),)).token_ids(made) == made.encode("Hi")
