"""Messages <-> the server's own terms. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pyds4_server import tools as declared_tools
from pyds4_server.anthropic import protocol as p
from pyds4_server.collect import Answer
from pyds4_server.conversation import Conversation
from pyds4_server.conversation import Message as Turn
from pyds4_server.errors import ApiError, InvalidRequestError, PromptTooLongError
from pyds4_server.events import CallEnd, Finished, FinishReason
from pyds4_server.events import Usage as Counted

BILLING_HEADER = "x-anthropic-billing-header:"
"""Begins a system block of Claude Code that changes with every request."""

_STOP: dict[FinishReason, str] = {
    "stop": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "repetition": "max_tokens",
    "tool_calls": "tool_use",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "overloaded_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_SERVER_BLOCKS = (
    "redacted_thinking",
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "tool_search_tool_result",
    "container_upload",
    "mcp_tool_use",
    "mcp_tool_result",
)


def conversation(request: p.CountRequest) -> Conversation:
    """The request as a conversation.

    Raises:
        InvalidRequestError: what cannot be answered, with the field at fault.
    """
    tools, deferred = _tools(request.tools or ())
    choice, callable_names = _tool_choice(request.tool_choice, tools)
    config = request.output_config
    schema, format_param = _response_format(request)
    schemas = {tool["function"]["name"]: tool["function"] for tool in tools}
    messages = _system(request.system)
    for index, message in enumerate(request.messages):
        messages += _message(message, f"messages.{index}", schemas)
    return Conversation(
        messages=messages,
        tools=tools,
        deferred=deferred,
        thinking=None if request.thinking is None else request.thinking.type != "disabled",
        effort=config.effort if config else None,
        response_format=schema,
        is_format_strict=True,
        format_param=format_param,
        strict_tools=frozenset(tool.name for tool in request.tools or () if tool.strict),
        tool_choice=choice,
        callable_names=callable_names,
    )


def _response_format(request: p.CountRequest) -> tuple[dict[str, Any] | None, str]:
    """The schema of the answer, and where it stands."""
    config = request.output_config
    sent, param = config.format if config else None, "output_config.format.schema"
    if sent is None:
        sent, param = request.output_format, "output_format.schema"
    if sent is not None and sent.schema_ is None:
        raise InvalidRequestError(f"{param}: Field required", param=param)
    return (sent.schema_ if sent else None), param


def _system(system: p.Content | None) -> list[Turn]:
    """The system prompt, without what Claude Code changes in it with every request."""
    if system is None:
        return []
    blocks = [system] if isinstance(system, str) else [block.text or "" for block in system]
    kept = [text for text in blocks if text and not text.startswith(BILLING_HEADER)]
    return [{"role": "system", "content": "\n\n".join(kept)}] if kept else []


def _message(message: p.Message, where: str, schemas: Mapping[str, Any]) -> list[Turn]:
    """One message; a user's tool results become messages of their own, in order."""
    blocks = message.content
    if isinstance(blocks, str):
        return [{"role": message.role, "content": blocks}]
    if message.role == "assistant":
        return [_assistant(blocks, where)]
    turns: list[Turn] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        if block.type == "tool_result":
            _flush(turns, message.role, texts)
            turns.append(
                {
                    "role": "tool",
                    "tool_call_id": block.tool_use_id or "",
                    "content": _result(block.content, schemas),
                }
            )
        elif block.type not in _SERVER_BLOCKS:
            texts.append(_text(block, f"{where}.content.{index}"))
    _flush(turns, message.role, texts)
    return turns or [{"role": message.role, "content": ""}]


def _flush(turns: list[Turn], role: str, texts: list[str]) -> None:
    if texts:
        turns.append({"role": role, "content": "\n\n".join(texts)})
        texts.clear()


