"""A chat request without its protocol, and the way from it to a prompt.

The converters of the protocols make a `Conversation`; what the template wants of it is decided
here once: where system messages go, which tools stand in the prefix, when the model thinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyds4.chat import Prompt, render
from pyds4.errors import RenderError
from pyds4_server.errors import InvalidRequestError

Message = dict[str, Any]
"""In the encoder's form: role, content, tool_calls, tool_call_id, reasoning_content."""

_EFFORTS: dict[str, dict[str, str | None]] = {
    "preview": {"max": "max", "ultra": "max"},
    "0731": {
        "minimal": "low",
        "low": "low",
        "medium": "high",
        "high": "high",
        "xhigh": "high",
        "max": "max",
        "ultra": "max",
    },
}
_DEFAULT_EFFORT: dict[str, str | None] = {"preview": None, "0731": "high"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat request says.

    Attributes:
        messages: Roles system, user, assistant and tool, in the client's order.
        tools: Declared tools, ``{"type": "function", "function": {…}}``, key order as sent.
        deferred: Names among ``tools`` whose schema does not stand in the prefix, because a tool
            result brings it later.
        thinking: True, False, or None when the client does not say.
        effort: The client's word for how hard to think.
        response_format: A JSON schema the answer must follow.
        is_format_strict: Refuse a schema with keywords that cannot be enforced.
        format_param: Where the request has that schema, for messages.
        strict_tools: Names of tools whose calls must follow their schemas.
        tool_choice: See ``GenerationRequest``.
        callable_names: The tools a forced call may name.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    deferred: frozenset[str] = frozenset()
    thinking: bool | None = None
    effort: str | None = None
    response_format: Mapping[str, Any] | None = None
    is_format_strict: bool = False
    format_param: str = "response_format"
    strict_tools: frozenset[str] = frozenset()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    callable_names: Sequence[str] = field(default=())

    def thinks(self, default: bool) -> bool:
        """Whether the answer begins with reasoning."""
        return default if self.thinking is None else self.thinking


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and what the parser of its answer must know.

    ``turns`` are the finished assistant messages of the prompt in order, for recognising
    remembered ones.
    """

    prompt: Prompt
    thinking: bool
    prefill: str
    turns: tuple[Message, ...]


def render_conversation(
    conversation: Conversation, *, default_thinking: bool, profile: Literal["preview", "0731"]
) -> Rendered:
    """Render a conversation.

    Raises:
        InvalidRequestError: nothing to answer, or something the template has no form for.
    """
    thinking = conversation.thinks(default_thinking)
    messages = arrange(conversation)
    if not messages or messages[-1]["role"] == "system":
        raise InvalidRequestError(
            "messages must contain at least one user, assistant or tool message", param="messages"
        )
    prefill = ""
    last = messages[-1]
    if last["role"] == "assistant":
        if last.get("tool_calls"):
            raise InvalidRequestError(
                "the last message is an assistant's with tool calls; their results must follow",
                param="messages",
            )
        messages[-1] = last | {"wo_eos": True}
        prefill = last.get("content") or ""
        if thinking:
            prefill = f"{last.get('reasoning_content') or ''}</think>{prefill}"
    try:
        prompt = render(
            messages,
            thinking_mode="thinking" if thinking else "chat",
            reasoning_effort=effort_tier(conversation.effort, profile) if thinking else None,
            profile=profile,
        )
    except RenderError as error:
        raise InvalidRequestError(str(error), param="messages") from error
    turns = tuple(
        message
        for message in messages
        if message["role"] == "assistant" and not message.get("wo_eos")
    )
    return Rendered(prompt, thinking, prefill, turns)


def arrange(conversation: Conversation) -> list[Message]:
    """The messages as the template wants them.

    System messages at the beginning become one, which carries tools and response format. A later
    one becomes user text where it stands: moved to the front it would change the prefix of
    everything after it, and left as it is it would get no header.
    """
    leading: list[str] = []
    rest: list[Message] = []
    for message in conversation.messages:
        if message["role"] != "system":
            rest.append(message)
        elif not rest:
            leading.append(message.get("content") or "")
        else:
            rest.append({"role": "user", "content": message.get("content") or ""})
    tools = [tool for tool in conversation.tools if _name(tool) not in conversation.deferred]
    if not (leading or tools or conversation.response_format):
        return rest
    system: Message = {"role": "system", "content": "\n\n".join(text for text in leading if text)}
    if tools:
        system["tools"] = tools
    if conversation.response_format:
        system["response_format"] = conversation.response_format
    return [system, *rest]


def effort_tier(effort: str | None, profile: str) -> str | None:
    """The checkpoint's tier for a client's word; unknown words mean the default."""
    if effort is None:
        return _DEFAULT_EFFORT[profile]
    return _EFFORTS[profile].get(effort, _DEFAULT_EFFORT[profile])


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])
