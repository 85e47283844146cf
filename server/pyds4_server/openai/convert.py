"""Chat Completions <-> the server's own terms. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pyds4.tokenizer import Tokenizer
from pyds4_server import tools as declared_tools
from pyds4_server.conversation import Conversation
from pyds4_server.conversation import Message as Turn
from pyds4_server.errors import ApiError, InvalidRequestError
from pyds4_server.events import CallEnd, FinishReason, TokenLogprob
from pyds4_server.events import Usage as Counted
from pyds4_server.openai import protocol as p
from pyds4_server.sampling import SamplingOptions

_FINISH: dict[FinishReason, str] = {
    "stop": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "repetition": "length",
    "tool_calls": "tool_calls",
}
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def conversation(request: p.ChatRequest) -> Conversation:
    """The request as a conversation.

    Raises:
        InvalidRequestError: what cannot be answered, with the field at fault.
    """
    tools = _tools(request)
    choice, callable_names = _tool_choice(request, tools)
    thinking, effort = _thinking(request)
    return Conversation(
        messages=messages(request.messages),
        tools=tools,
        thinking=thinking,
        effort=effort,
        response_format=_response_format(request.response_format),
        is_format_strict=_is_strict(request.response_format),
        format_param="response_format.json_schema.schema",
        strict_tools=frozenset(
            tool["function"]["name"] for tool in tools if tool["function"].get("strict") is True
        ),
        tool_choice=choice,
        callable_names=callable_names,
    )


def messages(sent: Sequence[p.Message]) -> list[Turn]:
    """OpenAI's messages in the encoder's form; ``developer`` is today's system."""
    turns: list[Turn] = []
    legacy_id = ""
    for index, message in enumerate(sent):
        where = f"messages[{index}]"
        if message.role in ("system", "developer"):
            turns.append({"role": "system", "content": text(message.content, where)})
        elif message.role == "user":
            turns.append({"role": "user", "content": text(message.content, where)})
        elif message.role in ("tool", "function"):
            call_id = message.tool_call_id if message.role == "tool" else legacy_id
            content = text(message.content, where, images="placeholder")
            turns.append({"role": "tool", "tool_call_id": call_id or "", "content": content})
        else:
            turn, legacy_id = _assistant(message, where, f"call_legacy_{index}")
            turns.append(turn)
    return turns


def _assistant(message: p.Message, where: str, legacy_id: str) -> tuple[Turn, str]:
    turn: Turn = {
        "role": "assistant",
        "content": text(message.content, where) or message.refusal or "",
    }
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        turn["reasoning_content"] = reasoning
    calls = [
        {
            "id": call.id or "",
            "type": "function",
            "function": _called(call.function, f"{where}.tool_calls[{index}]"),
        }
        for index, call in enumerate(message.tool_calls or ())
    ]
    if message.function_call is not None:
        function = _called(message.function_call, f"{where}.function_call")
        calls.append({"id": legacy_id, "type": "function", "function": function})
    if calls:
        turn["tool_calls"] = calls
    return turn, legacy_id


def _called(function: p.FunctionCall, where: str) -> dict[str, Any]:
    if not function.name:
        raise InvalidRequestError(f"{where} has no function name", param=where)
    return {"name": function.name, "arguments": function.arguments or "{}"}


