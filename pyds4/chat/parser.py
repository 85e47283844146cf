"""Completion -> message, to the letter of the format.

This is the published parser: it stops at anything the encoder would not write, yet accepts a few
truncated calls and passes broken JSON on. It is for checking and for finished text; what comes
from a model while it speaks goes through ``pyds4.chat.stream``, which never reports a call whose
invoke is not closed.

Source: ``encoding_dsv4.py`` published with the weights; golden vectors ``parse``.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from pyds4.chat.markers import BOS, DSML, END_THINK, EOS, THINK
from pyds4.errors import ParseError

_BLOCK: Final = f"\n\n<{DSML}tool_calls"
_BLOCK_END: Final = f"</{DSML}tool_calls>"
_INVOKE: Final = f"<{DSML}invoke"
_INVOKE_END: Final = f"</{DSML}invoke"
_PARAMETER: Final = f"<{DSML}parameter"
_PARAMETER_END: Final = f"/{DSML}parameter"
# `$` also matches before a final newline, which is how a call without parameters may have a blank
# line in its body; a name is whatever stands between the first quote and the last possible one.
_INVOKE_HEAD: Final = re.compile(r'^\s*name="(.*?)">\n$', re.DOTALL)
_PARAMETER_BODY: Final = re.compile(r'^ name="(.*?)" string="(true|false)">(.*?)<$', re.DOTALL)


def parse(text: str, thinking_mode: str) -> dict[str, Any]:
    """The assistant message that ``text`` encodes.

    Args:
        text: What followed the prompt, EOS included.
        thinking_mode: ``"thinking"`` if the prompt ended in ``<think>``; anything else is chat.

    Returns:
        ``role``, ``content``, ``reasoning_content`` and ``tool_calls`` in OpenAI's form.
        ``arguments`` is the JSON text as sent: invalid where the model wrote invalid JSON.

    Raises:
        ParseError: the text breaks the format; the message says where.
    """
    reader = _Reader(text)
    reasoning = ""
    if thinking_mode == "thinking":
        reasoning, stop = reader.until(END_THINK, _BLOCK)
        if stop != END_THINK:
            raise ParseError("the reasoning is not closed by </think>")
    content, stop = reader.until(EOS, _BLOCK)
    calls: list[dict[str, Any]] = []
    if stop == _BLOCK:
        calls = _calls(reader)
        rest, stop = reader.until(EOS)
        if rest:
            raise ParseError(f"text after the tool calls: {_quote(rest)}")
    elif stop is None:
        raise ParseError("the text does not end in EOS")
    if not reader.at_end:
        raise ParseError(f"text after EOS: {_quote(reader.rest)}")
    for marker in (BOS, EOS, THINK, END_THINK, DSML):
        for part, name in ((content, "content"), (reasoning, "reasoning")):
            if marker in part:
                raise ParseError(f"the marker {marker} inside the {name}")
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": calls,
    }


class _Reader:
    """A position in the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position >= len(self._text)

    @property
    def rest(self) -> str:
        return self._text[self._position :]

    def until(self, *stops: str) -> tuple[str, str | None]:
        """Text up to the nearest of ``stops`` and that stop, which is passed over.

        Without one, everything to the end and None.
        """
        found = [(at, stop) for stop in stops if (at := self._text.find(stop, self._position)) >= 0]
        at, nearest = min(found, default=(len(self._text), None))
        text = self._text[self._position : at]
        self._position = at + len(nearest or "")
        return text, nearest


def _calls(reader: _Reader) -> list[dict[str, Any]]:
    """The calls of a block; the reader stands right after its opening, before the ``>``."""
    calls: list[dict[str, Any]] = []
    while not reader.at_end:
        between, stop = reader.until(_INVOKE, _BLOCK_END)
        if between != ">\n":
            raise ParseError(f"expected '>' and a newline between calls, got {_quote(between)}")
        if stop == _BLOCK_END:
            break
        if stop is None:
            raise ParseError("the tool calls end between two tags")
        head, stop = reader.until(_PARAMETER, _INVOKE_END)
        named = _INVOKE_HEAD.match(head)
        if named is None:
            raise ParseError(f"malformed invoke: {_quote(head)}")
        name = named.group(1)
        arguments: dict[str, str] = {}
        while stop == _PARAMETER:
            stop = _parameter(reader, name, arguments)
        pairs = (f"{_json(key)}: {value}" for key, value in arguments.items())
        function = {"name": name, "arguments": "{" + ", ".join(pairs) + "}"}
        calls.append({"type": "function", "function": function})
    return calls


def _parameter(reader: _Reader, name: str, arguments: dict[str, str]) -> str | None:
    """Read one parameter into ``arguments``; returns the tag that follows it."""
    body, _ = reader.until(_PARAMETER_END)
    parts = _PARAMETER_BODY.match(body)
    if parts is None:
        raise ParseError(f"malformed parameter of {name!r}: {_quote(body)}")
    key, is_string, value = parts.groups()
    if key in arguments:
        raise ParseError(f"{name!r} has the parameter {key!r} twice")
    arguments[key] = _json(value) if is_string == "true" else value
    between, stop = reader.until(_PARAMETER, _INVOKE_END)
    if between != ">\n":
        raise ParseError(f"expected '>' and a newline after {key!r}, got {_quote(between)}")
    return stop


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _quote(text: str) -> str:
    """``text`` for an error message, cut to a readable length."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
