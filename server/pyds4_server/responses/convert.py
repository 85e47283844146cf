"""Responses <-> the server's own terms. Pure functions."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from pyds4_server import tools as declared_tools
from pyds4_server.conversation import Conversation
from pyds4_server.conversation import Message as Turn
from pyds4_server.errors import InvalidRequestError
from pyds4_server.events import CallEnd
from pyds4_server.events import Usage as Counted
from pyds4_server.responses import protocol as p
from pyds4_server.responses.naming import (
    CUSTOM_PARAMETER,
    ToolNames,
    custom_input,
    flat_name,
)

_SEAL = "pyds4."
_MAX_UNSEALED = 8 << 20


def conversation(
    request: p.CountRequest, items: Sequence[p.Item], tool_names: ToolNames
) -> Conversation:
    """The request as a conversation.

    Args:
        request: The request.
        items: Its input, behind that of the response it continues.
        tool_names: Its tools.

    Raises:
        InvalidRequestError: what cannot be answered, with the field at fault.
    """
    messages: list[Turn] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    for index, item in enumerate(items):
        _add(messages, item, f"input[{index}]")
    choice, callable_names = _tool_choice(request.tool_choice, tool_names.tools)
    effort = request.reasoning.effort if request.reasoning else None
    return Conversation(
        messages=messages,
        tools=tool_names.tools,
        thinking=None if effort is None else effort != "none",
        effort=None if effort == "none" else effort,
        response_format=_response_format(request.text),
        is_format_strict=bool(request.text and request.text.format and request.text.format.strict),
        format_param="text.format.schema",
        strict_tools=tool_names.strict,
        tool_choice=choice,
        callable_names=callable_names,
    )


def items_of(request: p.CountRequest) -> list[p.Item]:
    """The input as items; a string is a user's message."""
    if request.input is None:
        return []
    if isinstance(request.input, str):
        return [p.Item(type="message", role="user", content=request.input)]
    return request.input


def _add(messages: list[Turn], item: p.Item, where: str) -> None:
    """Append one item; what belongs to one answer of the model becomes one message."""
    if item.type == "message":
        if item.role is None:
            raise InvalidRequestError(f"{where}.role: Field required", param=where)
        text = _text(item.content, f"{where}.content")
        if item.role == "assistant":
            turn = _open_turn(messages)
            turn["content"] = "\n\n".join(part for part in (turn["content"], text) if part)
        else:
            role = "user" if item.role == "user" else "system"
            messages.append({"role": role, "content": text})
    elif item.type == "reasoning":
        turn = _open_turn(messages)
        reasoning = _reasoning(item)
        if reasoning:
            turn["reasoning_content"] = reasoning
    elif item.type in ("function_call", "custom_tool_call"):
        if not item.name:
            raise InvalidRequestError(f"{where}.name: Field required", param=where)
        arguments: Any = item.arguments or "{}"
        if item.type == "custom_tool_call":
            arguments = {CUSTOM_PARAMETER: item.input or ""}
        function = {"name": flat_name(item.name, item.namespace), "arguments": arguments}
        call = {"id": item.call_id or item.id or "", "type": "function", "function": function}
        _open_turn(messages).setdefault("tool_calls", []).append(call)
    elif item.type in ("function_call_output", "custom_tool_call_output"):
        content = _text(item.output, f"{where}.output", placeholder=True)
        messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": content})


def _open_turn(messages: list[Turn]) -> Turn:
    """The assistant's message at the end, a new one if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(content: str | list[p.Part] | None, where: str, *, placeholder: bool = False) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for part in content:
        if part.type in ("input_text", "output_text", "text", "reasoning_text", "summary_text"):
            parts.append(part.text or "")
        elif part.type == "refusal":
            parts.append(part.refusal or "")
        elif placeholder:
            parts.append(f"[Unsupported {part.type.removeprefix('input_')}]")
        else:
            raise InvalidRequestError(
                f"{where}: this model reads text only, not {part.type!r}", param=where
            )
    return "\n\n".join(parts)


def _reasoning(item: p.Item) -> str:
    """A reasoning item's text: sealed by us, or as it was shown."""
    if item.encrypted_content:
        opened = unseal(item.encrypted_content)
        if opened is not None:
            return opened
    if isinstance(item.content, list) and item.content:
        return "".join(part.text or "" for part in item.content)
    return "".join(part.text or "" for part in item.summary or ())


