"""The streaming parser: equal to the strict one where that accepts, and sane where it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_vectors import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from pyds4.chat import (
    ContentDelta,
    Event,
    ReasoningDelta,
    StreamParser,
    ToolArgumentsDelta,
    ToolCallAborted,
    ToolCallEnd,
    ToolCallStart,
    parse,
    render,
)
from pyds4.chat.events import coalesced
from pyds4.errors import InvalidArgumentError

EOS = "<｜end▁of▁sentence｜>"


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("f", a={"type": "string"}, n={"type": "integer"}, o={"type": "object"}),
    tool("g", b={}),
    tool("read", path={"type": "string"}),
]


def dsml(text: str) -> str:
    """Markup in short: ``<@`` and ``</@`` are the tags' beginnings."""
    return text.replace("<@", "<｜DSML｜").replace("</@", "</｜DSML｜")


def call(name: str = "f", body: str = '<@parameter name="a" string="true">1</@parameter>\n') -> str:
    return f'<@invoke name="{name}">\n{body}</@invoke>\n'


def block(*calls: str) -> str:
    return f"<@tool_calls>\n{''.join(calls or (call(),))}</@tool_calls>"


def run(text: str, mode: str = "chat", tools: Any = TOOLS, **options: Any) -> list[Event]:
    parser = StreamParser(mode, tools=tools, **options)
    return coalesced(parser.feed(dsml(text)) + parser.finish())


def run_cut(text: str, cuts: list[int], mode: str, tools: Any = TOOLS) -> list[Event]:
    parser = StreamParser(mode, tools=tools)
    events: list[Event] = []
    text = dsml(text)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += parser.feed(text[start:end])
    return coalesced(events + parser.finish())


def summary(events: list[Event]) -> tuple[str, str, list[tuple[str, str]]]:
    """Reasoning, content and finished calls; checks the order of events on the way."""
    reasoning = content = ""
    calls: list[tuple[str, str]] = []
    open_index: int | None = None
    fragments = ""
    for event in events:
        match event:
            case ReasoningDelta(text):
                assert text
                assert not content
                reasoning += text
            case ContentDelta(text):
                assert text
                content += text
            case ToolCallStart(index, _):
                assert open_index is None
                open_index, fragments = index, ""
            case ToolArgumentsDelta(index, fragment):
                assert index == open_index
                fragments += fragment
            case ToolCallEnd(index, name, arguments):
                assert index == open_index
                assert arguments == fragments
                assert isinstance(json.loads(arguments), dict)
                calls.append((name, arguments))
                open_index = None
            case ToolCallAborted(index, _, _):
                assert index == open_index
                open_index = None
    assert open_index is None
    return reasoning, content, calls


