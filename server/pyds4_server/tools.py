"""Declared tools, checked the same way for every protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pyds4_server.errors import InvalidRequestError

_NAME = re.compile(r"[\w.:/\-]{1,256}")

MAX_TOOLS = 1024


def declared(functions: Iterable[dict[str, Any]], param: str) -> list[dict[str, Any]]:
    """OpenAI-form tools from their function objects, which keep their keys in order.

    Raises:
        InvalidRequestError: a missing, malformed or repeated name, or parameters that are no
            object.
    """
    tools: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, function in enumerate(functions):
        where = f"{param}[{index}]"
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{where}: the function's name must be letters, digits and _ . : / -, not {name!r}",
                param=where,
            )
        if name in seen:
            raise InvalidRequestError(f"{where}: {name!r} is declared twice", param=where)
        seen.add(name)
        if not isinstance(function.get("description", ""), str | None):
            raise InvalidRequestError(f"{where}: the description must be a string", param=where)
        if not isinstance(function.get("parameters", {}), dict | None):
            raise InvalidRequestError(f"{where}: parameters must be a JSON schema", param=where)
        tools.append({"type": "function", "function": function})
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError(f"{param}: at most {MAX_TOOLS} tools", param=param)
    return tools


def names(tools: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The names of ``tools``."""
    return tuple(tool["function"]["name"] for tool in tools)


def required(allowed: Sequence[str], param: str) -> tuple[str, ...]:
    """The tools one of which must be called.

    Raises:
        InvalidRequestError: there is none.
    """
    if not allowed:
        raise InvalidRequestError(
            f"{param} demands a call, but there is no tool to call", param=param
        )
    return tuple(allowed)


def chosen(tools: Sequence[dict[str, Any]], name: str, param: str) -> tuple[str, ...]:
    """The one tool that a request names.

    Raises:
        InvalidRequestError: no such tool was declared.
    """
    if name not in names(tools):
        raise InvalidRequestError(f"{param} names {name!r}, which is not in tools", param=param)
    return (name,)
