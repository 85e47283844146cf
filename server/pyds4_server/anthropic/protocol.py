"""What Anthropic's clients send and expect, typed; no behaviour.

Source: Anthropic API reference, and what agents were seen to send. Betas and unknown fields are
ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """Types are taken at their word: ``"1"`` is no number."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class Reply(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Block(Request):
    """A content block of any kind; which fields count depends on ``type``."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    content: str | list[Block] | dict[str, Any] | None = None
    is_error: bool | None = None
    source: dict[str, Any] | None = None
    title: str | None = None


Content = str | list[Block]


class Message(Request):
    role: Literal["user", "assistant", "system"]
    content: Content


class Tool(Request):
    """``input_schema`` stays as it was sent: its key order is part of the prompt."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    defer_loading: bool | None = None
    strict: bool | None = None


class ToolChoice(Request):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Request):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class OutputFormat(Request):
    """``output_format`` is the name it had in a beta; ``output_config.format`` is today's."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class OutputConfig(Request):
    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(Request):
    """What decides the prompt; all that ``count_tokens`` takes."""

    model: str = ""
    messages: Annotated[list[Message], Field(min_length=1)]
    system: Content | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[str], Field(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None


class TextBlock(Reply):
    type: Literal["text"]
    text: str


class ThinkingBlock(Reply):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Reply):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class Usage(Reply):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageOut(Reply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: Usage


class TokenCount(Reply):
    input_tokens: int


class MessageStart(Reply):
    type: Literal["message_start"]
    message: MessageOut


class BlockStart(Reply):
    type: Literal["content_block_start"]
    index: int
    content_block: TextBlock | ThinkingBlock | ToolUseBlock


class TextDelta(Reply):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Reply):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Reply):
    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Reply):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Reply):
    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockStop(Reply):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(Reply):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(Reply):
    type: Literal["message_delta"]
    delta: StopDelta
    usage: Usage


class MessageStop(Reply):
    type: Literal["message_stop"]


class Ping(Reply):
    type: Literal["ping"]


class ErrorDetail(Reply):
    type: str
    message: str


class ErrorBody(Reply):
    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None = None
