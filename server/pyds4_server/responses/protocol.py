"""What clients of the Responses API send and expect, typed; no behaviour.

Source: OpenAI API reference, and what Codex and the Agents SDK were seen to send.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """Types are taken at their word: ``"1"`` is no number."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class Reply(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class Part(Request):
    """A piece of content, a summary or a result. What else it says is kept for listing it."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(Request):
    """An input item of any kind; which fields count depends on ``type``."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None


class Tool(Request):
    """A tool; a ``namespace`` holds tools of its own."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: list[Tool] | None = None


class ToolChoice(Request):
    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class Reasoning(Request):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(Request):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Request):
    format: TextFormat | None = None


class CountRequest(Request):
    """What decides the prompt."""

    model: str = ""
    input: str | list[Item] | None = None
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    previous_response_id: str | None = None


class ResponsesRequest(CountRequest):
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    truncation: str | None = None
    user: str | None = None


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any] | None = None


class MessageItem(Reply):
    type: Literal["message"]
    id: str
    status: str
    role: Literal["assistant"]
    content: list[OutputText]


class SummaryText(Reply):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Reply):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Reply):
    type: Literal["reasoning"]
    id: str
    summary: list[SummaryText]
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: str | None = None


class FunctionCallItem(Reply):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: str
    namespace: str | None = None


class CustomCallItem(Reply):
    type: Literal["custom_tool_call"]
    id: str
    call_id: str
    name: str
    input: str
    status: str
    namespace: str | None = None


OutputItem = MessageItem | ReasoningItem | FunctionCallItem | CustomCallItem


class InputDetails(Reply):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Reply):
    reasoning_tokens: int


class Usage(Reply):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Reply):
    reason: Literal["max_output_tokens"]


class ErrorOut(Reply):
    code: str
    message: str


class ReasoningOut(Reply):
    effort: str | None
    summary: str | None


class Response(Reply):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ErrorOut | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningOut
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: Usage | None
    user: str | None


class InputTokens(Reply):
    object: Literal["response.input_tokens"]
    input_tokens: int


class Deleted(Reply):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(Reply):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: Literal[False]
