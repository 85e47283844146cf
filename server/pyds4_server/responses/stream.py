"""A response as events.

::

    response.created  response.in_progress
    { output_item.added  { part.added  delta…  done  part.done }  output_item.done }…
    response.completed │ response.incomplete │ response.failed

Codex acts on ``output_item.done``, so a call that broke off never gets one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from pyds4.tokenizer import Tokenizer
from pyds4_server import sse
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
)
from pyds4_server.openai import convert as openai
from pyds4_server.responses import convert
from pyds4_server.responses import protocol as p
from pyds4_server.responses.builder import ResponseBuilder, new_id


class ResponseStream:
    """Encodes the updates of one streamed response.

    Args:
        builder: Its response object.
        tokenizer: For log-probabilities; None when none were asked for.
        on_end: Called with the finished response.
    """

    def __init__(
        self,
        builder: ResponseBuilder,
        tokenizer: Tokenizer | None,
        on_end: Callable[[p.Response], None],
    ) -> None:
        self._builder = builder
        self._tokenizer = tokenizer
        self._on_end = on_end
        self._sequence = 0
        self._open: p.OutputItem | None = None
        self._parts: list[str] = []
        self._logprobs: list[Any] = []
        self.is_complete = False

    def begin(self, progress: Prefilled | None) -> bytes:
        """The response exists and is being worked on."""
        return self._whole("response.created") + self._whole("response.in_progress")

    def encode(self, updates: Sequence[Update]) -> bytes:
        """Events, and at the end the response as it turned out."""
        return b"".join(self._event(update.event) for update in updates)

    def keep_alive(self, progress: Prefilled | None) -> bytes:
        """Codex counts events, not comments: say again that it is in progress."""
        return self._whole("response.in_progress") + sse.progress_comment(progress)

    # Events

    def _event(self, event: Event) -> bytes:
        if isinstance(event, Content):
            return self._content(event)
        if isinstance(event, Reasoning):
            return self._reasoning(event)
        if isinstance(event, CallStart):
            return self._call_start(event)
        if isinstance(event, CallArguments):
            return self._call_arguments(event)
        if isinstance(event, CallEnd):
            return self._call_end(event)
        if isinstance(event, CallAborted):
            self._open = None
            return b""
        if isinstance(event, Finished):
            closed = self._close()
            self._builder.finish(event)
            return closed + self._end()
        if isinstance(event, Failed):
            self._builder.fail(event)
            return self._end()
        return b""

    def _end(self) -> bytes:
        self.is_complete = True
        response = self._builder.response
        self._on_end(response)
        return self._whole(f"response.{response.status}")

    # Text

    def _content(self, event: Content) -> bytes:
        opened = b""
        if not isinstance(self._open, p.MessageItem):
            item = p.MessageItem(
                type="message",
                id=new_id("msg"),
                status="in_progress",
                role="assistant",
                content=[],
            )
            opened = self._close() + self._add(item)
            opened += self._on_part("response.content_part.added", _text_part(""), item.id)
        assert self._open is not None
        self._parts.append(event.text)
        logprobs: list[Any] = []
        if self._tokenizer is not None:
            content = openai.logprobs(event.logprobs, self._tokenizer).content
            logprobs = [json.loads(token.model_dump_json()) for token in content]
            self._logprobs += logprobs
        return opened + self._send(
            "response.output_text.delta",
            item_id=self._open.id,
            content_index=0,
            delta=event.text,
            logprobs=logprobs,
        )

    def _reasoning(self, event: Reasoning) -> bytes:
        opened = b""
        if not isinstance(self._open, p.ReasoningItem):
            item = p.ReasoningItem(type="reasoning", id=new_id("rs"), summary=[])
            opened = self._close() + self._add(item)
            opened += self._reasoning_part("added", "")
        self._parts.append(event.text)
        return opened + self._reasoning_text("delta", delta=event.text)

    def _reasoning_part(self, what: str, text: str) -> bytes:
        assert self._open is not None
        if self._builder.summarises:
            return self._send(
                f"response.reasoning_summary_part.{what}",
                item_id=self._open.id,
                summary_index=0,
                part={"type": "summary_text", "text": text},
            )
        part = {"type": "reasoning_text", "text": text}
        return self._on_part(f"response.content_part.{what}", part, self._open.id)

    def _reasoning_text(self, what: str, **fields: Any) -> bytes:
        assert self._open is not None
        if self._builder.summarises:
            kind, index = "reasoning_summary_text", {"summary_index": 0}
        else:
            kind, index = "reasoning_text", {"content_index": 0}
        return self._send(f"response.{kind}.{what}", item_id=self._open.id, **index, **fields)

    # Calls

    def _call_start(self, event: CallStart) -> bytes:
        call = CallEnd(event.index, event.id, event.name, "{}")
        item = convert.call_item(call, new_id("fc"), self._builder.names)
        item.status = "in_progress"
        if isinstance(item, p.FunctionCallItem):
            item.arguments = ""
        return self._close() + self._add(item)

    def _call_arguments(self, event: CallArguments) -> bytes:
        if not isinstance(self._open, p.FunctionCallItem):
            return b""
        return self._send(
            "response.function_call_arguments.delta", item_id=self._open.id, delta=event.fragment
        )

    def _call_end(self, event: CallEnd) -> bytes:
        assert self._open is not None
        item = convert.call_item(event, self._open.id, self._builder.names)
        if isinstance(item, p.CustomCallItem):
            sent = self._send(
                "response.custom_tool_call_input.delta", item_id=item.id, delta=item.input
            ) + self._send(
                "response.custom_tool_call_input.done", item_id=item.id, input=item.input
            )
        else:
            sent = self._send(
                "response.function_call_arguments.done",
                item_id=item.id,
                name=item.name,
                arguments=event.arguments,
            )
        return sent + self._done(item)

    # Items

    def _add(self, item: p.OutputItem) -> bytes:
        self._open = item
        self._parts.clear()
        self._logprobs = []
        return self._send("response.output_item.added", item=_plain(item))

    def _close(self) -> bytes:
        """End the open message or reasoning; a call that is still open broke off."""
        item, text = self._open, "".join(self._parts)
        if isinstance(item, p.MessageItem):
            done = self._builder.message_item(item.id, text, self._logprobs)
            return (
                self._send(
                    "response.output_text.done",
                    item_id=item.id,
                    content_index=0,
                    text=text,
                    logprobs=self._logprobs,
                )
                + self._on_part(
                    "response.content_part.done", _text_part(text, self._logprobs), item.id
                )
                + self._done(done)
            )
        if isinstance(item, p.ReasoningItem):
            sent = self._reasoning_text("done", text=text) + self._reasoning_part("done", text)
            return sent + self._done(self._builder.reasoning_item(item.id, text))
        self._open = None
        return b""

    def _done(self, item: p.OutputItem) -> bytes:
        sent = self._send("response.output_item.done", item=_plain(item))
        self._builder.response.output.append(item)
        self._open = None
        return sent

    def _on_part(self, kind: str, part: dict[str, Any], item_id: str) -> bytes:
        return self._send(kind, item_id=item_id, content_index=0, part=part)

    def _send(self, kind: str, **fields: Any) -> bytes:
        body = {
            "type": kind,
            "sequence_number": self._sequence,
            "output_index": len(self._builder.response.output),
        } | fields
        self._sequence += 1
        return sse.named(kind, json.dumps(body, ensure_ascii=False))

    def _whole(self, kind: str) -> bytes:
        body = {
            "type": kind,
            "sequence_number": self._sequence,
            "response": _plain(self._builder.response),
        }
        self._sequence += 1
        return sse.named(kind, json.dumps(body, ensure_ascii=False))


def _plain(body: BaseModel) -> Any:
    return body.model_dump(mode="json", exclude_unset=True)


def _text_part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}