def message(found: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    calls = [(c["function"]["name"], c["function"]["arguments"]) for c in found["tool_calls"]]
    return found["reasoning_content"], found["content"], calls


# --- against the strict parser -------------------------------------------------------------------

VALID = [case for case in cases("parse") if "expected_message" in case]
FINISHED = [case for case in VALID if case["category"] != "truncated"]
# The strict parser passes on what is no JSON, and lets a value add keys.
NOT_JSON = {
    "empty JSON param: arguments become invalid JSON": '{"s": ""}',
    "non JSON with string=false passes through raw": '{"n": "abc"}',
    "raw pass-through lets the value inject keys": '{"n": "1,\\"m\\":2"}',
}


def declared(case: dict[str, Any]) -> list[dict[str, Any]]:
    names = {c["function"]["name"] for c in case["expected_message"]["tool_calls"]}
    return [{"function": {"name": name}} for name in sorted(names | {"f"})]


@pytest.mark.parametrize("case", FINISHED, ids=lambda case: case["id"])
def test_what_the_strict_parser_accepts_comes_out_equal(case: dict[str, Any]) -> None:
    mode = "thinking" if case["thinking_mode"] == "thinking" else "chat"
    expected = message(case["expected_message"])
    if case.get("note") in NOT_JSON:
        expected = (*expected[:2], [(expected[2][0][0], NOT_JSON[case["note"]])])
    for options in ({}, {"buffer_calls": True}):
        events = run(case["completion_text"], mode, declared(case), **options)
        assert summary(events) == expected
    text = case["completion_text"]
    if len(text) < 5000:
        assert summary(run_cut(text, list(range(1, len(text))), mode, declared(case))) == expected


@pytest.mark.parametrize(
    "case", [c for c in cases("parse") if c["category"] == "truncated"], ids=lambda c: c["id"]
)
def test_a_truncated_call_is_never_reported(case: dict[str, Any]) -> None:
    text = case["completion_text"]
    parser = StreamParser(case["thinking_mode"], tools=[{"function": {"name": n}} for n in "fg"])
    reasoning, content, calls = summary(parser.feed(text) + parser.finish())
    assert content == "Ok."
    assert reasoning in ("", "Let me think.")
    assert len(calls) == text.count("</｜DSML｜invoke>") == parser.complete_calls
    assert parser.truncated == (not text.endswith("</｜DSML｜tool_calls>"))


@pytest.mark.parametrize("case", cases("parse"), ids=lambda case: case["id"])
def test_golden_completions_mean_the_same_wherever_they_are_cut(case: dict[str, Any]) -> None:
    text = case["completion_text"]
    if len(text) > 2000:
        pytest.skip("one long text; the others have every construct")
    mode = "thinking" if case["thinking_mode"] == "thinking" else "chat"
    whole = run(text, mode)
    for cut in range(1, len(text)):
        assert run_cut(text, [cut], mode) == whole, (text[:cut], text[cut:])


# --- recovery ------------------------------------------------------------------------------------

F1 = ("f", '{"a": "1"}')
Expected = tuple[str, str, list[tuple[str, str]]]
RECOVERED: dict[str, tuple[str, str, Expected]] = {
    "a block in the reasoning ends it": (
        "thinking",
        "I need f.\n\n" + block(),
        ("I need f.", "", [F1]),
    ),
    "a closing tag after such a block vanishes": (
        "thinking",
        "I need f.\n\n" + block() + "</think>\n\nDone.",
        ("I need f.", "\n\nDone.", [F1]),
    ),
    "a lone invoke in the reasoning ends it": (
        "thinking",
        "hm\n\n" + call(),
        ("hm", "", [F1]),
    ),
    "a closed invoke in an unclosed block in the reasoning counts at the end": (
        "thinking",
        "hm\n\n<@tool_calls>\n" + call() + EOS,
        ("hm", "", [F1]),
    ),
    "a mention in the reasoning stays reasoning": (
        "thinking",
        "I could write <@tool_calls> here</think>Answer" + EOS,
        ("I could write <｜DSML｜tool_calls> here", "Answer", []),
    ),
    "a block interrupted by the end of reasoning is a mention": (
        "thinking",
        'Like <@tool_calls>\n<@invoke name="f">\n</think>Answer',
        ('Like <｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n', "Answer", []),
    ),
    "a call to an unknown tool in the reasoning is a mention": (
        "thinking",
        block(call("zzz")) + "</think>Answer",
        (dsml(block(call("zzz"))), "Answer", []),
    ),
    "an unfinished block in the reasoning is a mention": (
        "thinking",
        '<@tool_calls>\n<@invoke name="f">\n<@parameter name="a" string="true">1',
        (dsml('<@tool_calls>\n<@invoke name="f">\n<@parameter name="a" string="true">1'), "", []),
    ),
    "a second mention after a first can still be a call": (
        "thinking",
        "<@tool_calls> then\n\n" + block(),
        ("<｜DSML｜tool_calls> then", "", [F1]),
    ),
    "reasoning that is never closed stays reasoning": (
        "thinking",
        "no end" + EOS,
        ("no end", "", []),
    ),
    "a redundant think tag at the start vanishes": (
        "thinking",
        "<think>r</think>a" + EOS,
        ("r", "a", []),
    ),
    "a think tag at the start opens reasoning in chat": (
        "chat",
        "<think>r</think>a" + EOS,
        ("r", "a", []),
    ),
    "a stray end of thinking vanishes": ("chat", "think</think>answer", ("", "thinkanswer", [])),
    "a second end of thinking vanishes": ("thinking", "a</think>b</think>c", ("a", "bc", [])),
    "a quoted end of thinking is text": ("chat", "write `</think>`", ("", "write `</think>`", [])),
    "a pair of think tags in content is text": (
        "chat",
        "say <think>x</think> and</think>.",
        ("", "say <think>x</think> and.", []),
    ),
    "an invoke without wrapper": ("chat", "Ok.\n\n" + call() + EOS, ("", "Ok.", [F1])),
    "two invokes without wrapper": (
        "chat",
        call() + call("g", "") + "</@tool_calls>",
        ("", "", [F1, ("g", "{}")]),
    ),
    "an unknown tool without wrapper is text": (
        "chat",
        '<@invoke name="zzz">\n</@invoke>',
        ("", '<｜DSML｜invoke name="zzz">\n', []),
    ),
    "an unknown tool in a wrapper is a call": (
        "chat",
        block(call("zzz", "")),
        ("", "", [("zzz", "{}")]),
    ),
    "a mention of an invoke is text": (
        "chat",
        'Use <@invoke name="f"> to call.',
        ("", 'Use <｜DSML｜invoke name="f"> to call.', []),
    ),
    "a mention of the wrapper is text": (
        "chat",
        "Use <@tool_calls> to call.",
        ("", "Use <｜DSML｜tool_calls> to call.", []),
    ),
    "the wrapper of V3.2": (
        "chat",
        "\n\n<@function_calls>\n" + call() + "</@function_calls>",
        ("", "", [F1]),
    ),
    "ASCII bars": ("chat", block().replace("@", "|DSML|"), ("", "", [F1])),
    "a space after the bar": (
        "chat",
        block().replace("@tool_calls", "@ calls").replace("<@i", "<@ i").replace("</@i", "</@ i"),
        ("", "", [F1]),
    ),
    "no blank line before the block": ("chat", "Ok." + block(), ("", "Ok.", [F1])),
    "three newlines before the block": ("chat", "Ok.\n\n\n" + block(), ("", "Ok.\n", [F1])),
    "blank content before the block": ("chat", " \n \n\n" + block(), ("", "", [F1])),
    "an empty block": ("chat", "a<@tool_calls>\n</@tool_calls>b", ("", "ab", [])),
    "stray closing tags": (
        "chat",
        "a</@invoke>b</@tool_calls>c</@parameter>",
        ("", "abc", []),
    ),
    "a quoted closing tag is text": ("chat", 'a"</@invoke>"', ("", 'a"</｜DSML｜invoke>"', [])),
    "text after the block": (
        "chat",
        block() + "\ntrailing" + EOS,
        ("", "\ntrailing", [F1]),
    ),
    "blanks after the block": ("chat", block() + "\n \n" + EOS, ("", "", [F1])),
    "two blocks": ("chat", block() + "\n\n" + block(call("g", "")), ("", "", [F1, ("g", "{}")])),
    "a wrapper that is never closed": ("chat", "<@tool_calls>\n" + call() + EOS, ("", "", [F1])),
    "text in an unclosed wrapper": (
        "chat",
        "<@tool_calls>\n" + call() + "Done.",
        ("", "\nDone.", [F1]),
    ),
    "a self-closing invoke": (
        "chat",
        block('<@invoke name="f"></@invoke>'),
        ("", "", [("f", "{}")]),
    ),
    "an unquoted name": ("chat", block("<@invoke name=f>\n</@invoke>"), ("", "", [("f", "{}")])),
    "a name with an extra attribute": (
        "chat",
        block('<@invoke name="f" id="1">\n</@invoke>'),
        ("", "", [("f", "{}")]),
    ),
    "indented tags": (
        "chat",
        block("  " + call(body='  <@parameter name="a" string="true">1</@parameter>\n  ')),
        ("", "", [F1]),
    ),
    "attributes in another order": (
        "chat",
        block(call(body='<@parameter string="True" name="a">1</@parameter>\n')),
        ("", "", [F1]),
    ),
    "no string attribute, declared as string": (
        "chat",
        block(call(body='<@parameter name="a">1</@parameter>\n')),
        ("", "", [F1]),
    ),
    "no string attribute, not declared": (
        "chat",
        block(call(body='<@parameter name="x">1</@parameter><@parameter name="y">z</@parameter>')),
        ("", "", [("f", '{"x": 1, "y": "z"}')]),
    ),
    "a duplicate parameter": (
        "chat",
        block(call(body='<@parameter name="a" string="true">1</@parameter>\n' * 2)),
        ("", "", [F1]),
    ),
    "a parameter that is never closed": (
        "chat",
        block(call(body='<@parameter name="a" string="true">1\n')),
        ("", "", [F1]),
    ),
    "a parameter that is never closed, then another call": (
        "chat",
        block(call(body='<@parameter name="a" string="true">1\n'), call()),
        ("", "", [F1, F1]),
    ),
    "a closing tag inside a value": (
        "chat",
        block(call(body='<@parameter name="a" string="true">x</@parameter>y</@parameter>\n')),
        ("", "", [("f", dsml('{"a": "x</@parameter>y"}'))]),
    ),
    "an invoke's end inside a value": (
        "chat",
        block(call(body='<@parameter name="a" string="true">x\n</@invoke>\ny</@parameter>\n')),
        ("", "", [("f", dsml('{"a": "x\\n</@invoke>\\ny"}'))]),
    ),
    "text between parameters comes after the call": (
        "chat",
        block(call(body='junk<@parameter name="a" string="true">1</@parameter>\n')),
        ("", "junk", [F1]),
    ),
    "a JSON body": ("chat", block(call(body='{"a": 1}\n')), ("", "", [("f", '{"a": 1}')])),
    "one wrapper parameter": (
        "chat",
        block(call(body='<@parameter name="arguments" string="false">{"a": "1"}</@parameter>\n')),
        ("", "", [F1]),
    ),
    "one wrapper parameter given as a string": (
        "chat",
        block(call(body='<@parameter name="input" string="true">{"a": "1"}</@parameter>\n')),
        ("", "", [F1]),
    ),
    "a wrapper parameter beside another is none": (
        "chat",
        block(
            call(
                body='<@parameter name="input" string="false">{"a": 1}</@parameter>\n'
                '<@parameter name="n" string="false">2</@parameter>\n'
            )
        ),
        ("", "", [("f", '{"input": {"a": 1}, "n": 2}')]),
    ),
    "a wrapper parameter that holds no object is none": (
        "chat",
        block(call(body='<@parameter name="arguments" string="true">not {</@parameter>\n')),
        ("", "", [("f", '{"arguments": "not {"}')]),
    ),
    "an unclosed call before a closed one": (
        "chat",
        block('<@invoke name="f">\n', call()),
        ("", "", [F1]),
    ),
    "EOS spelled in the middle is text": ("chat", f"a{EOS}b{EOS}", ("", f"a{EOS}b", [])),
    "EOS twice at the end": ("chat", f"a{EOS}{EOS}", ("", "a", [])),
    "half a marker at the end is text": ("chat", "a </thi", ("", "a </thi", [])),
    "a less-than sign at the end is text": ("chat", "1 <", ("", "1 <", [])),
    "blank answers stay": ("chat", " \n\n", ("", " \n\n", [])),
}


@pytest.mark.parametrize("name", RECOVERED)
def test_recovers_from(name: str) -> None:
    mode, text, expected = RECOVERED[name]
    assert summary(run(text, mode)) == expected
    assert summary(run(text, mode, buffer_calls=True)) == expected


@pytest.mark.parametrize("name", RECOVERED)
def test_recovery_does_not_depend_on_where_the_stream_is_cut(name: str) -> None:
    mode, text, _ = RECOVERED[name]
    whole = run(text, mode)
    length = len(dsml(text))
    assert run_cut(text, list(range(1, length)), mode) == whole
    for cut in range(1, length):
        assert run_cut(text, [cut], mode) == whole, dsml(text)[:cut]


@pytest.mark.parametrize("mode", ["chat", "thinking"])
def test_without_tools_markup_is_text(mode: str) -> None:
    text = dsml("Ok.\n\n" + block())
    prefix = "r</think>" if mode == "thinking" else ""
    parser = StreamParser(mode)
    events = parser.feed(prefix + text + EOS) + parser.finish()
    assert summary(events) == ("r" if prefix else "", text, [])
    assert not parser.truncated


# --- argument values -----------------------------------------------------------------------------

TYPED = [
    tool(
        "t",
        s={"type": "string"},
        i={"type": "integer"},
        x={"type": "number"},
        b={"type": ["boolean", "null"]},
        o={"$ref": "#/$defs/Point"},
        u={"anyOf": [{"type": "string"}, {"type": "array"}]},
        e={"enum": ["1", "2"]},
        c={"const": 5},
        free={"description": "anything"},
    )
]
TYPED[0]["function"]["parameters"]["$defs"] = {"Point": {"type": "object"}}


@pytest.mark.parametrize(
    ("name", "is_string", "value", "expected"),
    [
        ("s", "false", "42", '"42"'),
        ("s", "false", '{"k": 1}', '"{\\"k\\": 1}"'),
        ("s", "false", '"quoted"', '"quoted"'),
        ("s", "true", '"quoted"', '"\\"quoted\\""'),
        ("i", "true", "42", "42"),
        ("i", "true", " 42\n", "42"),
        ("i", "true", "4.5", '"4.5"'),
        ("i", "true", "forty", '"forty"'),
        ("i", "false", "forty", '"forty"'),
        ("i", "false", "", '""'),
        ("x", "true", "4.5", "4.5"),
        ("x", "false", "NaN", '"NaN"'),
        ("b", "false", "True", "true"),
        ("b", "false", "None", "null"),
        ("b", "true", "false", "false"),
        ("s", "false", "None", '"None"'),
        ("o", "true", '{"x": 1}', '{"x": 1}'),
        ("o", "false", "[1]", "[1]"),
        ("u", "true", "[1]", '"[1]"'),
        ("u", "false", "[1]", "[1]"),
        ("u", "false", "1", '"1"'),
        ("e", "false", "1", '"1"'),
        ("c", "true", "5", "5"),
        ("free", "true", "5", '"5"'),
        ("free", "false", " 5 ", " 5 "),
        ("other", "false", '{"a": 1', '"{\\"a\\": 1"'),
        ("other", "false", "[" * 100_000, None),
    ],
)
def test_values_become_what_the_tool_declares(
    name: str, is_string: str, value: str, expected: str | None
) -> None:
    parameter = f'<@parameter name="{name}" string="{is_string}">{value}</@parameter>\n'
    (found,) = summary(run(block(call("t", parameter)), tools=TYPED))[2]
    assert json.loads(found[1]) is not None
    if expected is not None:
        assert found == ("t", f'{{"{name}": {expected}}}')


@pytest.mark.parametrize(
    "declaration",
    [
        {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}},
        {"name": "f", "input_schema": {"properties": {"n": {"type": "integer"}}}},
        {"function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}},
    ],
)
def test_tools_may_be_declared_in_any_protocols_form(declaration: dict[str, Any]) -> None:
    parameter = '<@parameter name="n" string="true">3</@parameter>\n'
    assert summary(run(call("f", parameter), tools=[declaration]))[2] == [("f", '{"n": 3}')]


def test_a_string_value_streams_while_it_is_written() -> None:
    parser = StreamParser("chat", tools=TOOLS)
    opening = dsml('\n\n<@tool_calls>\n<@invoke name="f">\n<@parameter name="a" string="true">')
    assert parser.feed(opening) == [ToolCallStart(0, "f"), ToolArgumentsDelta(0, '{"a": "')]
    assert parser.feed('say "hi"\n') == [ToolArgumentsDelta(0, 'say \\"hi\\"')]
    assert parser.feed("more") == [ToolArgumentsDelta(0, "\\nmore")]
    assert parser.feed(dsml("</@parameter>")) == []
    assert parser.feed(dsml("\n</@invoke>")) == [
        ToolArgumentsDelta(0, '"}'),
        ToolCallEnd(0, "f", '{"a": "say \\"hi\\"\\nmore"}'),
    ]


def test_an_unclosed_call_is_aborted_with_its_text() -> None:
    opening = '<@invoke name="f">\n<@parameter name="a" string="true">va<b>lue'
    for ending in ("", EOS):
        events = run(block().removesuffix("</@tool_calls>") + opening + ending)
        assert events[-1] == ToolCallAborted(1, "f", dsml(opening) + ending)
        assert summary(events)[2] == [F1]
    buffered = run("<@tool_calls>\n" + opening, buffer_calls=True)
    assert buffered == []


# --- state for the sampler and the server --------------------------------------------------------


def test_state_follows_the_text() -> None:
    parser = StreamParser("thinking", tools=TOOLS)
    steps = [
        ("hm", "reasoning"),
        ("</think>", "text"),
        ("Hi <", "text"),
        ("b> x\n\n", "text"),
        ("<", "text"),
        ("｜DSML｜", "syntax"),
        ("tool_calls>", "syntax"),
        ("\n<｜DSML｜inv", "syntax"),
        ('oke name="f', "syntax"),
        ('">\n', "syntax"),
        ('<｜DSML｜parameter name="a" string="true">', "value"),
        ("v", "value"),
        ("<", "value"),
        ("/｜DSML｜", "closing"),
        ("x", "value"),
        ("</｜DSML｜parameter>", "closing"),
        ("\n", "closing"),
        ("</｜DSML｜invoke", "closing"),
        (">", "syntax"),
        ("\n</｜DSML｜tool_calls>", "text"),
    ]
    for piece, expected in steps:
        parser.feed(piece)
        state = (parser.in_reasoning, parser.in_dsml_syntax)
        assert state == (
            expected == "reasoning",
            expected in ("syntax", "closing"),
        ), piece
    assert parser.complete_calls == 1
    assert not parser.in_tool_call
    parser.finish()
    assert not parser.truncated


def test_syntax_before_the_end_of_reasoning_is_seen_too() -> None:
    parser = StreamParser("thinking", tools=TOOLS)
    parser.feed("hm " + dsml('<@tool_calls>\n<@invoke name="f">\n'))
    assert parser.in_reasoning
    assert parser.in_dsml_syntax
    parser.feed(dsml('<@parameter name="a" string="true">v'))
    assert not parser.in_dsml_syntax


@pytest.mark.parametrize(
    ("text", "truncated", "complete"),
    [
        (block(), False, 1),
        ("Hello", False, 0),
        ("<@tool_calls>\n" + call(), True, 1),
        ("Hi\n\n<@tool_ca", True, 0),
        ("Hi\n\n<@tool_calls>\n", True, 0),
        ('Hi\n\n<@tool_calls>\n<@invoke name="f"', True, 0),
        ('<@tool_calls>\n<@invoke name="f">\n', True, 0),
        (block() + "\n\n<@tool_calls>", True, 1),
    ],
)
def test_truncation_is_reported(text: str, truncated: bool, complete: int) -> None:
    parser = StreamParser("chat", tools=TOOLS)
    parser.feed(dsml(text))
    events = parser.finish()
    assert (parser.truncated, parser.complete_calls) == (truncated, complete)
    assert not any("DSML" in e.text for e in events if isinstance(e, ContentDelta))


@pytest.mark.parametrize(
    ("mode", "prefill", "text", "expected"),
    [
        ("thinking", "I thi", "nk</think>a", ("nk", "a", [])),
        ("thinking", "r</thi", "nk>a", ("", "a", [])),
        ("thinking", "r</think>The ans", "wer", ("", "wer", [])),
        ("chat", "The ans", "wer", ("", "wer", [])),
        ("chat", "a\n\n", "b", ("", "b", [])),
        ("chat", "a\n\n", block(), ("", "", [F1])),
        ("chat", "Use <", "b>", ("", "b>", [])),
        ("chat", "x", "<think>y", ("", "<think>y", [])),
    ],
)
def test_a_prefill_sets_the_state_and_is_not_repeated(
    mode: str, prefill: str, text: str, expected: Expected
) -> None:
    assert summary(run(text, mode, prefill=prefill)) == expected


def test_a_finished_parser_takes_no_more() -> None:
    parser = StreamParser("chat")
    parser.finish()
    assert parser.finish() == []
    with pytest.raises(InvalidArgumentError, match="after finish"):
        parser.feed("x")


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="'loud'"):
        StreamParser("loud")


