"""Scores of a model on samples: its own words, greedily, against the right answer.

An answer is right when its content and its tool calls are exactly those expected. Reasoning is the
model's own business: only what follows ``</think>`` counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, Literal, Protocol, cast

from pyds4.chat import parse, render
from pyds4.engine import StepItem, StepResult
from pyds4.errors import ContextFullError, ParseError
from pyds4.evals import families
from pyds4.evals.sample import Answer, Sample
from pyds4.sampling import GREEDY
from pyds4.tokenizer import Tokenizer

Mode = Literal["chat", "thinking"]
MODES: tuple[Mode, ...] = ("chat", "thinking")
ROOM = 256
"""Tokens that an answer may be longer than the right one before it is cut off."""
TOGETHER = 8
"""Samples that share each step: several tokens cost little more than one."""


class Session(Protocol):
    """What is needed of ``pyds4.Session``."""

    def rewind(self, tokens: list[int], /) -> int: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """What is needed of ``pyds4.Engine``."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def session(self) -> Session: ...

    def step(self, items: Sequence[Any], /) -> Sequence[StepResult]: ...


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


Turn = Generator[list[int], int | None, list[int]]
"""Yields tokens to take in, is sent the most likely next one, returns the answer's."""


def _greedy(session: Session, ids: list[int], eos: int | None, limit: int) -> Turn:
    """The most likely continuation, EOS included, ``limit`` tokens at most.

    It ends where no token can be chosen, as when logits are not numbers: without EOS it is wrong.
    """
    out: list[int] = []
    token = yield ids[session.rewind(ids) :]
    while token is not None:
        out.append(token)
        if token == eos or len(out) >= limit:
            break
        token = yield [token]
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


def _score(
    session: Session, tokenizer: Tokenizer, sample: Sample, number: int
) -> Generator[list[int], int | None, list[Result]]:
    """Yields tokens as ``_greedy`` does; returns a result for every scored answer of ``sample``."""
    mode: Mode = "thinking" if sample.thinking else "chat"
    results = []
    for messages, answer in prompts(sample):
        prompt = render(messages, thinking_mode=mode, reasoning_effort=sample.effort)
        ids = prompt.token_ids(tokenizer)
        wanted = answer.content + "".join(
            f"\n{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"
            for call in answer.calls
        )
        room = ROOM + len(tokenizer.encode(wanted)) * 2
        try:
            said = yield from _greedy(session, ids, tokenizer.eos_id, room)
            text = tokenizer.decode(said)
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
    return results


class _Running:
    """A sample that is being scored, with the tokens it waits to have evaluated."""

    def __init__(self, engine: Engine, sample: Sample, number: int) -> None:
        self.session = engine.session()
        self.results: list[Result] | None = None
        self._steps = _score(self.session, engine.tokenizer, sample, number)
        self._advance(lambda: next(self._steps))

    def take(self, result: StepResult) -> None:
        """Go on from what became of ``tokens``: the next token, or an error."""
        error = result.error
        if error is not None:
            self._advance(lambda: self._steps.throw(error))
        else:
            self._advance(lambda: self._steps.send(result.token))

    def _advance(self, step: Callable[[], list[int]]) -> None:
        try:
            self.tokens = step()
        except StopIteration as stop:
            self.results = stop.value
            self.session.close()


def score_all(
    engine: Engine, samples: Iterable[tuple[int, Sample]], together: int = TOGETHER
) -> Iterator[tuple[int, list[Result]]]:
    """Scores of numbered samples, ``together`` of them sharing each step.

    Yields:
        The place of a sample in ``samples`` and a result for every scored answer of it, in the
        order in which they end; an answer too long for the model is wrong.
    """
    waiting = enumerate(samples)
    running: dict[int, _Running] = {}
    try:
        while True:
            for place, (number, sample) in islice(waiting, together - len(running)):
                running[place] = _Running(engine, sample, number)
            if not running:
                return
            if done := [place for place, one in running.items() if one.results is not None]:
                yield from ((place, running.pop(place).results or []) for place in done)
                continue
            items = [
                StepItem(cast(Any, one.session), one.tokens, GREEDY) for one in running.values()
            ]
            for one, result in zip(running.values(), engine.step(items), strict=True):
                one.take(result)
    finally:
        for one in running.values():
            one.session.close()


def score(engine: Engine, sample: Sample, number: int = 0) -> list[Result]:
    """A result for every scored answer of ``sample``; one too long for the model is wrong."""
    ((_, results),) = score_all(engine, [(number, sample)])
    return results


def evaluate(
    engine: Engine,
    names: Sequence[str] = tuple(families.FAMILIES),
    *,
    per_family: int = 20,
    seed: int | str = 0,
    modes: Sequence[Mode] = MODES,
    together: int = TOGETHER,
    progress: Callable[[list[Result]], None] | None = None,
) -> list[Result]:
    """Fresh samples of the families ``names``, each in all ``modes``.

    Args:
        engine: An opened model.
        names: Keys of ``families.FAMILIES``.
        per_family: Samples of each family and mode; some have several scored answers.
        seed: Other seeds, other samples.
        modes: Chat, thinking or both.
        together: Samples that share each step.
        progress: Called after every sample with its results.

    Raises:
        KeyError: a family does not exist.
    """

    def samples() -> Iterator[tuple[int, Sample]]:
        for name, mode, number in product(names, modes, range(per_family)):
            sample = families.make(name, f"{seed}/{number}", mode == "thinking")
            sample.family = name
            yield number, sample

    found: dict[int, list[Result]] = {}
    for place, results in score_all(engine, samples(), together):
        found[place] = results
        if progress is not None:
            progress(results)
    return [result for place in sorted(found) for result in found[place]]
