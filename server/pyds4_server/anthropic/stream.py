"""A message as events.

::

    message_start  ping  { content_block_start  content_block_delta…  content_block_stop }…
    message_delta  message_stop

Blocks never interleave; a block is closed before the next one opens, and always before the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from pyds4_server import sse
from pyds4_server.anthropic import convert
from pyds4_server.anthropic import protocol as p
from pyds4_server.collect import failure
from pyds4_server.events import (
    CallAborted,
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Failed,
    Finished,
    Prefilled,
    Reasoning,
    Update,
    Usage,
)

_Kind = Literal["text", "thinking", "tool_use"]
_Delta = p.TextDelta | p.ThinkingDelta | p.SignatureDelta | p.InputJsonDelta


class MessageStream:
    """Encodes the updates of one streamed message.

    Args:
        identity: The message's id.
        model: The model as the client named it.
        prompt_tokens: For ``message_start``; ``message_delta`` has the last word.
    """

    def __init__(self, identity: str, model: str, prompt_tokens: int) -> None:
        self._id = identity
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._index = -1
        self._open: _Kind | None = None
        self._thought = 0
        self.is_complete = False

    def begin(self, progress: Prefilled | None) -> bytes:
        """``message_start`` and a first ping."""
        cached = progress.cached if progress else 0
        message = p.MessageOut(
            id=self._id,
            type="message",
            role="assistant",
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=convert.usage(Usage(self._prompt_tokens, cached, 0, 0)),
        )
        return _frame(p.MessageStart(type="message_start", message=message)) + _PING

    def encode(self, updates: Sequence[Update]) -> bytes:
        """Events, and at the end ``message_stop``."""
        return b"".join(self._event(update.event) for update in updates)

    def keep_alive(self, progress: Prefilled | None) -> bytes:
        """A ping, which the SDKs count as an event, and the prefill for who can read it."""
        return _PING + (sse.progress_comment(progress) if self._index < 0 else b"")

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Content):
            delta = p.TextDelta(type="text_delta", text=event.text)
            return self._ensure("text") + self._delta(delta)
        if isinstance(event, Reasoning):
            self._thought += len(event.text)
            thought = p.ThinkingDelta(type="thinking_delta", thinking=event.text)
            return self._ensure("thinking") + self._delta(thought)
        if isinstance(event, CallStart):
            block = p.ToolUseBlock(type="tool_use", id=event.id, name=event.name, input={})
            return self._close() + self._start("tool_use", block)
        if isinstance(event, CallArguments):
            return self._delta(
                p.InputJsonDelta(type="input_json_delta", partial_json=event.fragment)
            )
        if isinstance(event, CallEnd | CallAborted):
            return self._close()
        if isinstance(event, Finished):
            return self._finish(event)
        if isinstance(event, Failed):
            self.is_complete = True
            return self._close() + sse.named(
                "error", convert.error_body(failure(event)).model_dump_json(exclude_none=True)
            )
        return b""

    def _ensure(self, kind: Literal["text", "thinking"]) -> bytes:
        """Open a block of this kind, unless it is the open one."""
        if self._open == kind:
            return b""
        if kind == "text":
            return self._close() + self._start(kind, p.TextBlock(type="text", text=""))
        block = p.ThinkingBlock(type="thinking", thinking="", signature="")
        return self._close() + self._start(kind, block)

    def _start(self, kind: _Kind, block: p.TextBlock | p.ThinkingBlock | p.ToolUseBlock) -> bytes:
        self._index += 1
        self._open = kind
        return _frame(
            p.BlockStart(type="content_block_start", index=self._index, content_block=block)
        )

    def _delta(self, delta: _Delta) -> bytes:
        return _frame(p.BlockDelta(type="content_block_delta", index=self._index, delta=delta))

    def _close(self) -> bytes:
        """End the open block; a thinking block gets its signature first."""
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            mark = convert.signature("x" * self._thought)
            signed = self._delta(p.SignatureDelta(type="signature_delta", signature=mark))
            self._thought = 0
        self._open = None
        return signed + _frame(p.BlockStop(type="content_block_stop", index=self._index))

    def _finish(self, event: Finished) -> bytes:
        self.is_complete = True
        delta = p.StopDelta(
            stop_reason=convert.stop_reason(event), stop_sequence=event.stop_sequence
        )
        return (
            self._close()
            + _frame(
                p.MessageDelta(type="message_delta", delta=delta, usage=convert.usage(event.usage))
            )
            + _frame(p.MessageStop(type="message_stop"))
        )


def _frame(body: BaseModel) -> bytes:
    kind: str = body.type  # type: ignore[attr-defined]
    return sse.named(kind, body.model_dump_json())


_PING = _frame(p.Ping(type="ping"))
