"""Tool calls as the model writes them.

::

    <｜DSML｜tool_calls>
    <｜DSML｜invoke name="NAME">
    <｜DSML｜parameter name="KEY" string="true">raw text</｜DSML｜parameter>
    <｜DSML｜parameter name="KEY" string="false">{"any": "JSON"}</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

A string is written raw, everything else as JSON; nothing is escaped. The block is set off from
the content before it by one blank line, which belongs to the block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyds4.chat.prompt import PromptWriter
from pyds4.errors import RenderError


def write_calls(out: PromptWriter, calls: Sequence[Any], where: str) -> None:
    """Write the block for ``calls``, each ``{"function": {"name", "arguments"}}``.

    Raises:
        RenderError: a call without name or arguments, or arguments that are no JSON object.
    """
    out.template("\n\n<｜DSML｜tool_calls>\n")
    for index, call in enumerate(calls):
        place = f"{where}, tool call {index}"
        try:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
        except (KeyError, TypeError) as error:
            raise RenderError(f"{place} lacks function.name or function.arguments") from error
        if index:
            out.template("\n")
        out.template('<｜DSML｜invoke name="')
        out.text(name, f"{place}: name")
        out.template('">\n')
        for position, (key, value) in enumerate(_parameters(arguments, place).items()):
            if position:
                out.template("\n")
            out.template('<｜DSML｜parameter name="')
            out.text(key, f"{place}: parameter name")
            raw = isinstance(value, str)
            out.template(f'" string="{"true" if raw else "false"}">')
            out.text(value if raw else to_json(value, place), f"{place}: {key}")
            out.template("</｜DSML｜parameter>")
        out.template("\n</｜DSML｜invoke>")
    out.template("\n</｜DSML｜tool_calls>")


def to_json(value: object, where: str) -> str:
    """``value`` as the template writes JSON: Python's separators, key order kept, no escapes.

    Raises:
        RenderError: ``value`` holds something JSON cannot say.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"{where} cannot be written as JSON: {error}") from error


def _parameters(arguments: object, where: str) -> Mapping[str, object]:
    """The arguments of a call, which arrive as JSON text or already parsed.

    Text that is no JSON at all becomes one parameter called ``arguments``: a model that once
    produced it is shown what it wrote.
    """
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return {"arguments": arguments}
    else:
        parsed = arguments
    if not isinstance(parsed, Mapping):
        raise RenderError(f"{where}: arguments are {type(parsed).__name__}, not a JSON object")
    return parsed
