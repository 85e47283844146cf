"""One answer in the making, token by token."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyds4_server.constraint import OneOf
from pyds4_server.events import (
    CallAborted,
    CallArguments,
    CallEnd,
    Content,
    Event,
    Reasoning,
)
from pyds4_server.generation import Generation, GenerationRequest, SpecialTokens
from pyds4_server.sampling import SamplingOptions, TokenChooser
from pyds4_server.security import HostCheck, host_of, is_loopback
from pyds4_server.stop_strings import StopStrings
from server_fakes import TOKENIZER

from pyds4 import Sampler, Sampling

SPECIAL = SpecialTokens.of(TOKENIZER)
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("read", "read_all", "write")
]
CALL = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="read">\n'
    '<｜DSML｜parameter name="path" string="true">a < b > c</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


def made(**request: Any) -> Generation:
    defaults: dict[str, Any] = {"prompt": [0], "max_tokens": 1000}
    asked = GenerationRequest(**(defaults | request))
    sampler = Sampler(Sampling(temperature=0.0))
    chooser = TokenChooser(
        asked.sampling, asked.prompt, TOKENIZER.vocab_size, sampler, asked.top_logprobs
    )
    return Generation(asked, TOKENIZER, SPECIAL, chooser)


def fed(generation: Generation, text: str, *, end: bool = True) -> list[Event]:
    """The events of ``text``, token by token, and of EOS behind it."""
    eos = TOKENIZER.eos_id
    assert eos is not None
    events: list[Event] = []
    for token in [*TOKENIZER.encode(text), *([eos] if end else [])]:
        if generation.finish_reason is None:
            events += generation.accept(token)
    return events


def content(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def scores(**wanted: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    logits = np.zeros(TOKENIZER.vocab_size, np.float32)
    for text, score in wanted.items():
        token = TOKENIZER.token_id(text)
        assert token is not None
        logits[token] = score
    return logits


@given(st.text(max_size=60))
def test_text_comes_out_as_it_went_in(text: str) -> None:
    events = fed(made(), text)
    expected = TOKENIZER.decode(TOKENIZER.encode(text, special=False))
    if not any(marker in text for marker in ("<", "｜")):
        assert content(events) == expected


@pytest.mark.parametrize("cut", range(1, len(TOKENIZER.encode(CALL))))
def test_an_answer_cut_anywhere_never_ends_in_tool_calls(cut: int) -> None:
    generation = made(tools=TOOLS, max_tokens=cut)
    events = fed(generation, CALL)
    complete = any(isinstance(event, CallEnd) for event in events)
    assert generation.finish_reason == "length"
    if not complete:
        assert "invoke" not in content(events)
        pieces = [event for event in events if isinstance(event, CallArguments)]
        assert not pieces or any(isinstance(event, CallAborted) for event in events)


def test_eos_inside_a_call_is_no_call_either() -> None:
    generation = made(tools=TOOLS)
    fed(generation, CALL.split(" c</")[0])
    assert generation.finish_reason == "length"


def test_markup_is_greedy_and_what_stands_in_it_is_not() -> None:
    generation = made(tools=TOOLS, sampling=SamplingOptions(temperature=1.0))
    greedy = ""
    for token in TOKENIZER.encode(CALL):
        if generation.wants_greedy:
            greedy += TOKENIZER.decode([token])
        generation.accept(token)
    assert "DSML" in greedy
    assert 'string="true">' in greedy
    assert "a < b" not in greedy


def test_blanks_before_a_call_are_not_shown() -> None:
    events = fed(made(tools=TOOLS), " \n" + CALL)
    assert content(events) == ""
    assert any(isinstance(event, CallEnd) for event in events)


def test_stop_strings_see_only_visible_text() -> None:
    generation = made(thinking=True, tools=TOOLS, stop=["STOP", "path"])
    events = fed(generation, "STOP the path</think>Go" + CALL)
    assert generation.finish_reason == "tool_calls"
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "STOP the path"


def test_stop_string_wins_over_what_follows_in_its_token() -> None:
    generation = made(stop=["lo"])
    events = fed(generation, "Hello, world")
    assert content(events) == "Hel"
    assert (generation.finish_reason, generation.stop_sequence) == ("stop_sequence", "lo")


def test_a_required_call_is_forced_after_the_reasoning() -> None:
    generation = made(
        thinking=True, tools=TOOLS, tool_choice="required", callable_names=("read", "write")
    )
    # Nothing may end the turn, but thinking is free.
    token = generation.choose(scores(**{"<｜end▁of▁sentence｜>": 9.0, "A": 5.0}))
    assert TOKENIZER.decode([token]) == "A"
    fed(generation, "A.</think>", end=False)
    text = ""
    while not generation.engine_may_sample:
        token = generation.choose(scores(w=5.0))
        text += TOKENIZER.decode([token])
        generation.accept(token)
    assert text in [
        f'\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="{name}">\n' for name in ("read", "write")
    ]


def test_none_never_opens_a_call() -> None:
    generation = made(tools=TOOLS, tool_choice="none")
    token = generation.choose(scores(**{"｜DSML｜": 9.0, "A": 1.0}))
    assert TOKENIZER.decode([token]) == "A"


def test_a_prefill_decides_where_the_answer_begins() -> None:
    generation = made(thinking=True, prefill="Thought.</think>So ")
    events = fed(generation, "it goes on")
    assert content(events) == "it goes on"
    assert generation.reasoning_tokens == 0


def test_raw_completions_are_not_parsed() -> None:
    generation = made(chat=False, tools=TOOLS)
    assert "tool_calls" in content(fed(generation, CALL))
    assert generation.finish_reason == "stop"


def test_penalties_and_bias_move_the_choice() -> None:
    a, b = (TOKENIZER.token_id(letter) for letter in "AB")
    assert a is not None
    assert b is not None
    logits = scores(A=2.0, B=1.5)

    def first(**options: Any) -> int:
        sampler = Sampler(Sampling(temperature=0.0))
        asked = SamplingOptions(temperature=0.0, **options)
        chooser = TokenChooser(asked, [a], TOKENIZER.vocab_size, sampler)
        assert chooser.needs_logits == bool(options)
        chooser.record(a)
        return chooser.choose(logits).token

    assert first() == a
    assert first(presence_penalty=1.0) == b
    assert first(frequency_penalty=0.4) == a
    assert first(frequency_penalty=0.6) == b
    assert first(repetition_penalty=2.0) == b
    assert first(logit_bias={b: 1.0}) == b
    assert first(logit_bias={a: -100.0}) == b


@pytest.mark.parametrize("tiny", [1e-300, 1e-45, 1e-30, 1e-7])
def test_what_is_too_small_for_32_bits_leaves_the_best_token(tiny: float) -> None:
    logits = np.linspace(-3, 3, TOKENIZER.vocab_size, dtype=np.float32)
    for options in (SamplingOptions(temperature=tiny), SamplingOptions(top_p=tiny)):
        sampler = Sampler(Sampling(options.temperature, options.top_p, seed=1))
        chooser = TokenChooser(options, [], TOKENIZER.vocab_size, sampler)
        assert chooser.choose(logits).token == TOKENIZER.vocab_size - 1


def test_logprobs_are_the_models_own() -> None:
    sampler = Sampler(Sampling(temperature=0.0))
    options = SamplingOptions(temperature=0.0, logit_bias={7: 50.0})
    chooser = TokenChooser(options, [], 4096, sampler, top_logprobs=3)
    logits = np.linspace(-3, 3, 4096, dtype=np.float32)
    token, logprob = chooser.choose(logits)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum())
    assert token == 7
    assert logprob is not None
    assert logprob.logprob == pytest.approx(expected[7], abs=1e-9)
    assert [other for other, _ in logprob.top] == [4095, 4094, 4093]
    assert logprob.top[0][1] == pytest.approx(expected[4095], abs=1e-9)


SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=5)


@given(SEQUENCES, st.data())
def test_one_of_allows_exactly_its_sequences(sequences: list[list[int]], data: Any) -> None:
    one_of = OneOf(sequences)
    taken: list[int] = []
    while not one_of.is_complete:
        allowed = one_of.allowed()
        assert allowed == {s[len(taken)] for s in sequences if s[: len(taken)] == taken[:]} or any(
            s == taken[: len(s)] for s in sequences
        )
        taken.append(data.draw(st.sampled_from(sorted(allowed))))
        one_of.advance(taken[-1])
    assert taken in sequences


@given(
    st.text("ab<", max_size=30),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_stop_strings_do_not_depend_on_the_cuts(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    whole, pieces = StopStrings(stops), StopStrings(stops)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    shown = "".join(pieces.feed(text[begin:end]) for begin, end in itertools.pairwise(places))
    expected = whole.feed(text)
    assert pieces.matched == whole.matched
    if whole.matched is None:
        shown, expected = shown + pieces.finish(), expected + whole.finish()
        assert expected == text
    assert shown == expected
    assert whole.matched is not None or not any(stop in shown for stop in stops)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:80", "localhost"),
        ("[::1]:8000", "::1"),
        ("LOCALHOST.", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("", ""),
        ("evil.example:localhost", "evil.example"),
    ],
)
def test_host_is_read_from_the_header(header: str, host: str) -> None:
    assert host_of(header) == host


@given(st.text(max_size=20))
def test_only_known_hosts_pass(name: str) -> None:
    check = HostCheck("127.0.0.1", ["mine.example"])
    if host_of(name) == "mine.example" or is_loopback(host_of(name)):
        check.check(name)
    else:
        with pytest.raises(Exception, match="not one of this server's names"):
            check.check(name)