def _assistant(blocks: Sequence[p.Block], where: str) -> Turn:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        if block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            place = f"{where}.content.{index}"
            if not block.name:
                raise InvalidRequestError(f"{place}.name: Field required", param=place)
            if not isinstance(block.input, dict | None):
                raise InvalidRequestError(f"{place}.input: must be an object", param=place)
            function = {"name": block.name, "arguments": block.input or {}}
            calls.append({"id": block.id or "", "type": "function", "function": function})
        elif block.type not in _SERVER_BLOCKS:
            texts.append(_text(block, f"{where}.content.{index}"))
    turn: Turn = {"role": "assistant", "content": "\n\n".join(text for text in texts if text)}
    if any(thoughts):
        turn["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    return turn


def _text(block: p.Block, where: str) -> str:
    """The text of a block.

    Raises:
        InvalidRequestError: an image or another thing this model cannot read.
    """
    if block.type == "text":
        return block.text or ""
    if block.type in ("document", "search_result"):
        text = _document(block)
        if text is not None:
            return text
    raise InvalidRequestError(
        f"{where}: this model reads text only, not {block.type!r}", param=where
    )


def _document(block: p.Block) -> str | None:
    """The text of a document that holds text, under its title."""
    source = block.source or {}
    text: str | None = None
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        text = source["data"]
    elif isinstance(block.content, list):
        text = "\n\n".join(part.text or "" for part in block.content)
    if text is None:
        return None
    return f"{block.title}\n\n{text}" if block.title else text


def _result(content: Any, schemas: Mapping[str, Any]) -> str:
    """A tool result as text. What is not text is named; tools that it loads are spelled out."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else [p.Block.model_validate(content)]
    parts: list[str] = []
    for block in blocks:
        if block.type == "text":
            parts.append(block.text or "")
        elif block.type == "tool_reference":
            schema = schemas.get(block.tool_name or "")
            shown = json.dumps(schema, ensure_ascii=False) if schema else block.tool_name
            parts.append(f"Tool available now: {shown}")
        else:
            text = _document(block) if block.type in ("document", "search_result") else None
            parts.append(text if text is not None else f"[Unsupported {block.type}]")
    return "\n\n".join(parts)


def _tools(sent: Sequence[p.Tool]) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Declared tools, and which of them wait for a reference. Server-side tools are left out."""
    functions: list[dict[str, Any]] = []
    deferred: set[str] = set()
    for tool in sent:
        if tool.input_schema is None and tool.type not in (None, "custom"):
            continue
        function: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        function["parameters"] = tool.input_schema or {"type": "object", "properties": {}}
        functions.append(function)
        if tool.defer_loading:
            deferred.add(tool.name)
    return declared_tools.declared(functions, "tools"), frozenset(deferred)


def _tool_choice(
    choice: p.ToolChoice | None, tools: Sequence[dict[str, Any]]
) -> tuple[Literal["auto", "none", "required"], tuple[str, ...]]:
    if choice is None or choice.type == "auto":
        return "auto", ()
    if choice.type == "none":
        return "none", ()
    if choice.type == "any":
        return "required", declared_tools.required(declared_tools.names(tools), "tool_choice")
    return "required", declared_tools.chosen(tools, choice.name or "", "tool_choice.name")


def usage(counted: Counted) -> p.Usage:
    """The token counts; ``input_tokens`` leaves out what was cached."""
    return p.Usage(
        input_tokens=counted.prompt_tokens - counted.cached_tokens,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=counted.cached_tokens,
        output_tokens=counted.completion_tokens,
    )


def stop_reason(finished: Finished) -> str:
    """Our reason in Anthropic's words."""
    return _STOP[finished.reason]


def signature(reasoning: str) -> str:
    """An opaque mark for a thinking block. Clients only want it not to be empty."""
    return f"pyds4-{len(reasoning):x}"


def blocks(answer: Answer) -> list[p.TextBlock | p.ThinkingBlock | p.ToolUseBlock]:
    """An answer's content in the order it was made."""
    made: list[p.TextBlock | p.ThinkingBlock | p.ToolUseBlock] = []
    if answer.reasoning:
        made.append(
            p.ThinkingBlock(
                type="thinking",
                thinking=answer.reasoning,
                signature=signature(answer.reasoning),
            )
        )
    if answer.content:
        made.append(p.TextBlock(type="text", text=answer.content))
    made += [tool_use(call) for call in answer.calls]
    return made


def tool_use(call: CallEnd) -> p.ToolUseBlock:
    """One call."""
    return p.ToolUseBlock(
        type="tool_use", id=call.id, name=call.name, input=json.loads(call.arguments)
    )


def status(error: ApiError) -> int:
    """Anthropic's clients know overload as 529."""
    return 529 if error.status in (429, 503) else error.status


def error_body(error: ApiError) -> p.ErrorBody:
    """An error as Anthropic's SDKs read it."""
    message = error.message
    if isinstance(error, PromptTooLongError):
        message = f"prompt is too long: {error.prompt_tokens} tokens > {error.limit} maximum"
    kind = _ERROR_TYPES.get(error.status)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
    return p.ErrorBody(type="error", error=p.ErrorDetail(type=kind, message=message))