# --- properties ----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "<｜DSML｜tool_calls>",
        "</｜DSML｜tool_calls>",
        '<｜DSML｜invoke name="f">',
        '<｜DSML｜invoke name="zzz">',
        "</｜DSML｜invoke>",
        '<｜DSML｜parameter name="a" string="true">',
        '<｜DSML｜parameter name="n" string="false">',
        '<｜DSML｜parameter name="arguments" string="true">',
        "</｜DSML｜parameter>",
        "<|DSML|invoke name=f>",
        "<｜DSML｜",
        "</think>",
        "<think>",
        EOS,
        "\n",
        "\n\n",
        " ",
        "<",
        ">",
        '"',
        "`",
        "text",
        '{"a": 1}',
        "42",
        dsml(block()),
    ]
)
SOUP = st.lists(PIECES, max_size=14).map("".join)
MODES = st.sampled_from(["chat", "thinking"])


@settings(max_examples=400)
@given(SOUP, MODES, st.data())
def test_any_text_means_the_same_wherever_it_is_cut(text: str, mode: str, data: Any) -> None:
    whole = run(text, mode)
    summary(whole)
    assert run_cut(text, list(range(1, len(text))), mode) == whole
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
    assert run_cut(text, cuts, mode) == whole


@settings(max_examples=200)
@given(SOUP, MODES)
def test_buffered_calls_say_the_same_without_aborts(text: str, mode: str) -> None:
    plain, buffered = run(text, mode), run(text, mode, buffer_calls=True)
    assert summary(plain) == summary(buffered)
    assert not any(isinstance(event, ToolCallAborted) for event in buffered)


