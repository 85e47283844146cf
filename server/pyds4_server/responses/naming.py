"""Tools by the names the model sees, and back.

The model knows one flat list of functions. A namespace's tools become ``NAMESPACE__NAME``; a custom
tool, which takes free text, becomes a function with one string parameter. Calls go back to the
client in the form it declared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyds4_server import tools as declared_tools
from pyds4_server.errors import InvalidRequestError
from pyds4_server.responses import protocol as p

CUSTOM_PARAMETER = "input"
_CUSTOM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {CUSTOM_PARAMETER: {"type": "string"}},
    "required": [CUSTOM_PARAMETER],
}


@dataclass(frozen=True, slots=True)
class Declared:
    """A tool as the client knows it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolNames:
    """The tools of one request.

    Attributes:
        tools: In OpenAI's chat form, for prompt and parser.
        by_flat_name: What each of them is to the client.
        strict: The names the model sees of those whose calls must follow their schemas.
    """

    tools: list[dict[str, Any]] = field(default_factory=list)
    by_flat_name: dict[str, Declared] = field(default_factory=dict)
    strict: frozenset[str] = frozenset()

    def declared(self, flat: str) -> Declared:
        """What a called name means; a name nobody declared is passed on as it is."""
        return self.by_flat_name.get(flat) or Declared(flat)


def flat_name(name: str, namespace: str | None) -> str:
    """One name for a tool in a namespace."""
    if not namespace:
        return name
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"


def collect(sent: Sequence[p.Tool]) -> ToolNames:
    """The callable tools of a request; what only OpenAI's servers can do is left out.

    Raises:
        InvalidRequestError: a missing, malformed or repeated name.
    """
    functions: list[dict[str, Any]] = []
    by_flat_name: dict[str, Declared] = {}
    strict: set[str] = set()
    for tool, namespace in _flattened(sent):
        if not tool.name:
            raise InvalidRequestError("tools: a tool has no name", param="tools")
        flat = flat_name(tool.name, namespace)
        function: dict[str, Any] = {"name": flat}
        if tool.description is not None:
            function["description"] = tool.description
        is_custom = tool.type == "custom"
        function["parameters"] = (
            _CUSTOM_SCHEMA if is_custom else tool.parameters or {"type": "object", "properties": {}}
        )
        functions.append(function)
        by_flat_name[flat] = Declared(tool.name, namespace, is_custom)
        if tool.strict:
            strict.add(flat)
    return ToolNames(declared_tools.declared(functions, "tools"), by_flat_name, frozenset(strict))


def _flattened(sent: Iterable[p.Tool]) -> Iterable[tuple[p.Tool, str | None]]:
    for tool in sent:
        if tool.type in ("function", "custom"):
            yield tool, None
        elif tool.type == "namespace":
            for inner in tool.tools or ():
                if inner.type in ("function", "custom"):
                    yield inner, tool.name


def custom_input(arguments: str) -> str:
    """The free text of a custom tool's call."""
    value = json.loads(arguments).get(CUSTOM_PARAMETER, "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
