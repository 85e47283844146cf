"""Scores of a model on samples: its own words, greedily, against the right answer.

An answer is right when its content and its tool calls are exactly those expected. Reasoning is the
model's own business: only what follows ``</think>`` counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy.typing as npt

from pyds4.chat import parse, render
from pyds4.errors import ContextFullError, ParseError
from pyds4.evals import families
from pyds4.evals.sample import Answer, Sample
from pyds4.tokenizer import Tokenizer

Mode = Literal["chat", "thinking"]
MODES: tuple[Mode, ...] = ("chat", "thinking")
ROOM = 256
"""Tokens that an answer may be longer than the right one before it is cut off."""


class Session(Protocol):
    """What is needed of ``pyds4.Session``."""

    @property
    def logits(self) -> npt.NDArray[Any]: ...

    def prefill(self, tokens: list[int], /) -> int: ...

    def decode(self, token: int, /) -> None: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """What is needed of ``pyds4.Engine``."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def session(self) -> Session: ...


@dataclass(frozen=True, slots=True)
class Result:
    """One scored answer. ``prompt_tokens`` is how long the conversation was before it."""

    family: str
    mode: Mode
    number: int
    right: bool
    prompt_tokens: int
    question: str
    wanted: str
    got: str


def prompts(sample: Sample) -> Iterator[tuple[list[dict[str, Any]], Answer]]:
    """Messages up to each scored answer, true answers in between, and the right answer."""
    for index in sample.scored():
        messages = sample.messages(index + 1)
        yield messages[:-1], sample.exchanges[index].answer


def _greedy(session: Session, ids: list[int], eos: int | None, limit: int) -> list[int]:
    """The most likely continuation, EOS included, ``limit`` tokens at most."""
    session.prefill(ids)
    out: list[int] = []
    while len(out) < limit:
        token = int(session.logits.argmax())
        out.append(token)
        if token == eos:
            break
        session.decode(token)
    return out


def is_right(text: str, mode: Mode, answer: Answer) -> bool:
    """Whether a completion says and calls exactly what ``answer`` does."""
    try:
        message = parse(text, mode)
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ]
    except (ParseError, json.JSONDecodeError):
        return False
    wanted = [(call.name, call.arguments) for call in answer.calls]
    return bool(message["content"] == answer.content and calls == wanted)


def score(engine: Engine, sample: Sample, number: int = 0) -> list[Result]:
    """A result for every scored answer of ``sample``; one too long for the model is wrong."""
    tokenizer = engine.tokenizer
    mode: Mode = "thinking" if sample.thinking else "chat"
    session = engine.session()
    results = []
    try:
        for messages, answer in prompts(sample):
            prompt = render(messages, thinking_mode=mode, reasoning_effort=sample.effort)
            ids = prompt.token_ids(tokenizer)
            wanted = answer.content + "".join(
                f"\n{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"
                for call in answer.calls
            )
            room = ROOM + len(tokenizer.encode(wanted)) * 2
            try:
                text = tokenizer.decode(_greedy(session, ids, tokenizer.eos_id, room))
            except ContextFullError as error:
                text = str(error)
            results.append(
                Result(
                    sample.family,
                    mode,
                    number,
                    is_right(text, mode, answer),
                    len(ids),
                    str(messages[-1].get("content"))[-400:],
                    wanted,
                    text,
                )
            )
    finally:
        session.close()
    return results


def evaluate(
    engine: Engine,
    names: Sequence[str] = tuple(families.FAMILIES),
    *,
    per_family: int = 20,
    seed: int | str = 0,
    modes: Sequence[Mode] = MODES,
    progress: Callable[[list[Result]], None] | None = None,
) -> list[Result]:
    """Fresh samples of the families ``names``, each in all ``modes``.

    Args:
        engine: An opened model.
        names: Keys of ``families.FAMILIES``.
        per_family: Samples of each family and mode; some have several scored answers.
        seed: Other seeds, other samples.
        modes: Chat, thinking or both.
        progress: Called after every sample with its results.

    Raises:
        KeyError: a family does not exist.
    """
    results: list[Result] = []
    for name in names:
        for mode in modes:
            for number in range(per_family):
                sample = families.make(name, f"{seed}/{number}", mode == "thinking")
                sample.family = name
                new = score(engine, sample, number)
                results += new
                if progress is not None:
                    progress(new)
    return results