def text(
    content: p.Content, where: str, images: Literal["refuse", "placeholder"] = "refuse"
) -> str:
    """The text of a content field; its blocks joined by blank lines, as the template does.

    Raises:
        InvalidRequestError: a part that is not text, unless ``images`` allows a placeholder.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            parts.append(part)
        elif part.type in ("text", "input_text", "output_text"):
            parts.append(part.text or "")
        elif part.type == "refusal":
            parts.append(part.refusal or "")
        elif images == "placeholder":
            parts.append(f"[Unsupported {part.type.removesuffix('_url').removeprefix('input_')}]")
        else:
            raise InvalidRequestError(
                f"{where}.content[{index}]: this model reads text only, not {part.type!r}",
                param=f"{where}.content",
            )
    return "\n\n".join(parts)


def _tools(request: p.ChatRequest) -> list[dict[str, Any]]:
    if request.functions and not request.tools:
        return declared_tools.declared(request.functions, "functions")
    functions: list[dict[str, Any]] = []
    for index, tool in enumerate(request.tools or ()):
        if tool.type != "function" or tool.function is None:
            raise InvalidRequestError(
                f"tools[{index}]: only tools of type 'function' can be called, not {tool.type!r}",
                param=f"tools[{index}]",
            )
        functions.append(tool.function)
    return declared_tools.declared(functions, "tools")


def _tool_choice(
    request: p.ChatRequest, tools: Sequence[dict[str, Any]]
) -> tuple[Literal["auto", "none", "required"], tuple[str, ...]]:
    choice: Any = request.tool_choice
    param = "tool_choice"
    if choice is None and request.function_call is not None:
        choice, param = request.function_call, "function_call"
    if isinstance(choice, p.NamedToolChoice):
        return "required", declared_tools.chosen(tools, choice.function.name, param)
    if isinstance(choice, p.NamedFunction):
        return "required", declared_tools.chosen(tools, choice.name, param)
    if isinstance(choice, p.AllowedToolChoice):
        if choice.allowed_tools.mode == "auto":
            return "auto", ()
        named = [_allowed_name(tool) for tool in choice.allowed_tools.tools]
        allowed = [declared_tools.chosen(tools, name, param)[0] for name in named]
        return "required", declared_tools.required(allowed, param)
    if choice == "required":
        return "required", declared_tools.required(declared_tools.names(tools), param)
    return ("none", ()) if choice == "none" else ("auto", ())


def _allowed_name(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    return str(function.get("name") if isinstance(function, dict) else tool.get("name"))


def _thinking(request: p.ChatRequest) -> tuple[bool | None, str | None]:
    """Whether to think and how hard. The most explicit word wins."""
    effort = request.reasoning_effort
    kwargs = request.chat_template_kwargs
    asked: bool | None = None
    if kwargs is not None:
        asked = kwargs.thinking if kwargs.thinking is not None else kwargs.enable_thinking
    if isinstance(request.thinking, bool):
        asked = request.thinking
    elif request.thinking is not None:
        asked = request.thinking.type != "disabled"
    if effort is not None:
        if asked is None:
            asked = effort != "none"
        effort = None if effort == "none" else effort
    return asked, effort


def thinking_budget(request: p.ChatRequest) -> int | None:
    """The limit on reasoning tokens, for clients that send one."""
    thinking = request.thinking
    return thinking.budget_tokens if isinstance(thinking, p.Thinking) else None


def _response_format(sent: p.ResponseFormat | None) -> dict[str, Any] | None:
    if sent is None or sent.type == "text":
        return None
    if sent.type == "json_object":
        return {"type": "object"}
    if sent.json_schema is None or sent.json_schema.schema_ is None:
        param = "response_format.json_schema.schema"
        raise InvalidRequestError(f"{param} is missing", param=param)
    return sent.json_schema.schema_


def _is_strict(sent: p.ResponseFormat | None) -> bool:
    return bool(sent and sent.json_schema and sent.json_schema.strict)


def sampling(request: p.SamplingFields, vocab_size: int) -> SamplingOptions:
    """The sampling fields under our names.

    Raises:
        InvalidRequestError: a bias for a token the vocabulary does not have.
    """
    bias: dict[int, float] = {}
    for key, value in (request.logit_bias or {}).items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"logit_bias: {key!r} is no token id below {vocab_size}", param="logit_bias"
            )
        bias[token] = value
    return SamplingOptions(
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        logit_bias=bias,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def stop_strings(request: p.SamplingFields) -> tuple[str, ...]:
    """The stop strings; empty ones stop nothing."""
    stop = request.stop
    sent = [stop] if isinstance(stop, str) else stop or []
    return tuple(string for string in sent if string)


def finish_reason(reason: FinishReason, *, legacy: bool = False) -> str:
    """Our reason in OpenAI's words; ``legacy`` for clients of ``functions``."""
    if legacy and reason == "tool_calls":
        return "function_call"
    return _FINISH[reason]


def usage(counted: Counted) -> p.Usage:
    """The token counts."""
    return p.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=p.PromptDetails(cached_tokens=counted.cached_tokens),
        completion_tokens_details=p.CompletionDetails(reasoning_tokens=counted.reasoning_tokens),
    )


def tool_calls(calls: Sequence[CallEnd]) -> list[p.ToolCallOut]:
    """Finished calls."""
    return [
        p.ToolCallOut(
            id=call.id,
            type="function",
            function=p.FunctionOut(name=call.name, arguments=call.arguments),
        )
        for call in calls
    ]


def logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> p.Logprobs:
    """Log-probabilities with the bytes of every token."""
    content: list[p.TokenLogprob] = []
    for token in tokens:
        top = [_top(other, logprob, tokenizer) for other, logprob in token.top]
        one = _top(token.token, token.logprob, tokenizer)
        content.append(
            p.TokenLogprob(token=one.token, logprob=one.logprob, bytes=one.bytes, top_logprobs=top)
        )
    return p.Logprobs(content=content, refusal=None)


def _top(token: int, logprob: float, tokenizer: Tokenizer) -> p.TopLogprob:
    raw = tokenizer.token_bytes(token)
    return p.TopLogprob(
        token=raw.decode("utf-8", "replace"), logprob=max(logprob, -9999.0), bytes=list(raw)
    )


def error_body(error: ApiError) -> p.ErrorBody:
    """An error as OpenAI's SDKs read it."""
    kind = _ERROR_TYPES.get(error.status)
    if kind is None:
        if error.status == 429:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if error.status < 500 else "server_error"
    return p.ErrorBody(
        error=p.ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code)
    )
