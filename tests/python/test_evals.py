"""Samples and scores: what a seed means, and what counts as right. A scripted model stands in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyds4.chat import parse, render
from pyds4.default_model import find_model
from pyds4.engine import StepResult
from pyds4.errors import ContextFullError, InvalidArgumentError
from pyds4.evals import command, families, report, score
from pyds4.evals.sample import Answer, Call, Sample
from pyds4.model_file import ModelFile
from pyds4.tokenizer import Tokenizer

NEAR = [name for name in families.FAMILIES if "@" not in name]
SEEDS = st.integers(0, 10**6)


@cache
def tokenizer() -> Tokenizer:
    file = ModelFile(find_model())
    try:
        return Tokenizer.from_vocabulary(file.vocabulary())
    finally:
        file.close()


class Script:
    """A session that says what it was told to, whatever the prompt."""

    def __init__(self) -> None:
        self.prompt: list[int] = []
        self.said: list[int] | None = None
        self.closed = False

    def rewind(self, tokens: list[int], /) -> int:
        self.prompt, self.said = tokens, None
        return 0

    def close(self) -> None:
        self.closed = True


class ScriptedEngine:
    """Knows the whole conversation, and changes what it says by ``spoil``."""

    def __init__(self, sample: Sample, spoil: str = "") -> None:
        self.tokenizer = tokenizer()
        self._whole = sample.prompt().text
        self._spoil = spoil
        self.sessions: list[Script] = []

    def completion(self, prompt: list[int]) -> list[int]:
        text = self.tokenizer.decode(prompt)
        assert self._whole.startswith(text), "the prompt is no prefix of the conversation"
        rest = self._whole[len(text) :]
        rest = rest[: rest.index("<｜end▁of▁sentence｜>")] + self._spoil
        return self.tokenizer.encode(rest + "<｜end▁of▁sentence｜>")

    def session(self) -> Script:
        self.sessions.append(Script())
        return self.sessions[-1]

    def step(self, items: Sequence[Any], /) -> list[StepResult]:
        results = []
        for item in items:
            session = item.session
            if session.said is None:
                assert item.tokens == session.prompt
                session.said = self.completion(session.prompt)
            else:
                assert item.tokens == [session.said.pop(0)]
            results.append(StepResult(token=session.said[0]))
        return results


@pytest.mark.parametrize("family", NEAR)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, thinking=st.booleans())
def test_a_seed_means_one_sample(family: str, seed: int, thinking: bool) -> None:
    first, second = (families.make(family, seed, thinking) for _ in range(2))
    assert first.prompt().text == second.prompt().text
    assert first.prompt().text != families.make(family, f"{seed}+", thinking).prompt().text or (
        family in ("greet", "identity", "fact", "remember")
    )


@pytest.mark.parametrize("family", NEAR)
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS, thinking=st.booleans())
def test_the_right_answer_is_scored_right(family: str, seed: int, thinking: bool) -> None:
    sample = families.make(family, seed, thinking)
    engine = ScriptedEngine(sample)
    results = score.score(engine, sample)
    assert [result.right for result in results] == [True] * len(sample.scored())
    assert all(session.closed for session in engine.sessions)


@pytest.mark.parametrize("family", ["greet", "arith", "agent", "shell", "recall_turns"])
@pytest.mark.parametrize("thinking", [False, True])
def test_a_changed_answer_is_scored_wrong(family: str, thinking: bool) -> None:
    sample = families.make(family, 3, thinking)
    results = score.score(ScriptedEngine(sample, spoil=" indeed"), sample)
    assert results
    assert not any(result.right for result in results)


def test_reasoning_is_free() -> None:
    answer = Answer("because", "4")
    assert score.is_right("some other thought</think>4<｜end▁of▁sentence｜>", "thinking", answer)
    assert not score.is_right("because</think>5<｜end▁of▁sentence｜>", "thinking", answer)


def test_an_answer_too_long_for_the_model_is_wrong_and_no_other_is() -> None:
    class Full(ScriptedEngine):
        def step(self, items: Sequence[Any], /) -> list[StepResult]:
            results = super().step(items)
            full = StepResult(error=ContextFullError("no room"))
            return [
                full if item.session is self.sessions[1] else result
                for item, result in zip(items, results, strict=True)
            ]

    sample = families.make("arith", 1, thinking=False)
    engine = Full(sample)
    found = dict(score.score_all(engine, [(number, sample) for number in range(3)]))
    assert [[result.right for result in found[place]] for place in range(3)] == [
        [True],
        [False],
        [True],
    ]
    assert found[1][0].got == "no room"
    assert all(session.closed for session in engine.sessions)


def test_an_answer_without_a_next_token_ends_and_is_wrong() -> None:
    class Mute(ScriptedEngine):
        def step(self, items: Sequence[Any], /) -> list[StepResult]:
            return [StepResult() for _ in items]

    sample = families.make("arith", 1, thinking=False)
    assert [result.right for result in score.score(Mute(sample), sample)] == [False]


def test_an_unfinished_answer_is_wrong() -> None:
    assert not score.is_right("4", "chat", Answer("", "4"))
    assert not score.is_right("4<｜end▁of▁sentence｜>", "thinking", Answer("", "4"))


def test_calls_are_compared_by_name_and_arguments() -> None:
    sample = families.make("tool", 5, False)
    whole = sample.prompt(1).text
    said = whole[whole.rindex("</think>") + len("</think>") :]
    answer = sample.exchanges[0].answer
    assert answer.calls
    assert score.is_right(said, "chat", answer)
    other = Answer(answer.reasoning, answer.content, (Call("other", answer.calls[0].arguments),))
    assert not score.is_right(said, "chat", other)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, thinking=st.booleans(), family=st.sampled_from(NEAR))
def test_samples_hold_no_markers_and_parse_back(seed: int, thinking: bool, family: str) -> None:
    sample = families.make(family, seed, thinking)
    mode: score.Mode = "thinking" if thinking else "chat"
    for index in sample.scored():
        messages = sample.messages(index + 1)
        asked = render(messages[:-1], thinking_mode=mode).text
        whole = render(messages, thinking_mode=mode).text
        assert whole.startswith(asked)
        message = parse(whole[len(asked) :], mode)
        assert message["content"] == sample.exchanges[index].answer.content
    ids = sample.prompt().token_ids(tokenizer())
    assert ids == tokenizer().encode(sample.prompt().text)


@pytest.mark.parametrize("distance", families.DISTANCES)
def test_recall_is_as_far_as_its_name_says(distance: int) -> None:
    for seed in range(4):
        sample = families.make(f"recall@{distance}", seed, False)
        count = len(sample.prompt().token_ids(tokenizer()))
        assert 0.85 * distance < count < 1.15 * distance + 120
        assert count < 16384


def test_every_right_answer_to_a_sort_is_sorted() -> None:
    for seed in range(60):
        sample = families.make("sort", seed, False)
        items = sample.exchanges[0].answer.content.split(", ")
        ordered: list[Any] = [int(x) for x in items] if items[0].isdigit() else items
        assert ordered in (sorted(ordered), sorted(ordered, reverse=True))


@pytest.mark.parametrize("seed", range(40))
def test_the_reasoning_of_a_sort_takes_the_items_in_the_order_of_the_answer(seed: int) -> None:
    answer = families.make("sort", seed, True).exchanges[0].answer
    items = answer.content.split(", ")
    steps = answer.reasoning.removesuffix(".").split(". ")[1:]
    assert [step.split(",")[0] for step in steps] == items
    for number, step in enumerate(steps[:-1], 1):
        assert sorted(step.split("left ")[1].split()) == sorted(items[number:])


@pytest.mark.parametrize("thinking", [False, True])
def test_what_is_only_told_is_acknowledged_without_a_call(thinking: bool) -> None:
    samples = [families.make("remember", seed, thinking) for seed in range(80)]
    assert any(sample.tools for sample in samples)
    assert any(not sample.tools for sample in samples)
    for sample in samples:
        assert not any(exchange.answer.calls for exchange in sample.exchanges)
    told = [
        exchange.answer.content
        for sample in samples
        for exchange in sample.exchanges
        if str(exchange.asked).lower().startswith(("remember", "note that", "please remember"))
    ]
    assert len(told) > 10
    assert set(told) == {"OK, I will remember that."}


def test_what_was_told_is_what_is_answered() -> None:
    asked = 0
    for seed in range(60):
        sample = families.make("remember", seed, False)
        *earlier, last = sample.exchanges
        if last.answer.content.startswith("Your ") and earlier:
            asked += 1
            value = last.answer.content.removesuffix(".").split(" is ")[-1].split()[-1]
            assert any(value in str(exchange.asked) for exchange in earlier)
    assert asked > 5


def test_the_table_adds_up() -> None:
    def result(family: str, mode: score.Mode, right: bool) -> score.Result:
        return score.Result(family, mode, 0, right, 10, "question", "wanted", "got")

    results = [
        result("tool", "chat", True),
        result("tool", "chat", False),
        result("recall@300", "thinking", True),
        result("agent", "thinking", True),
    ]
    summary = report.summary(results)
    assert summary["exact_match"] == 0.75
    assert summary["groups"] == {"recall": 1.0, "tools": 0.5, "agents": 1.0}
    assert summary["families"]["tool"] == {"chat": {"right": 1, "total": 2}}
    assert [mistake["family"] for mistake in summary["mistakes"]] == ["tool"]
    json.dumps(summary)
    assert report.table(results, "title").row_count == 7


def test_families_are_chosen_by_pattern() -> None:
    assert command.chosen("recall@*,greet")[0] == "greet"
    assert len(command.chosen("recall@*")) == len(families.DISTANCES)
    with pytest.raises(ValueError, match="no family is called 'nothing'"):
        command.chosen("nothing")


def test_an_unknown_family_is_a_clear_error() -> None:
    from pyds4.evals import main

    with pytest.raises(InvalidArgumentError, match="no family is called"):
        main(["--families", "nothing"])
