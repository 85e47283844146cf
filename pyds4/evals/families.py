"""Every family of samples by name, for evaluation and for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyds4.evals import lists, programs, prompts, recall, small_talk, sums, texts
from pyds4.evals.agents import agent, shell
from pyds4.evals.remember import remember
from pyds4.evals.sample import Answer, Exchange, Sample, Task
from pyds4.evals.source import Source
from pyds4.evals.tool_tasks import tool, tool_none, tool_output, tool_parallel

TaskMaker = Callable[[Source], Task]
SampleMaker = Callable[[Source, bool], Sample]

TASKS: Final[dict[str, TaskMaker]] = {
    "greet": small_talk.greet,
    "identity": small_talk.identity,
    "fact": small_talk.capital,
    "sorry": small_talk.beyond,
    "arith": sums.arithmetic,
    "sort": lists.sort,
    "reverse": lists.reverse,
    "count": lists.count,
    "minmax": lists.extreme,
    "letters": lists.letters,
    "pick": lists.place,
    "kind": lists.kind,
    "units": sums.units,
    "story": texts.story,
    "python": programs.python,
    "json": texts.as_json,
    "copy": texts.copy,
}
"""Families of questions that stand alone."""

_REPHRASED: Final = frozenset(
    ["arith", "sort", "reverse", "count", "minmax", "letters", "pick", "kind", "units", "python"]
)
_PLAIN_TALK: Final = tuple(TASKS)
DISTANCES: Final = (300, 700, 1500, 1900, 2800, 3700, 6000, 8000, 12000, 15500)
"""Lengths of the texts of the ``recall@`` families, in tokens."""
CHARACTERS_PER_TOKEN: Final = 4.5
"""Of generated sentences, with the demo model's vocabulary."""


def task(source: Source, family: str) -> Task:
    """A question of ``family``, in some tone."""
    made = TASKS[family](source)
    if family in _REPHRASED and source.chance(0.35):
        question = source.politely(made.question)
        return Task(made.family, question, made.reasoning, made.answer, made.shown)
    return made


def any_task(source: Source) -> Task:
    """A question of any family."""
    return task(source, source.pick(_PLAIN_TALK))


def alone(source: Source, thinking: bool, family: str) -> Sample:
    """One question of ``family``."""
    system = prompts.system_prompt(source, source.budget // 2, [])
    return Sample(family, [task(source, family).exchange(thinking)], thinking, system)


def chat(source: Source, thinking: bool) -> Sample:
    """Several questions in a row."""
    count = source.integer(2, min(40, max(4, source.budget // 700)))
    exchanges = [any_task(source).exchange(thinking) for _ in range(count)]
    system = prompts.system_prompt(source, source.budget // 2, [])
    return Sample("chat", exchanges, thinking, system)


def persona(source: Source, thinking: bool) -> Sample:
    """An instruction that the answers obey."""
    impersonal = [family for family in TASKS if family not in ("greet", "identity")]
    exchanges = [
        task(source, source.pick(impersonal)).exchange(thinking)
        for _ in range(source.pick([1, 1, 2]))
    ]
    if source.chance(0.35):
        system, name = prompts.named(source)
        ask = source.pick(["What is your name?", "Who are you?", "what's your name?", "Your name?"])
        said = Answer(f"My instructions say that my name is {name}.", f"My name is {name}.")
        exchanges.append(Exchange(ask, said))
    else:
        system, before, after = prompts.persona(source)
        exchanges = [
            Exchange(
                one.asked,
                Answer(one.answer.reasoning, f"{before}{one.answer.content}{after}"),
            )
            for one in exchanges
        ]
    if source.chance(0.5):
        system = f"You are a helpful assistant. {system}"
    return Sample("persona", exchanges, thinking, system)


def recall_near(source: Source, thinking: bool) -> Sample:
    """A fact within the budget."""
    characters = int(60 * (source.budget * 0.8 / 90) ** source.random.random())
    if source.chance(0.15 if source.budget < 12000 else 0.7):
        characters = int(source.budget * source.random.uniform(0.3, 1.0))
    system = prompts.system_prompt(source, 200, [])
    exchange = recall.needle(source, characters).exchange(thinking)
    return Sample("recall", [exchange], thinking, system)


def recall_at(source: Source, thinking: bool, distance: int) -> Sample:
    """A text of about ``distance`` tokens."""
    characters = int(distance * CHARACTERS_PER_TOKEN * source.random.uniform(0.92, 1.0))
    exchange = recall.needle(source, characters).exchange(thinking)
    return Sample(f"recall@{distance}", [exchange], thinking)


def recall_turns(source: Source, thinking: bool) -> Sample:
    """A fact told some turns ago; only the question about it counts."""
    characters = int(60 * (min(source.budget, 40000) / 90) ** source.random.random())
    exchanges = recall.told_before(source, characters, any_task, thinking)
    system = prompts.system_prompt(source, 200, [])
    last = len(exchanges) - 1
    return Sample("recall_turns", exchanges, thinking, system, scored_from=last)


def _alone(family: str) -> SampleMaker:
    return lambda source, thinking: alone(source, thinking, family)


def _recall(distance: int) -> SampleMaker:
    return lambda source, thinking: recall_at(source, thinking, distance)


FAMILIES: Final[dict[str, SampleMaker]] = {
    **{family: _alone(family) for family in TASKS},
    "chat": chat,
    "persona": persona,
    "remember": remember,
    "recall_turns": recall_turns,
    **{f"recall@{distance}": _recall(distance) for distance in DISTANCES},
    "tool": tool,
    "tool_none": tool_none,
    "tool_par": tool_parallel,
    "tool_output": tool_output,
    "agent": agent,
    "shell": shell,
}
"""What can be evaluated, in the order of the table."""


def make(family: str, seed: int | str, thinking: bool, budget: int = 2600) -> Sample:
    """The sample of ``family`` that ``seed`` means, about ``budget`` characters long.

    Raises:
        KeyError: there is no such family.
    """
    mode = "thinking" if thinking else "chat"
    source = Source(f"{seed}/{family}/{mode}", budget=budget)
    return FAMILIES[family](source, thinking)
