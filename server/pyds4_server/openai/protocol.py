"""What OpenAI's clients send and expect, typed; no behaviour.

Fields that a client may send but that change nothing here are left out: unknown ones are ignored.
Source: OpenAI API reference, and what agents were seen to send.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """Types are taken at their word: ``"1"`` is no number."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class Reply(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ContentPart(Request):
    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | list[ContentPart | str] | None


class FunctionCall(Request):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Request):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Request):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class Tool(Request):
    """``function`` stays as it was sent: its key order is part of the prompt."""

    type: str = "function"
    function: dict[str, Any] | None = None


class NamedFunction(Request):
    name: str


class NamedToolChoice(Request):
    type: Literal["function"]
    function: NamedFunction


class AllowedToolsSpec(Request):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class AllowedToolChoice(Request):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolsSpec


class StreamOptions(Request):
    include_usage: bool = False


class Thinking(Request):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class ChatTemplateKwargs(Request):
    thinking: bool | None = None
    enable_thinking: bool | None = None


class JSONSchema(Request):
    """``schema`` stays as it was sent: the order of its properties is that of the answer."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Request):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


LogitBias = dict[str, Annotated[float, Field(ge=-100, le=100)]]


class SamplingFields(Request):
    """Shared by both completion endpoints; the last four are extensions other servers know too."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    user: str | None = None


class ChatRequest(SamplingFields):
    model: str = ""
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice | None
    ) = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    thinking: Thinking | bool | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(Reply):
    content: list[TokenLogprob]
    refusal: None = None


class FunctionOut(Reply):
    name: str
    arguments: str


class ToolCallOut(Reply):
    id: str
    type: Literal["function"] = "function"
    function: FunctionOut


class MessageOut(Reply):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallOut] | None = None
    function_call: FunctionOut | None = None


class Choice(Reply):
    index: int
    message: MessageOut
    logprobs: Logprobs | None
    finish_reason: str


class PromptDetails(Reply):
    cached_tokens: int


class CompletionDetails(Reply):
    reasoning_tokens: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None


class FunctionDelta(Reply):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Reply):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None


class ChunkChoice(Reply):
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: str | None


class ChatCompletionChunk(Reply):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    context_window: int
    max_model_len: int
    max_output_tokens: int
    capabilities: dict[str, Any]
    lifecycle: str
    max_input_tokens: int
    max_tokens: int
    display_name: str
    type: Literal["model"]
    created_at: str


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Reply):
    error: ErrorDetail


class CompletionRequest(SamplingFields):
    """``prompt`` is text, token ids, or several of either."""

    model: str = ""
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