def seal(reasoning: str) -> str:
    """Reasoning as ``encrypted_content``. It is packed, not secret: it came from this machine."""
    return _SEAL + base64.b64encode(zlib.compress(reasoning.encode())).decode()


def unseal(sealed: str) -> str | None:
    """The reasoning in ``sealed``; None if it was not sealed here."""
    if not sealed.startswith(_SEAL):
        return None
    try:
        packed = base64.b64decode(sealed[len(_SEAL) :], validate=True)
        return zlib.decompressobj().decompress(packed, _MAX_UNSEALED).decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError):
        return None


def _tool_choice(
    choice: Any, tools: Sequence[dict[str, Any]]
) -> tuple[Literal["auto", "none", "required"], tuple[str, ...]]:
    if isinstance(choice, p.ToolChoice):
        if choice.type == "allowed_tools":
            if choice.mode != "required":
                return "auto", ()
            sent = choice.tools or ()
            flat = [flat_name(str(t.get("name")), _string(t.get("namespace"))) for t in sent]
            allowed = [declared_tools.chosen(tools, name, "tool_choice")[0] for name in flat]
            return "required", declared_tools.required(allowed, "tool_choice")
        if choice.type in ("function", "custom"):
            name = flat_name(choice.name or "", choice.namespace)
            return "required", declared_tools.chosen(tools, name, "tool_choice")
        raise InvalidRequestError(
            f"tool_choice: no such kind of tool here: {choice.type!r}", param="tool_choice"
        )
    if choice == "required":
        return "required", declared_tools.required(declared_tools.names(tools), "tool_choice")
    return ("none", ()) if choice == "none" else ("auto", ())


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _response_format(text: p.TextConfig | None) -> dict[str, Any] | None:
    if text is None or text.format is None or text.format.type == "text":
        return None
    if text.format.type == "json_object":
        return {"type": "object"}
    if text.format.schema_ is None:
        raise InvalidRequestError("text.format.schema is missing", param="text.format")
    return text.format.schema_


def usage(counted: Counted) -> p.Usage:
    """The token counts."""
    return p.Usage(
        input_tokens=counted.prompt_tokens,
        input_tokens_details=p.InputDetails(
            cached_tokens=counted.cached_tokens, cache_write_tokens=0
        ),
        output_tokens=counted.completion_tokens,
        output_tokens_details=p.OutputDetails(reasoning_tokens=counted.reasoning_tokens),
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
    )


def call_item(
    call: CallEnd, identity: str, names: ToolNames
) -> p.FunctionCallItem | p.CustomCallItem:
    """A finished call in the form its tool was declared."""
    declared = names.declared(call.name)
    if declared.is_custom:
        custom = p.CustomCallItem(
            type="custom_tool_call",
            id=identity,
            call_id=call.id,
            name=declared.name,
            input=custom_input(call.arguments),
            status="completed",
        )
        if declared.namespace:
            custom.namespace = declared.namespace
        return custom
    item = p.FunctionCallItem(
        type="function_call",
        id=identity,
        call_id=call.id,
        name=declared.name,
        arguments=call.arguments,
        status="completed",
    )
    if declared.namespace:
        item.namespace = declared.namespace
    return item


def as_input(item: p.OutputItem) -> p.Item:
    """An output item as a later request's input."""
    return p.Item.model_validate(json.loads(item.model_dump_json(exclude_unset=True)))
