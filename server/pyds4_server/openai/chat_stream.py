"""A chat answer as chunks."""

from __future__ import annotations

from collections.abc import Sequence

from pyds4.tokenizer import Tokenizer
from pyds4_server import sse
from pyds4_server.collect import add_usage, failure
from pyds4_server.events import (
    CallArguments,
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
from pyds4_server.openai import convert
from pyds4_server.openai import protocol as p


class ChatStream:
    """Encodes the updates of one streamed chat completion.

    Args:
        head: ``id``, ``created`` and ``model`` of every chunk.
        n: Number of choices.
        include_usage: End with a chunk of token counts.
        tokenizer: For log-probabilities; None when none were asked for.
        legacy: The client declared ``functions``.
        may_call: The answer may be calls only, whose content is null.
    """

    def __init__(
        self,
        head: tuple[str, int, str],
        *,
        n: int,
        include_usage: bool,
        tokenizer: Tokenizer | None,
        legacy: bool,
        may_call: bool,
    ) -> None:
        self._id, self._created, self._model = head
        self._n = n
        self._include_usage = include_usage
        self._tokenizer = tokenizer
        self._legacy = legacy
        self._first_content = None if may_call else ""
        self._usages: list[Usage] = []
        self.is_complete = False

    def begin(self, progress: Prefilled | None) -> bytes:
        """The role of every choice, at once: it is the first sign of life."""
        delta = p.Delta(role="assistant", content=self._first_content)
        return b"".join(self._chunk(choice, delta) for choice in range(self._n))

    def encode(self, updates: Sequence[Update]) -> bytes:
        """Chunks, and at the end ``[DONE]``."""
        return b"".join(self._event(update.choice, update.event) for update in updates)

    def keep_alive(self, progress: Prefilled | None) -> bytes:
        """A comment: the SDKs skip it, proxies and timeouts do not."""
        return sse.progress_comment(progress)

    def _event(self, choice: int, event: Event) -> bytes:
        if isinstance(event, Content):
            return self._content(choice, event)
        if isinstance(event, Reasoning):
            text = event.text
            return self._chunk(choice, p.Delta(reasoning_content=text, reasoning=text))
        if isinstance(event, CallStart):
            return self._call(choice, event)
        if isinstance(event, CallArguments):
            function = p.FunctionDelta(arguments=event.fragment)
            if self._legacy:
                return self._chunk(choice, p.Delta(function_call=function))
            call = p.ToolCallDelta(index=event.index, function=function)
            return self._chunk(choice, p.Delta(tool_calls=[call]))
        if isinstance(event, Finished):
            return self._finish(choice, event)
        if isinstance(event, Failed):
            self.is_complete = True
            body = convert.error_body(failure(event))
            return sse.data(body.model_dump_json()) + sse.data("[DONE]")
        return b""

    def _content(self, choice: int, event: Content) -> bytes:
        delta = p.Delta(content=event.text)
        if self._tokenizer is None:
            return self._chunk(choice, delta)
        return self._chunk(
            choice, delta, logprobs=convert.logprobs(event.logprobs, self._tokenizer)
        )

    def _call(self, choice: int, event: CallStart) -> bytes:
        function = p.FunctionDelta(name=event.name, arguments="")
        if self._legacy:
            return self._chunk(choice, p.Delta(function_call=function))
        call = p.ToolCallDelta(index=event.index, id=event.id, type="function", function=function)
        return self._chunk(choice, p.Delta(tool_calls=[call]))

    def _finish(self, choice: int, event: Finished) -> bytes:
        self._usages.append(event.usage)
        reason = convert.finish_reason(event.reason, legacy=self._legacy)
        chunks = self._chunk(choice, p.Delta(), finish_reason=reason)
        if len(self._usages) < self._n:
            return chunks
        self.is_complete = True
        if self._include_usage:
            last = self._frame([])
            last.usage = convert.usage(add_usage(self._usages))
            chunks += sse.data(last.model_dump_json(exclude_unset=True))
        return chunks + sse.data("[DONE]")

    def _chunk(
        self,
        choice: int,
        delta: p.Delta,
        *,
        finish_reason: str | None = None,
        logprobs: p.Logprobs | None = None,
    ) -> bytes:
        one = p.ChunkChoice(
            index=choice, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
        frame = self._frame([one])
        return sse.data(frame.model_dump_json(exclude_unset=True))

    def _frame(self, choices: list[p.ChunkChoice]) -> p.ChatCompletionChunk:
        return p.ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
        )
