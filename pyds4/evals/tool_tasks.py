"""Conversations with tools: one call, several at once, none at all, a typed result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pyds4.evals import lists, prompts, requests, small_talk, sums, texts, words
from pyds4.evals.file_requests import file_request, is_about_files
from pyds4.evals.requests import Request
from pyds4.evals.sample import Answer, Call, Exchange, Sample, Schema
from pyds4.evals.source import Source, wordings
from pyds4.evals.toolbox import CODING, Tool, toolset

NO_TOOL: Final = "I have no tool for that."
_PARALLEL: Final = [
    "weather",
    "time",
    "stock",
    "read",
    "user",
    "random",
    "write",
    "todo",
    "calculator",
    "timer",
    "multiply",
]
_ELSEWHERE: Final = [
    "weather",
    "time",
    "email",
    "stock",
    "music",
    "light",
    "translate",
    "timer",
    "search",
    "user",
]


def request_for(source: Source, tool: Tool) -> Request:
    """Any request that one call of ``tool`` answers."""
    if is_about_files(tool):
        return file_request(source, tool)
    return requests.request(source, tool)


def coding_tools(source: Source) -> list[Tool]:
    """The tools of a coding agent, or some of them."""
    cores: list[Sequence[str]] = [
        ("read", "bash", "edit", "write"),
        ("read", "bash", "edits", "write"),
        ("read", "write", "list", "grep"),
        ("read", "write"),
        ("read",),
        ("bash",),
        source.some(CODING, source.integer(1, 4)),
        ("read", "bash", "edits", "write", "grep", "list"),
    ]
    core = source.pick(cores)
    more = source.pick([0, 0, 1, 3]) if source.budget > 3500 else source.pick([0, 0, 1])
    return toolset(source, core, len(core) + more)


def any_tools(source: Source) -> list[Tool]:
    """Tools of all kinds, as many as the budget allows."""
    return toolset(source, [], source.integer(1, 4 if source.budget < 3500 else 9))


def schemas(source: Source, tools: Sequence[Tool]) -> list[Schema]:
    """The schemas in any order."""
    return [tool.schema for tool in source.shuffled(tools)]


def _sample(
    source: Source, family: str, tools: list[Tool], exchanges: list[Exchange], thinking: bool
) -> Sample:
    declared = schemas(source, tools)
    system = prompts.system_prompt(source, int(source.budget * 0.3), declared)
    return Sample(family, exchanges, thinking, system, declared)


def intent(goal: str, name: str) -> str:
    """The reasoning before a call."""
    return f"The user wants {goal}. I call {name}."


def round_trip(tool: Tool, asked: Request) -> list[Exchange]:
    """Request, call, result, answer."""
    call = Answer(intent(asked.goal, tool.name), "", (tool.call(asked.arguments),))
    said = Answer(asked.reasoning, asked.answer)
    return [Exchange(asked.text, call), Exchange((asked.result,), said)]


def tool(source: Source, thinking: bool) -> Sample:
    """One or more requests, each answered by one call."""
    tools = coding_tools(source) if source.chance(0.45) else any_tools(source)
    exchanges: list[Exchange] = []
    for _ in range(
        source.pick([1, 1, 1, 2]) if source.budget < 3500 else source.pick([1, 1, 2, 3])
    ):
        used = source.pick(tools)
        exchanges += round_trip(used, request_for(source, used))
        if source.chance(0.12):
            exchanges.append(small_talk.greet(source).exchange(thinking))
    return _sample(source, "tool", tools, exchanges, thinking)


def tool_none(source: Source, thinking: bool) -> Sample:
    """Tools are there, but the question needs none, or one that is not there."""
    tools = coding_tools(source) if source.chance(0.45) else any_tools(source)
    purposes = {one.purpose for one in tools}
    if source.chance(0.4):
        absent = [key for key in _ELSEWHERE if key not in purposes]
        if purposes & {"grep", "glob"}:
            absent = [key for key in absent if key != "search"]
        other = source.pick(absent)
        text = requests.request(source, toolset(source, [other], 1)[0]).text
        says = Answer("There is no tool for this.", NO_TOOL)
        return _sample(source, "tool_none", tools, [Exchange(text, says)], thinking)
    makers = [
        small_talk.greet,
        small_talk.identity,
        small_talk.capital,
        texts.story,
        lists.count,
        texts.copy,
    ]
    if not purposes & {"calculator", "multiply"}:
        makers += [sums.arithmetic, sums.arithmetic]
    exchanges = [
        source.pick(makers)(source).exchange(thinking) for _ in range(source.pick([1, 1, 2]))
    ]
    return _sample(source, "tool_none", tools, exchanges, thinking)


def _comparison(source: Source, count: int) -> list[Request]:
    """The weather of several cities, asked in one sentence."""
    kinds = source.some(["sunny", "cloudy", "rainy", "windy"], count)
    asked = []
    for city, condition in zip(source.some(words.CITIES, count), kinds, strict=True):
        degrees = source.integer(-10, 38)
        result = json.dumps({"temperature": degrees, "condition": condition})
        reasoning = f"It is {degrees} degrees and {condition}."
        answer = requests.weather_sentence(degrees, "C", condition, city)
        goal = f"the weather in {city}"
        asked.append(Request("", goal, {"city": city}, result, reasoning, answer))
    return asked


def tool_parallel(source: Source, thinking: bool) -> Sample:
    """Two or three calls of one tool in one answer."""
    key = source.pick(_PARALLEL)
    more = source.integer(0, 3 if source.budget < 3500 else 7)
    tools = toolset(source, [key], 1 + more)
    used, count = tools[0], source.pick([2, 2, 2, 3])
    if key == "weather" and source.chance(0.6):
        asked = _comparison(source, count)
        cities = [one.arguments["city"] for one in asked]
        listed = ", ".join(cities[:-1]) + " and " + cities[-1]
        ask = "What is the weather in {}?|Compare the weather in {}.|weather in {}|Weather for {}"
        text = source.pick(ask.split("|")).format(listed)
    else:
        asked = [request_for(source, used) for _ in range(count)]
        text = _together(source, key, [one.text for one in asked])
    goals = " and ".join(one.goal for one in asked)
    reasoning = f"The user wants {goals}. I call {used.name} {count} times."
    calls = tuple(used.call(one.arguments) for one in asked)
    said = Answer(" ".join(one.reasoning for one in asked), "\n".join(one.answer for one in asked))
    exchanges = [
        Exchange(text, Answer(reasoning, "", calls)),
        Exchange(tuple(one.result for one in asked), said),
    ]
    return _sample(source, "tool_par", tools, exchanges, thinking)


def _together(source: Source, key: str, asks: list[str]) -> str:
    """Several requests as one text; what ends in free text gets a line of its own."""
    if key in ("write", "random"):
        return "\n".join(asks)
    joint = source.pick([" ", "\n", " Then: ", " And: "])
    ended = [ask if ask[-1] in ".?!" or "\n" in ask else f"{ask}." for ask in asks[:-1]]
    return joint.join([*ended, asks[-1]])


_FIELDS: Final[dict[str, list[str]]] = {
    "name": ["name", "name", "full_name", "person"],
    "age": ["age", "age", "years"],
    "city": ["city", "city", "town", "location", "place"],
}


def tool_output(source: Source, thinking: bool) -> Sample:
    """A typed result: the answer is a call of the tool that takes it."""
    name, age, city = source.pick(words.NAMES), source.integer(1, 99), source.pick(words.CITIES)
    values: dict[str, Any] = {"name": name, "age": age, "city": city}
    told = wordings("""
    {n} is {a} years old and lives in {c}. | {n}, {a}, from {c}. | {n} ({a}) lives in {c}.
    My friend {n} lives in {c} and is {a} years old. | I am {n}, I am {a} and I live in {c}.
    In {c} lives {n}, who is {a}.
    """)
    text = source.pick(told).format(n=name, a=age, c=city)
    if source.chance(0.4):
        text = source.pick(["Extract the person: ", "Who is this? ", "Get the data: "]) + text
    keys = source.some(list(_FIELDS), source.integer(1, 3))
    names = {key: source.pick(_FIELDS[key]) for key in keys}
    kinds = {"name": "string", "age": "integer", "city": "string"}
    schema: Schema = {
        "name": source.pick(["final_result", "final_result", "final_result", "submit_result"]),
        "description": source.pick(
            ["The final response which ends this conversation", "Return the result.", "The result"]
        ),
        "parameters": {
            "properties": {names[key]: {"type": kinds[key]} for key in keys},
            "required": [names[key] for key in keys],
            "type": "object",
            "additionalProperties": False,
        },
    }
    if source.chance(0.6):
        schema["strict"] = True
    others = toolset(source, [], source.integer(0, 2)) if source.chance(0.3) else []
    declared = source.shuffled([schema, *[one.schema for one in others]])
    call = Call(schema["name"], {names[key]: values[key] for key in keys})
    listed = ", ".join(f"{names[key]} {values[key]}" for key in keys)
    reasoning = f"The text says: {listed}. I call {schema['name']}."
    system = prompts.system_prompt(source, int(source.budget * 0.2), declared)
    exchanges = [Exchange(text, Answer(reasoning, "", (call,)))]
    return Sample("tool_output", exchanges, thinking, system, declared)