@given(st.text(alphabet=st.sampled_from('ab<>/｜|DSML\n `"')), MODES)
def test_text_without_markup_is_never_dropped(text: str, mode: str) -> None:
    reasoning, content, calls = summary(run(text, mode))
    assert reasoning + content == text
    assert calls == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: "｜DSML｜" not in text and "|DSML|" not in text and "<" not in text
)
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters='">'),
    min_size=1,
    max_size=12,
)
ARGUMENTS = st.dictionaries(NAMES, JSON | WORDS, max_size=4)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3)


@settings(max_examples=300)
@given(WORDS, WORDS, CALLS, MODES)
def test_what_is_rendered_parses_back(
    reasoning: str, content: str, calls: list[tuple[str, dict[str, Any]]], mode: Any
) -> None:
    if calls and not content.strip():
        content = ""
    turn = {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning if mode == "thinking" else "",
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for name, arguments in calls
        ],
    }
    question = {"role": "user", "content": "q"}
    prompt = render([question], thinking_mode=mode).text
    completion = render([question, turn], thinking_mode=mode, drop_thinking=False).text
    completion = completion.removeprefix(prompt)
    strict = parse(completion, mode)
    assert (strict["content"], strict["reasoning_content"]) == (content, turn["reasoning_content"])
    for (name, arguments), found in zip(calls, strict["tool_calls"], strict=True):
        assert found["function"]["name"] == name
        assert json.loads(found["function"]["arguments"]) == arguments
    tools = [{"name": name} for name, _ in calls] + [{"name": "other"}]
    if not any(set(arguments) & {"arguments", "input"} for _, arguments in calls):
        assert summary(run(completion, mode, tools=tools)) == message(strict)
