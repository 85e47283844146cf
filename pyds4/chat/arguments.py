"""Parameters as a model writes them -> the JSON object a tool expects, as they arrive.

A string is escaped piece by piece and can be passed on at once. Everything else waits until it is
complete: JSON that parses is passed on as written, what does not becomes a JSON string, and where
the tool declares a type for the parameter, that decides between the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_WRAPPERS: Final = ("arguments", "input")
_PYTHON_WORDS: Final = {
    "True": ("true", "boolean"),
    "False": ("false", "boolean"),
    "None": ("null", "null"),
}


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """What a declared tool says about its parameters.

    Attributes:
        types: JSON types allowed for each declared parameter; None where the schema leaves it open.
    """

    types: Mapping[str, frozenset[str] | None]


def tool_schemas(tools: Iterable[Mapping[str, Any]]) -> dict[str, ToolSchema]:
    """Declared tools by name.

    Takes ``{"function": {"name", "parameters"}}`` as well as the flat forms with ``parameters`` or
    ``input_schema``; what has no name is passed over.
    """
    schemas: dict[str, ToolSchema] = {}
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            root = function.get("parameters") or function.get("input_schema")
            root = root if isinstance(root, Mapping) else {}
            properties = root.get("properties")
            properties = properties if isinstance(properties, Mapping) else {}
            schemas[name] = ToolSchema({key: _types(p, root) for key, p in properties.items()})
    return schemas


def _types(schema: object, root: Mapping[str, Any], depth: int = 0) -> frozenset[str] | None:
    """The JSON types ``schema`` allows, None if it does not say."""
    if not isinstance(schema, Mapping) or depth > 8:
        return None
    declared = schema.get("type")
    if isinstance(declared, str):
        return frozenset({declared})
    if isinstance(declared, list):
        return frozenset(map(str, declared))
    if isinstance(schema.get("enum"), list):
        return frozenset().union(*(_json_types(value) for value in schema["enum"]))
    if "const" in schema:
        return _json_types(schema["const"])
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: object = root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        return _types(target, root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            options = [_types(option, root, depth + 1) for option in schema[key]]
            known = [option for option in options if option is not None]
            return frozenset().union(*known) if len(known) == len(options) else None
    return None


def _json_types(value: object) -> frozenset[str]:
    """The schema types that ``value`` satisfies."""
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    if isinstance(value, float):
        return frozenset({"number"})
    if isinstance(value, str):
        return frozenset({"string"})
    return frozenset({"array" if isinstance(value, list) else "object"})


class ArgumentsWriter:
    """The JSON object of one call. Every method returns the text to append, possibly none."""

    def __init__(self, schema: ToolSchema | None) -> None:
        self._schema = schema
        self._seen: set[str] = set()
        self._name = ""
        self._is_string: bool | None = None
        self._ignored = False
        self._wrapped: tuple[str, bool | None, str] | None = None
        self.streams = False
        """Whether the open parameter takes text as it arrives."""
        self._fragments: list[str] = []

    @property
    def json(self) -> str:
        """Everything returned so far."""
        return "".join(self._fragments)

    def open(self, name: str, is_string: bool | None) -> str:
        """Begin a parameter. The second of a name is read but ignored: the first is out already."""
        fragment = self._unwrap_nothing()
        self._name, self._is_string = name, is_string
        self._ignored = name in self._seen
        types = self._types(name)
        self.streams = (
            is_string is True
            and (types is None or "string" in types)
            and not self._ignored
            and not self._may_wrap(name)
        )
        if self.streams:
            fragment += self._append(self._key(name) + '"')
        return fragment

    def text(self, text: str) -> str:
        """More of a parameter that ``streams``."""
        return self._append(_quoted(text)[1:-1])

    def close(self, text: str) -> str:
        """End the parameter; ``text`` is what was not passed to ``text()``."""
        if self._ignored:
            return ""
        if self.streams:
            return self._append(_quoted(text)[1:])
        if self._may_wrap(self._name) and isinstance(_parsed(text), dict):
            self._wrapped = (self._name, self._is_string, text)
            return ""
        return self._value(self._name, self._is_string, text)

    def finish(self, body: str) -> tuple[str, str]:
        """End the object. ``body`` is text found between parameters.

        Returns:
            The last fragment and what of ``body`` did not find its way into the object: a body
            that is a JSON object stands for the parameters if there are none.
        """
        if self._wrapped is not None:
            return self._append(self._wrapped[2].strip()), body
        if not self._seen and isinstance(_parsed(body), dict):
            return self._append(body.strip()), ""
        return self._append("}" if self._seen else "{}"), body

    def _may_wrap(self, name: str) -> bool:
        """Whether ``name`` may be the one parameter into which all others were put."""
        known = self._schema is not None and name not in self._schema.types
        return known and name in _WRAPPERS and not self._seen

    def _unwrap_nothing(self) -> str:
        """Another parameter follows: what looked like a wrapper was an ordinary one."""
        if self._wrapped is None:
            return ""
        (name, is_string, text), self._wrapped = self._wrapped, None
        return self._value(name, is_string, text)

    def _types(self, name: str) -> frozenset[str] | None:
        return self._schema.types.get(name) if self._schema else None

    def _key(self, name: str) -> str:
        opening = ", " if self._seen else "{"
        self._seen.add(name)
        return f"{opening}{_quoted(name)}: "

    def _value(self, name: str, is_string: bool | None, text: str) -> str:
        return self._append(self._key(name) + _as_json(text, is_string, self._types(name)))

    def _append(self, fragment: str) -> str:
        self._fragments.append(fragment)
        return fragment


def _as_json(text: str, is_string: bool | None, types: frozenset[str] | None) -> str:
    """A complete value as JSON text."""
    word = _PYTHON_WORDS.get(text.strip())
    if types is not None and word is not None and word[1] in types and is_string is not True:
        return word[0]
    value = _parsed(text)
    if value is _INVALID:
        return _quoted(text)
    fits = types is None or not types.isdisjoint(_json_types(value))
    if is_string is True:
        # A string by its own word, but the tool wants something else and this is exactly that.
        return (
            text.strip() if types is not None and "string" not in types and fits else _quoted(text)
        )
    if not fits and types is not None and "string" in types:
        return _quoted(text)
    return text


class _Invalid:
    pass


_INVALID: Final = _Invalid()


def _parsed(text: str) -> object:
    """The value of JSON ``text``; ``_INVALID`` for anything else, NaN and Infinity included."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _INVALID


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
