"""A grammar for tool calls, for tools that were declared with ``strict``.

It begins behind the first DSML marker of a block of calls, where every vocabulary has a token
boundary, and ends with the block::

    <|DSML|tool_calls>\\n<|DSML|invoke name="…">\\n … <|/DSML|tool_calls>
            └ here

A strict tool gets the parameters of its schema, in its order; the other tools get any.
Source: the DSML of the published encoder, as ``pyds4.chat`` renders it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyds4_server.grammar import JSON_OPTIONS

_MAX_ALTERNATIVES = 64


def call_grammar(tools: Sequence[Mapping[str, Any]], strict: Collection[str], dsml: int) -> str:
    """The grammar in llguidance's dialect of Lark.

    Args:
        tools: Declared tools in OpenAI's form, at least one.
        strict: The names of those whose schemas are to be kept.
        dsml: The id of the DSML marker.
    """
    marker = f"<[{dsml}]>"
    lines = [
        f'start: "tool_calls>\\n" invoke ("\\n" invoke)* "\\n</" {marker} "tool_calls>"',
        "invoke: " + " | ".join(f"invoke{index}" for index in range(len(tools))),
        f'close: "</" {marker} "invoke>"',
        f'end: {marker} "parameter>\\n"',
        "json: %json {}",
        # Ends in what opens the closing marker: behind any other text that marker cannot come.
        "TEXT: /(?s:.*)<\\//",
        'NAME: /[^"\\n<>]+/',
        f'any: "<" {marker} "parameter name=\\"" NAME "\\" string=\\"" any_value',
        'any_value: "true\\">" TEXT end | "false\\">" json "</" end',
    ]
    for index, tool in enumerate(tools):
        function = tool["function"]
        lines += _tool(index, function, function["name"] in strict, marker)
    return "\n".join(lines) + "\n"


def _tool(index: int, function: Mapping[str, Any], is_strict: bool, marker: str) -> list[str]:
    name = function["name"]
    head = _quoted(f'invoke name="{name}">\n')
    opening = f'invoke{index}: "<" {marker} {head}'
    schema = function.get("parameters") or {}
    properties = schema.get("properties")
    if not is_strict or not isinstance(properties, dict):
        return [f"{opening} ({_EMPTY} | any*) close"]
    required = schema.get("required")
    needed = set(required) if isinstance(required, list) else set()
    rules: list[str] = []
    parts: list[str] = []
    for place, (name, wanted) in enumerate(properties.items()):
        rule = f"p{index}_{place}"
        values = _alternatives(wanted, schema, f"{rule}_json", rules)
        head = _quoted(f'parameter name="{name}" string="')
        rules.append(f'{rule}: "<" {marker} {head} ({" | ".join(values)})')
        parts.append(rule if name in needed else f"{rule}?")
    empty = "" if needed else f"{_EMPTY} | "
    return [f"{opening} ({empty}{' '.join(parts)}) close", *rules]


def _quoted(text: str) -> str:
    """A string of the grammar."""
    return json.dumps(text, ensure_ascii=False)


_EMPTY = '"\\n"'
"""A call without parameters has an empty line in their place."""


def _alternatives(
    wanted: Any, root: Mapping[str, Any], json_rule: str, rules: list[str]
) -> list[str]:
    """How a value of the schema ``wanted`` may be written: strings as they are, others as JSON.

    A rule for the JSON is added to ``rules`` if one is needed.
    """
    literals: list[str] = []
    has_text = False
    others: list[Any] = []
    for one in _flat(wanted, root):
        given = one.get("enum") if isinstance(one.get("enum"), list) else None
        if "const" in one:
            given = [one["const"]]
        kinds = one.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if given is not None:
            literals += [value for value in given if isinstance(value, str)]
            plain = [value for value in given if not isinstance(value, str)]
            others += [{"enum": plain}] if plain else []
        elif kinds == [None]:
            has_text = True
            others.append(one)
        else:
            has_text = has_text or "string" in kinds
            left = [kind for kind in kinds if kind != "string"]
            others += [{**one, "type": left}] if left else []
    ways = [_quoted(f'true">{text}</') + " end" for text in literals]
    if has_text:
        ways.append('"true\\">" TEXT end')
    if others:
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        schema = {"anyOf": others, **shared} if len(others) > 1 else {**others[0], **shared}
        rules.append(f"{json_rule}: %json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}")
        ways.append(f'"false\\">" {json_rule} "</" end')
    return ways


def _flat(wanted: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives of a schema, references to the root's definitions followed."""
    found: list[Mapping[str, Any]] = []
    open_ends = [wanted]
    steps = 0
    while open_ends and steps < _MAX_ALTERNATIVES:
        steps += 1
        one = open_ends.pop(0)
        if not isinstance(one, Mapping):
            found.append({})  # true: anything
            continue
        branches = one.get("anyOf") or one.get("oneOf")
        if isinstance(branches, list) and branches:
            open_ends = [*branches, *open_ends]
        elif isinstance(one.get("$ref"), str):
            target = _resolved(one["$ref"], root)
            if isinstance(target, Mapping):
                open_ends.insert(0, target)
            else:
                found.append(one)  # refused when the JSON of it is compiled
        else:
            found.append(one)
    return found or [{}]


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What ``#/$defs/name`` stands for; None if there is no such thing."""
    if not reference.startswith("#/"):
        return None
    place: Any = root
    for step in reference[2:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        place = place.get(step) if isinstance(place, Mapping) else None
    return place
